"""Tiny pictures and a tiny encoder, as real files."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fedsim.data.sources.known import DIAGNOSES
from fedsim.data.spec import EncoderSpec

IMAGE_FOLDERS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
IMAGES = "MILK10k_Training_Input"
METADATA = "MILK10k_Training_Metadata.csv"
GROUND_TRUTH = "MILK10k_Training_GroundTruth.csv"
SITES = ("head_neck_face", "trunk", None)


def picture(seed: int, size: int = 20) -> Image.Image:
    """Return a smooth colour picture, another one for every seed."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize((size, size + 4), Image.Resampling.BILINEAR)


def save_folder(
    root: Path, classes: tuple[str, ...] = ("cat", "dog", "eel"), each: int = 8, start: int = 0
) -> Path:
    """Save ``root/<class>/<n>.png``, ``each`` pictures per class."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(each):
            picture(start + c * each + n).save(root / name / f"{n}.png")
    return root


def save_encoder(folder: Path, seed: int = 0, size: int = 28) -> EncoderSpec:
    """Save a DINOv2 of two narrow layers with random weights."""
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=14,
        mlp_ratio=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    ).save_pretrained(folder)
    return EncoderSpec(name=str(folder))


def save_medmnist(
    path: Path, classes: int = 11, train: int = 60, test: int = 30, size: int = 28
) -> Path:
    """Save a file in MedMNIST's format, with fewer images."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", train), ("val", 12), ("test", test)):
        arrays[f"{part}_images"] = rng.integers(
            0,
            256,
            (count, size, size),
            dtype=np.uint8,
        )
        arrays[f"{part}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def save_milk10k(root: Path) -> Path:
    """Save 48 lesions in MILK10k's format, two images each, of 9 of the 11 diagnoses."""
    metadata = []
    truth = []
    for lesion in range(48):
        name = f"IL_{lesion:07}"
        diagnosis = DIAGNOSES[lesion % 9]
        truth.append({"lesion_id": name, **{each: float(each == diagnosis) for each in DIAGNOSES}})
        for n, kind in enumerate(("clinical: close-up", "dermoscopic")):
            isic = f"ISIC_{2 * lesion + n:07}"
            (root / IMAGES / name).mkdir(parents=True, exist_ok=True)
            picture(2 * lesion + n).save(root / IMAGES / name / f"{isic}.jpg")
            facts = {
                "age_approx": 5.0 * lesion,
                "sex": "female",
                "skin_tone_class": lesion % 6,
                "site": SITES[lesion % 3],
            }
            metadata.append(
                {
                    "lesion_id": name,
                    "image_type": kind,
                    "isic_id": isic,
                    "attribution": "MILK study team",
                    **facts,
                }
            )
    pd.DataFrame(metadata).sample(frac=1, random_state=0).to_csv(root / METADATA, index=False)
    pd.DataFrame(truth).to_csv(root / GROUND_TRUTH, index=False)
    return root


def save_ham10000(root: Path, lacks: tuple[str, ...] = ()) -> Path:
    """Save 60 images of 30 lesions in two parts, with the metadata as Dataverse has it."""
    lines = []
    for part in IMAGE_FOLDERS:
        (root / part).mkdir(parents=True)
    for n in range(60):
        image = f"ISIC_{24306 + n:07}"
        lesion = n // 2
        picture(n).save(root / IMAGE_FOLDERS[n % 2] / f"{image}.jpg")
        facts = {
            "dx_type": "histo",
            "age": None if n == 5 else 40.0 + lesion,
            "sex": "male",
            "localization": "back",
        }
        site = ("vidir_modern", "rosendahl", "vienna_dias")[lesion % 3]
        lines.append(
            {
                "lesion_id": f"HAM_{lesion:07}",
                "image_id": image,
                "dx": ("nv", "mel", "bkl")[lesion % 3],
                **facts,
                "dataset": site,
            }
        )
    pd.DataFrame(lines).drop(columns=list(lacks)).to_csv(root / "HAM10000_metadata", index=False)
    return root


CHEST_XRAYS = {
    "train/PNEUMONIA": [
        f"person{n}_{kind}_{10 * n + k}"
        for n in range(1, 9)
        for kind in ("bacteria", "virus")
        for k in (0, 1)
    ],
    "test/PNEUMONIA": [
        f"person{n}_{kind}_{900 + n}" for n in range(1, 13) for kind in ("virus", "bacteria")
    ],
    "train/NORMAL": [
        "IM-0115-0001",
        "IM-0117-0001",
        "IM-0666-0001-0001",
        "IM-0666-0001-0002",
        "NORMAL2-IM-0383-0001",
    ],
    "test/NORMAL": ["IM-0001-0001", "NORMAL2-IM-0007-0001", "NORMAL2-IM-0383-0002"],
}
"""Names as they are distributed; persons 1 to 8 are in both folders and have both kinds of
pneumonia.
"""


def save_chest_xray(root: Path) -> Path:
    """Save small X-rays by these names, in the folders as they are distributed."""
    for folder, names in CHEST_XRAYS.items():
        (root / "chest_xray" / folder).mkdir(parents=True)
        for seed, name in enumerate(names):
            picture(seed).save(root / "chest_xray" / folder / f"{name}.jpeg")
        (root / "chest_xray" / folder / ".DS_Store").touch()
    return root
