import csv
import subprocess
import sys
from pathlib import Path

import pytest
from benches import no_file_above
from PIL import Image

from fedsim.errors import UserError
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import Release, calibrate
from fedsim.privacy.pld import compose
from fedsim.report.account import account, read_releases, settings

COMMON = {"rounds": None, "sample_rate": None, "unit": "example", "clients": None, "client_rate": None, "delta": 1e-4, "releases": None}
QUICK = ("account", "--epsilon", "2", "--rounds", "20", "--sample-rate", "0.2")


def table(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def test_sigma_is_the_one_that_a_grid_would_run() -> None:
    release = Release("rounds", 0.2, 20)
    common = {"unit": "example", "trust": "silo", "scope": "all", "claim": "proved", "clip": 3.0, "sensitivity": 6.0}
    assert account(2.0, 1e-4, [release]).plan.sigma == calibrate(epsilon=2.0, delta=1e-4, releases=[release], **common).sigma


def test_every_round_costs_and_the_last_one_has_spent_the_budget() -> None:
    budget = account(2.0, 1e-4, [Release("mean", 1.0, 1, 4.0), Release("dp-sgd", 0.2, 20)])
    spent = [each.epsilon for each in budget.rounds]
    assert [each.round for each in budget.rounds] == list(range(1, 22))
    assert spent == sorted(spent)
    assert 1.97 < spent[-1] <= 2.0 < budget.next.epsilon
    assert [each.release for each in budget.rounds] == ["mean", *["dp-sgd"] * 20]
    assert 2 < len(budget.shown) <= 16
    assert budget.shown[-1] is budget.rounds[-1]


def test_it_tells_how_far_it_is() -> None:
    told: list[str] = []
    account(2.0, 1e-4, [Release("rounds", 1.0, 20)], tell=told.append)
    assert told[:3] == ["solving for the noise", "composing its rounds", "accounting round 1 of 20"]
    assert told[-1] == "accounting round 20 of 20"


def test_a_round_of_the_table_is_the_composition_of_its_steps() -> None:
    budget = account(2.0, 1e-4, [Release("steps", 0.1, 60, per_round=5)])
    assert len(budget.rounds) == 12
    found = budget.rounds[3].epsilon
    assert found == pytest.approx(compose([Mechanism(budget.plan.sigma, 0.1, 20)]).epsilon(1e-4), rel=1e-3)


def test_a_client_is_sampled_by_its_own_rate() -> None:
    given = COMMON | {"rounds": 9, "sample_rate": 0.1, "unit": "client", "clients": 1000, "client_rate": 0.05}
    (release,), unit, notes = settings(**given)
    assert (release.sample_rate, release.steps, unit) == (0.05, 9, "client")
    assert "50 of them expected" in notes[1]
    assert "does not change" in notes[0]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({}, "--rounds"),
        ({"rounds": 0}, "--rounds"),
        ({"rounds": 3, "sample_rate": 1.5}, "--sample-rate"),
        ({"rounds": 3, "unit": "row"}, "--unit"),
        ({"rounds": 3, "client_rate": 0.5}, "--client-rate"),
        ({"rounds": 3, "clients": 10}, "--clients"),
        ({"rounds": 3, "delta": 0.5}, "--delta"),
        ({"rounds": 3, "releases": Path("r.yaml")}, "--rounds"),
        ({"releases": Path("nowhere.yaml")}, "nowhere.yaml"),
    ],
)
def test_options_that_do_not_do_are_named(change, where) -> None:
    with pytest.raises(UserError) as error:
        settings(**COMMON | change)
    assert error.value.where == where


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds: 3", "is not a list"),
        ("- {name: a, round: 3}", "unknown key 'round'"),
        ("- {name: a}\n- {name: a}", "two releases"),
        ("- {name: a, sample_rate: 0}", "r.yaml:1"),
    ],
)
def test_a_file_of_releases_that_does_not_do_is_one_message(tmp_path: Path, monkeypatch, text, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_releases(Path("r.yaml"))


def test_the_command_tells_shows_and_writes_everything(folder: Path, command) -> None:
    Path("r.yaml").write_text("- {name: moments, relative_noise: 3}\n- {name: dp-sgd, rounds: 20, sample_rate: 0.2}\n")
    done = command("account", "--epsilon", "2", "--releases", "r.yaml", "--out", "o")
    assert done.returncode == 0, done.stderr
    for word in ("σ =", "one more", "false positives", "moments", "dp-sgd"):
        assert word in done.stdout
    assert "replace-one" not in done.stdout.lower()
    rounds = table("o/rounds.csv")
    assert (len(rounds), list(rounds[0])) == (22, ["round", "release", "epsilon"])
    missed = [float(row["false_negatives"]) for row in table("o/tradeoff.csv")]
    assert missed == sorted(missed, reverse=True)
    with Image.open("o/account.png") as picture:
        assert picture.size[0] > 1000


def test_a_disk_that_is_full_is_named_and_leaves_what_was_there(folder: Path, command) -> None:
    command(*QUICK, "--out", "out")
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    with no_file_above(500):
        done = command(*QUICK, "--out", "out")
    assert (done.returncode, "out/account.png: cannot be used (file too large)" in done.stderr) == (2, True)
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before


@pytest.mark.parametrize("change", [("--epsilon", "inf"), ("--delta", "2"), ("--epsilon", "-1")])
def test_a_budget_that_is_none_is_a_mistake(folder: Path, command, change) -> None:
    done = command(*QUICK, *change)
    assert done.returncode == 2
    assert change[0] in done.stderr
    assert not Path("runs").exists()


def test_no_torch_is_imported(folder: Path) -> None:
    arguments = ["fedsim", *QUICK]
    code = (
        f"import sys; sys.argv = {arguments!r}\n"
        "from fedsim.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    sys.exit(end.code or 'torch' in sys.modules or 'ray' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
