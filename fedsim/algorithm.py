"""The base class of every algorithm: it owns the round loop; an algorithm supplies mathematics.

One round: broadcast the server's parameters, let the clients compute, add their messages in client order, add noise, take
the server's step, and write into the ledger what really ran. Three kinds of client computation stand ready, each a base class
of its own: :class:`fedsim.dp_sgd.DPSGD` (a loss per example), :class:`fedsim.local_training.LocalTraining` (local steps, then an update),
:class:`fedsim.one_shot.OneShot` (a statistic per example).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as Rounds
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.errors import UserError
from fedsim.models.initialise import initial_model
from fedsim.models.layers import ClientCode, ClientLinear, Layout
from fedsim.privacy.ledger import Entry, Ledger
from fedsim.privacy.noise import Noise, gaussian
from fedsim.privacy.plan import Claim, PrivacyPlan, Release, Trust, Unit, calibrate
from fedsim.seeds import Purpose, Seeds

Tensors = dict[str, Tensor]
ALIGNMENT = 64
"""Bytes that torch aligns memory of its own to."""


class Params(BaseModel):
    """Parameters of an algorithm as a grid file gives them: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Task:
    """What everybody may know about a cell: shapes, the number of clients, and whom privacy protects from whom."""

    dim: int
    classes: int
    clients: int
    unit: Unit = "example"
    trust: Trust = "aggregate"


class Generator(Protocol):
    """What a generative algorithm yields."""

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings float32 ``[n, d]`` for int64 labels ``[n]``."""


@runtime_checkable
class PersonalGenerator(Generator, Protocol):
    """A generator with a version for every client; where there is none, all clients share the one."""

    def of_client(self, client: int) -> Generator:
        """The generator of ``client``, from what the client released."""


class Classifier(Protocol):
    """What an algorithm without a generator yields."""

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities ``[n, C]`` of embeddings ``[n, d]``."""


@runtime_checkable
class PersonalClassifier(Classifier, Protocol):
    """A classifier with a version for every client."""

    def of_client(self, client: int) -> Classifier:
        """The classifier that ``client`` uses."""


@dataclass(frozen=True)
class Noised:
    """What clients' noise made of one release.

    Attributes:
        sent: sums over the members, as they leave the clients.
        kept: per-client tensors ``[members, ...]``, as they stay with the clients.
        fingerprint: of the noise that was drawn.
    """

    sent: Tensors
    kept: Tensors
    fingerprint: int


@dataclass(frozen=True)
class Step:
    """One step of a mechanism on a cohort, as :meth:`Clients.add_noise` ran it.

    Attributes:
        release: its release.
        number: the number that its noise was drawn with.
        members: whose data it was computed on.
        sample_rate: of the release.
        noise_multiplier: of the noise that each member added; inf where no tensor got any.
        bare: whether sums left the clients without noise, so that the server has to add it.
    """

    release: str
    number: int
    members: tuple[int, ...]
    sample_rate: float
    noise_multiplier: float
    bare: bool

    def entries(self, server: float) -> Iterator[Entry]:
        """A ledger entry a member: the least noise on anything that was released; none where nothing was.

        Args:
            server: noise multiplier of what the server added to the sums; 0 for none.
        """
        multiplier = min(self.noise_multiplier, server) if self.bare else self.noise_multiplier
        for client in self.members if multiplier < math.inf else ():
            yield Entry(self.release, self.number, client, multiplier, self.sample_rate)


