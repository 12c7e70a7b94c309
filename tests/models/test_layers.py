from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.batch import Layout
from fedsim.models.layers import ClientLinear, one_hot


def make_layout(counts: list[int], direct: bool = False) -> Layout:
    return Layout(torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)), len(counts), direct)


@settings(max_examples=25)
@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_padding_goes_there_and_back(counts):
    layout = make_layout(counts)
    rows = torch.arange(2 * sum(counts), dtype=torch.float32).view(-1, 2) + 1
    padded = layout.pad(rows)
    assert padded.shape == (len(counts[layout.span]), max(counts), 2)
    assert not any(counts[: layout.span.start] + counts[layout.span.stop :])
    assert padded.count_nonzero() == rows.numel()
    assert torch.equal(layout.flatten(padded), rows)


@settings(max_examples=25)
@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), direct=st.booleans())
def test_a_client_linear_layer_is_each_clients_own_linear_layer(counts, direct):
    layout = make_layout(counts, direct)
    layer, stream = ClientLinear(len(counts), 3, 2), torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.normal_(generator=stream)
        layer.bias.normal_(generator=stream)
    x = torch.randn(sum(counts), 3, generator=stream)
    right = [F.linear(row, layer.weight[k], layer.bias[k]) for row, k in zip(x, layout.client.tolist(), strict=True)]
    assert torch.allclose(layer(x, layout), torch.stack(right), atol=1e-5)


def test_one_hot_is_torchs_and_works_under_vmap():
    y = torch.tensor([0, 2, 1])
    assert torch.equal(one_hot(y, 3), F.one_hot(y, 3).float())
    assert torch.equal(torch.func.vmap(lambda label: one_hot(label, 3))(y), F.one_hot(y, 3).float())
