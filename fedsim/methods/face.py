"""The names for authors of methods: base classes, arguments of their hooks, and the parts of the starter's model.

Authors write ``from fedsim.methods import ...``; fedsim itself imports every name from the module that defines it.
"""

from fedsim.batch import Batch
from fedsim.device import normal, to_device
from fedsim.methods.algorithm import Algorithm, Params
from fedsim.methods.clients import Clients
from fedsim.methods.coordinates import Coordinates, coordinate_statistics
from fedsim.methods.dp_sgd import DPSGD, DPSGDParams
from fedsim.methods.local_dp_sgd import LocalDPSGD, LocalDPSGDParams
from fedsim.methods.local_training import LocalTraining, LocalTrainingParams
from fedsim.methods.messages import Diagnostic, Message, Round, Server, Task, Tensors
from fedsim.methods.one_shot import OneShot, Rows, Statistic, overall_mean, statistic_phase
from fedsim.methods.phase import Phase
from fedsim.methods.products import Classifier, Generator, PersonalClassifier, PersonalGenerator, Stretched
from fedsim.models.cvae import CVAE, CVAEGenerator, gaussian_nll
from fedsim.plugins.registry import register
from fedsim.privacy.clipping.vmap import functional_loss
from fedsim.privacy.plan import Claim, Release
from fedsim.privacy.statistics.outer_products import OuterProduct
from fedsim.seeds import Purpose, Seeds

__all__ = [
    "CVAE",
    "DPSGD",
    "Algorithm",
    "Batch",
    "CVAEGenerator",
    "Claim",
    "Classifier",
    "Clients",
    "Coordinates",
    "DPSGDParams",
    "Diagnostic",
    "Generator",
    "LocalDPSGD",
    "LocalDPSGDParams",
    "LocalTraining",
    "LocalTrainingParams",
    "Message",
    "OneShot",
    "OuterProduct",
    "Params",
    "PersonalClassifier",
    "PersonalGenerator",
    "Phase",
    "Purpose",
    "Release",
    "Round",
    "Rows",
    "Seeds",
    "Server",
    "Statistic",
    "Stretched",
    "Task",
    "Tensors",
    "coordinate_statistics",
    "functional_loss",
    "gaussian_nll",
    "normal",
    "overall_mean",
    "register",
    "statistic_phase",
    "to_device",
]