@dataclass
class Clients:
    """The clients of one cohort: their data and their private state.

    Attributes:
        members: client numbers, ascending.
        x, y: each client's rows.
        seeds: the cell's seed tree.
        plan: the cell's privacy plan; None for an algorithm that is not private.
        model: holds one slice of every per-client parameter for each member.
        state: further private tensors that an algorithm keeps between rounds, ``[members, ...]`` each.
        ran: the steps of mechanisms since they were last counted.
    """

    members: tuple[int, ...]
    x: tuple[Tensor, ...]
    y: tuple[Tensor, ...]
    seeds: Seeds
    plan: PrivacyPlan | None
    model: nn.Module
    state: Tensors = field(default_factory=dict)
    ran: list[Step] = field(default_factory=list)

    def batch(self, rows: Sequence[Tensor], round_: int, noise: Mapping[str, tuple[int, ...]]) -> Batch:
        """The batch of each member's ``rows`` (int64 indices), with standard normal draws from each client's own stream."""
        parts = self.batches(rows, round_, noise)
        position = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(chosen) for chosen in rows]))
        return Batch(
            torch.cat([part.x for part in parts]),
            torch.cat([part.y for part in parts]),
            {name: torch.cat([part.noise[name] for part in parts]) for name in noise},
            Layout(position, len(self.members)),
        )

    def batches(self, rows: Sequence[Tensor], round_: int, noise: Mapping[str, tuple[int, ...]]) -> list[Batch]:
        """As :meth:`batch`, a batch of its own for each member."""
        return [
            Batch(x[chosen], y[chosen], self.draws(client, len(chosen), round_, noise), Layout(torch.zeros_like(chosen), 1))
            for client, x, y, chosen in zip(self.members, self.x, self.y, rows, strict=True)
        ]

    def draws(self, client: int, rows: int, round_: int, noise: Mapping[str, tuple[int, ...]]) -> Tensors:
        """Standard normal draws by name, ``[rows, ...]`` each, for the batch of one member."""
        stream = self.seeds.torch(Purpose.LATENT, round_, client)
        return {name: torch.randn(rows, *shape, generator=stream) for name, shape in noise.items()}

    def poisson(self, round_: int, rate: float, client_rate: float = 1.0) -> list[Tensor]:
        """Each member's Poisson sample: with probability ``client_rate`` the client takes part, then each row with ``rate``."""
        sampled = []
        for client, x in zip(self.members, self.x, strict=True):
            stream = self.seeds.numpy(Purpose.SAMPLING, round_, client)
            takes_part = stream.random() < client_rate
            chosen = np.flatnonzero(stream.random(len(x)) < rate) if takes_part else np.empty(0, np.int64)
            sampled.append(torch.from_numpy(chosen))
        return sampled

    def add_noise(self, release: Release, round_: int, sent: Tensors, kept: Tensors | None = None) -> Noised:
        """Add the noise that is the clients' own, and count the step for the ledger; all noise of clients is drawn here.

        Under ``trust: silo`` every member adds the full noise to what it sends; under ``trust: aggregate`` the server does that once.
        What stays with a client is noised by the client in any case. What one unit adds to ``sent`` and ``kept`` together must be
        within the plan's sensitivity. Without a plan nothing is noised.

        Args:
            release: the mechanism that runs.
            round_: the round; where a round holds several steps, the number of the step over all rounds.
            sent: sums over the members.
            kept: per-client tensors ``[members, ...]``.
        """
        kept = kept or {}
        if self.plan is None:
            return Noised(sent, kept, 0)
        own = sent if self.plan.trust == "silo" else {}
        shapes = {name: tuple(value.shape) for name, value in own.items()} | {name: tuple(v.shape[1:]) for name, v in kept.items()}
        noise = {name: torch.zeros_like(value) for name, value in (own | kept).items()}
        std, drawn = self.plan.noise_std(release.name), 0
        for position, client in enumerate(self.members if shapes else ()):
            draw = gaussian(shapes, std, self.seeds.noise(round_, client))
            drawn += draw.fingerprint
            for name in own:
                noise[name] += draw.parts[name]
            for name in kept:
                noise[name][position] = draw.parts[name]
        multiplier = std / self.plan.sensitivity if shapes else math.inf
        self.ran.append(Step(release.name, round_, self.members, release.sample_rate, multiplier, bare=bool(sent) and not own))
        return Noised(
            {name: value + noise[name] if name in noise else value for name, value in sent.items()},
            {name: value + noise[name] for name, value in kept.items()},
            drawn,
        )


@dataclass(frozen=True, kw_only=True)
class Message:
    """What a cohort sends after a round: the sum over its clients, never one client's part under ``trust: aggregate``.

    Attributes:
        sums: tensors by name; what only one cohort sends under a name goes on as it is.
        sampled: fingerprint of the rows that each client sampled.
        noise: fingerprint of the noise that the clients drew.
        uplink_bytes: what the clients would have sent over a network, all of them together; where it is private who takes part, of
            those who do not, too.
        diagnostics: not private, for people who may see the data: values per example or per client by name, averaged over all cohorts;
            ``gradient_norm`` is told by its quantiles, and ``generator_features``, the mean kernel features of what each client generates,
            become ``cross_client_mmd``.
        steps: the steps of mechanisms that ran; counted by the harness, whatever an algorithm gives here.
    """

    sums: Tensors
    sampled: int = 0
    noise: int = 0
    uplink_bytes: int = 0
    diagnostics: Mapping[str, list[Any]] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()


