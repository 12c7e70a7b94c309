"""Gradient inversion: what one message gives away with and without noise, and what is refused."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benches import Done

from fedsim.data.sources.load import load
from fedsim.data.sources.spec import DatasetSpec
from fedsim.evidence.audit.inversion import BATCH_ROWS, Inversion, RowLaw, summary
from fedsim.evidence.audit.setting import parameters
from fedsim.privacy.plan import Trust

MARGIN = 0.05
"""By which a reconstruction under noise may be above the guess, over a few clients."""


def inversion(algorithm: str, *params: str, epsilon: float = 1.0, trust: Trust = "aggregate", clients: int = 1) -> Inversion:
    known = parameters(algorithm, params, "example", trust, epsilon, 1e-4)
    return Inversion(algorithm, known, "example", trust, epsilon, 1e-4, load(DatasetSpec(name="digits", limit=400)), clients)


def lines_of(attack: Inversion, rows: int) -> dict[str, Mapping[str, Any]]:
    return {
        line["setting"]: line for index in range(BATCH_ROWS.index(rows), attack.count, len(BATCH_ROWS)) for line in [attack.line(index)]
    }


@pytest.mark.parametrize(("algorithm", "params"), [("dp-linear", ()), ("fedhypevae", ("precondition=0",))])
def test_a_row_alone_is_reconstructed_without_noise_and_not_with_it(algorithm: str, params: tuple[str, ...]) -> None:
    bare, *noised = lines_of(inversion(algorithm, *params), 1).values()
    assert bare["setting"] == "without DP"
    assert bare["cosine"] > 0.95 > bare["guess"]
    assert noised
    assert all(line["cosine"] < line["guess"] + MARGIN for line in noised)


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_rows_of_several_classes_are_no_better_than_the_guess_under_noise(trust: Trust) -> None:
    *_, joint = lines_of(inversion("dp-linear", trust=trust), 4).values()
    assert joint["setting"] == "ε = 1, scope joint"
    assert joint["cosine"] < joint["guess"] + MARGIN
    assert joint["recovered"] == 0


@pytest.mark.slow
def test_an_update_of_local_steps_gives_a_row_away_in_part() -> None:
    attack = inversion("fedavg-linear", "local_steps=2", clients=3)
    line = attack.line(2 * len(BATCH_ROWS))
    assert line["rows"] == 1
    assert line["cosine"] > line["guess"] + MARGIN


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "params", "settings"), [("fedavg-cvae", (), 1), ("dp-cvae", ("hidden=[8]", "latent=4"), 2), ("weight-noise", (), 2)]
)
def test_updates_are_tried_so_that_the_attack_is_about_as_good_as_the_guess_or_better(
    algorithm: str, params: tuple[str, ...], settings: int
) -> None:
    bare, *noised = lines_of(inversion(algorithm, "local_steps=2", *params), 4).values()
    assert len(noised) == settings - 1
    assert bare["cosine"] > bare["guess"] - MARGIN
    assert all(abs(line["cosine"] - line["guess"]) < MARGIN for line in noised)


def test_an_attack_repeats_itself_and_another_client_is_another_attack() -> None:
    attack = inversion("dp-linear", clients=2)
    assert attack.line(0) == attack.line(0)
    assert attack.line(0) != {**attack.line(attack.count // 2), "pair": 0}


@pytest.mark.slow
def test_every_setting_attacks_the_same_rows() -> None:
    bare, *noised = lines_of(inversion("fedhypevae"), 1).values()
    assert [line["setting"] for line in noised] == ["ε = 1, scope hypernetwork", "ε = 1, scope joint"]
    assert {line["guess"] for line in noised} == {bare["guess"]}


def test_rows_are_matched_one_to_one_about_the_mean() -> None:
    law = RowLaw(torch.tensor([1.0, 0.0]), torch.zeros(1, 2), torch.eye(2))
    true = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    np.testing.assert_allclose(law.scores(true.flip(0), true), [1, 1])
    np.testing.assert_allclose(np.sort(law.scores(true[[0, 0]], true)), [0, 1], atol=1e-12)


def test_a_summary_is_the_mean_over_clients() -> None:
    lines = [{"pair": i, "setting": "a", "rows": 4, "cosine": c, "guess": 0.5, "recovered": 0.0} for i, c in enumerate((0.2, 0.4))]
    (mean,) = summary(lines)
    assert (mean.setting, mean.rows, mean.guess) == ("a", 4, 0.5)
    assert mean.cosine == pytest.approx(0.3)


def test_the_command_prints_a_table_keeps_lines_and_never_refutes(folder: Path, command: Callable[..., Done]) -> None:
    done = command("audit", "fedavg-linear", "--attack", "inversion", "--pairs", "1", "--param", "local_steps=1")
    assert done.returncode == 0
    assert "guess without data" in done.stdout
    assert "an illustration, which bounds no ε" in done.stdout
    path = folder / "runs/audit/pairs.jsonl"
    whole = path.read_text().splitlines()
    assert len(whole) == len(BATCH_ROWS)
    path.write_text("\n".join(whole[:2]) + "\n")
    assert command("audit", "fedavg-linear", "--attack", "inversion", "--pairs", "1", "--param", "local_steps=1").stdout == done.stdout
    assert path.read_text().splitlines() == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dp-gaussian"], "algorithm dp-gaussian: sends neither gradients nor updates of a model, which inversion looks at; give --attack"),
        (["dp-linear", "--dataset", "npz:none.npz"], "none.npz"),
        (
            ["dp-linear", "--dataset", "{name: digits, limit: 100}"],
            "dataset: 100 training rows are too few for this attack; give 128 or more",
        ),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str, folder: Path, command: Callable[..., Done]) -> None:
    done = command("audit", *arguments, "--attack", "inversion")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(folder.iterdir()) == []


def test_a_data_set_is_for_inversion_alone(folder: Path, command: Callable[..., Done]) -> None:
    done = command("audit", "dp-gaussian", "--dataset", "digits")
    assert (done.returncode, "--dataset: means nothing for --attack white-box" in done.stderr) == (2, True)
