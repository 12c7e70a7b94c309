"""Defines the product of an algorithm: a generator or a classifier of embeddings.

A product is shared by all clients or has a version per client. The file has the protocols that a
product satisfies. It also has wrappers that turn products of coordinates into products of
embeddings, and one that limits the norm of synthetic embeddings.
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
    """The product of a generative algorithm: it draws synthetic embeddings for labels."""

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic embeddings float32 ``[n, d]`` for int64 labels ``[n]``.

        ``stream`` is the only source of random numbers.
        """


@runtime_checkable
class Classifier(Protocol):
    """The product of an algorithm without a generator: it predicts the class of embeddings."""

    def probabilities(self, x: Tensor) -> Tensor:
        """Return class probabilities ``[n, C]`` of embeddings ``[n, d]``."""


@runtime_checkable
class Personal(Protocol):
    """A generator or classifier with a version for every client.

    A generator or classifier without :meth:`of_client` is shared by all clients.
    """

    def of_client(self, client: int) -> Any:
        """Return the generator or classifier of ``client``, made from the client's releases."""


Product = Generator | Classifier
AnyProduct = TypeVar("AnyProduct", bound=Product)
RowMap = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""A map of generated rows: (rows ``[n, k]``, their labels ``[n]``, stream) to rows ``[n, d]``."""
LONGEST = 1.2
"""The largest norm of a synthetic embedding.

Real embeddings have norm 1. A limit of 1 would shorten the longer half of a good generator's rows,
which costs scores of up to 0.009.
"""


def is_classifier(product: Product) -> TypeIs[Classifier]:
    """Return whether a product is a classifier; else it is a generator."""
    return isinstance(product, Classifier)


def is_personal(product: Product) -> bool:
    """Return whether a product has a version for every client."""
    return isinstance(product, Personal)


def own(product: AnyProduct, client: int) -> AnyProduct:
    """Return the version of a product for ``client``; without versions, the shared product."""
    if isinstance(product, Personal):
        return product.of_client(client)
    return product


class Chart(Protocol):
    """Coordinates of embeddings, in as many dimensions or fewer."""

    def of_rows(self, x: Tensor) -> Tensor:
        """Return the coordinates ``[N, k]`` of embeddings ``[N, d]``."""

    def rows(self, r: Tensor) -> Tensor:
        """Return the embeddings ``[N, d]`` at coordinates ``[N, k]``."""


class CoordinateClassifier:
    """A classifier of embeddings, made from a classifier of coordinates."""

    def __init__(self, classifier: Classifier, chart: Chart) -> None:
        self.classifier = classifier
        self.chart = chart

    def probabilities(self, x: Tensor) -> Tensor:
        """Return class probabilities ``[n, C]`` of embeddings ``[n, d]``."""
        return self.classifier.probabilities(self.chart.of_rows(x))


class PersonalCoordinateClassifier(CoordinateClassifier):
    """A :class:`CoordinateClassifier` with a version for every client."""

    def of_client(self, client: int) -> CoordinateClassifier:
        """Return the classifier of embeddings of ``client``."""
        return CoordinateClassifier(own(self.classifier, client), self.chart)


class Mapped:
    """A generator whose rows go through a map before they are returned.

    Args:
        generator: the generator.
        onward: maps the generator's rows, given their labels and the stream.
        width: the number of columns that the generator's rows must have; None: any number.
    """

    def __init__(self, generator: Generator, onward: RowMap, width: int | None = None) -> None:
        self.generator = generator
        self.onward = onward
        self.width = width

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic embeddings ``[n, d]`` for labels ``[n]``."""
        with torch.no_grad():
            rows = sampled_rows(self.generator, labels, stream, self.width)
            return self.onward(rows, labels, stream)


class PersonalMapped(Mapped):
    """A :class:`Mapped` generator with a version for every client."""

    def of_client(self, client: int) -> Mapped:
        """Return the mapped version of ``client``."""
        return Mapped(own(self.generator, client), self.onward, self.width)


def mapped(generator: Generator, onward: RowMap, width: int | None = None) -> Generator:
    """Return a :class:`Mapped` generator, which has a version per client if ``generator`` has."""
    if is_personal(generator):
        return PersonalMapped(generator, onward, width)
    return Mapped(generator, onward, width)


def stretched(
    generator: Generator,
    chart: Chart,
    unit: float = 1.0,
    width: int | None = None,
) -> Generator:
    """Return a generator of embeddings, made from a generator of coordinates.

    Args:
        generator: draws coordinates, in units of ``unit``.
        chart: the coordinates.
        unit: the factor by which drawn coordinates are multiplied.
        width: the number of coordinates; None: any number.
    """
    return mapped(
        generator,
        lambda rows, labels, stream: chart.rows(unit * rows),
        width,
    )


def for_embeddings(product: Product, chart: Chart | None, width: int | None = None) -> Product:
    """Return a product of embeddings, made from a product of coordinates.

    Args:
        product: the generator or classifier of coordinates.
        chart: the coordinates. With None, ``product`` is one of embeddings already and is returned.
        width: the number of coordinates that a generator must draw; None: any number.
    """
    if chart is None:
        return product
    if is_classifier(product):
        if is_personal(product):
            return PersonalCoordinateClassifier(product, chart)
        return CoordinateClassifier(product, chart)
    return stretched(product, chart, width=width)


def shorten(rows: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
    """Return rows ``[n, d]``, with those longer than :data:`LONGEST` scaled back to it.

    It is public knowledge that embeddings have unit norm, so this costs no epsilon.
    """
    excess: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True) / LONGEST
    return rows / excess.clamp_min(1)


def shortened(product: Product, width: int | None = None) -> Product:
    """Return a generator whose rows have at most norm :data:`LONGEST`.

    A classifier is returned as it is.

    Args:
        product: the generator or classifier.
        width: the number of columns that rows must have; None: any number.
    """
    if is_classifier(product):
        return product
    return mapped(product, shorten, width)


def before_shortening(product: Product) -> Product:
    """Undo :func:`shortened`."""
    if isinstance(product, Mapped) and product.onward is shorten:
        return product.generator
    return product


class FiniteRows(NamedTuple):
    """A generator that draws from a finite set of rows.

    Attributes:
        x: the rows ``[n, d]``, on the CPU; there are some of every class.
        y: their labels ``[n]``, on the CPU.
    """

    x: Tensor
    y: Tensor

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return rows ``[n, d]`` of these labels.

        The rows of a class come in random order. They repeat only if ``labels`` asks for more rows
        than the class has.
        """
        chosen = torch.empty_like(labels, device="cpu")
        order = torch.randperm(len(self.y), generator=stream)
        for label in set(labels.tolist()):
            rows = order[self.y[order] == label]
            positions = torch.nonzero(labels.cpu() == label).flatten()
            chosen[positions] = rows[torch.arange(len(positions)) % len(rows)]
        return self.x[chosen]
