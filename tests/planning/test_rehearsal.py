from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import Ran
from cells import small_cells, small_grid
from plug_ins import GOOD, changed, line, write

from fedsim.errors import PluginError, UserError
from fedsim.planning.rehearsal import rehearse
from fedsim.results.store import ResultStore
from fedsim.training.trial import Trial

SHORT = {"rounds": 2}
GENERATOR = "return CVAEGenerator(cast(CVAE, server.model))"
NOISE = "    def draws(self)"


def made(body: str) -> str:
    """A plug-in whose generator samples by ``body``."""
    return changed(GENERATOR, "return Made()") + f"\n\nclass Made:\n    def sample(self, labels, stream):\n        {body}\n"


def method(name: str, arguments: str, body: str) -> str:
    """A plug-in with a further method."""
    return changed(NOISE, f"    def {name}(self, {arguments}):\n        {body}\n\n{NOISE}")


def predicting(body: str) -> str:
    """A plug-in with a classifier in place of a generator."""
    text = made(body).replace("def sample(self, labels, stream)", "def probabilities(self, x)")
    return text.replace("def generator(self, server: Server) -> CVAEGenerator:", "def classifier(self, *given):")


SERVER = "server, round_, total"
MISTAKES = {
    "loss_of_a_batch": (
        changed("unit * gaussian_nll(batch.x, decoded, log_variance),", "(unit * gaussian_nll(batch.x, decoded, log_variance)).mean(),"),
        "def loss",
        r"loss returned 'reconstruction' as float32 \[\]; expected one number a row: \[16\]",
    ),
    "loss_of_the_others": (
        changed("gaussian_nll(batch.x, decoded", "gaussian_nll(batch.x - batch.x.mean(0), decoded"),
        "def loss",
        r"the loss is not per example: leaving out row 0 of 6 changes the clipped sum .*; let row n of every loss part",
    ),
    "loss_that_remembers": (
        changed("model(batch.x, batch.y", "model(batch.x - vars(self).setdefault('seen', batch.x.mean(0)), batch.y"),
        "def loss",
        r"the loss has memory: the loss of the same rows changes after other rows were seen; let row n",
    ),
    "loss_of_no_parts": (
        changed('return {"reconstruction"', 'return [0] or {"reconstruction"'),
        "def loss",
        r"loss returned a list; .*\[16\]",
    ),
    "wrong_shape": (
        made("return labels[:, None].float()"),
        "def sample",
        r"sample returned float32 \[20, 1\]; expected float32 \[20, 64\]",
    ),
    "wrong_dtype": (made("return labels[:, None].expand(-1, 64).double()"), "def sample", r"float64 \[20, 64\]; expected float32"),
    "not_finite": (made("return labels[:, None].expand(-1, 64) / 0.0"), "def sample", r"sample returned numbers that are not finite"),
    "with_gradient": (made("return cast(Any, labels[:, None].expand(-1, 64).float().requires_grad_())"), "def sample", "with a gradient"),
    "wrong_classes": (predicting("return x"), "def probabilities", r"probabilities returned float32 \[16, 64\]; expected .* \[16, 10\]"),
    "no_probabilities": (predicting("return x[:, :10] + 1"), "def probabilities", "probabilities returned rows that do not sum to 1"),
    "no_generator": (changed(GENERATOR, "pass"), "def generator", "generator returned nothing; expected an object with sample"),
    "double_precision": (
        changed("initial_variance=0.5 / self.task.dim)", "initial_variance=0.5 / self.task.dim).double()"),
        "class MyMethod(",
        "TypeError: parameter 'encoder.* of the model is float64, not float32",
    ),
    "server_raises": (method("server_step", SERVER, 'return total["nothing"]'), 'total["nothing"]', "KeyError: 'nothing'"),
    "too_many_counts": (
        method("label_counts", "server", "return torch.ones(11)").replace("from torch import", "import torch\nfrom torch import"),
        "def label_counts",
        r"label_counts returned float32 \[11\]; expected a number a class, \[10\], or None",
    ),
    "server_is_silent": (method("server_step", SERVER, "pass"), "def server_step", "server_step returned nothing; expected a mapping"),
    "clients_send_sums": (
        method("client_round", "*given", "return {}"),
        "def client_round",
        "client_round returned a dict; expected .*Message",
    ),
}


def trial_of(name: str, **keys: Any) -> Trial:
    (trial,) = small_cells({"name": name, "params": SHORT}, **{"epsilon": 4.0} | keys).trials
    return trial


def rehearsed(name: str, **keys: Any) -> None:
    trial = trial_of(name, **keys)
    rehearse(trial.cell.algorithm, trial.cell.params, trial.task, trial.plan)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_file_and_line_and_what_was_expected(folder: Path, mistake: str) -> None:
    text, mark, said = MISTAKES[mistake]
    name = write(folder, mistake, text)
    with pytest.raises(PluginError, match=said) as raised:
        rehearsed(name)
    assert f"{mistake}.py:{line(text, mark)}: " in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("unit", "trust"), [("example", "aggregate"), ("client", "silo")])
def test_the_starter_is_not_refused(folder: Path, unit: str, trust: str) -> None:
    rehearsed(write(folder, "good", GOOD), unit=unit, trust=trust)


@pytest.mark.parametrize(
    ("mistake", "said"), [("loss_of_the_others", "a client's loss depends on other clients' rows"), ("loss_that_remembers", "has memory")]
)
def test_a_loss_that_hears_of_other_clients_is_refused_where_clients_are_clipped(folder: Path, mistake: str, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        rehearsed(write(folder, mistake, MISTAKES[mistake][0]), unit="client")


def test_it_takes_two_rounds_and_no_real_row_and_leaves_the_global_random_numbers_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = 'print("rows", sum(map(len, clients.x)), round_.release.name, round_.number)'
    body = f"import torch; torch.randn(1); {told}; return super().client_round(clients, round_, broadcast)"
    before = torch.get_rng_state()
    rehearsed(write(folder, "told", method("client_round", "clients, round_, broadcast", body)))
    assert capsys.readouterr().out == "rows 16 dp-sgd 0\nrows 16 dp-sgd 1\n"
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plug_in_goes_first_and_its_mistake_ends_the_bench_unless_that_is_to_go_on(folder: Path, bench: Callable[..., Ran]) -> None:
    name = f"{folder}/{write(folder, 'wrong', MISTAKES['wrong_shape'][0])}"
    grid = small_grid("dp-gaussian", {"name": name, "params": SHORT, "label": "wrong"}, epsilon=4.0)
    with pytest.raises(PluginError, match=r"wrong\.py:\d+: sample returned"):
        bench(grid, "stops")
    assert list(ResultStore(folder / "stops").lines("trainings")) == []
    assert [(row.label, row.status) for row in bench(grid, "goes on", keep_going=True).rows] == [("dp-gaussian", "ok"), ("wrong", "failed")]


def test_what_cannot_be_planned_is_told_before_anything_runs(folder: Path) -> None:
    text = method("releases", "", "return 1 / 0")
    with pytest.raises(PluginError, match=r"unplanned.py:\d+: ZeroDivisionError: division by zero"):
        trial_of(write(folder, "unplanned", text))
    name = write(folder, "example_only", changed("    Params = MyMethodParams", '    Params = MyMethodParams\n    units = ("example",)'))
    with pytest.raises(UserError, match="does not support 'client'") as raised:
        trial_of(name, unit="client")
    assert not isinstance(raised.value, PluginError)
