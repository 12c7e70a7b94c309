"""Lists the kinds of data sets that a grid can name.

To add a kind that is given by a name, add an entry to :data:`SOURCES` and a function that reads it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One kind of data set: how a grid names it, and what reads it.

    Attributes:
        reader: the function that reads it, as a path below ``fedsim.data.sources``. It takes a
            ``DatasetSpec`` and whether the rows are public, and returns an ``ImageSet``, or
            ``Embeddings`` that are not scaled. It is named here by a text because a grid is checked
            without importing the readers.
        images: whether the data set holds images, which an encoder has to embed.
        by_path: whether a grid gives it by a path, as ``{csv: PATH}``, and not by a name.
        argument: what must follow the name after a colon, as messages show it; empty if nothing
            may follow.
        keys: the keys that this kind takes, of those of a ``DatasetSpec`` that not every kind
            takes.
        licence: the licence of the data, in words; empty if it is not known.
        page: the address or the name of the place where the data come from; empty if it is not
            known.
        needed: groups of names of files and folders. The folder of the data set must hold at least
            one name of each group.
    """

    reader: str
    images: bool = True
    by_path: bool = False
    argument: str = ""
    keys: tuple[str, ...] = ()
    licence: str = ""
    page: str = ""
    needed: tuple[tuple[str, ...], ...] = ()


SOURCES = {
    "digits": Source(
        reader="known.read_digits",
        images=False,
        licence="CC BY 4.0",
        page="scikit-learn, UCI",
    ),
    "milk10k": Source(
        reader="known.read_milk10k",
        keys=("root",),
        licence="per image: copyright_license",
        page="https://challenge.isic-archive.com/data/#milk10k",
        needed=(
            ("MILK10k_Training_Input",),
            ("MILK10k_Training_Metadata.csv",),
            ("MILK10k_Training_GroundTruth.csv",),
        ),
    ),
    "ham10000": Source(
        reader="known.read_ham10000",
        keys=("root",),
        licence="CC BY-NC 4.0",
        page="https://doi.org/10.7910/DVN/DBW86T",
        needed=(
            ("HAM10000_metadata", "HAM10000_metadata.csv"),
            ("HAM10000_images_part_1",),
            ("HAM10000_images_part_2",),
        ),
    ),
    "chest-xray": Source(
        reader="known.read_chest_xray",
        keys=("root",),
        licence="CC BY 4.0",
        page="https://data.mendeley.com/datasets/rscbjbr9sj",
        needed=(("train", "chest_xray/train", "test", "chest_xray/test"),),
    ),
    "medmnist": Source(
        reader="medmnist.read_medmnist",
        argument="<flag>",
        keys=("root", "size"),
        licence="CC BY 4.0",
        page="MedMNIST, Zenodo",
    ),
    "npz": Source(
        reader="npz.read_npz",
        images=False,
        by_path=True,
        keys=("remap",),
    ),
    "npy": Source(
        reader="npz.read_npy",
        images=False,
        by_path=True,
        keys=("remap",),
    ),
    "imagefolder": Source(
        reader="folder.read_image_folder",
        by_path=True,
        keys=("domains",),
    ),
    "csv": Source(
        reader="tables.read_image_table",
        by_path=True,
    ),
}
"""Every kind of data set, by its name or by the key of its path."""
