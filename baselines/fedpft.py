"""FedPFT: every client sends a Gaussian mixture of each of its classes, once, and the server draws
from all of them; and under noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.probes import keep
from fedsim.methods import (
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
    one_hot,
    register,
    rounded,
    to_device,
    unit_weights,
)

PARTS = ("means", "roots", "mass")


class FedPFTParams(Params):
    """Parameters of FedPFT.

    Attributes:
        components: K, of every class of every client, with diagonal covariances; fewer where the
            class has fewer rows.
    """

    components: int = Field(10, ge=1)


class ClientMixtures(Algorithm):
    """Mixtures of all clients' classes: what comes of them once the server has every client's
    ``means`` and ``roots`` and ``mass``.
    """

    def build(self, clients: int) -> nn.Module:
        """Nothing is trained."""
        return nn.Module()

    def generator(self, server: Server) -> Mixtures:
        """Every client's components side by side, each as frequent as its rows are."""
        clients = range(self.task.clients)
        return Mixtures(
            *(
                torch.cat([server.tensors[f"{part}.{client}"] for client in clients], 1)
                for part in PARTS
            )
        )


@register("fedpft")
class FedPFT(ClientMixtures):
    """FedPFT: Gaussian mixtures of every client; one round of them, fitted by EM at the clients;
    not private.
    """

    source = "Beitollahi et al. 2024, arXiv 2402.01862"
    Params = FedPFTParams
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """One round."""
        return (Phase(Release("mixtures", 1.0, 1), self.client_round, keep, self.broadcast),)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Every member's mixtures; components without rows weigh nothing, and are not sent."""
        sent = Tensors()
        for client, x, y in zip(clients.members, clients.x, clients.y, strict=True):
            stream = clients.seeds.keystream(Purpose.LOCAL, round_.stream, client)
            seeds = stream.integers(2**31, (self.task.classes,)).tolist()
            fitted = [self._fit(x[y == label], seed) for label, seed in enumerate(seeds)]
            sent |= {
                f"{part}.{client}": torch.stack([own[part] for own in fitted]) for part in PARTS
            }
        used = sum(
            int((value > 0).sum()) for name, value in sent.items() if name.startswith("mass.")
        )
        return clients.send(sent, uplink_bytes=NUMBER_BYTES * used * (2 * self.task.dim + 1))

    def _fit(self, x: Tensor, seed: int) -> Mapping[str, Tensor]:
        """Means and standard deviations ``[K, d]`` of the rows' mixture, and the number of rows
        that each component stands for ``[K]``.
        """
        from sklearn.mixture import GaussianMixture

        count = min(self.params.components, len(x))
        shape = (self.params.components, x.shape[1])
        made = {"means": np.zeros(shape), "roots": np.zeros(shape), "mass": np.zeros(shape[0])}
        if count:
            rows = x.double().cpu().numpy()
            # of a single row it makes no mixture, of two equal ones it does
            mixture = GaussianMixture(count, covariance_type="diag", random_state=seed).fit(
                rows if len(rows) > 1 else rows.repeat(2, 0)
            )
            own = {
                "means": mixture.means_,
                "roots": mixture.covariances_**0.5,
                "mass": len(x) * mixture.weights_,
            }
            for part, value in own.items():
                made[part][:count] = value
        return {part: torch.from_numpy(value).float().to(x.device) for part, value in made.items()}