@dataclass
class Server:
    """The server's state: the model with the shared parameters, and by name whatever else lives on between rounds."""

    model: nn.Module
    seeds: Seeds
    tensors: Tensors = field(default_factory=dict)
    plan: PrivacyPlan | None = None

    def noise_std(self, release: str, clients: int) -> float:
        """Standard deviation of the noise that a release's sum carries: every silo's own, or the one of the aggregate."""
        if self.plan is None:
            return 0.0
        return self.plan.noise_std(release) * math.sqrt(clients if self.plan.trust == "silo" else 1)


class Pool(Protocol):
    """All clients of a cell, however they are packed onto actors."""

    def round(self, round_: int, release: Release, broadcast: Tensors) -> list[Message]:
        """Let every cohort compute; messages in client order."""

    def released(self, names: Sequence[str]) -> Tensors:
        """Per-client tensors that the plan protects, ``[clients, ...]``, in client order."""

    def state(self) -> Tensors:
        """All private client state, for a checkpoint."""

    def load_state(self, tensors: Tensors) -> None:
        """Take up a checkpoint's client state."""


@dataclass(frozen=True)
class RoundRecord:
    """What a round leaves behind for ``rounds.jsonl``; everything but the noise multiplier is a diagnostic, not private."""

    round: int
    rounds: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """The outcome of :meth:`Algorithm.train`; ``state`` is what ``made`` was made from, see :func:`released_state`."""

    made: Generator | Classifier
    ledger: Ledger
    uplink_bytes: int
    state: Tensors


@dataclass(frozen=True)
class Progress:
    """Where a training stands, enough to go on from there bit for bit; with the root of secret noise, if it is secret."""

    round: int
    tensors: Tensors
    ledger: str
    uplink_bytes: int
    secret: int | None = field(default=None, repr=False)


