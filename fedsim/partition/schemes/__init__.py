"""The schemes: which client holds a training row, from labels, columns, parameters and one random stream.

A new one is a file here that makes a :class:`fedsim.partition.schemes.scheme.Scheme`, and a line in :data:`SCHEMES`.
"""

from fedsim.partition.schemes.column import COLUMN, COLUMN_DIRICHLET
from fedsim.partition.schemes.dirichlet import DIRICHLET, DIRICHLET_CLIENT
from fedsim.partition.schemes.feature_shift import FEATURE_SHIFT
from fedsim.partition.schemes.labels import DISJOINT, SHARDS
from fedsim.partition.schemes.scheme import Scheme
from fedsim.partition.schemes.sizes import IID, QUANTITY

SCHEMES: dict[str, Scheme] = {
    "dirichlet": DIRICHLET,
    "dirichlet-client": DIRICHLET_CLIENT,
    "disjoint": DISJOINT,
    "shards": SHARDS,
    "iid": IID,
    "quantity": QUANTITY,
    "column": COLUMN,
    "column-dirichlet": COLUMN_DIRICHLET,
    "feature-shift": FEATURE_SHIFT,
}
"""The schemes by the names that a grid gives them."""
