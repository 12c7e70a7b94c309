"""The product of an algorithm: a generator or a classifier, with or without a version for every
client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from fedsim.methods.returned import sampled_rows

if TYPE_CHECKING:
    from typing_extensions import TypeIs


@runtime_checkable
class Generator(Protocol):
    """The product of a generative algorithm."""

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings float32 ``[n, d]`` for int64 labels ``[n]``."""


@runtime_checkable
class Classifier(Protocol):
    """The product of an algorithm without a generator."""

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities ``[n, C]`` of embeddings ``[n, d]``."""


@runtime_checkable
class Personal(Protocol):
    """A generator or classifier with a version for every client; a plain one is shared by all
    clients.
    """

    def of_client(self, client: int) -> Any:
        """The generator or classifier of ``client``, from the client's releases."""


Product = Generator | Classifier
Made = TypeVar("Made", bound=Product)
Onward = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(rows ``[n, k]``, their labels ``[n]``, stream) to rows ``[n, d]``."""
LONGEST = 1.2
"""The norm that no synthetic row exceeds: cutting at 1 shortens the longer half of a good
generator's rows, and costs up to 0.009.
"""


def is_classifier(made: Product) -> TypeIs[Classifier]:
    """Whether it predicts; else it generates."""
    return isinstance(made, Classifier)


def is_personal(made: Product) -> bool:
    """Whether every client has a version of its own."""
    return isinstance(made, Personal)


def own(made: Made, client: int) -> Made:
    """The version of ``client``; without versions the shared product."""
    if isinstance(made, Personal):
        return made.of_client(client)
    return made


class Chart(Protocol):
    """Coordinates of embeddings, of as many dimensions or fewer."""

    def of_rows(self, x: Tensor) -> Tensor:
        """Coordinates ``[N, k]`` of embeddings ``[N, d]``."""

    def rows(self, r: Tensor) -> Tensor:
        """Embeddings ``[N, d]`` at coordinates ``[N, k]``."""


class CoordinateClassifier:
    """A classifier of coordinates, as one of embeddings."""

    def __init__(self, classifier: Classifier, chart: Chart) -> None:
        self.classifier = classifier
        self.chart = chart

    def probabilities(self, x: Tensor) -> Tensor:
        """``[n, C]`` for embeddings ``[n, d]``."""
        return self.classifier.probabilities(self.chart.of_rows(x))


class Mapped:
    """A generator whose rows are taken further by ``onward(rows, labels, stream)``.

    ``width`` is the number of columns that its own rows must have; None: any.
    """

    def __init__(self, generator: Generator, onward: Onward, width: int | None = None) -> None:
        self.generator = generator
        self.onward = onward
        self.width = width

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        with torch.no_grad():
            rows = sampled_rows(self.generator, labels, stream, self.width)
            return self.onward(rows, labels, stream)


class PersonalMapped(Mapped):
    """The same of a generator with a version for every client."""

    def of_client(self, client: int) -> Mapped:
        """That of the client's own generator."""
        return Mapped(own(self.generator, client), self.onward, self.width)


def mapped(generator: Generator, onward: Onward, width: int | None = None) -> Generator:
    """A generator whose rows, of ``width`` columns, are taken further, with a version for every
    client where it has one.
    """
    return (PersonalMapped if is_personal(generator) else Mapped)(generator, onward, width)


def stretched(
    generator: Generator, chart: Chart, unit: float = 1.0, width: int | None = None
) -> Generator:
    """A generator of coordinates, in units of ``unit``, as one of embeddings."""
    return mapped(generator, lambda rows, labels, stream: chart.rows(unit * rows), width)


def for_embeddings(made: Product, chart: Chart | None, width: int | None = None) -> Product:
    """What was made of rows in coordinates, of ``width`` columns, for embeddings; as it is where
    there are none.
    """
    if chart is None:
        return made
    if is_classifier(made):
        return CoordinateClassifier(made, chart)
    return stretched(made, chart, width=width)


def shorten(rows: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
    """Rows ``[n, d]``, those longer than :data:`LONGEST` brought back to it: embeddings have unit
    norm, and that is public.
    """
    longer: Tensor = (torch.linalg.vector_norm(rows, dim=1, keepdim=True) / LONGEST).clamp_min(1)
    return rows / longer


def shortened(made: Product, width: int | None = None) -> Product:
    """What was made, with none of its rows, of ``width`` columns, longer than :data:`LONGEST`; a
    classifier as it is.
    """
    if is_classifier(made):
        return made
    return mapped(made, shorten, width)


def before_shortening(made: Product) -> Product:
    """What was made, before :func:`shortened`."""
    if isinstance(made, Mapped) and made.onward is shorten:
        return made.generator
    return made


class FiniteRows(NamedTuple):
    """Rows ``x`` of every class with labels ``y``, on the CPU, as a generator."""

    x: Tensor
    y: Tensor

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Rows of these labels, of a class in random order, and again only where more are asked for
        than there are.
        """
        chosen = torch.empty_like(labels, device="cpu")
        order = torch.randperm(len(self.y), generator=stream)
        for label in set(labels.tolist()):
            own = order[self.y[order] == label]
            asked = torch.nonzero(labels.cpu() == label).flatten()
            chosen[asked] = own[torch.arange(len(asked)) % len(own)]
        return self.x[chosen]
