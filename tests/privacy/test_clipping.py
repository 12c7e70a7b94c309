from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from cells import crossed
from clipping_cases import (
    DIM,
    MODELS,
    Calls,
    build,
    call,
    difference,
    joint_norm,
    linear,
    loop,
    make_batch,
    per_client,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim.batch import Batch, Layout, consecutive
from fedsim.models.layers import ClientLinear
from fedsim.privacy.clipping import ENGINES, EXAMPLES_AT_ONCE, Norms, clipped_sum
from fedsim.privacy.clipping.norms import Loss

BITES = 0.5
"""A clip norm that cuts most gradients of the small models and spares some."""
UNITS = ("example", "group", "client")
LARGE = (EXAMPLES_AT_ONCE // 2, 0, EXAMPLES_AT_ONCE + 40, 3)
"""Rows a client of a batch that takes several chunks."""
ENCODER_AND_CODE = ("encoder.weight", "encoder.bias", "code.weight")
NORMS = {
    "plain": {},
    "weights": {"weights": {"encoder.": 3.0, "encoder.bias": 0.5, "out": 0.1}},
    "free": {"free": ENCODER_AND_CODE},
    "free bias": {"free": ("encoder.bias",)},
}


def same_as_loop(
    model: nn.Module, batch: Batch, norms: Norms, engine: str = "bookkeeping", loss: Loss = call
) -> bool:
    return (
        difference(
            clipped_sum(model, loss, batch, norms, engine).sums, loop(model, loss, batch, norms)
        )
        < 1e-5
    )


def of_per_client_or_plain(kind: object, unit: str, engine: str) -> bool:
    return kind is per_client or (unit, engine) == ("example", "bookkeeping")


@pytest.mark.parametrize(
    ("kind", "unit", "engine"), crossed(of_per_client_or_plain, MODELS, UNITS, ENGINES)
)
def test_the_clipped_sum_is_that_of_a_loop_over_single_examples(kind, unit, engine):
    model = build(kind)
    batch = make_batch()
    norms = Norms(BITES, unit)
    summed = clipped_sum(model, call, batch, norms, engine)
    assert difference(summed.sums, loop(model, call, batch, norms)) < 1e-5
    assert (summed.norms > BITES).any()


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=12)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 99),
    clip=st.sampled_from([0.01, 1.0, math.inf]),
    unit=st.sampled_from(UNITS),
    norms=st.sampled_from(list(NORMS.values())),
)
def test_ragged_cohorts_with_codes_and_encoders_of_their_own_weighted_or_free_parameters(
    engine, counts, seed, clip, unit, norms
):
    assert same_as_loop(
        build(per_client, len(counts)),
        make_batch(tuple(counts), seed),
        Norms(clip, unit, **norms),
        engine,
    )


@pytest.mark.parametrize(
    ("clip", "weight"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.inf)]
)
def test_a_clip_or_weight_that_bounds_nothing_is_refused(clip, weight):
    with pytest.raises(ValueError, match="must be positive"):
        Norms(clip, weights={"a": weight})


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_parameters_take_no_part_and_a_layer_that_the_loss_does_not_use_gets_zero(engine):
    model = build(linear)
    batch = make_batch()
    norms = Norms(BITES)
    model.one.weight.requires_grad_(False)
    model.unused = nn.Linear(2, 2, bias=False)
    summed = clipped_sum(model, call, batch, norms, engine)
    assert summed.sums.keys() == {"one.bias", "two.weight", "unused.weight"}
    assert not summed.sums["unused.weight"].any()
    assert difference(summed.sums, loop(model, call, batch, norms)) < 1e-5
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
def test_a_unit_whose_gradient_is_not_finite_counts_as_zero_also_where_a_free_part_is_not(
    poison, free, unit, engine
):
    model = build(per_client, 2)
    batch = make_batch((2, 1))
    norms = Norms(BITES, unit, free=free)
    broken = replace(batch, x=batch.x.clone(), draws={"eps": batch.draws["eps"].clone()})
    broken.draws["eps"][2] = poison
    if free:
        broken.x[2] = broken.x[2]
    else:
        broken.x[2] = poison

    def loss(model: nn.Module, b: Batch) -> Tensor:
        drawn = model.out(b.draws["eps"][:, 0, :4])
        return call(model, b) + (drawn.sum(1) if free else drawn.square().sum(1))

    summed = clipped_sum(model, loss, broken, norms, engine)
    assert summed.norms.isfinite().all() or not free
    assert (
        difference(summed.sums, clipped_sum(model, loss, batch.without(2), norms, engine).sums)
        < 1e-5
    )


