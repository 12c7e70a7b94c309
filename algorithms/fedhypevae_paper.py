"""A literal reading of the paper's FedHypeVAE: bi-level local training, of which a client sends one
clipped gradient by the hypernetwork.

A round at a client (arXiv 2601.00785): ``local_steps`` Adam steps on its encoder and code with the
hypernetwork fixed (inner), then the mean gradient by the hypernetwork over the same minibatches, at
what the inner steps arrived at (outer). Minibatches are drawn from its own rows, and the loss holds
the MMD between a minibatch and rows generated for its labels, so that no example has a bound of its
own: the client's whole contribution is clipped to C, whatever the steps computed and stored (see
:mod:`fedsim.methods.local_training`).
"""

from __future__ import annotations

from typing import Any

import torch

from fedsim.device import to_device
from fedsim.methods.clients import Clients
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.local_training import Minibatches, clip_updates, weighted_sum
from fedsim.methods.messages import Diagnostic, Message, Round, Tensors
from fedsim.methods.parameters import adam_step, code_names, load_parameters, local_names
from fedsim.seeds import Purpose


def paper_round(algorithm: DPSGD, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
    """Both levels of all clients that take part, at once; the sum of their clipped gradients.

    With ``noised: all`` the change of a client's code is clipped with its gradient, and the client
    keeps the code with noise.
    """
    model: Any = clients.model
    load_parameters(model, broadcast)
    parameters = dict(model.named_parameters())
    streams = (
        clients.seeds.keystream(Purpose.SAMPLING, round_.number, client)
        for client in clients.members
    )
    takes_part = [bool(stream.uniform(1)[0] < algorithm.params.client_rate) for stream in streams]
    chosen = [
        i
        for i, (takes, x) in enumerate(zip(takes_part, clients.x, strict=True))
        if takes and len(x)
    ]
    active = clients.only(chosen)
    positions = to_device(torch.tensor(chosen, dtype=torch.long), clients.device)
    # one slice a client, of a model that is one client's
    own = {name: parameters[name].detach()[positions].unsqueeze(1) for name in local_names(model)}
    shared = {name: value.expand(len(chosen), *value.shape) for name, value in broadcast.items()}
    if algorithm.params.noised == "all":
        codes = code_names(model)
    else:
        codes = []
    before = {name: own[name].clone() for name in codes}
    if chosen:
        updates, losses = _both_levels(algorithm, active, round_, shared, own)
    else:
        updates = shared
        losses = {}
    updates = updates | {name: own[name] - before[name] for name in codes}
    clipped, norms = clip_updates(updates, algorithm.clip())
    kept = {
        name: torch.zeros_like(parameters[name]).index_copy_(0, positions, clipped[name].squeeze(1))
        for name in codes
    }
    ones = torch.ones(len(chosen), device=clients.device)
    noised = clients.add_noise(
        round_.release,
        round_.stream,
        {name: weighted_sum(ones, clipped[name]) for name in shared},
        kept,
    )
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


def _both_levels(
    algorithm: DPSGD, clients: Clients, round_: Round, shared: Tensors, own: Tensors
) -> tuple[Tensors, Tensors]:
    """Gradients by the shared parameters ``[K, ...]`` and loss parts ``[K]``, means over the
    minibatches; ``own`` is trained in place.
    """
    params = algorithm.params
    state = Tensors()
    minibatches = Minibatches(algorithm, clients, round_)
    for step in range(params.local_steps):
        adam_step(
            own, minibatches.gradients(step, own, shared)[0], state, params.local_learning_rate
        )
    outer = [minibatches.gradients(step, shared, own) for step in range(params.local_steps)]
    means = [
        {name: torch.stack([part[name] for part in kind]).mean(0) for name in kind[0]}
        for kind in zip(*outer, strict=True)
    ]
    return means[0], means[1]
