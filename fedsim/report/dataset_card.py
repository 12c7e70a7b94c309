"""Synthetic rows as a folder that the Hugging Face hub takes as it is: Parquet, a data set card, and Croissant metadata.

Everything in the folder is a function of the released generator and of public facts (:func:`fedsim.results.generators.row_of_facts`).
"""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from fedsim import __version__
from fedsim.data.arrays import write_parquet
from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.plugins.registry import lookup
from fedsim.report.statement import public_sentence, statements
from fedsim.report.typeset import markdown_text
from fedsim.results.generators import RELEASE_HINT, SavedGenerator, row_of_facts
from fedsim.words import at_most, number

DATA_FILE = "data/train-00000-of-00001.parquet"
CARD_FILE, CROISSANT_FILE = "README.md", "croissant.json"
LICENCE_IDS = {f"CC {terms} 4.0": f"cc-{terms.lower()}-4.0" for terms in ("BY", "BY-NC", "BY-SA", "BY-NC-SA")}
"""The hub's names of licences."""
LICENCE_URLS = {name: f"https://creativecommons.org/licenses/{name[3:-4]}/4.0/" for name in LICENCE_IDS.values()}
NO_LICENCE = "not known to fedsim: add that of the data set which the generator was trained on"
_TERMS = (
    "citeAs column equivalentProperty extract field fileProperty fileObject fileSet format includes isLiveDataset jsonPath key md5 "
    "parentField path recordSet references regex repeated replace samplingRate separator source subField transform"
)
_CONTEXT = {
    **{"@language": "en", "@vocab": "https://schema.org/", "conformsTo": "dct:conformsTo"},
    **{name: f"cr:{name}" for name in _TERMS.split()},
    **{name: {"@id": f"cr:{name}", "@type": "@json"} for name in ("data", "examples")},
    **{"dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "cr": "http://mlcommons.org/croissant/"},
    **{"rai": "http://mlcommons.org/croissant/RAI/", "dct": "http://purl.org/dc/terms/", "sc": "https://schema.org/"},
}
"""Croissant's official one, to the letter."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**9, "1M<n<10M"))


def write_hub_folder(
    generator: SavedGenerator, out: Path | str, per_class: int = 200, seed: int | None = None, repository: str | None = None
) -> dict[str, Any]:
    """Write ``README.md``, ``croissant.json`` and one Parquet file of ``per_class`` rows a class; returns their manifest.

    Args:
        generator: one that may leave the simulation.
        out: the folder; new or empty.
        per_class: synthetic rows a class.
        seed: of the draw; default: the cell's.
        repository: on the hub, ``owner/name``; Croissant asks for the address.

    Raises:
        UserError: the generator may not be released, or the folder is not empty.
    """
    out, cell = Path(out), generator.facts.cell
    if generator.facts.held_back:
        raise UserError(f"cell {cell.cell_id}", f"may not be released: {generator.facts.held_back}", RELEASE_HINT)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out {out}", "is there and not empty", "give a new folder")
    x, y = generator.synthesise(per_class, seed)
    manifest = generator.manifest(per_class, seed)
    names = manifest["class_names"] or list(map(str, range(generator.facts.task.classes)))
    write_parquet(out / DATA_FILE, x, y, names, manifest)
    card, content = _card(generator, manifest, names, x.shape), (out / DATA_FILE).read_bytes()
    about = json.dumps(_croissant(generator, manifest, x.shape[1], content, repository or out.resolve().name), indent=1)
    for name, text in ((CARD_FILE, card), (CROISSANT_FILE, about + "\n")):
        with replaced(out / name) as part:
            part.write_text(text, encoding="utf-8")
    return manifest


def _budget(generator: SavedGenerator) -> str:
    plan = generator.facts.plan
    assert plan is not None
    return f"(ε, δ) = ({at_most(generator.facts.row.epsilon_spent)}, {number(plan.delta)})"


def _title(generator: SavedGenerator) -> str:
    return f"Synthetic {generator.facts.cell.dataset.display} by {generator.facts.cell.label}"


def _protection(generator: SavedGenerator) -> tuple[tuple[str, str], ...]:
    """The privacy statement, from public facts alone."""
    (statement,) = statements([row_of_facts(generator)])
    return statement.parts


def _card(generator: SavedGenerator, manifest: dict[str, Any], names: list[str], shape: tuple[int, ...]) -> str:
    licence, source = generator.facts.cell.dataset.terms
    identifier = LICENCE_IDS.get(licence, "other" if licence else "unknown")
    head = {
        "pretty_name": _title(generator),
        "license": identifier,
        **({"license_name": licence.lower().replace(" ", "-")} if identifier == "other" else {}),
        "tags": ["synthetic", "differential-privacy", "federated-learning", "embeddings", "croissant", "fedsim"],
        "task_categories": ["tabular-classification"],
        "size_categories": [next(words for most, words in _SIZES if shape[0] < most)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": DATA_FILE}]}],
    }
    cell, text = generator.facts.cell, markdown_text
    covered = [f"- **{text(term)}**: {text(words)}" for term, words in _protection(generator) if term != "not covered"]
    uncovered = [f"- {text(words)}" for term, sentence in _protection(generator) if term == "not covered" for words in sentence.split("; ")]
    classes = ", ".join(map(text, names))
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {text(_title(generator))}",
        "",
        f"{shape[0]} synthetic embeddings of {shape[1]} dimensions and {len(names)} classes ({classes}), {manifest['per_class']} a class, "
        f"drawn from a generator that was trained by {text(cell.label)} on {text(cell.dataset.display)}, held by {cell.clients} clients. "
        "They are draws of a model, and no rows of that data set.",
        "",
        "## Privacy",
        "",
        f"The generator has {_budget(generator)} for one {text(cell.unit_name)}, trust {text(cell.trust)}, claim {manifest['claim']}. "
        "Drawing rows from it costs nothing more.",
        "",
        *covered,
        "",
        "### Not covered",
        "",
        *uncovered,
        "",
        "## Source and licence",
        "",
        f"Trained on {text(cell.dataset.display)}{f' ({text(source)})' if source else ''}. "
        f"Licence of that data set: {text(licence or NO_LICENCE)}.",
        *([f"Public data: {text(public_sentence(cell.public, cell.public_licence))}."] if cell.public else []),
        "",
        "## How it was made",
        "",
        f"- method: {text(cell.label)} ({text(lookup(cell.algorithm).source)})",
        f"- synthesis: {text(str(manifest['synthesis'] or 'the one way that the method has'))}; seed of the draw {manifest['seed']}",
        f"- tensors of the generator: SHA-256 `{manifest['tensors_sha256']}`",
        f"- vouched for {text(manifest['vouched'])}",
        f"- fedsim {__version__}; the manifest is in the Parquet file's metadata, under the key `fedsim`",
        "",
        "## Use",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'rows = load_dataset("path/of/this/folder", split="train")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _croissant(generator: SavedGenerator, manifest: dict[str, Any], dim: int, content: bytes, repository: str) -> dict[str, Any]:
    """Metadata by Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html)."""
    licence, _ = generator.facts.cell.dataset.terms
    parts = _protection(generator)

    def column(field: str, kind: str, description: str, **more: Any) -> dict[str, Any]:
        source = {"fileObject": {"@id": "rows.parquet"}, "extract": {"column": field}}
        about = {"@type": "cr:Field", "@id": f"rows/{field}", "name": field, "description": description}
        return about | {"dataType": kind, "source": source, **more}

    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": repository.rpartition("/")[2],
        "description": f"{_title(generator)}: {_budget(generator)}, one {generator.facts.cell.unit_name}, claim {manifest['claim']}.",
        "license": LICENCE_URLS.get(LICENCE_IDS.get(licence, ""), licence or NO_LICENCE),
        "url": f"https://huggingface.co/datasets/{repository}",
        "creator": {"@type": "sc:Organization", "name": f"fedsim {__version__}"},
        "datePublished": date.today().isoformat(),
        "version": "1.0.0",
        "citeAs": f"{generator.facts.cell.label}: {lookup(generator.facts.cell.algorithm).source}",
        "rai:dataLimitations": "; ".join(words for term, words in parts if term == "not covered"),
        "rai:personalSensitiveInformation": "; ".join(f"{term}: {words}" for term, words in parts if term in ("claim", "unit", "budget")),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "rows.parquet",
                "name": "rows.parquet",
                "contentUrl": DATA_FILE,
                "encodingFormat": "application/x-parquet",
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "rows",
                "name": "rows",
                "field": [
                    column("embedding", "sc:Float", f"{dim} numbers of a synthetic row", repeated=True),
                    column("label", "sc:Integer", f"one of {len(manifest['class_names']) or generator.facts.task.classes} classes"),
                ],
            }
        ],
    }