def change_without(
    layer: nn.Module, weights: Tensor, numbers: Tensor, x: Tensor, group: int
) -> dict[str, Tensor]:
    """The change of the clipped sum if a group of one client's rows is left out; a row counts by
    its weight.
    """

    def loss(model: nn.Module, b: Batch) -> Tensor:
        return b.draws["weight"] * (
            model(b.x, b.layout) if isinstance(model, ClientLinear) else model(b.x)
        ).sum(1)

    def summed(kept: Tensor) -> dict[str, Tensor]:
        zeros = torch.zeros(int(kept.sum()), dtype=torch.long)
        batch = Batch(
            x[kept],
            zeros,
            {"weight": weights[kept]},
            Layout(zeros, 1),
            consecutive(numbers[kept], x),
        )
        return clipped_sum(layer, loss, batch, Norms(1.0, "group")).sums

    whole = summed(numbers >= 0)
    less = summed(numbers != group)
    return {name: whole[name].double() - less[name].double() for name in whole}


@pytest.mark.parametrize("layer", [nn.Linear(DIM, 3), ClientLinear(1, DIM, 3)])
def test_a_group_whose_large_rows_cancel_swallows_nothing_of_what_others_add(layer):
    x = F.normalize(torch.randn(302, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    numbers = torch.cat([torch.arange(200), torch.full((2,), 200), torch.arange(201, 301)])
    x[numbers == 200], weights = 0, torch.ones(len(x))
    weights[numbers == 200] = torch.tensor([1e8, -1e8])
    assert joint_norm(change_without(layer, weights, numbers, x, 200)) < 1e-4


# --- what would escape is refused, by name ---


def tied() -> nn.Module:
    one = nn.Linear(DIM, DIM)
    two = nn.Linear(DIM, DIM)
    two.weight = one.weight
    return Calls(lambda m, b: m.two(m.one(b.x)).sum(1), one=one, two=two)


def functional() -> nn.Module:
    """Uses a weight outside its layer."""
    return Calls(lambda m, b: F.linear(m.one(b.x), m.one.weight).sum(1), one=nn.Linear(DIM, DIM))


def decayed() -> nn.Module:
    """A penalty on the weights inside the per-example loss."""
    return Calls(
        lambda m, b: m.one(b.x).sum(1) + m.one.weight.square().sum(), one=nn.Linear(DIM, DIM)
    )


def bare() -> nn.Module:
    return Calls(lambda m, b: b.x.sum(1) * m.temperature, temperature=nn.Parameter(torch.ones(())))


class Twisted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(0))


def holds(inner: nn.Module) -> nn.Module:
    return Calls(lambda m, b: m.inner(b.x).reshape(len(b), -1).sum(1), inner=inner)


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
def test_what_bookkeeping_cannot_cover_raises_and_is_named(model, name):
    with pytest.raises(ValueError, match=f"'{name}"):
        clipped_sum(model, call, make_batch(), Norms(1.0))


@pytest.mark.parametrize("kind", [tied, functional, decayed, bare])
def test_vmap_covers_what_bookkeeping_refuses(kind):
    assert same_as_loop(kind(), make_batch(), Norms(BITES), "vmap")


@pytest.mark.parametrize(
    ("unit", "engine"), [*product(["group", "client"], ["bookkeeping"]), ("client", "vmap")]
)
def test_a_unit_of_more_rows_than_a_chunk_is_clipped_as_one(unit, engine):
    model = build(per_client)
    batch = make_batch(LARGE)
    norms = Norms(BITES, unit)
    if unit == "group":
        batch = replace(batch, groups=consecutive(batch.layout.client, batch.x))
    summed = clipped_sum(model, call, batch, norms, engine)
    assert difference(summed.sums, loop(model, call, batch, norms)) < 1e-4
    assert (summed.norms > BITES).sum() > 1


FOUR = make_batch()


@pytest.mark.parametrize(
    ("model", "batch", "unit", "message"),
    [
        (
            build(per_client),
            replace(FOUR, layout=replace(FOUR.layout, client=FOUR.layout.client.flip(0))),
            "example",
            "sorted by client",
        ),
        (
            build(linear),
            replace(make_batch((1, 1, 1)), layout=Layout(torch.tensor([0, 3, 4]), 4)),
            "example",
            "not one of 0 to 3",
        ),
        (build(per_client, 4), make_batch((1, 1, 1)), "example", "4 clients, its batch 3"),
        (
            build(linear),
            replace(FOUR, groups=None),
            "group",
            "the batch does not say which rows are one",
        ),
    ],
)
def test_a_batch_that_does_not_fit_the_model_or_the_unit_is_refused(model, batch, unit, message):
    with pytest.raises(ValueError, match=message):
        clipped_sum(model, call, batch, Norms(1.0, unit))
