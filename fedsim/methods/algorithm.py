"""Defines the base class of every algorithm, its parameters and its phases.

An algorithm supplies the computations of clients and server. The harness runs the rounds
(:mod:`fedsim.training.rounds`), calibrates the noise (:func:`solved_plan`) and counts epsilon.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from fedsim.errors import PluginError, UserError
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Task, Tensors, Values
from fedsim.methods.parameters import shared_tensors
from fedsim.methods.products import Classifier, Generator, Product
from fedsim.methods.returned import check_product
from fedsim.models.layers import initial_model
from fedsim.privacy.plan import Claim, PrivacyPlan, Release, Trust, Unit, calibrate
from fedsim.privacy.selection import SCORE
from fedsim.seeds import Seeds


@dataclass(frozen=True)
class Phase:
    """Consecutive rounds of one mechanism; a training is a sequence of phases.

    Attributes:
        release: the mechanism of its rounds. Without privacy only the number of rounds counts.
        at_clients: a function of (clients, round, broadcast). It computes the message of a cohort,
            which is a group of clients that are computed together.
        at_server: a function of (server, round, noisy sums of the messages). It updates the server
            and returns diagnostics, as numbers or as tensors of one number. They may depend on
            private values through the noisy sums only.
        broadcast: a function of (server). It returns the tensors that every client receives at the
            start of a round.
        weights: the weight of each statistic in a unit's joint norm, by name. A statistic is sent
            times its weight and the clip norm. The mapping is empty for gradients and updates.
    """

    release: Release
    at_clients: Callable[[Clients, Round, Tensors], Message]
    at_server: Callable[[Server, Round, Tensors], Values]
    broadcast: Callable[[Server], Tensors]
    weights: Mapping[str, float] = field(default_factory=dict)

    def taking(self, share: float) -> Phase:
        """Return the phase with the noise that a share of the budget pays for.

        Budgets are measured in 1 / sigma^2, where the costs of mechanisms add up: a step with noise
        multiplier m * sigma and sample rate q costs about q^2 / (m * sigma)^2. A share s of the
        budget therefore pays for m = q * sqrt(steps / s). The shares of all phases add up to 1.
        """
        noise = self.release.sample_rate * math.sqrt(self.release.steps / share)
        return replace(self, release=replace(self.release, relative_noise=noise))


class Params(BaseModel):
    """The parameters of an algorithm, as in a grid file.

    Unknown keys are refused, and values cannot be changed afterwards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def with_budget_left(self, *shares: str, rest: str) -> Self:
        """Return the parameters if some of the privacy budget is left after some releases.

        Args:
            shares: the names of the parameters that are shares of the budget.
            rest: the part of the training that needs the rest of the budget, for the message.

        Raises:
            ValueError: the shares add up to 1 or more.
        """
        total = sum(getattr(self, name) for name in shares)
        if total >= 1:
            raise ValueError(
                f"{' and '.join(shares)} add up to {total:g}; give shares that add up to less "
                f"than 1, so that some budget is left for {rest}"
            )
        return self

    @classmethod
    def brief(cls, values: Mapping[str, Any], given: Container[str]) -> dict[str, Any]:
        """Return the ``values`` that may be set: the field exists and allows the value.

        Names in ``given`` are left out. Rules about several parameters together are not applied, so
        the caller must validate.

        Args:
            values: parameter values that make a training short.
            given: the names of parameters that must stay as they are.
        """
        known = {
            key: value
            for key, value in values.items()
            if key in cls.model_fields and key not in given
        }
        try:
            cls.model_validate(known)
        except ValidationError as error:
            refused = {detail["loc"][:1] for detail in error.errors()}
            return {key: value for key, value in known.items() if (key,) not in refused}
        return known


