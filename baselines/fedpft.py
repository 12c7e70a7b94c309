"""FedPFT: Gaussian mixtures of every client; each sends them once, and the server draws from all of them; not private."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from baselines.local_only import keep
from fedsim.methods import (
    NUMBER_BYTES,
    Algorithm,
    Clients,
    Message,
    Params,
    Phase,
    Purpose,
    Release,
    Round,
    Server,
    Tensors,
    normal,
    register,
    to_device,
)

PARTS = ("means", "roots", "mass")


class FedPFTParams(Params):
    """Parameters of FedPFT.

    Attributes:
        components: K, of every class of every client, with diagonal covariances; fewer where the class has fewer rows.
    """

    components: int = Field(10, ge=1)


class ClientMixtures(Algorithm):
    """Mixtures of all clients' classes: what comes of them once the server has every client's ``means`` and ``roots`` and ``mass``."""

    def build(self, clients: int) -> nn.Module:
        """Nothing is trained."""
        return nn.Module()

    def generator(self, server: Server) -> Mixtures:
        """Every client's components side by side, each as frequent as its rows are."""
        clients = range(self.task.clients)
        return Mixtures(*(torch.cat([server.tensors[f"{part}.{client}"] for client in clients], 1) for part in PARTS))


@register("fedpft")
class FedPFT(ClientMixtures):
    """One round of mixtures, fitted by EM at the clients."""

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
            sent |= {f"{part}.{client}": torch.stack([own[part] for own in fitted]) for part in PARTS}
        used = sum(int((value > 0).sum()) for name, value in sent.items() if name.startswith("mass."))
        return clients.send(sent, uplink_bytes=NUMBER_BYTES * used * (2 * self.task.dim + 1))

    def _fit(self, x: Tensor, seed: int) -> Mapping[str, Tensor]:
        """Means and standard deviations ``[K, d]`` of the rows' mixture, and the number of rows that each component stands for ``[K]``."""
        from sklearn.mixture import GaussianMixture

        count = min(self.params.components, len(x))
        shape = (self.params.components, x.shape[1])
        made = {"means": np.zeros(shape), "roots": np.zeros(shape), "mass": np.zeros(shape[0])}
        if count:
            rows = x.double().cpu().numpy()
            # of a single row it makes no mixture, of two equal ones it does
            mixture = GaussianMixture(count, covariance_type="diag", random_state=seed).fit(rows if len(rows) > 1 else rows.repeat(2, 0))
            own = {"means": mixture.means_, "roots": mixture.covariances_**0.5, "mass": len(x) * mixture.weights_}
            for part, value in own.items():
                made[part][:count] = value
        return {part: torch.from_numpy(value).float().to(x.device) for part, value in made.items()}


class Mixtures:
    """Draws a component of the label, as often as its ``mass`` ``[C, M]`` says, then from its normal: ``means`` ``[C, M, d]``.

    ``roots``, of its covariance: standard deviations ``[C, M, d]``, or symmetric ``[C, M, d, d]``.
    """

    def __init__(self, means: Tensor, roots: Tensor, mass: Tensor) -> None:
        self.means, self.roots, self.mass = means, roots, mass

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``; of a label that nobody has, of all components alike."""
        weights = self.mass + (self.mass.sum(1, keepdim=True) <= 0)
        drawn = to_device(torch.multinomial(weights[labels].cpu(), 1, generator=stream)[:, 0], labels.device)
        z = normal((len(labels), self.means.shape[2]), stream, self.means)
        if self.roots.dim() == 3:
            return self.means[labels, drawn] + z * self.roots[labels, drawn]
        for label, component in sorted(set(zip(labels.tolist(), drawn.tolist(), strict=True))):
            own = (labels == label) & (drawn == component)
            z[own] = z[own] @ self.roots[label, component]
        return self.means[labels, drawn] + z
