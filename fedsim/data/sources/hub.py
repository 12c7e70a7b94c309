"""Data sets of the Hugging Face hub, or in a local folder of its format, through the ``datasets`` package (extra ``hf``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.images import Images, ImageSet
from fedsim.data.sources.files import class_labels, texts
from fedsim.data.split import TEST, TRAIN, WORDS, quarter_for_testing
from fedsim.errors import UserError, not_installed


def load_hub(dataset: str, name: str) -> ImageSet:
    """Read a data set with one image column and one label column (``label`` or a class label); scalar columns are kept.

    A missing text is an empty one. Its own train, validation and test splits are used; a set without a test split gets a fixed stratified
    quarter of its rows for testing.
    """
    try:
        import datasets
    except ImportError as error:
        raise not_installed("", "datasets", extra="hf") from error
    try:
        held = datasets.load_dataset(dataset)
    except Exception as error:  # any of the hub's, the network's and the builders' errors
        what = f"'{dataset}' cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        hint = f"download it where there is a network (`hf download {dataset} --repo-type dataset`) and give hf:FOLDER"
        raise UserError("", what, hint) from error
    parts = {WORDS[key]: held[key] for key in held if key in WORDS}
    if TRAIN not in parts:
        raise UserError("", f"'{dataset}' has no train split, only {', '.join(held)}", "choose a set that has one")
    parts = parts if TEST in parts else {TRAIN: parts[TRAIN]}
    features = parts[TRAIN].features
    image = _only("image", [key for key, feature in features.items() if isinstance(feature, datasets.Image)])
    label = "label" if "label" in features else _only("label", [k for k, f in features.items() if isinstance(f, datasets.ClassLabel)])
    tables = [parts[part].cast_column(image, datasets.Image(decode=False)) for part in sorted(parts)]
    frame = datasets.concatenate_datasets([table.remove_columns(image) for table in tables]).to_pandas()
    numbered = isinstance(features[label], datasets.ClassLabel)
    unlabelled = frame[label].isna() | (frame[label] < 0 if numbered else frame[label] == "")  # -1 is how the hub has a hidden label
    if count := int(unlabelled.sum()):
        raise UserError("", f"column '{label}' has no label in {count} of {len(frame)} rows", "choose a set whose rows are all labelled")
    y, names = class_labels(frame[label])
    if numbered:
        names = tuple(features[label].names[int(value)] for value in names)
    split = np.repeat(sorted(parts), [len(table) for table in tables])
    split = split if TEST in parts else quarter_for_testing(y, names)
    columns = {key: frame[key].to_numpy() for key in frame if key != label and frame[key].dtype.kind in "iufb"}
    columns |= {key: texts(frame[key]) for key in frame if str(getattr(features[key], "dtype", "")) == "string"}
    return ImageSet(name, HubImages(tables, image, dataset), np.arange(len(y)), y, split, names, columns)


def _only(kind: str, held: list[str]) -> str:
    if len(held) != 1:
        raise UserError("", f"there are {len(held)} {kind} columns", f"choose a set with one {kind} column")
    return held[0]


class HubImages(Images):
    """The encoded images of a loaded data set, whose splits are counted one after another."""

    def __init__(self, tables: Sequence[Any], column: str, dataset: str) -> None:
        self.tables, self.column, self.dataset = list(tables), column, dataset
        self.starts = np.cumsum([0, *(len(table) for table in tables)])

    def source(self, row: int) -> bytes:
        """The content of its file."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        held = self.tables[part][row - int(self.starts[part])][self.column]
        return Path(held["path"]).read_bytes() if held["bytes"] is None else bytes(held["bytes"])

    def name(self, row: int) -> str:
        """The data set and the row."""
        return f"{self.dataset}[{row}]"
