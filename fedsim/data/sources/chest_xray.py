"""Paediatric chest X-rays (Kermany et al. 2018): 5,856 images, normal, bacterial or viral pneumonia; read from a local folder.

What the names of files say of patients: ``person12_bacteria_34.jpeg`` is of person 12, ``IM-0115-0001.jpeg`` and
``NORMAL2-IM-0383-0001.jpeg`` are of studies 115 and 383 of two series. Nobody published whether person 12 of ``train`` and of ``test``, or
of bacteria and of viruses, are two children. They count as one: so no child is on both sides of a split or in two units, at worst several
share one. The folders ``train`` and ``test`` are therefore not the split.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fedsim.data.images import EXTENSIONS, ImageFiles, ImageSet
from fedsim.data.sources.source import Source, known_folder
from fedsim.data.split import quarter_of_groups
from fedsim.errors import UserError, at

XRAY_FOLDERS = ("train", "test")
PNEUMONIA_CLASSES = ("normal", "bacteria", "virus")
_PNEUMONIA = re.compile(r"(person\d+)_(bacteria|virus)_\d+")
_NORMAL = re.compile(r"((?:NORMAL2-)?IM-\d+)(?:-\d+)+")


def load_chest_xray(root: Path, name: str) -> ImageSet:
    """Read ``{train,test,val}/{NORMAL,PNEUMONIA}/*.jpeg``; a fixed stratified quarter of the *patients* is for testing.

    Columns: ``patient``, and ``folder``, the part that the image was published in.

    Raises:
        UserError: something is missing, or a file's name is of no known form.
    """
    root = root / "chest_xray" if (root / "chest_xray").is_dir() else root
    files: list[Path] = []
    facts: list[tuple[str, str, str]] = []
    for part in (*XRAY_FOLDERS, "val"):  # copies of the set have a third folder
        for kind in ("NORMAL", "PNEUMONIA"):
            for path in sorted((root / part / kind).glob("*")):
                if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
                    continue
                read = (_NORMAL if kind == "NORMAL" else _PNEUMONIA).fullmatch(path.stem)
                if read is None:
                    what = f"{path.relative_to(root)} names no patient"
                    raise UserError(str(root), what, "give files named as person12_bacteria_34.jpeg, IM-0115-0001.jpeg")
                files.append(path)
                facts.append((part, read[1], "normal" if kind == "NORMAL" else read[2]))
    if not files:
        raise UserError(str(root), "holds no images in train/NORMAL, train/PNEUMONIA and test", "unpack ChestXRay2017.zip there")
    folder, patient, kinds = map(np.array, zip(*facts, strict=True))
    held = [kind for kind in PNEUMONIA_CLASSES if kind in kinds]
    y = np.array([held.index(kind) for kind in kinds.tolist()], dtype=np.int64)
    with at(str(root)):
        split = quarter_of_groups(patient, y, tuple(held), "patient")
    columns = {"patient": patient, "folder": folder}
    return ImageSet(name, ImageFiles(files, root), np.arange(len(files)), y, split, tuple(held), columns, str(root))


CHEST_XRAY: Source = known_folder(
    "chest-xray",
    load_chest_xray,
    needed=(tuple(f"{above}{part}" for above in ("", "chest_xray/") for part in XRAY_FOLDERS),),
    facts=("3", "three quarters / a quarter of the patients", "their own", "CC BY 4.0"),
    url="https://data.mendeley.com/datasets/rscbjbr9sj",
)