class Algorithm(ABC):
    """A federated algorithm: it yields a generator, or a classifier if it has no generator.

    Class attributes:
        name: its name in grid files; set by ``@register``.
        source: the paper or page that it follows.
        Params: the class of its parameters, with defaults.
        private: whether it supports a privacy budget. If not, epsilon has no meaning for it.
        for_reproduction: whether it is included only to reproduce its paper. At the budgets of our
            tables its defaults then score at or near chance.
        units, trusts: the privacy settings that it supports.
        syntheses: values of its parameter ``synthesis`` with which a saved generator can be loaded,
            whatever it was trained with.

    Args:
        params: its parameters, an instance of ``Params``.
        task: the public facts of the cell.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    Params: ClassVar[type[Params]]
    private: ClassVar[bool] = True
    for_reproduction: ClassVar[bool] = False
    units: ClassVar[tuple[Unit, ...]] = ("example", "client")
    trusts: ClassVar[tuple[Trust, ...]] = ("aggregate", "silo")
    syntheses: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: Any, task: Task) -> None:
        self.params = params
        self.task = task

    # --- supplied by an algorithm or its base class ---

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of the training, in order."""

    @abstractmethod
    def build(self, clients: int) -> nn.Module:
        """Return the model of a cohort, or of the server.

        The harness sets its weights afterwards, by name.

        Args:
            clients: the number of clients for which per-client layers have weights; 0 at the
                server.
        """

    def generator(self, server: Server) -> Generator:
        """Return the generator.

        It may read the server's state and seeds, and the client codes if they were released, but no
        other private value. An algorithm without a generator defines :meth:`classifier` instead.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither a generator nor a classifier")

    def classifier(self, server: Server) -> Classifier:
        """Return the classifier, for an algorithm without a generator.

        It may read what :meth:`generator` may read.
        """
        raise NotImplementedError(f"{type(self).__name__} yields a generator")

    def product(self, server: Server) -> Product:
        """Return the generator or classifier of embeddings.

        Raises:
            PluginError: the object lacks the function that a generator or classifier must have.
        """
        generates = self.generates(self.params)
        make: Callable[[Server], Product] = self.classifier
        if generates:
            make = self.generator
        product = make(server)
        check_product(product, make, generates=generates)
        return product

    def label_counts(self, server: Server) -> Tensor | None:
        """Return the number of examples per class ``[C]``, estimated from releases of the plan.

        None if the plan releases no counts. Like the generator this is post-processing. The plain
        accuracy of a generator is then computed for labels with these frequencies.
        """
        return None

    @classmethod
    def generates(cls, params: Any = None) -> bool:
        """Return whether it yields a generator, not a classifier.

        Args:
            params: the parameters; None: the defaults.
        """
        return cls.classifier is Algorithm.classifier

    def claim(self) -> Claim:
        """Return how strong the claim of (epsilon, delta) is: "proved" if it is a theorem.

        It is "none" for an algorithm that is not private.
        """
        if self.private:
            return "proved"
        return "none"

    def scope(self) -> str:
        """Return a word for the parameters that get noise, which results show."""
        return "joint"

    def clip(self) -> float:
        """Return C, the largest norm of one unit's contribution to a round's sum."""
        return math.inf

    def sensitivity(self) -> float:
        """Return the largest L2 change that one unit's presence causes in a step.

        It is the joint norm of the changes of the sums and of the tensors that clients keep. For
        sums of clipped contributions it is C.
        """
        return self.clip()

    def clips_clients(self) -> bool:
        """Return whether the contribution of a client is clipped as a whole.

        The guarantee then assumes nothing about single examples.
        """
        return self.task.unit == "client"

    def released_names(self, model: nn.Module) -> list[str]:
        """Return the names of the per-client tensors that leave the clients after the last round.

        There are none, unless a subclass adds noise to everything in such tensors that depends on
        data, and names them. At an infinite epsilon the harness releases the codes in any case.
        """
        return []

    def noise_at_clients(self) -> bool:
        """Return whether clients add noise to all that they send, so that the server adds none."""
        return self.task.trust == "silo"

    def ignores_partition(self) -> bool:
        """Return whether any partition gives the same result.

        This holds if it releases only sums over examples, whichever clients hold the examples.
        """
        return False

    def uses_public(self) -> bool:
        """Return whether it needs the grid's public examples, as ``task.public``.

        Server and clients can read them while the algorithm trains. They are absent when a saved
        generator is loaded from ``server.model`` and ``server.tensors``. So the algorithm must
        store there any value that the generator needs from them. A value that is computed from
        public examples alone costs no epsilon. A value that also depends on a private example is a
        release.
        """
        return False

    def statistic_numbers(self) -> int:
        """Return an upper bound on how many numbers the statistics have; 0 without statistics.

        The memory forecast of a grid is computed from it.
        """
        return 0

    def copies_of_examples(self) -> int:
        """Return how many copies of all examples are kept while the algorithm trains.

        It is 0 if the algorithm copies only a batch or a block at a time. The memory forecast of a
        grid is computed from it.
        """
        return 0

    # Most algorithms support all parameters in all their units and trusts.
    def check_setting(self) -> None:  # noqa: B027
        """Refuse parameters that have no meaning, or no plan, for the unit and trust.

        Raises:
            UserError: the refused parameter, with a hint.
        """

    # --- the harness's part ---

    # Most base classes assume nothing about what a subclass computes.
    def check_contract(self, round_: Round, broadcast: Tensors) -> None:  # noqa: B027
        """Test, on made-up examples, what the guarantee of the base class assumes.

        It runs on the CPU, for one round's computation at clients.

        Raises:
            NotPerExample: a loss or statistic of one example depends on other examples.
            ValueError: it cannot be tested.
        """

    def initial_server(self, seeds: Seeds) -> Server:
        """Return the server before the first round, with initial weights from the seed."""
        return Server(initial_model(self.build, seeds), seeds)

    def broadcast(self, server: Server) -> Tensors:
        """Return the tensors that every client receives at the start of a round."""
        return shared_tensors(server.model)

    # Most algorithms keep no such state.
    def start_clients(self, clients: Clients) -> None:  # noqa: B027
        """Give the clients the private state that they keep between rounds.

        The model's per-client layers are set already.
        """

    def releases(self) -> tuple[Release, ...]:
        """Return the mechanisms of the phases, which the budget pays for."""
        return tuple(phase.release for phase in self.phases())

    def schedule(self) -> Iterator[Round]:
        """Yield every round of the phases, in order.

        Random streams are numbered over all phases, so that no two phases share one.
        """
        number = 0
        stream = 0
        for index, phase in enumerate(self.phases()):
            for step in range(phase.release.rounds):
                yield Round(number, index, step, stream, phase.release)
                number += 1
                stream += phase.release.per_round


def solved_plan(algorithm: Algorithm, epsilon: float | None, delta: float) -> PrivacyPlan | None:
    """Return the privacy plan of a training, calibrated before the first step.

    Every training gets its plan here, for the releases that the algorithm declares. The proof does
    not hold if an algorithm changes its plan afterwards.

    Args:
        algorithm: the algorithm with its parameters.
        epsilon: the budget; None: no privacy.
        delta: the delta for which epsilon holds.

    Returns:
        The plan; None if epsilon has no meaning.

    Raises:
        UserError: the algorithm does not support the unit, the trust or a parameter, or it lacks
            public examples.
        PluginError: a release has a name that is reserved.
    """
    task = algorithm.task
    if algorithm.private:
        _check_supported("unit", task.unit, algorithm.units)
        _check_supported("trust", task.trust, algorithm.trusts)
    if algorithm.uses_public() and task.public is None:
        raise UserError(
            "public",
            "the method uses public rows, and there are none",
            "name a data set whose rows are public: public: NAME",
        )
    algorithm.check_setting()
    releases = algorithm.releases()
    if any(release.name == SCORE for release in releases):
        raise PluginError(
            f"{type(algorithm).__name__}.releases",
            f"a release is called '{SCORE}'",
            "give it another name; the harness scores trainings under this one, with noise "
            "of its own",
        )
    if epsilon is None or not algorithm.private:
        return None
    return calibrate(
        epsilon=epsilon,
        delta=delta,
        releases=releases,
        unit=task.unit,
        trust=task.trust,
        scope=algorithm.scope(),
        claim=algorithm.claim(),
        clip=algorithm.clip(),
        sensitivity=algorithm.sensitivity(),
    )


def _check_supported(key: str, value: str, supported: tuple[str, ...]) -> None:
    """Refuse a privacy setting that the algorithm does not support."""
    if value not in supported:
        raise UserError(
            key,
            f"the method does not support '{value}'",
            f"it supports: {', '.join(supported)}",
        )
