"""The base class of every algorithm: an algorithm supplies mathematics, the harness drives its
rounds (:mod:`fedsim.training.rounds`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from fedsim.errors import PluginError, UserError
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Task, Tensors, Values
from fedsim.methods.parameters import code_names, shared_tensors
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
        release: the mechanism of its rounds; without privacy only their number counts.
        at_clients: (clients, round, broadcast): a cohort's computation; returns its message.
        at_server: (server, round, the noisy sum of the messages): updates the server; returns
            diagnostics that depend on no private values, as numbers or as tensors of one number.
        broadcast: (server): the tensors that every client receives at the start of a round.
        weights: of statistics in a unit's joint norm, by name: a statistic is sent times its
            weight; empty for gradients and updates.
    """

    release: Release
    at_clients: Callable[[Clients, Round, Tensors], Message]
    at_server: Callable[[Server, Round, Tensors], Values]
    broadcast: Callable[[Server], Tensors]
    weights: Mapping[str, float] = field(default_factory=dict)

    def taking(self, share: float) -> Phase:
        """The phase with the noise for a share of the budget, in units of 1 / sigma^2; sampled
        steps cost q^2 / sigma^2 and add up.
        """
        noise = self.release.sample_rate * math.sqrt(self.release.steps / share)
        return replace(self, release=replace(self.release, relative_noise=noise))


