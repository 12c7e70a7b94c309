from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cells import crossed
from clipping_cases import (
    DIM,
    MODELS,
    Calls,
    Kind,
    build,
    call,
    difference,
    linear,
    loop,
    make_batch,
    per_client,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import seeded
from torch import Tensor, nn

from fedsim.batch import Batch, Layout, consecutive
from fedsim.models.layers import ClientLinear
from fedsim.privacy.clipping import (
    ENGINES,
    EXAMPLES_AT_ONCE,
    ClippedSum,
    Norms,
    clipped_sum,
)

CLIP = 0.5
"""A clip norm that cuts most gradients of the small models and spares some."""
UNITS = ("example", "group", "client")
LARGE = (EXAMPLES_AT_ONCE // 2, 0, EXAMPLES_AT_ONCE + 40, 3)
"""The numbers of examples per client of a batch that takes several chunks."""
ENCODER_AND_CODE = ("encoder.weight", "encoder.bias", "code.weight")
NORMS = {
    "plain": {},
    "weights": {"weights": {"encoder.": 3.0, "encoder.bias": 0.5, "out": 0.1}},
    "free": {"free": ENCODER_AND_CODE},
    "free bias": {"free": ("encoder.bias",)},
}


def checked_sum(
    model: nn.Module,
    batch: Batch,
    norms: Norms,
    engine: str = "bookkeeping",
    tolerance: float = 1e-5,
) -> ClippedSum:
    """Return the clipped sum, which equals that of the loop over single examples."""
    summed = clipped_sum(model, call, batch, norms, engine)
    assert difference(summed.sums, loop(model, call, batch, norms)) < tolerance
    return summed


def of_per_client_or_plain(kind: object, unit: str, engine: str) -> bool:
    return kind is per_client or (unit, engine) == ("example", "bookkeeping")


@pytest.mark.parametrize(
    ("kind", "unit", "engine"),
    crossed(of_per_client_or_plain, MODELS, UNITS, ENGINES),
)
def test_clipped_sum_equals_a_loop_over_examples(kind, unit, engine):
    summed = checked_sum(
        build(kind),
        make_batch(),
        Norms(CLIP, unit),
        engine,
    )
    assert (summed.norms > CLIP).any()


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=12)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 99),
    clip=st.sampled_from([0.01, 1.0, math.inf]),
    unit=st.sampled_from(UNITS),
    norms=st.sampled_from(list(NORMS.values())),
)
def test_ragged_cohorts_with_weighted_or_free_parameters(engine, counts, seed, clip, unit, norms):
    checked_sum(
        build(per_client, len(counts)),
        make_batch(tuple(counts), seed),
        Norms(clip, unit, **norms),
        engine,
    )


@pytest.mark.parametrize(
    ("clip", "weight"),
    [
        (0.0, 1.0),
        (-1.0, 1.0),
        (math.nan, 1.0),
        (1.0, 0.0),
        (1.0, math.inf),
    ],
)
def test_clip_or_weight_that_bounds_nothing_is_refused(clip, weight):
    with pytest.raises(ValueError, match="must be positive"):
        Norms(clip, weights={"a": weight})


def test_weight_without_a_name_is_refused():
    with pytest.raises(ValueError, match="a weight has an empty name"):
        Norms(1.0, weights={"": 2.0})


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_parameters_take_no_part_and_unused_ones_get_zero(engine):
    model = build(linear)
    model.one.weight.requires_grad_(False)
    model.unused = nn.Linear(2, 2, bias=False)
    summed = checked_sum(
        model,
        make_batch(),
        Norms(CLIP),
        engine,
    )
    assert summed.sums.keys() == {"one.bias", "two.weight", "unused.weight"}
    assert not summed.sums["unused.weight"].any()
    assert not model.one.weight.requires_grad


# --- gradients that are not finite ---


@pytest.mark.parametrize(
    ("poison", "free", "unit", "engine"),
    [
        *product([math.nan], [(), ("out",)], UNITS, ["bookkeeping"]),
        (math.nan, (), "group", "vmap"),
        *product([math.inf, 1e30], [()], ["example"], ["bookkeeping"]),
    ],
)
def test_unit_whose_gradient_is_not_finite_counts_as_zero(poison, free, unit, engine):
    model = build(per_client, 2)
    batch = make_batch((2, 1))
    norms = Norms(CLIP, unit, free=free)
    x = batch.x.clone()
    eps = batch.draws["eps"].clone()
    eps[2] = poison
    power = 1
    if not free:
        x[2] = poison
        power = 2
    broken = replace(batch, x=x, draws={"eps": eps})

    def loss(model: nn.Module, b: Batch) -> Tensor:
        drawn = model.out(b.draws["eps"][:, 0, :4])
        return call(model, b) + (drawn**power).sum(1)

    summed = clipped_sum(model, loss, broken, norms, engine)
    without = clipped_sum(
        model,
        loss,
        batch.without(2),
        norms,
        engine,
    )
    assert summed.norms.isfinite().all() or not free
    assert difference(summed.sums, without.sums) < 1e-5


def weighted_loss(model: nn.Module, b: Batch) -> Tensor:
    """Return a loss in which an example counts by its weight."""
    inputs = (b.x, b.layout) if isinstance(model, ClientLinear) else (b.x,)
    return b.draws["weight"] * model(*inputs).sum(1)


