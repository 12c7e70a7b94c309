"""FedPFT and DP-FedPFT: every client sends Gaussian mixtures of its classes, once.

The server's generator draws from the mixtures of all clients. FedPFT fits them by EM and is not
private. DP-FedPFT releases noisy moments, which give one Gaussian per client and class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.probes import keep
from fedsim.methods import (
    BLOCK,
    NUMBER_BYTES,
    Algorithm,
    Clients,
    Diagnostic,
    Message,
    Norms,
    OuterProduct,
    Params,
    Phase,
    Purpose,
    Release,
    Round,
    Server,
    Tensors,
    Unit,
    clipped_statistics,
    moments,
    normal,
    register,
    to_device,
    unit_weights,
)

PARTS = ("means", "roots", "mass")
"""The names of the tensors of a mixture; see :class:`Mixtures`."""


MOST_ENTRIES = 2**27
"""The largest number of entries of the means and standard deviations of all components together.

FedPFT reduces the number of components until this holds, but not below 1.
"""


class FedPFTParams(Params):
    """Parameters of FedPFT.

    Attributes:
        components: K, the number of components of every class of every client, with diagonal
            covariances; fewer if the class has fewer rows, or if the components of all classes of
            all clients would have more than 134 million entries together.
    """

    components: int = Field(40, ge=1)


class ClientMixtures(Algorithm):
    """Base class of FedPFT and DP-FedPFT: the generator draws from the mixtures of all clients.

    For every client k, a subclass stores ``means.k``, ``roots.k`` and ``mass.k`` in the server's
    tensors.
    """

    @property
    def components(self) -> int:
        """The number K of components of every class of every client: 1."""
        return 1

    def statistic_numbers(self) -> int:
        """Return the number of entries of all means and standard deviations."""
        return self.components * 2 * self.task.clients * self.task.classes * self.task.dim

    def build(self, clients: int) -> nn.Module:
        """Return an empty model: nothing is trained."""
        return nn.Module()

    def generator(self, server: Server) -> Mixtures:
        """Return a generator that draws each component in proportion to the rows it represents."""
        merged = {}
        for name in PARTS:
            client_tensors = [server.tensors[f"{name}.{k}"] for k in range(self.task.clients)]
            merged[name] = torch.cat(client_tensors, 1)
        return Mixtures(**merged)


@register("fedpft")
class FedPFT(ClientMixtures):
    """FedPFT: Gaussian mixtures of every client, in one round; not private.

    Clients fit them by EM.
    """

    source = "Beitollahi et al. 2024, arXiv 2402.01862"
    Params = FedPFTParams
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase of one round."""
        return (Phase(Release("mixtures", 1.0, 1), self.client_round, keep, self.broadcast),)

    @property
    def components(self) -> int:
        """The number K of components of every class of every client, at least 1."""
        entries = 2 * self.task.clients * self.task.classes * self.task.dim
        wanted: int = self.params.components
        return max(1, min(wanted, MOST_ENTRIES // entries))

    def client_round(
        self,
        clients: Clients,
        round_: Round,
        broadcast: Tensors,
    ) -> Message:
        """Return every client's mixtures; components without rows do not count as sent."""
        sent = Tensors()
        for client, x, y in zip(clients.members, clients.x, clients.y, strict=True):
            stream = clients.seeds.keystream(Purpose.LOCAL, round_.stream, client)
            seeds = stream.integers(2**31, (self.task.classes,)).tolist()
            mixtures = [self._fit(x[y == label], seed) for label, seed in enumerate(seeds)]
            for name in PARTS:
                sent[f"{name}.{client}"] = torch.stack([mixture[name] for mixture in mixtures])
        components = sum(int((sent[f"mass.{k}"] > 0).sum()) for k in clients.members)
        numbers = components * (2 * self.task.dim + 1)
        return clients.send(sent, uplink_bytes=NUMBER_BYTES * numbers)

    def _fit(self, x: Tensor, seed: int) -> Mapping[str, Tensor]:
        """Return the mixture of rows ``[n, d]``, padded with zeros to K components.

        It has means and standard deviations ("roots") ``[K, d]``, and the number of rows that each
        component represents ("mass") ``[K]``.
        """
        from sklearn.mixture import GaussianMixture

        components = self.components
        count = min(components, len(x))
        means = np.zeros((components, x.shape[1]))
        roots = np.zeros_like(means)
        mass = np.zeros(components)
        if count:
            rows = x.double().cpu().numpy()
            if len(rows) == 1:
                rows = rows.repeat(2, 0)  # scikit-learn refuses a single row
            mixture = GaussianMixture(count, covariance_type="diag", random_state=seed).fit(rows)
            means[:count] = mixture.means_
            roots[:count] = mixture.covariances_**0.5
            mass[:count] = len(x) * mixture.weights_
        arrays = {"means": means, "roots": roots, "mass": mass}
        return {
            name: torch.from_numpy(array).float().to(x.device) for name, array in arrays.items()
        }


@dataclass(frozen=True, eq=False)
class Mixtures:
    """A generator that draws a component of the label, then a row from its normal distribution.

    Attributes:
        means: the means of the components of every class ``[C, M, d]``.
        roots: their standard deviations ``[C, M, d]``.
        mass: the number of rows that each represents ``[C, M]``.
    """

    means: Tensor
    roots: Tensor
    mass: Tensor

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic embeddings ``[n, d]`` for labels ``[n]``.

        If no component of a label has mass, all its components are equally likely.
        """
        has_no_rows = self.mass.sum(1, keepdim=True) <= 0
        weights = (self.mass + has_no_rows)[labels].cpu()
        drawn = torch.multinomial(weights, 1, generator=stream)[:, 0]
        component = to_device(drawn, labels.device)
        z = normal((len(labels), self.means.shape[2]), stream, self.means)
        return self.means[labels, component] + z * self.roots[labels, component]


CLIENT_CLASS_WEIGHTS = unit_weights({"sums": 1.0, "counts": 0.15, "squares": 1.0})
"""Weights of the statistics in a row's joint norm."""
LEAST_ENTRY_VARIANCE = 1e-6
"""The smallest variance of an entry. Noise can make an estimate smaller, or negative."""


@register("dp-fedpft")
class DPFedPFT(ClientMixtures):
    """DP-FedPFT: noisy class Gaussians of every client.

    Each client runs one Gaussian mechanism on sums, counts and squares of its classes' rows. A unit
    (a row, or a group of rows) is held by one client. Adding or removing it changes the statistics
    of that client only, by a joint norm that is clipped to 1. So the theorem of the Gaussian
    mechanism applies. Means, variances and samples are post-processing.

    Two things differ from the paper. The paper takes counts as public; here the budget pays for
    them. The paper's theorem is for full covariances, in which noise would hide the few rows of a
    client; here they are diagonal.
    """

    source = (
        "Beitollahi et al. 2024, arXiv 2402.01862; Gaussian mechanism: Balle and Wang 2018, "
        "arXiv 1805.06530"
    )
    Params = Params
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase of one round."""
        release = Release("gaussians", 1.0, 1)
        return (
            Phase(
                release,
                self.client_round,
                self.server_step,
                self.broadcast,
                CLIENT_CLASS_WEIGHTS,
            ),
        )

    def clip(self) -> float:
        """Return 1, the largest joint norm of a unit's statistics."""
        return 1.0

    def noise_at_clients(self) -> bool:
        """Return True: every client adds its own noise."""
        return True

    def client_round(
        self,
        clients: Clients,
        round_: Round,
        broadcast: Tensors,
    ) -> Message:
        """Return every client's statistics with its own noise."""
        count = len(clients.members)
        classes = self.task.classes
        # A pair is a client and a class.
        pair_of_row = clients.layout.client * classes + clients.pooled.y
        pairs = count * classes
        norms = Norms(self.clip(), weights=CLIENT_CLASS_WEIGHTS)
        sums = Tensors()
        norms_of_blocks = []
        groups = clients.all_groups
        for rows, units in (groups or clients.layout).blocks(BLOCK):
            r = moments.in_unit_ball(clients.pooled.x[rows])
            pair = pair_of_row[rows]
            products = {
                "sums": OuterProduct.sums(r, pair, pairs),
                "counts": OuterProduct.sums(torch.ones_like(r[:, :1]), pair, pairs),
                "squares": OuterProduct.sums(r * r, pair, pairs),
            }
            groups_of_rows = units if groups else None
            # This adds the block to `sums`.
            _, block_norms = clipped_statistics(products, norms, groups_of_rows, sums)
            norms_of_blocks.append(block_norms)
        unit_norms = torch.cat(norms_of_blocks)
        by_client = {name: value.view(count, classes, -1) for name, value in sums.items()}
        noised = clients.add_noise(round_.release, round_.stream, {}, by_client)
        sent = Tensors()
        for name, value in noised.kept.items():
            for position, client in enumerate(clients.members):
                sent[f"{name}.{client}"] = value[position]
        size = sum(value.nbytes for value in sent.values())
        diagnostics = {"gradient_norm": Diagnostic(unit_norms, "quantiles")}
        return clients.send(sent, diagnostics, uplink_bytes=size)

    def server_step(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> dict[str, float]:
        """Store a Gaussian of every class of every client.

        It has mass 0 if its released count is at most twice the standard deviation of the noise on
        a count. Such a class may have no rows at this client.
        """
        noise_std = server.noise_std(round_.release.name, 1)
        sum_std = noise_std / CLIENT_CLASS_WEIGHTS["sums"]
        count_std = noise_std / CLIENT_CLASS_WEIGHTS["counts"]
        for client in range(self.task.clients):
            sums = total[f"sums.{client}"] / CLIENT_CLASS_WEIGHTS["sums"]
            released_counts = total[f"counts.{client}"] / CLIENT_CLASS_WEIGHTS["counts"]
            squares = total[f"squares.{client}"] / CLIENT_CLASS_WEIGHTS["squares"]
            counts = moments.counts_above_noise(released_counts, count_std)
            means = sums / counts
            # On average, noise makes the square of a mean larger by this variance.
            noise_variance = (sum_std / counts).square()
            variances = squares / counts - means.square() + noise_variance
            roots = variances.clamp_min(LEAST_ENTRY_VARIANCE).sqrt()
            is_seen = released_counts > 2 * count_std
            server.tensors |= {
                f"means.{client}": means[:, None],
                f"roots.{client}": roots[:, None],
                f"mass.{client}": torch.where(is_seen, released_counts, 0.0),
                f"counts.{client}": released_counts[:, 0],
            }
        return {}

    def label_counts(self, server: Server) -> Tensor:
        """Return the released counts of all clients together, ``[C]``."""
        counts = [server.tensors[f"counts.{client}"] for client in range(self.task.clients)]
        return torch.stack(counts).sum(0)