class Params(BaseModel):
    """Parameters of an algorithm, as in a grid file; unknown keys are refused, and values are
    frozen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def brief(cls, values: Mapping[str, Any], given: Container[str]) -> dict[str, Any]:
        """The subset of ``values``, which make a training short, that these parameters have and
        allow and that are not ``given``.
        """
        found = {
            key: value
            for key, value in values.items()
            if key in cls.model_fields and key not in given
        }
        try:
            cls.model_validate(found)
        except ValidationError as error:
            refused = {detail["loc"][:1] for detail in error.errors()}
            return {key: value for key, value in found.items() if (key,) not in refused}
        return found


class Algorithm(ABC):
    """A federated algorithm: it yields a generator, or a classifier if it has none.

    Class attributes:
        name: set by ``@register``.
        source: the paper or page that it follows.
        Params: its parameters with defaults.
        private: whether an epsilon has a meaning for it.
        for_reproduction: whether it is here for its paper's sake: its defaults are at or near
            chance at the budgets of our tables.
        units, trusts: the privacy settings that it supports.
        syntheses: values of its parameter ``synthesis`` with which a saved generator can be loaded,
            whatever it was trained with.
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
        """The training: its mechanisms in order, with the computation of clients and server for
        each.
        """

    @abstractmethod
    def build(self, clients: int) -> nn.Module:
        """The model with per-client layers for ``clients`` members (0 at the server); weights are
        set afterwards by name.
        """

    def generator(self, server: Server) -> Generator:
        """The generator, from private values only: the server's state, its seeds, and the client
        codes if they were released.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither a generator nor a classifier")

    def classifier(self, server: Server) -> Classifier:
        """For an algorithm without a generator: the classifier, from the same."""
        raise NotImplementedError(f"{type(self).__name__} yields a generator")

    def product(self, server: Server) -> Product:
        """The generator or classifier, of embeddings."""
        generates = self.generates(self.params)
        make: Callable[[Server], Product] = self.classifier
        if generates:
            make = self.generator
        made = make(server)
        check_product(made, make, generates=generates)
        return made

    def label_counts(self, server: Server) -> Tensor | None:
        """Rows per class ``[C]``, estimated from releases of the plan; None if the plan releases no
        counts.

        Post-processing like the generator: plain accuracy is then judged on labels with these
        frequencies.
        """
        return None

    @classmethod
    def generates(cls, params: Any = None) -> bool:
        """Whether with these parameters, or its defaults, it yields a generator, not a
        classifier.
        """
        return cls.classifier is Algorithm.classifier

    def claim(self) -> Claim:
        """Whether the row's (epsilon, delta) is a theorem."""
        if self.private:
            return "proved"
        return "none"

    def scope(self) -> str:
        """The parameters that the noise protects, as rows name them."""
        return "joint"

    def clip(self) -> float:
        """C, the clip norm of one unit's contribution."""
        return math.inf

    def sensitivity(self) -> float:
        """L2 norm by which one unit's presence can change a round's sum; C for sums of clipped
        contributions.
        """
        return self.clip()

    def clips_clients(self) -> bool:
        """Whether a client's contribution is clipped as a whole, so that nothing is assumed of
        single examples.
        """
        return self.task.unit == "client"

    def releases_codes(self) -> bool:
        """Whether the client codes leave the clients (they must then have been noised)."""
        return True

    def released_names(self, model: nn.Module) -> list[str]:
        """Names of the per-client tensors that leave the clients after the last round: the codes,
        if they do.
        """
        if self.releases_codes():
            return code_names(model)
        return []

    def noise_at_clients(self) -> bool:
        """Whether clients add noise to everything they send, so that the server adds none."""
        return self.task.trust == "silo"

    def ignores_partition(self) -> bool:
        """Whether all that is released are sums over rows, whichever clients hold them: any
        partition then gives the same result.
        """
        return False

    def uses_public(self) -> bool:
        """Whether it is given the grid's public rows as ``task.public``, which its training then
        has to have.

        They are there while it trains, for server and clients alike. A generator is made again
        without them, from ``server.model`` and ``server.tensors``: what it needs of them belongs
        there. Whatever is computed from public rows alone is free; what also depends on a private
        row is a release.
        """
        return False

    def check_setting(self) -> None:  # noqa: B027 (most algorithms support all parameters in all their units and trusts)
        """Refuse parameters that have no meaning, or no plan, for the unit and trust.

        Raises:
            UserError: the refused parameter, with a hint.
        """

    # --- the harness's part ---

    def check_contract(self, round_: Round, broadcast: Tensors) -> None:  # noqa: B027 (most base classes take nothing for granted)
        """Test the assumptions of the base class's guarantee on made-up rows, for one round's
        computation at clients; on the CPU.

        Raises:
            NotPerExample: its loss or statistic mixes rows.
            ValueError: they cannot be tested.
        """

    def initial_server(self, seeds: Seeds) -> Server:
        """The server before the first round: the seed's initial weights."""
        return Server(initial_model(self.build, seeds), seeds)

    def broadcast(self, server: Server) -> Tensors:
        """The tensors that every client receives at the start of a round."""
        return shared_tensors(server.model)

    def start_clients(self, clients: Clients) -> None:  # noqa: B027 (most algorithms need none)
        """Give the clients the private state that they keep between rounds; the model's per-client
        layers are set already.
        """

    def releases(self) -> tuple[Release, ...]:
        """The mechanisms of the phases, which the budget pays for."""
        return tuple(phase.release for phase in self.phases())

    def schedule(self) -> Iterator[Round]:
        """Every round of the phases, in order; streams are numbered over all of them, so that no
        two phases share one.
        """
        number = stream = 0
        for index, phase in enumerate(self.phases()):
            for step in range(phase.release.rounds):
                yield Round(number, index, step, stream, phase.release)
                number = number + 1
                stream = stream + phase.release.per_round


def solved_plan(algorithm: Algorithm, epsilon: float | None, delta: float) -> PrivacyPlan | None:
    """The privacy plan, calibrated before the first step; None if epsilon has no meaning.

    It is solved here alone, for the releases that the algorithm declares: the proof does not cover
    a plan that an algorithm changed.
    """
    task = algorithm.task
    for key, value, supported in (
        ("unit", task.unit, algorithm.units),
        ("trust", task.trust, algorithm.trusts),
    ):
        if algorithm.private and value not in supported:
            raise UserError(
                key, f"does not support '{value}'", f"supported: {', '.join(supported)}"
            )
    if algorithm.uses_public() and task.public is None:
        raise UserError(
            "public",
            "the method uses public rows, and there are none",
            "name a data set whose rows are public: public: NAME",
        )
    algorithm.check_setting()
    releases = algorithm.releases()
    if any(release.name == SCORE for release in releases):
        where = f"{type(algorithm).__name__}.releases"
        what = f"a release is called '{SCORE}'"
        raise PluginError(
            where,
            what,
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
