"""Gathers all names that authors of methods need.

They are base classes, the arguments of their hooks, parts of models, and parts of releases.
Authors write ``from fedsim.methods import ...``, and so do the shipped baselines. fedsim itself
imports every name from the module that defines it.
"""
# mypy: implicit-reexport
# ruff: noqa: F401

from fedsim.batch import Batch
from fedsim.device import normal, to_device
from fedsim.methods.algorithm import Algorithm, Params, Phase
from fedsim.methods.clients import Clients
from fedsim.methods.coordinates import (
    COORDINATE_NAMES,
    Coordinates,
    coordinate_statistics,
    receive_spread,
)
from fedsim.methods.dp_sgd import DPSGD, DPSGDParams
from fedsim.methods.local_training import (
    LocalDPSGD,
    LocalDPSGDParams,
    LocalTraining,
    LocalTrainingParams,
)
from fedsim.methods.messages import (
    NUMBER_BYTES,
    Diagnostic,
    Message,
    Round,
    Server,
    Task,
    Tensors,
    Values,
)
from fedsim.methods.one_shot import (
    OneShot,
    OneShotParams,
    Rows,
    Statistic,
    overall_mean,
    statistic_phase,
)
from fedsim.methods.parameters import (
    adam_step,
    average_step,
    load_parameters,
    rounded,
    shared_tensors,
)
from fedsim.methods.products import Classifier, Generator, Personal, stretched
from fedsim.models.cvae import (
    CVAE,
    ConditionalGenerator,
    ConditionalSampler,
    CVAEGenerator,
    gaussian_nll,
)
from fedsim.models.kernel import kernel_features, kernel_frequencies
from fedsim.models.layers import ZeroLinear, one_hot
from fedsim.models.linear import (
    Interpolated,
    LinearClassifier,
    LinearHead,
    LocalClassifiers,
    ProbeClassifier,
    best_weight,
    cross_entropy,
    fit_linear,
    probe_of,
    probe_tensors,
)
from fedsim.models.probe import fit_probe
from fedsim.plugins.registry import register
from fedsim.privacy.clipping import Norms, functional_loss
from fedsim.privacy.noise import Deviations
from fedsim.privacy.plan import Claim, Release, Trust, Unit
from fedsim.privacy.statistics import mixture, moments
from fedsim.privacy.statistics.outer_products import (
    BLOCK,
    OuterProduct,
    Products,
    clipped_statistics,
    exact_products,
    unit_weights,
)
from fedsim.privacy.statistics.spectral import inverse_square_root, spectral_function, square_root
from fedsim.seeds import Purpose, Seeds