class Algorithm(ABC):
    """A federated algorithm: it yields a generator, or a classifier if it has none.

    Class attributes:
        name: set by ``@register``.
        source: the paper or page that it follows.
        Params: its parameters with defaults.
        private: whether an epsilon has a meaning for it.
        units, trusts: the privacy settings that it supports.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    Params: ClassVar[type[Params]]
    private: ClassVar[bool] = True
    units: ClassVar[tuple[Unit, ...]] = ("example", "client")
    trusts: ClassVar[tuple[Trust, ...]] = ("aggregate", "silo")

    def __init__(self, params: Any, task: Task) -> None:
        self.params = params
        self.task = task

    # --- what an algorithm or its kind supplies ---

    @abstractmethod
    def releases(self) -> tuple[Release, ...]:
        """The schedule: which mechanisms run, for how many rounds each, at which sample rate."""

    @abstractmethod
    def build(self, clients: int) -> nn.Module:
        """The model with per-client layers for ``clients`` members (0 at the server); weights are set afterwards by name."""

    @abstractmethod
    def client_round(self, clients: Clients, round_: int, release: Release, broadcast: Tensors) -> Message:
        """What a cohort computes and sends."""

    @abstractmethod
    def server_step(self, server: Server, round_: int, release: Release, total: Tensors) -> Mapping[str, float]:
        """Update the server by the (noisy) sum of the messages; returns diagnostics that depend on nothing private."""

    def generator(self, server: Server, codes: Tensors, seeds: Seeds) -> Generator:
        """The generator, from what is already private: the server's state and the released client codes."""
        raise NotImplementedError(f"{type(self).__name__} has neither a generator nor a classifier")

    def classifier(self, server: Server, codes: Tensors, seeds: Seeds) -> Classifier:
        """For an algorithm without a generator: the classifier, from the same."""
        raise NotImplementedError(f"{type(self).__name__} yields a generator")

    @classmethod
    def generates(cls) -> bool:
        """Whether it yields a generator, not a classifier."""
        return cls.classifier is Algorithm.classifier

    def claim(self) -> Claim:
        """Whether the row's (epsilon, delta) is a theorem."""
        return "proved" if self.private else "none"

    def scope(self) -> str:
        """What the noise protects, as the row names it."""
        return "joint"

    def clip(self) -> float:
        """C, the clip norm of one unit's contribution."""
        return math.inf

    def sensitivity(self) -> float:
        """L2 norm by which one unit's presence can change a round's sum; C for sums of clipped contributions."""
        return self.clip()

    def releases_codes(self) -> bool:
        """Whether the client codes leave the clients (they must then have been noised)."""
        return True

    def noise_at_clients(self) -> bool:
        """Whether what clients send carries their own noise already, so that the server adds none."""
        return self.task.trust == "silo"

    # --- the harness's part ---

    def plan(self, epsilon: float | None, delta: float) -> PrivacyPlan | None:
        """The privacy plan, calibrated before the first step; None where epsilon has no meaning.

        Raises:
            UserError: the unit or trust is not supported, or the target cannot be met.
        """
        for value, supported in ((self.task.unit, self.units), (self.task.trust, self.trusts)):
            if value not in supported:
                raise UserError(f"algorithm {self.name}", f"does not support '{value}'", f"supported: {', '.join(supported)}")
        if epsilon is None:
            return None
        return calibrate(
            epsilon=epsilon,
            delta=delta,
            releases=self.releases(),
            unit=self.task.unit,
            trust=self.task.trust,
            scope=self.scope(),
            claim=self.claim(),
            clip=self.clip(),
            sensitivity=self.sensitivity(),
        )

    def initial_server(self, seeds: Seeds) -> Server:
        """The server before the first round: the seed's initial weights."""
        return Server(initial_model(self.build, seeds), seeds)

    def broadcast(self, server: Server) -> Tensors:
        """What every client receives at the start of a round."""
        return shared_tensors(server.model)

    def start_clients(self, clients: Clients) -> None:  # noqa: B027 (most algorithms need none)
        """Give the clients the private state that they keep between rounds; the model's per-client layers are set already."""

    def schedule(self) -> Iterator[tuple[int, Release]]:
        """(round, its release), counted from 0 over all releases."""
        round_ = 0
        for release in self.releases():
            for _ in range(release.rounds):
                yield round_, release
                round_ += 1

    def train(
        self,
        pool: Pool,
        plan: PrivacyPlan | None,
        seeds: Seeds,
        resume: Progress | None = None,
        checkpoint: Callable[[Callable[[], Progress]], None] | None = None,
    ) -> Rounds[RoundRecord, None, Trained]:
        """Run all rounds: yields a record after each, returns the outcome.

        Args:
            pool: the clients.
            plan: from :meth:`plan`.
            seeds: the cell's seed tree.
            resume: go on from here; the result is that of an uninterrupted training.
            checkpoint: called after every round with a function that captures the progress; it decides when to.
        """
        server = self.initial_server(seeds)
        server.plan = plan
        ledger, uplink, start = Ledger(), 0, 0
        if resume is not None:
            start, uplink, ledger = resume.round, resume.uplink_bytes, Ledger.from_json(resume.ledger)
            load_server(server, {k[7:]: v for k, v in resume.tensors.items() if k.startswith("server.")})
            pool.load_state({k[8:]: v for k, v in resume.tensors.items() if k.startswith("clients.")})
        rounds = sum(release.rounds for release in self.releases())
        for round_, release in self.schedule():
            if round_ < start:
                continue
            messages = pool.round(round_, release, self.broadcast(server))
            total = add_in_order([message.sums for message in messages])
            noise, multiplier = self._server_noise(plan, release, total, seeds, round_)
            record = {"release": release.name, **_gathered(messages, noise, l2_norm(total))}
            noisy = {name: value + noise.parts[name] for name, value in total.items()} if noise.parts else total
            record |= self.server_step(server, round_, release, noisy)
            server.tensors = in_order(server.tensors)
            for step in (step for message in messages for step in message.steps):
                for entry in step.entries(multiplier):
                    ledger.record(entry)
            uplink += sum(message.uplink_bytes for message in messages)
            if checkpoint is not None:
                checkpoint(partial(capture, server, pool, ledger, round_ + 1, uplink))
            yield RoundRecord(round_, rounds, record)
        codes = pool.released(code_names(server.model)) if self.releases_codes() else {}
        state = released_state(server, codes)
        made = (self.generator if self.generates() else self.classifier)(server, codes, seeds)
        return Trained(made, ledger, uplink, state)

    def restored(self, state: Tensors, plan: PrivacyPlan | None, seeds: Seeds) -> Generator:
        """The generator of an earlier training, from its ``Trained.state``, plan and seeds."""
        server = self.initial_server(seeds)
        server.plan = plan
        load_server(server, {k[7:]: v for k, v in state.items() if k.startswith("server.")})
        return self.generator(server, {k[6:]: v for k, v in state.items() if k.startswith("codes.")}, seeds)

    def _server_noise(self, plan: PrivacyPlan | None, release: Release, total: Tensors, seeds: Seeds, round_: int) -> tuple[Noise, float]:
        """The noise that is added once, to the sum; with its multiplier, 0 where none is added."""
        if plan is None or self.noise_at_clients():
            return Noise({}, 0), 0.0
        shapes = {name: tuple(value.shape) for name, value in total.items()}
        std = plan.noise_std(release.name)
        return gaussian(shapes, std, seeds.noise(round_)), std / plan.sensitivity


