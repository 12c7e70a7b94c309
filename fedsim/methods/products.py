"""What an algorithm yields: a generator or a classifier, with a version for every client or without."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


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
