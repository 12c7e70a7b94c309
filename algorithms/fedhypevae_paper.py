"""A literal reading of the paper's FedHypeVAE: local training on two levels.

A round at a client has two levels (arXiv 2601.00785). The inner level takes ``local_steps`` Adam
steps on the client's encoder and code, with the hypernetwork fixed. The outer level then computes
the mean gradient of the hypernetwork over the same minibatches, at the new encoder and code.

Minibatches are drawn from the client's rows. The loss contains the MMD (maximum mean discrepancy)
between a minibatch and rows that are generated for its labels. So one example may change all
gradients of its client, and no bound holds for one example alone. Instead, the client's whole
contribution is clipped to C, whatever the steps computed and stored (see
:mod:`fedsim.methods.local_training`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedsim.device import to_device
from fedsim.methods.clients import Clients
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.local_training import (
    Minibatches,
    clip_updates,
    members_that_take_part,
    weighted_sum,
)
from fedsim.methods.messages import Diagnostic, Message, Round, Tensors
from fedsim.methods.parameters import adam_step, code_names, load_parameters, local_names


def paper_round(
    algorithm: DPSGD,
    clients: Clients,
    round_: Round,
    broadcast: Tensors,
) -> Message:
    """Run both levels at all clients that take part; return the sum of their clipped gradients.

    With ``noised: all`` the change of a client's code is clipped jointly with its gradient. Every
    client then adds noise to its code and keeps the noisy code.
    """
    model: Any = clients.model
    load_parameters(model, broadcast)
    parameters = dict(model.named_parameters())
    chosen = _participants_with_rows(algorithm, clients, round_)
    positions = to_device(torch.tensor(chosen, dtype=torch.long), clients.device)
    # Each value has the shape [n, 1, ...] for n clients that take part: a slice is a parameter of a
    # model of one client.
    local = {name: parameters[name].detach()[positions].unsqueeze(1) for name in local_names(model)}
    shared = {name: value.expand(len(chosen), *value.shape) for name, value in broadcast.items()}
    codes = code_names(model) if algorithm.params.noised == "all" else []
    before = {name: local[name].clone() for name in codes}
    # If no client takes part, the shared parameters have no slice and serve as empty gradients.
    gradients = shared
    losses: Tensors = {}
    if chosen:
        gradients, losses = _both_levels(algorithm, clients.only(chosen), round_, shared, local)
    code_changes = {name: local[name] - before[name] for name in codes}
    clipped, norms = clip_updates(gradients | code_changes, algorithm.clip())
    # The code of a client that does not take part changes by its noise alone.
    kept = {}
    for name in codes:
        kept[name] = torch.zeros_like(parameters[name])
        kept[name][positions] = clipped[name].squeeze(1)
    ones = torch.ones(len(chosen), device=clients.device)
    sums = {name: weighted_sum(ones, clipped[name]) for name in shared}
    noised = clients.add_noise(round_.release, round_.stream, sums, kept)
    with torch.no_grad():
        for name, value in local.items():
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
            # A norm that is nan counts as clipped.
            "clipped_fraction": (~(norms <= algorithm.clip())).float(),
        },
    )


def _participants_with_rows(
    algorithm: DPSGD,
    clients: Clients,
    round_: Round,
) -> list[int]:
    """Return the positions of the clients that take part in a round and have rows."""
    takes_part = members_that_take_part(clients, round_, algorithm.params.client_rate)
    pairs = zip(takes_part, clients.y, strict=True)
    return [position for position, (takes, y) in enumerate(pairs) if takes and len(y)]


def _both_levels(
    algorithm: DPSGD,
    clients: Clients,
    round_: Round,
    shared: Tensors,
    local: Tensors,
) -> tuple[Tensors, Tensors]:
    """Train the local parameters in place, then return the gradients of the shared ones.

    Args:
        algorithm: FedHypeVAE in the paper's form.
        clients: the K clients that take part.
        round_: the round.
        shared: the shared parameters, one slice per client, ``[K, ...]``.
        local: the local parameters of every client, ``[K, ...]``.

    Returns:
        Gradients ``[K, ...]`` and parts of the loss ``[K]``, means over the minibatches.
    """
    params = algorithm.params
    minibatches = Minibatches(algorithm, clients, round_)
    state = Tensors()
    for step in range(params.local_steps):
        gradients = minibatches.gradients(step, local, shared)[0]
        adam_step(local, gradients, state, params.local_learning_rate)
    # The outer level has the same minibatches and new random draws.
    outer = [minibatches.gradients(step, shared, local) for step in range(params.local_steps)]
    gradients_by_step, losses_by_step = zip(*outer, strict=True)
    return _means(gradients_by_step), _means(losses_by_step)


def _means(steps: Sequence[Tensors]) -> Tensors:
    """Return the mean of each tensor over the steps, by name."""
    return {name: torch.stack([step[name] for step in steps]).mean(0) for name in steps[0]}