class Mixtures:
    """Draws a component of the label, as often as its ``mass`` ``[C, M]`` says, then from its
    normal: ``means`` ``[C, M, d]``.

    ``roots``, of its diagonal covariance: standard deviations ``[C, M, d]``.
    """

    def __init__(self, means: Tensor, roots: Tensor, mass: Tensor) -> None:
        self.means = means
        self.roots = roots
        self.mass = mass

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``; of a label that nobody has, of all components alike."""
        weights = self.mass + (self.mass.sum(1, keepdim=True) <= 0)
        drawn = to_device(
            torch.multinomial(weights[labels].cpu(), 1, generator=stream)[:, 0], labels.device
        )
        z = normal((len(labels), self.means.shape[2]), stream, self.means)
        return self.means[labels, drawn] + z * self.roots[labels, drawn]


CLIENT_CLASS_WEIGHTS = {"sums": 1.0, "counts": 0.15, "squares": 1.0}
LEAST_ENTRY_VARIANCE = 1e-6
"""Of an entry of a row of norm 1."""


@register("dp-fedpft")
class DPFedPFT(ClientMixtures):
    """DP-FedPFT: noisy class Gaussians of every client; by one Gaussian mechanism each, on sums,
    counts and squares of its classes' rows.

    One row changes one client's statistics of one class, whose joint norm is clipped to 1: proved;
    means, variances and samples are post-processing. Different here: the paper takes counts for
    public, here they are paid for; its theorem is for a full covariance, which at a client's number
    of rows is all noise, so here it is diagonal.
    """

    source = (
        "Beitollahi et al. 2024, arXiv 2402.01862; Gaussian mechanism: Balle and Wang 2018, "
        "arXiv 1805.06530"
    )
    Params = Params
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")

    def phases(self) -> tuple[Phase, ...]:
        """One round."""
        release = Release("gaussians", 1.0, 1)
        weights = unit_weights(CLIENT_CLASS_WEIGHTS)
        return (Phase(release, self.client_round, self.server_step, self.broadcast, weights),)

    def clip(self) -> float:
        """Statistics have joint norm at most 1."""
        return 1.0

    def noise_at_clients(self) -> bool:
        """Every client's statistics carry its own noise."""
        return True

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Every member's statistics, noised by itself."""
        r = moments.in_unit_ball(clients.pooled.x)
        y = clients.layout.client * self.task.classes + clients.pooled.y
        hot = one_hot(y, len(clients.x) * self.task.classes)
        norms = Norms(1.0, weights=unit_weights(CLIENT_CLASS_WEIGHTS))
        products = {
            "sums": OuterProduct(hot, r),
            "counts": OuterProduct(hot, torch.ones_like(r[:, :1])),
            "squares": OuterProduct(hot, r * r),
        }
        sums, joint = clipped_statistics(products, norms, clients.all_groups)
        kept = {
            name: value.view(len(clients.x), self.task.classes, -1) for name, value in sums.items()
        }
        noised = rounded(clients.add_noise(round_.release, round_.stream, {}, kept).kept)
        sent = {
            f"{name}.{client}": value[i]
            for name, value in noised.items()
            for i, client in enumerate(clients.members)
        }
        weight = sum(value.nbytes for value in sent.values())
        return clients.send(
            sent, {"gradient_norm": Diagnostic(joint, "quantiles")}, uplink_bytes=weight
        )

    def server_step(self, server: Server, round_: Round, total: Tensors) -> dict[str, float]:
        """A Gaussian of every class of every client; classes whose count does not stand out of its
        noise weigh nothing.
        """
        weights = unit_weights(CLIENT_CLASS_WEIGHTS)
        std = {
            name: server.noise_std(round_.release.name, 1) / weight
            for name, weight in weights.items()
        }
        for client in range(self.task.clients):
            sums, seen, squares = (
                total[f"{name}.{client}"] / weights[name] for name in CLIENT_CLASS_WEIGHTS
            )
            counts = moments.counts_above_noise(seen, std["counts"])
            means = sums / counts
            noise = (std["sums"] / counts).square()
            server.tensors |= {
                f"means.{client}": means[:, None],
                f"roots.{client}": (squares / counts - means.square() + noise)
                .clamp_min(LEAST_ENTRY_VARIANCE)
                .sqrt()[:, None],
                f"mass.{client}": torch.where(seen > 2 * std["counts"], seen, 0.0),
                f"counts.{client}": seen[:, 0],
            }
        return {}

    def label_counts(self, server: Server) -> Tensor:
        """Of all clients."""
        return torch.stack(
            [server.tensors[f"counts.{client}"] for client in range(self.task.clients)]
        ).sum(0)