def shared_tensors(model: nn.Module) -> Tensors:
    """The parameters that all clients share, by name."""
    local = set(local_names(model))
    return {name: p.detach() for name, p in model.named_parameters() if name not in local}


def load_parameters(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """Set every parameter for which there is a tensor under its name behind ``prefix``."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"{prefix}{name}" in tensors:
                parameter.copy_(tensors[f"{prefix}{name}"])


def local_names(model: nn.Module) -> list[str]:
    """Names of the per-client parameters, ``[clients, ...]`` each."""
    owners = [(path, m) for path, m in model.named_modules() if isinstance(m, ClientLinear | ClientCode)]
    return [f"{path}.{name}" for path, module in owners for name, _ in module.named_parameters(recurse=False)]


def code_names(model: nn.Module) -> list[str]:
    """Names of the client codes."""
    return [f"{path}.weight" for path, module in model.named_modules() if isinstance(module, ClientCode)]


def add_in_order(parts: Sequence[Tensors]) -> Tensors:
    """The sum of the cohorts' sums, in client order and in float64, so that it depends on neither timing nor packing."""
    terms: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in part.items():
            terms.setdefault(name, []).append(value)
    return {name: own[0] if len(own) == 1 else sum_in_double(own) for name, own in terms.items()}


def sum_in_double(terms: Sequence[Tensor]) -> Tensor:
    """The sum of equal shapes, added up in float64 and rounded once to the dtype of the first."""
    total = terms[0].double()
    for term in terms[1:]:
        total = total + term
    return total.to(terms[0].dtype)


def in_order(tensors: Tensors) -> Tensors:
    """The tensors in row-major, aligned memory, as a checkpoint gives them back: products may round by strides and by alignment."""
    return {
        name: value if value.is_contiguous() and value.data_ptr() % ALIGNMENT == 0 else value.clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def l2_norm(tensors: Tensors) -> float:
    """Joint L2 norm."""
    return math.sqrt(sum(float(value.square().sum()) for value in tensors.values()))


def _gathered(messages: Sequence[Message], noise: Noise, signal: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        "sampled": sum(message.sampled for message in messages) % 2**32,
        "noise": (sum(message.noise for message in messages) + noise.fingerprint) % 2**32,
        "signal_norm": signal,
        "noise_norm": l2_norm(noise.parts),
    }
    # a cohort that sampled no row has no loss to tell
    for name in dict.fromkeys(name for message in messages for name in message.diagnostics):
        numbers = [number for message in messages for number in message.diagnostics.get(name, [])]
        if name == "gradient_norm":
            values["gradient_norm_quantiles"] = np.quantile(numbers, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist() if numbers else []
        elif name == "generator_features":
            # the mean squared distance over pairs of clients is twice the unbiased variance
            values["cross_client_mmd"] = 2 * float(np.var(numbers, axis=0, ddof=1).sum()) if len(numbers) > 1 else None
        else:
            values[name] = float(np.mean(numbers)) if numbers else None
    return values


def load_server(server: Server, tensors: Tensors) -> None:
    """Take up a checkpoint's server state."""
    load_parameters(server.model, tensors, "model.")
    server.tensors = {k[8:]: v.clone() for k, v in tensors.items() if k.startswith("tensors.")}


def released_state(server: Server, codes: Tensors) -> Tensors:
    """What a generator is made from: the server's state and the released codes, all of it private already.

    The optimiser's state, and parameters of which there is a mean over iterates, are left out.
    """
    kept = {name: value for name, value in server.tensors.items() if not name.startswith("adam.")}
    parameters = {name: p for name, p in server.model.named_parameters() if p.numel() and f"average.{name}" not in kept}
    state = {f"server.model.{name}": p.detach().clone() for name, p in parameters.items()}
    state |= {f"server.tensors.{name}": value.clone() for name, value in kept.items()}
    return state | {f"codes.{name}": value.clone() for name, value in codes.items()}


def capture(server: Server, pool: Pool, ledger: Ledger, round_: int, uplink_bytes: int) -> Progress:
    """The progress after ``round_`` rounds."""
    tensors = {f"server.model.{name}": p.detach().clone() for name, p in server.model.named_parameters() if p.numel()}
    tensors |= {f"server.tensors.{name}": value.clone() for name, value in server.tensors.items()}
    tensors |= {f"clients.{name}": value for name, value in pool.state().items()}
    return Progress(round_, tensors, ledger.to_json(), uplink_bytes, server.seeds.secret)
