"""Synthetic rows as a folder that the Hugging Face hub takes as it is: Parquet and a data set card.

Everything in it is a function of the released generator and of public facts
(:attr:`fedsim.results.generators.GeneratorFacts.public`).
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
from fedsim.report.tables import markdown_text
from fedsim.results.generators import SCALE, SavedGenerator

DATA_FILE = "data/train-00000-of-00001.parquet"
LICENCE_IDS = {
    f"CC {terms} 4.0": f"cc-{terms.lower()}-4.0" for terms in ("BY", "BY-NC", "BY-SA", "BY-NC-SA")
}
"""The hub's names of licences."""
NO_LICENCE = "not known to fedsim: add that of the data set which the generator was trained on"


def write_hub_folder(
    generator: SavedGenerator, out: Path | str, per_class: int = 200, seed: int | None = None
) -> dict[str, Any]:
    """Write ``README.md`` and one Parquet file of ``per_class`` rows a class into a new or empty
    folder; returns their manifest.
    """
    out = Path(out)
    generator.facts.check_release()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out {out}", "is there and not empty", "give a new folder")
    x, y = generator.synthesise(per_class, seed)
    manifest = generator.manifest(per_class, seed)
    names = manifest["class_names"] or list(map(str, range(generator.facts.task.classes)))
    _write_parquet(out / DATA_FILE, x, y, names, manifest)
    with replaced(out / "README.md") as part:
        part.write_text(_card(generator, manifest, names, x.shape), encoding="utf-8")
    return manifest


def _write_parquet(
    path: Path,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    names: Sequence[str],
    manifest: Mapping[str, Any],
) -> None:
    """Rows ``[n, d]``, labels ``[n]`` and the classes' names as the hub shows them; equal content
    gives equal bytes.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise not_installed("format", "pyarrow", "hf") from error
    rows = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(x, np.float32).reshape(-1)), x.shape[1]
    )
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
    table = pa.table({"embedding": rows, "label": pa.array(y)}).replace_schema_metadata(notes)
    with replaced(path) as part:
        parquet.write_table(table, part)


def _card(
    generator: SavedGenerator, manifest: dict[str, Any], names: list[str], shape: tuple[int, ...]
) -> str:
    from huggingface_hub import DatasetCardData

    facts = generator.facts
    text = markdown_text
    cell, (licence, source) = facts.cell, facts.cell.dataset.terms
    identifier = LICENCE_IDS.get(licence, "other" if licence else "unknown")
    title = f"Synthetic {cell.dataset.display} by {cell.label}"
    head = DatasetCardData(
        pretty_name=title,
        license=identifier,
        license_name=licence.lower().replace(" ", "-") if identifier == "other" else None,
        tags=["synthetic", "differential-privacy", "federated-learning", "embeddings", "fedsim"],
        task_categories=["tabular-classification"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": DATA_FILE}]}],
    )
    (statement,) = statements([facts.public.row])
    covered = [
        f"- **{text(term)}**: {text(words)}"
        for term, words in statement.parts
        if term != "not covered"
    ]
    uncovered = [
        f"- {text(words)}"
        for term, sentence in statement.parts
        if term == "not covered"
        for words in sentence.split("; ")
    ]
    class_names = ", ".join(map(text, names))
    data_name = text(cell.dataset.display)
    if source:
        data_source = f" ({text(source)})"
    else:
        data_source = ""
    synthesis = text(str(manifest["synthesis"] or "the one way that the method has"))
    return f"""---
{head.to_yaml()}
---

# {text(title)}

{shape[0]} synthetic embeddings of {shape[1]} dimensions and {len(names)} classes \
({class_names}), {manifest["per_class"]} a class, drawn from a generator trained by \
{text(cell.label)} on {data_name}, held by {cell.clients} clients. \
They are draws of a model, and no rows of that data set.

Their scale is {SCALE}: scale real embeddings to norm 1 before you put them beside these.

## Privacy

What is said here is of the generator; drawing rows from it costs nothing more.

{chr(10).join(covered)}

### Not covered

{chr(10).join(uncovered)}

## Source and licence

Trained on {data_name}{data_source}. Licence of that data set: {text(licence or NO_LICENCE)}.

## How it was made

- method: {text(cell.label)} ({text(lookup(cell.algorithm).source)})
- synthesis: {synthesis}; seed of the draw {manifest["seed"]}
- tensors of the generator: SHA-256 `{manifest["tensors_sha256"]}`
- vouched for {text(manifest["vouched"])}
- fedsim {__version__}; the manifest is in the Parquet file's metadata, under the key `fedsim`
"""
