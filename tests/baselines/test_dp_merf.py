"""The mean embeddings' own mathematics."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from released import centred_at

from baselines.dp_merf import DPMERF, DPMERFParams
from fedsim.methods import Norms, Rows, Seeds, Task, clipped_statistics, moments, unit_weights

DIM, CLASSES = 8, 3


def small(**params: int) -> DPMERF:
    return DPMERF(DPMERFParams.model_validate({"frequencies": 200, "latent": 4, **params}), Task(DIM, CLASSES, 4))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.floats(0, 100))
def test_a_row_adds_exactly_one_to_the_embedding(seed: int, scale: float) -> None:
    algorithm, stream = small(frequencies=20), torch.Generator().manual_seed(seed)
    x, y = scale * torch.randn(10, DIM, generator=stream), torch.randint(CLASSES, (10,), generator=stream)
    told = algorithm.initial_server(Seeds(seed)).tensors | centred_at(torch.randn(DIM, generator=stream))
    products = algorithm.embedding_products(Rows(x, y, torch.zeros_like(y)), told)
    features = products["class_sums"]
    assert torch.allclose(features.left.norm(dim=1) * features.right.norm(dim=1), torch.ones(10), atol=1e-5)
    _, norms = clipped_statistics(products, Norms(1.0, weights=unit_weights(moments.CLASS_MEAN_WEIGHTS)))
    assert torch.allclose(norms, torch.ones(10), atol=1e-5)
