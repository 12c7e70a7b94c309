"""Writes synthetic examples for the Hugging Face hub: a Parquet file and a data set card.

Everything in the folder is a function of the released generator and of public facts
(:attr:`fedsim.results.generators.GeneratorFacts.public`). So the folder may be published under the
generator's epsilon.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim import __version__
from fedsim.errors import UserError, not_installed
from fedsim.files import replaced
from fedsim.plugins.registry import lookup
from fedsim.report.statement import statements
from fedsim.report.table import markdown_text
from fedsim.results.generators import SCALE, SavedGenerator

DATA_FILE = "data/train-00000-of-00001.parquet"
"""The path of the Parquet file in the folder, by the naming rule of the hub."""
LICENCE_IDS = {
    f"CC {terms} 4.0": f"cc-{terms.lower()}-4.0" for terms in ("BY", "BY-NC", "BY-SA", "BY-NC-SA")
}
"""The hub's identifier of each licence, by its name in fedsim."""
NO_LICENCE = "not known to fedsim; add the licence of the real data"
"""The card's text if the licence of the real data is not known."""


def write_hub_folder(
    generator: SavedGenerator, out: Path | str, per_class: int = 200, seed: int | None = None
) -> dict[str, Any]:
    """Write synthetic examples and their card into a folder, and return their manifest.

    The manifest says how the examples were drawn, and from which generator.

    Args:
        generator: A saved generator that may be released.
        out: A new or empty folder, for ``README.md`` and one Parquet file.
        per_class: The number of synthetic examples per class.
        seed: The seed of the draw; default: a random one.

    Raises:
        UserError: The generator may not be released, the folder is not empty, or ``pyarrow`` is
            not installed.
    """
    out = Path(out)
    generator.facts.check_release()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"out {out}",
            "is neither a new folder nor an empty one",
            "give a folder that does not exist, or that is empty",
        )
    x, y = generator.synthesise(per_class, seed)
    manifest = generator.manifest(per_class, seed)
    names = manifest["class_names"] or list(map(str, range(generator.facts.task.classes)))
    _write_parquet(out / DATA_FILE, x, y, names, manifest)
    with replaced(out / "README.md") as temporary:
        temporary.write_text(
            _card(generator, manifest, names, x.shape),
            encoding="utf-8",
        )
    return manifest


def _write_parquet(
    path: Path,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    names: Sequence[str],
    manifest: Mapping[str, Any],
) -> None:
    """Write synthetic examples as a Parquet file; equal content gives equal bytes.

    Args:
        path: The file.
        x: The embeddings, shape ``[n, d]``.
        y: Their labels, shape ``[n]``.
        names: The name of each class, which the hub shows instead of its number.
        manifest: How the examples were made; it is written into the file's metadata.

    Raises:
        UserError: ``pyarrow`` is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise not_installed("format", "pyarrow", "hf") from error
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    features = {
        "embedding": {
            "feature": {"dtype": "float32", "_type": "Value"},
            "length": x.shape[1],
            "_type": "Sequence",
        },
        "label": {"names": list(names), "_type": "ClassLabel"},
    }
    notes = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "fedsim": json.dumps(manifest),
    }
    table = pa.table({"embedding": embeddings, "label": pa.array(y)})
    with replaced(path) as temporary:
        parquet.write_table(table.replace_schema_metadata(notes), temporary)


def _front_matter(title: str, licence: str) -> str:
    """Return the YAML at the top of a card, by which the hub lists and loads the data set.

    Args:
        title: The title of the data set.
        licence: The licence of the real data in words; empty if it is not known.
    """
    from huggingface_hub import DatasetCardData

    identifier = "unknown"
    name = None
    if licence in LICENCE_IDS:
        identifier = LICENCE_IDS[licence]
    elif licence:
        identifier = "other"
        name = licence.lower().replace(" ", "-")
    card = DatasetCardData(
        pretty_name=title,
        license=identifier,
        license_name=name,
        tags=["synthetic", "differential-privacy", "federated-learning", "embeddings", "fedsim"],
        task_categories=["tabular-classification"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": DATA_FILE}]}],
    )
    return str(card.to_yaml())


def _card(
    generator: SavedGenerator, manifest: dict[str, Any], names: list[str], shape: tuple[int, ...]
) -> str:
    """Return the card as Markdown: the data, its privacy statement, its source and its making.

    Args:
        generator: The generator.
        manifest: How the examples were made.
        names: The names of the classes.
        shape: The number of synthetic examples, and of the dimensions of an embedding.
    """
    text = markdown_text
    cell = generator.facts.cell
    licence, source = cell.dataset.terms
    title = f"Synthetic {cell.dataset.display} by {cell.label}"
    (statement,) = statements([generator.facts.public.row])
    covered = []
    uncovered = []
    for term, sentence in statement.parts:
        if term == "not covered":
            uncovered += [f"- {text(words)}" for words in sentence.split("; ")]
        else:
            covered.append(f"- **{text(term)}**: {text(sentence)}")
    class_names = ", ".join(map(text, names))
    data_name = text(cell.dataset.display)
    data_source = ""
    if source:
        data_source = f" ({text(source)})"
    synthesis = text(str(manifest["synthesis"] or "the only one of the method"))
    return f"""---
{_front_matter(title, licence)}
---

# {text(title)}

{shape[0]} synthetic embeddings of {shape[1]} dimensions and {len(names)} classes \
({class_names}), {manifest["per_class"]} per class. They were drawn from a generator that \
{text(cell.label)} trained on {data_name}, which was divided among {cell.clients} clients. \
None of them is an example of that data set.

Their scale is {SCALE}. Scale real embeddings to norm 1 before you compare them with these.

## Privacy

These statements are about the generator. Drawing examples from it costs no further privacy.

{chr(10).join(covered)}

### Not covered

{chr(10).join(uncovered)}

## Source and licence

Trained on {data_name}{data_source}. Licence of that data set: {text(licence or NO_LICENCE)}.

## How it was made

- method: {text(cell.label)} ({text(lookup(cell.algorithm).source)})
- synthesis: {synthesis}; seed of the draw {manifest["seed"]}
- tensors of the generator: SHA-256 `{manifest["tensors_sha256"]}`
- confirmed {text(manifest["vouched"])}
- fedsim {__version__}; the manifest is in the Parquet file's metadata, under the key `fedsim`
"""
