"""The names for authors of methods: base classes, arguments of their hooks, parts of models, and what releases are made of.

Authors, those of the shipped baselines too, write ``from fedsim.methods import ...``; fedsim itself imports every name from the module that
defines it.
"""

from fedsim.batch import Batch
from fedsim.device import normal, to_device
from fedsim.evaluation.scores import held_out_weight
from fedsim.methods.algorithm import Algorithm, Params
from fedsim.methods.clients import Clients
from fedsim.methods.coordinates import COORDINATE_NAMES, Coordinates, coordinate_statistics, receive_spread
from fedsim.methods.dp_sgd import DPSGD, DPSGDParams
from fedsim.methods.local_training import LocalDPSGD, LocalDPSGDParams, LocalTraining, LocalTrainingParams
from fedsim.methods.messages import NUMBER_BYTES, Diagnostic, Message, Round, Server, Task, Tensors, Values
from fedsim.methods.one_shot import OneShot, OneShotParams, Rows, Statistic, overall_mean, statistic_phase
from fedsim.methods.optimise import adam_step, average_step
from fedsim.methods.parameters import load_parameters, rounded, shared_tensors
from fedsim.methods.phase import Phase
from fedsim.methods.products import Classifier, Generator, PersonalClassifier, PersonalGenerator, stretched
from fedsim.models.cvae import CVAE, ConditionalGenerator, ConditionalSampler, CVAEGenerator, gaussian_nll
from fedsim.models.kernel import kernel_features, kernel_frequencies
from fedsim.models.layers import ZeroLinear, one_hot
from fedsim.models.linear import (
    Interpolated,
    LinearClassifier,
    LinearHead,
    LocalClassifiers,
    ProbeClassifier,
    cross_entropy,
    probe_of,
    probe_tensors,
)
from fedsim.models.probe import fit_probe
from fedsim.plugins.registry import register
from fedsim.privacy.clipping import Norms
from fedsim.privacy.clipping.vmap import functional_loss
from fedsim.privacy.plan import Claim, Release, Trust, Unit
from fedsim.privacy.statistics import exact, mixture, moments
from fedsim.privacy.statistics.outer_products import OuterProduct, clipped_statistics, unit_weights
from fedsim.privacy.statistics.spectral import spectral_function, square_root
from fedsim.seeds import Purpose, Seeds

__all__ = [
    "COORDINATE_NAMES",
    "CVAE",
    "DPSGD",
    "NUMBER_BYTES",
    "Algorithm",
    "Batch",
    "CVAEGenerator",
    "Claim",
    "Classifier",
    "Clients",
    "ConditionalGenerator",
    "ConditionalSampler",
    "Coordinates",
    "DPSGDParams",
    "Diagnostic",
    "Generator",
    "Interpolated",
    "LinearClassifier",
    "LinearHead",
    "LocalClassifiers",
    "LocalDPSGD",
    "LocalDPSGDParams",
    "LocalTraining",
    "LocalTrainingParams",
    "Message",
    "Norms",
    "OneShot",
    "OneShotParams",
    "OuterProduct",
    "Params",
    "PersonalClassifier",
    "PersonalGenerator",
    "Phase",
    "ProbeClassifier",
    "Purpose",
    "Release",
    "Round",
    "Rows",
    "Seeds",
    "Server",
    "Statistic",
    "Task",
    "Tensors",
    "Trust",
    "Unit",
    "Values",
    "ZeroLinear",
    "adam_step",
    "average_step",
    "clipped_statistics",
    "coordinate_statistics",
    "cross_entropy",
    "exact",
    "fit_probe",
    "functional_loss",
    "gaussian_nll",
    "held_out_weight",
    "kernel_features",
    "kernel_frequencies",
    "load_parameters",
    "mixture",
    "moments",
    "normal",
    "one_hot",
    "overall_mean",
    "probe_of",
    "probe_tensors",
    "receive_spread",
    "register",
    "rounded",
    "shared_tensors",
    "spectral_function",
    "square_root",
    "statistic_phase",
    "stretched",
    "to_device",
    "unit_weights",
]
