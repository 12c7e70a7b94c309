import io
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from benches import Done, slowness
from cells import NODES, SHIPPED, small_grid
from plug_ins import GOOD, changed, line, write
from rich.console import Console

from fedsim.errors import PluginError, UserError
from fedsim.grid.models import Grid
from fedsim.planning import rehearsal
from fedsim.plugins.registry import lookup
from fedsim.report.plan_table import show_plan
from fedsim.runs.prepare import prepare

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
    "plan_raises": (method("releases", "", "return 1 / 0"), "return 1 / 0", "ZeroDivisionError: division by zero"),
    "cannot_be_built": (method("__init__", "params", "pass"), "class MyMethod(", "TypeError: .*__init__"),
}


def grid_of(*entries: Any, **keys: Any) -> Grid:
    return small_grid(*({"name": entry, "params": SHORT} if isinstance(entry, str) else entry for entry in entries), **keys)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_file_and_line_and_what_was_expected(folder: Path, mistake: str) -> None:
    text, mark, said = MISTAKES[mistake]
    name = write(folder, mistake, text)
    with pytest.raises(PluginError, match=said) as raised:
        prepare(grid_of(name, epsilon=4.0), NODES)
    assert raised.value.where == "algorithms[0].name"
    assert f"{mistake}.py:{line(text, mark)}: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_starter_is_not_refused_in_any_setting(folder: Path) -> None:
    name = write(folder, "good", GOOD)
    for unit in ("example", "client"):
        for trust in ("aggregate", "silo"):
            assert prepare(grid_of(name, epsilon=[4.0, float("inf")], unit=unit, trust=trust), NODES).refused == {}


def test_a_loss_that_mixes_clients_is_refused_where_clients_are_clipped(folder: Path) -> None:
    name = write(folder, "loss_of_other_clients", MISTAKES["loss_of_the_others"][0])
    with pytest.raises(PluginError, match="a client's loss depends on other clients' rows"):
        prepare(grid_of(name, epsilon=4.0, unit="client"), NODES)


def test_a_loss_that_remembers_is_refused_where_clients_are_clipped(folder: Path) -> None:
    name = write(folder, "remembers_other_clients", MISTAKES["loss_that_remembers"][0])
    with pytest.raises(PluginError, match="the loss has memory"):
        prepare(grid_of(name, epsilon=4.0, unit="client"), NODES)


def test_a_method_of_one_client_is_rehearsed_with_one(folder: Path) -> None:
    text = changed("return CVAE(self.task.dim", "assert clients <= self.task.clients\n        return CVAE(self.task.dim")
    assert prepare(grid_of(write(folder, "alone_with_one", text), epsilon=4.0, clients=1), NODES).refused == {}


def test_a_classifier_is_not_refused(folder: Path) -> None:
    name = write(folder, "classifies", predicting("return x[:, :10].double().softmax(1)"))
    assert prepare(grid_of(name, epsilon=4.0), NODES).refused == {}


def test_a_setting_that_cannot_be_planned_is_no_mistake_of_the_plug_in(folder: Path) -> None:
    name = write(folder, "example_only", changed("    Params = MyMethodParams", '    Params = MyMethodParams\n    units = ("example",)'))
    with pytest.raises(UserError, match="does not support 'client'") as raised:
        prepare(grid_of(name, epsilon=4.0, unit="client"), NODES)
    assert not isinstance(raised.value, PluginError)


def test_what_is_refused_is_left_out_and_the_rest_keeps_its_place(folder: Path) -> None:
    bad = {"name": write(folder, "left_out", MISTAKES["wrong_shape"][0]), "params": SHORT}
    prepared = prepare(
        grid_of(bad, "weight-noise", {**bad, "params": {"rounds": 3}, "label": "again"}, epsilon=4.0), NODES, keep_going=True
    )
    assert list(prepared.refused) == [0, 2]
    assert [trial.cell.label for trial in prepared.trials] == ["weight-noise"]
    assert prepared.grid.place("algorithms", 1) == "algorithms[1]"
    console = Console(file=io.StringIO(), width=200)
    show_plan(prepared, console)
    assert console.file.getvalue().count("left out: algorithms[") == 2  # type: ignore[attr-defined]


def test_where_all_is_refused_there_is_nothing_to_go_on_with(folder: Path) -> None:
    bad = {"name": write(folder, "alone", MISTAKES["wrong_shape"][0]), "params": SHORT}
    with pytest.raises(PluginError, match="sample returned"):
        prepare(grid_of(bad, epsilon=4.0), NODES, keep_going=True)


def test_a_rehearsal_takes_two_rounds_of_each_release_and_no_real_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = 'print("rows", sum(map(len, clients.x)), round_.release.name, round_.number)'
    body = f"{told}; return super().client_round(clients, round_, broadcast)"
    text = method("client_round", "clients, round_, broadcast", body)
    name = write(folder, "told", text)
    prepare(grid_of({"name": name, "params": {"rounds": 40}}, epsilon=[1.0, 4.0], seeds=[0, 1]), NODES)
    assert capsys.readouterr().out == "rows 16 dp-sgd 0\nrows 16 dp-sgd 1\n"


def test_the_global_random_numbers_are_left_alone(folder: Path) -> None:
    name = write(folder, "draws", made("import torch; return torch.randn(len(labels), 64)"))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global state is what is looked at)
    random.seed(1)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    prepare(grid_of(name, epsilon=4.0), NODES)
    after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


ENDLESS = {
    "loops": "while True: pass",
    "sleeps": "import time; time.sleep(1e9)",
    "waits": "import threading; threading.Event().wait()",
    "catches": "\n            ".join(("while True:", "    try: 1 / 0", "    except Exception: continue")),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_plug_in_that_never_returns_is_told_with_its_line_and_nothing_is_written(
    folder: Path, command: Callable[..., Done], kind: str
) -> None:
    text = method("releases", "", f"if True:\n            {ENDLESS[kind]}")
    grid = {"dataset": {"name": "digits", "limit": 200}, "algorithms": [write(folder, kind, text)], "clients": 4, "epsilon": 4}
    seconds = f"{round(0.5 * slowness(), 1):g}"
    (folder / "g.yaml").write_text(yaml.safe_dump(grid | {"resources": {"cell_timeout": f"{seconds}s"}}))
    before, handler = sorted(folder.rglob("*")), signal.getsignal(signal.SIGALRM)
    done = command("bench", "--grid", "g.yaml")
    assert done.returncode == 2
    first = line(text, ENDLESS[kind].partition("\n")[0])
    lines = f"{first}|{first + 1}|{first + 2}"
    assert re.search(rf"{kind}\.py:({lines}): still running after {seconds} s; expected MyMethod to train", done.stderr)
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == before
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == (handler, (0.0, 0.0))


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_algorithm_would_be_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "is_shipped", lambda cls: False)
    cls = lookup(name)
    prepared = prepare(small_grid(name, epsilon=4.0, unit=cls.units[0], trust=cls.trusts[0]), NODES, keep_going=False)
    assert prepared.refused == {}
