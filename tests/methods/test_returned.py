"""What a method's loss and generator return is checked, and a mistake names the contract."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import SMALL
from plug_ins import changed, line, write

import fedsim
from fedsim.batch import Batch, Layout
from fedsim.errors import PluginError, UserError
from fedsim.evidence.check.check import check_algorithm
from fedsim.methods.products import shortened
from fedsim.methods.returned import loss_parts

LOSS = r"loss\(self, model, batch\) must return a dict of float tensors of shape \[n\]"
SAMPLE = r"sample\(self, labels, stream\) must return a float32 tensor of shape \[n, d\]"
RETURN = '        return {\n            "reconstruction"'


def loss(returned: str) -> str:
    """The starter whose loss returns an expression of ``batch``, ``decoded`` and ``kl``."""
    return changed(RETURN, f"        return {returned}\n{RETURN}")


def generator(methods: str) -> str:
    """The starter whose generator is of a class with these methods."""
    text = changed(
        "        return CVAEGenerator(cast(CVAE, server.model))",
        "        return Own(CVAEGenerator(cast(CVAE, server.model)))",
    )
    head = "\n\nclass Own:\n    def __init__(self, inner):\n        self.inner = inner\n"
    return text + head + (f"\n    def {methods}\n" if methods else "")


LOCAL = """
from baselines.{module} import {base}


class MyMethod({base}):
    def loss(self, model, batch):
        return sum(super().loss(model, batch).values()).mean()
"""
SCALAR = r"MyMethod\.loss: returned a tensor of shape \[\]"
LOSSES = {
    "scalar": (loss("kl.mean()"), "loss", SCALAR),
    "scalar_part": (
        loss('{"kl": kl.mean()}'),
        "loss",
        r"MyMethod\.loss: returned 'kl' as a tensor of shape \[\] for \d+ rows",
    ),
    "tensor": (loss("kl"), "loss", r"MyMethod\.loss: returned a tensor of shape \[\d+\]"),
    "number": (
        loss('{"kl": 0.5}'),
        "loss",
        r"MyMethod\.loss: returned 'kl' as an object of type float",
    ),
    "empty": (loss("{}"), "loss", r"MyMethod\.loss: returned an empty dict"),
    "signature": (
        changed("def loss(self, model: Any, batch: Batch)", "def loss(self, batch: Batch)"),
        "loss",
        r"MyMethod\.loss: has the wrong parameters \(batch\)",
    ),
    "local": (LOCAL.format(module="fedavg_cvae", base="FedAvgCVAE"), "loss", SCALAR),
    "local_dp_sgd": (LOCAL.format(module="fedavg_cvae", base="DPCVAE"), "loss", SCALAR),
}
NUMPY = "sample(self, labels, stream):\n        return self.inner.sample(labels, stream).numpy()"
NARROW = "sample(self, labels, stream):\n        return self.inner.sample(labels, stream)[:, 1:]"
ONE_MORE = "sample(self, labels):\n        return self.inner.sample(labels, None)"
GENERATORS = {
    "as_numpy": (generator(NUMPY), "sample(", r"Own\.sample: returned a numpy array of shape \["),
    "narrow": (
        generator(NARROW),
        "sample(",
        r"Own\.sample: returned a tensor of shape \[\d+, 63\], and .* have 64 columns",
    ),
    "no_stream": (
        generator(ONE_MORE),
        "sample(",
        r"Own\.sample: has the wrong parameters \(labels\)",
    ),
    "no_sample": (
        generator(""),
        "generator(",
        r"MyMethod\.generator: returned an object of type Own, which has no sample",
    ),
}
ALL = {**LOSSES, **GENERATORS}
CONTRACTS = {
    "loss": LOSS,
    "sample(": SAMPLE,
    "generator(": r"generator\(self, server\) must return an object with sample\(labels, stream\)",
}


def batch_of(rows: int) -> Batch:
    """A batch of one client's rows of zeros."""
    labels = torch.zeros(rows, dtype=torch.long)
    return Batch(
        torch.zeros(rows, 2),
        labels,
        {},
        Layout(labels, 1),
    )


@pytest.fixture(autouse=True)
def denormal() -> Iterator[None]:
    """What a bench in this process sets is as before."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(params=ALL)
def mistake(request: pytest.FixtureRequest) -> str:
    """A plug-in's mistake by name."""
    return str(request.param)


def expected(mistake: str) -> str:
    """What a message says: file and line, what was returned, and the contract."""
    text, function, said = ALL[mistake]
    contract = CONTRACTS[function]
    return rf"{mistake}\.py:{line(text, f'def {function}')}: {said}.*; {contract}"


def test_bench_names_the_contract_that_a_plug_in_broke(folder: Path, mistake: str) -> None:
    name = write(folder, mistake, ALL[mistake][0])
    grid: dict[str, Any] = {
        **SMALL,
        "epsilon": 4,
        "seeds": 0,
    }
    grid["algorithms"] = [{"name": name, "params": {"rounds": 2}}]
    with pytest.raises(UserError, match=expected(mistake)):
        fedsim.bench(grid, in_process=True, out=folder / "run")


def test_check_names_the_contract_that_a_plug_in_broke(folder: Path, mistake: str) -> None:
    name = write(folder, mistake, ALL[mistake][0])
    found = check_algorithm(name, unit="example", trust="aggregate", quick=True)
    first = next(finding for finding in found if finding.passed is False)
    assert re.search(expected(mistake), f"{first.reason}; {first.fix}")


def test_a_generator_in_coordinates_names_the_contract_too(folder: Path) -> None:
    name = write(folder, "as_numpy", GENERATORS["as_numpy"][0])
    grid: dict[str, Any] = {
        **SMALL,
        "epsilon": 4,
        "seeds": 0,
    }
    grid["algorithms"] = [{"name": name, "params": {"rounds": 2, "precondition": 0.2}}]
    with pytest.raises(UserError, match=expected("as_numpy")):
        fedsim.bench(grid, in_process=True, out=folder / "run")


def test_an_error_inside_the_loss_stays_what_it_is() -> None:
    class Method:
        def loss(self, model: Any, batch: Any) -> Any:
            raise TypeError("of its own")

    with pytest.raises(TypeError, match="of its own"):
        loss_parts(
            Method(),
            torch.nn.Identity(),
            batch_of(3),
        )


def test_a_version_of_a_client_without_sample_is_refused() -> None:
    class Versions:
        def sample(self, labels: torch.Tensor, stream: Any) -> torch.Tensor:
            return torch.zeros(len(labels), 2)

        def of_client(self, client: int) -> Any:
            return object()

    made = shortened(Versions(), 2)
    with pytest.raises(PluginError, match=f"object: .* needs a method sample; {SAMPLE}"):
        made.of_client(0).sample(torch.zeros(3, dtype=torch.long), torch.Generator())
