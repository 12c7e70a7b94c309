"""The data sets that fedsim knows, as a table."""

from __future__ import annotations

from rich.table import Table

from fedsim.data.cache import cache_folder
from fedsim.data.sources import medmnist, milk10k


def catalogue_table() -> Table:
    """A line for every data set: what to write in a grid, classes, images, pixels, licence, source, and whether it is on this machine."""
    table = Table(title="data sets", title_justify="left", show_edge=False)
    for name in ("dataset:", "classes", "train / test", "pixels", "licence", "source", "on this machine"):
        table.add_column(name, justify="right" if name in ("classes", "train / test") else "left", overflow="fold")
    table.add_row("digits", "10", "1348 / 449", "8 (or embeddings of 64)", "CC BY 4.0", "scikit-learn, UCI", "yes")
    for flag, info in medmnist.flags().items():
        counts = info["n_samples"]
        classes = str(len(info["label"])) if medmnist.single_label(info) else f"{len(info['label'])} labels, not supported"
        held = [str(size) for size in medmnist.SIZES if (medmnist.default_root() / medmnist.file_name(flag, size)).is_file()]
        sizes = ", ".join(map(str, medmnist.SIZES))
        table.add_row(
            *(f"medmnist:{flag}", classes, f"{counts['train']} / {counts['test']}", f"size: {sizes}", info["license"], "MedMNIST, Zenodo"),
            ", ".join(held) or "no",
        )
    root = cache_folder() / "milk10k"
    held_here = "yes" if (root / milk10k.METADATA).is_file() else f"no; root: FOLDER or {root}"
    table.add_row("milk10k", "11", "3930 / 1310 lesions × 2", "their own", "per image: copyright_license", milk10k.SOURCE, held_here)
    for name, split in (
        ("{imagefolder: PATH}", "train/ and test/, or a quarter"),
        ("{csv: PATH}", "column split, or a quarter"),
        ("hf:<dataset>", "its own, or a quarter"),
        ("{npz: PATH}", "array split"),
    ):
        table.add_row(
            name,
            "yours",
            split,
            "embeddings" if "npz" in name else "their own",
            "yours",
            "your files" if "hf" not in name else "the hub",
            "",
        )
    return table