@pytest.mark.parametrize("layer", [nn.Linear(DIM, 3), ClientLinear(1, DIM, 3)])
def test_group_whose_large_rows_cancel_swallows_nothing_of_others(layer):
    x = F.normalize(
        torch.randn(302, DIM, generator=seeded(0)),
        dim=1,
    )
    weights = torch.ones(len(x))
    cancelling = slice(200, 202)
    x[cancelling] = 0
    weights[cancelling] = torch.tensor([1e8, -1e8])
    numbers = torch.arange(len(x))
    numbers[201] = 200
    labels = torch.zeros(len(x), dtype=torch.long)
    batch = Batch(
        x,
        labels,
        {"weight": weights},
        Layout(labels, 1),
        consecutive(numbers, x),
    )
    norms = Norms(1.0, "group")
    whole = clipped_sum(layer, weighted_loss, batch, norms).sums
    rest = clipped_sum(layer, weighted_loss, batch.take(numbers != 200), norms).sums
    for name, value in whole.items():
        assert float((value.double() - rest[name].double()).norm()) < 5e-5


# --- what would escape is refused, by name ---


def tied() -> nn.Module:
    one = nn.Linear(DIM, DIM)
    two = nn.Linear(DIM, DIM)
    two.weight = one.weight
    return Calls(
        lambda m, b: m.two(m.one(b.x)).sum(1),
        one=one,
        two=two,
    )


def functional() -> nn.Module:
    """Use a weight outside its layer."""

    def loss(m: Any, b: Batch) -> Tensor:
        return F.linear(m.one(b.x), m.one.weight).sum(1)

    return Calls(loss, one=nn.Linear(DIM, DIM))


def decayed() -> nn.Module:
    """Put a penalty on the weights into the per-example loss."""

    def loss(m: Any, b: Batch) -> Tensor:
        penalty = m.one.weight.square().sum()
        return m.one(b.x).sum(1) + penalty

    return Calls(loss, one=nn.Linear(DIM, DIM))


def bare() -> nn.Module:
    def loss(m: Any, b: Batch) -> Tensor:
        return b.x.sum(1) * m.temperature

    return Calls(loss, temperature=nn.Parameter(torch.ones(())))


class Twisted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(0))


def holds(inner: nn.Module) -> nn.Module:
    def loss(m: Any, b: Batch) -> Tensor:
        outputs = m.inner(b.x)
        return outputs.reshape(len(b), -1).sum(1)

    return Calls(loss, inner=inner)


def hooked() -> nn.Module:
    layer = nn.Linear(DIM, 2)
    layer.register_forward_hook(lambda module, args, output: output * 2)
    return layer


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (tied(), "two.weight"),
        (functional(), "one.weight"),
        (decayed(), "one.weight"),
        (bare(), "temperature"),
        (holds(Twisted(DIM, 2)), "inner.weight"),
        (holds(nn.utils.parametrizations.weight_norm(nn.Linear(DIM, 2))), "inner"),
        (holds(nn.Bilinear(DIM, 1, 1)), "inner.weight"),
        (holds(nn.LayerNorm(DIM)), "inner.weight"),
        (holds(hooked()), "inner.weight"),
        (holds(nn.BatchNorm1d(DIM)), "inner"),
        (holds(nn.Dropout()), "inner"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else type(getattr(value, "inner", value)).__name__
    ),
)
def test_what_bookkeeping_does_not_cover_is_refused_by_name(model, name):
    with pytest.raises(ValueError, match=f"'{name}"):
        clipped_sum(model, call, make_batch(), Norms(1.0))


def test_layout_of_another_batch_is_refused_by_keyword_too():
    model = build(per_client)
    batch = make_batch()
    other = replace(batch.layout)

    def loss(m: Any, b: Batch) -> Tensor:
        return m.encoder(b.x, layout=other).sum(1)

    with pytest.raises(ValueError, match="'encoder' got a layout that is not that of the batch"):
        clipped_sum(model, loss, batch, Norms(CLIP))


@pytest.mark.parametrize("kind", [tied, functional, decayed, bare])
def test_vmap_covers_what_bookkeeping_refuses(kind):
    checked_sum(kind(), make_batch(), Norms(CLIP), "vmap")


@pytest.mark.parametrize(
    ("unit", "engine"),
    [
        ("group", "bookkeeping"),
        ("client", "bookkeeping"),
        ("client", "vmap"),
    ],
)
def test_unit_of_more_rows_than_a_chunk_is_clipped_as_one(unit, engine):
    batch = make_batch(LARGE)
    if unit == "group":
        batch = replace(
            batch,
            groups=consecutive(batch.layout.client, batch.x),
        )
    summed = checked_sum(
        build(per_client),
        batch,
        Norms(CLIP, unit),
        engine,
        tolerance=1e-4,
    )
    assert (summed.norms > CLIP).sum() > 1


def refused(kind: Kind, batch: Batch, message: str, unit: str = "example") -> None:
    with pytest.raises(ValueError, match=message):
        clipped_sum(
            build(kind),
            call,
            batch,
            Norms(1.0, unit),
        )


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ([3, 1, 0], "sorted by client"),
        ([0, 3, 4], "not one of 0 to 3"),
    ],
)
def test_clients_out_of_order_or_range_are_refused(client, message):
    layout = Layout(torch.tensor(client), 4)
    refused(
        per_client,
        replace(make_batch((1, 1, 1)), layout=layout),
        message,
    )


def test_batch_of_other_clients_than_the_models_is_refused():
    refused(per_client, make_batch((1, 1, 1)), "4 clients, its batch 3")


def test_batch_without_groups_is_refused_for_unit_group():
    batch = replace(make_batch(), groups=None)
    refused(linear, batch, "the batch has no group numbers", "group")
