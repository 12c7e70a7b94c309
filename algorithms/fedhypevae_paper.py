"""The paper's literal form of FedHypeVAE: bi-level local training, of which a client sends one clipped gradient by the hypernetwork.

A round at a client (arXiv 2601.00785): ``local_steps`` Adam steps on its encoder and code with the hypernetwork fixed (inner), then the
mean gradient by the hypernetwork over the same minibatches, at what the inner steps arrived at (outer). Minibatches are drawn from its own
rows, and the loss holds the MMD between a minibatch and rows generated for its labels, so that no example has a bound of its own: the
client's whole contribution is clipped to C, whatever the steps computed and stored (see :mod:`fedsim.methods.local_training`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedsim.batch import Batch, Layout
from fedsim.device import to_device
from fedsim.methods.clients import Clients
from fedsim.methods.contract import loss_parts
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.local_training import clip_updates, weighted_sum
from fedsim.methods.messages import Diagnostic, Message, Round, Tensors
from fedsim.methods.optimise import adam_step
from fedsim.methods.parameters import code_names, load_parameters, local_names
from fedsim.privacy.clipping.vmap import functional_loss
from fedsim.privacy.noise import gaussian
from fedsim.seeds import Purpose


def paper_round(algorithm: DPSGD, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
    """Both levels of all clients that take part, at once; the sum of their clipped gradients.

    With ``noised: all`` the change of a client's code is clipped with its gradient, and the client keeps the code with noise.
    """
    model: Any = clients.model
    load_parameters(model, broadcast)
    parameters = dict(model.named_parameters())
    streams = (clients.seeds.keystream(Purpose.SAMPLING, round_.number, client) for client in clients.members)
    takes_part = [bool(stream.uniform(1)[0] < algorithm.params.client_rate) for stream in streams]
    chosen = [i for i, (takes, x) in enumerate(zip(takes_part, clients.x, strict=True)) if takes and len(x)]
    active, positions = clients.only(chosen), to_device(torch.tensor(chosen, dtype=torch.long), clients.device)
    # one slice a client, of a model that is one client's
    own = {name: parameters[name].detach()[positions].unsqueeze(1) for name in local_names(model)}
    shared = {name: value.expand(len(chosen), *value.shape) for name, value in broadcast.items()}
    codes = code_names(model) if algorithm.params.noised == "all" else []
    before = {name: own[name].clone() for name in codes}
    updates, losses = _both_levels(algorithm, active, round_, shared, own) if chosen else (shared, {})
    updates = updates | {name: own[name] - before[name] for name in codes}
    clipped, norms = clip_updates(updates, algorithm.clip())
    kept = {name: torch.zeros_like(parameters[name]).index_copy_(0, positions, clipped[name].squeeze(1)) for name in codes}
    ones = torch.ones(len(chosen), device=clients.device)
    noised = clients.add_noise(round_.release, round_.stream, {name: weighted_sum(ones, clipped[name]) for name in shared}, kept)
    with torch.no_grad():
        for name, value in own.items():
            if name in codes:
                parameters[name] += noised.kept[name]
            else:
                parameters[name][positions] = value.squeeze(1)
    return clients.send(
        noised.sent,
        {
            **{f"loss_{name}": value for name, value in losses.items()},
            **algorithm.diagnostics(clients, {}, round_),
            "gradient_norm": Diagnostic(norms, "quantiles"),
            "clipped_fraction": (~(norms <= algorithm.clip())).float(),
        },
    )


def _both_levels(algorithm: DPSGD, clients: Clients, round_: Round, shared: Tensors, own: Tensors) -> tuple[Tensors, dict[str, Tensor]]:
    """Gradients by the shared parameters ``[K, ...]`` and loss parts ``[K]``, means over the minibatches; ``own`` is trained in place."""
    params, size = algorithm.params, algorithm.params.batch_size
    rows = clients.minibatches(round_.stream, params.local_steps, size)
    picked = to_device(torch.stack(clients.pooled.numbers(rows), 1), clients.device)
    streams = [clients.seeds.keystream(Purpose.LATENT, round_.stream, client) for client in clients.members]
    shapes = {name: (size, *shape) for name, shape in algorithm.draws().items()}
    layout = Layout.on(clients.device, torch.zeros(size, dtype=torch.long), 1)
    loss = partial(loss_parts, algorithm.loss)

    def of_client(values: Tensors, x: Tensor, y: Tensor, *draws: Tensor) -> dict[str, Tensor]:
        batch = Batch(x, y, dict(zip(shapes, draws, strict=True)), layout)
        return {name: part.mean() for name, part in functional_loss(clients.model, loss, values, batch).items()}

    of_all = torch.func.vmap(of_client)

    def gradients(by: Tensors, fixed: Tensors, step: int) -> tuple[Tensors, dict[str, Tensor]]:
        drawn = [gaussian(shapes, 1.0, stream).parts for stream in streams]
        draws = [to_device(torch.stack([parts[name] for parts in drawn]), clients.device) for name in shapes]
        followed = {name: value.detach().requires_grad_() for name, value in by.items()}
        parts = of_all(fixed | followed, clients.pooled.x[picked[step]], clients.pooled.y[picked[step]], *draws)
        # a client's loss depends on its own slices only, so the sum's gradient holds every client's gradient
        found = torch.autograd.grad(torch.stack(list(parts.values())).sum(), list(followed.values()), materialize_grads=True)
        return dict(zip(followed, found, strict=True)), {name: part.detach() for name, part in parts.items()}

    state: Tensors = {}
    for step in range(params.local_steps):
        adam_step(own, gradients(own, shared, step)[0], state, params.local_learning_rate)
    outer = [gradients(shared, own, step) for step in range(params.local_steps)]
    means = [{name: torch.stack([part[name] for part in kind]).mean(0) for name in kind[0]} for kind in zip(*outer, strict=True)]
    return means[0], means[1]
