"""Where data sets come from: those known by name, image folders and tables, hubs, and ``.npz`` files of embeddings.

A new one is a file here that makes a :class:`fedsim.data.sources.source.Source`, and a line in :data:`SOURCES`.
"""

from typing import TYPE_CHECKING

from fedsim.data.sources.chest_xray import CHEST_XRAY
from fedsim.data.sources.digits import DIGITS
from fedsim.data.sources.flamby import FLAMBY
from fedsim.data.sources.folder import IMAGE_FOLDER
from fedsim.data.sources.ham10000 import HAM10000
from fedsim.data.sources.hub import HUB
from fedsim.data.sources.medmnist import MEDMNIST
from fedsim.data.sources.milk10k import MILK10K
from fedsim.data.sources.npz import NPZ
from fedsim.data.sources.source import Source
from fedsim.data.sources.table import TABLE

if TYPE_CHECKING:
    from rich.table import Table

SOURCES: dict[str, Source] = {
    "digits": DIGITS,
    "milk10k": MILK10K,
    "ham10000": HAM10000,
    "chest-xray": CHEST_XRAY,
    "medmnist": MEDMNIST,
    "flamby": FLAMBY,
    "hf": HUB,
    "npz": NPZ,
    "imagefolder": IMAGE_FOLDER,
    "csv": TABLE,
}
"""The sources by the words that a grid names them with: alone, before a colon, or as the key of a path."""


def catalogue_table() -> "Table":
    """A line for every data set: what to write in a grid, classes, images, pixels, licence, source, and whether it is on this machine."""
    from rich.table import Table

    table = Table(title="data sets", title_justify="left", show_edge=False)
    for name in ("dataset:", "classes", "train / test", "pixels", "licence", "source", "on this machine"):
        table.add_column(name, justify="right" if name in ("classes", "train / test") else "left", overflow="fold")
    for source in SOURCES.values():
        for line in source.listing():
            table.add_row(*line)
    return table
