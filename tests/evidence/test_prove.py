import math
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cells import SHIPPED, quick, small_cells, small_grid
from plug_ins import GOOD, write
from rows import add_lines, as_planned, changed, lines_of, make_row

from fedsim.evidence.prove import Proof, Proofs, proofs_of, prove, recomputed, together
from fedsim.grid.cells import training_id_of
from fedsim.grid.models import Cell
from fedsim.json_lines import decode, dump, load
from fedsim.plugins.code_hash import harness_hash, place_of
from fedsim.plugins.registry import lookup
from fedsim.privacy.accountant import counted_by, epsilon, rdp_epsilon
from fedsim.privacy.mechanism import Mechanism
from fedsim.results.columns import Row, large_deltas, row_of
from fedsim.results.generators import load_generator
from fedsim.results.join import RunResults, read_results

PRIVATE = [name for name in SHIPPED if lookup(name).private]
Change = Callable[[dict[str, Any]], Any]


@cache
def line_of(name: str, unit: str = "example", trust: str = "aggregate", **params: object) -> str:
    """Return the line of a training that did just what was planned."""
    (trial,) = small_cells(quick(name, **params), epsilon=4.0, unit=unit, trust=trust).trials
    (line,) = lines_of(trial, as_planned(trial)).trainings.values()
    return dump(line)


def proved(text: str, change: Change = lambda line: None, *, trust_plugin: bool = False) -> Proof:
    """Return the proof of a line after a change."""
    line = decode(load(text))
    change(line)
    row = row_of("c", "label", line)
    return prove(row, line, trust_plugin=trust_plugin)


def test_two_accountants_agree() -> None:
    for mechanisms in (
        (Mechanism(10.0), Mechanism(2.5, 0.1, 40)),
        (Mechanism(0.8, 0.01, 200),),
        (Mechanism(40.0, 0.5, 1000),),
    ):
        tight, _ = epsilon(mechanisms, 1e-4)
        assert recomputed(mechanisms, 1e-4, renyi=False) == pytest.approx(tight, rel=0.005)
        renyi = rdp_epsilon(mechanisms, 1e-4)
        assert recomputed(mechanisms, 1e-4, renyi=True) == pytest.approx(renyi, rel=1e-3)


@pytest.mark.parametrize(("unit", "trust"), [("example", "aggregate"), ("client", "silo")])
@pytest.mark.parametrize("name", PRIVATE)
def test_plans_of_shipped_algorithms_are_proved(name: str, unit: str, trust: str) -> None:
    if unit in lookup(name).units and trust in lookup(name).trusts:
        proof = proved(line_of(name, unit, trust))
        assert proof.verdict == "proved"
        assert proof.why == ""


def put(*path_and_value: Any) -> Change:
    """Put a value at a path of keys; the value is the last argument."""
    *path, last, value = path_and_value

    def change(line: dict[str, Any]) -> None:
        for key in path:
            line = line[key]
        line[last] = value

    return change


def ran(noise: float, count: int | None = None) -> Change:
    """Change noise or count of the last mechanism, and the recorded ε with it."""

    def change(line: dict[str, Any]) -> None:
        last = line["ledger"]["mechanisms"][-1]
        last.update(noise_multiplier=noise * last["noise_multiplier"], count=count or last["count"])
        mechanisms = [Mechanism(**mechanism) for mechanism in line["ledger"]["mechanisms"]]
        spent, _ = epsilon(mechanisms, line["plan"]["delta"])
        line["ledger"]["epsilon_spent"] = spent

    return change


def double_noise(line: dict[str, Any]) -> None:
    """Double the noise in plan and ledger alike."""
    for mechanism in line["ledger"]["mechanisms"]:
        mechanism["noise_multiplier"] *= 2
    line["plan"]["sigma"] *= 2
    ran(1.0)(line)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (ran(1.0, 1), "what ran is not what was planned"),
        (ran(2.0), "what ran is not what was planned"),
        (double_noise, "its sigma is .* and in its algorithm's plan"),
        (put("ledger", "epsilon_spent", 0.01), "ε is 0.003 of what its mechanisms spend"),
        (put("plan", "sensitivity", 1e-6), "its sensitivity is 1e-06 and"),
        (put("cell", "params", {"rounds": -1}), "makes no plan of its parameters"),
    ],
)
def test_line_that_contradicts_its_algorithm_differs(change: Change, word: str) -> None:
    proof = proved(line_of("fedhypevae", rounds=40), change)
    assert proof.verdict == "differs"
    assert re.search(word, proof.why), proof.why


def test_claim_may_be_weaker_but_not_stronger() -> None:
    heuristic = line_of("fedhypevae", noised="shared")
    assert proved(heuristic).verdict == "proved"
    stronger = proved(heuristic, put("plan", "claim", "proved"))
    assert stronger.why == "it claims 'proved' and its algorithm 'heuristic'"
    assert proved(line_of("dp-gaussian"), put("plan", "claim", "stated")).verdict == "proved"


def of_other_code(line: dict[str, Any]) -> None:
    """Change the source, and the id that follows from it, to those of code that is not here."""
    line["cell"]["source"] = "0123456789abcdef"
    cell = Cell.model_validate(line["cell"])
    training = training_id_of(cell, place_of(lookup(cell.algorithm)), harness_hash("evaluation"))
    line["training_id"] = training
    line["cell"]["training_id"] = training


def test_same_plan_of_other_code_is_proved() -> None:
    proof = proved(line_of("dp-gaussian"), of_other_code)
    assert proof.verdict == "proved"
    assert proof.rebuilt


@pytest.mark.parametrize("change", [put("plan", "clip", 9.0), put("plan", "claim", "proved")])
def test_different_plan_of_other_code_is_not_proved(change: Change) -> None:
    def of_other_code_and_other(line: dict[str, Any]) -> None:
        of_other_code(line)
        change(line)

    proof = proved(line_of("fedhypevae", noised="shared"), of_other_code_and_other)
    assert proof.verdict == "not proved"
    assert proof.why.startswith("the code here is not the one that ran, and plans something else")


def test_plan_of_an_unknown_algorithm_is_not_proved() -> None:
    proof = proved(line_of("dp-gaussian"), put("cell", "algorithm", "dp-gausian"))
    assert proof.verdict == "not proved"
    assert proof.why.startswith("its plan was not rebuilt: unknown algorithm 'dp-gausian'")
    assert not proof.rebuilt


def test_plan_of_a_plug_in_needs_trust(folder: Path) -> None:
    text = line_of(write(folder, "theirs", GOOD))
    untrusted = proved(text)
    assert untrusted.verdict == "not proved"
    assert untrusted.why.startswith("its plan was not rebuilt: its algorithm is the plug-in")
    trusted = proved(text, trust_plugin=True)
    assert trusted.verdict == "proved", trusted.why
    assert trusted.rebuilt
    assert "its sigma is" in proved(text, double_noise, trust_plugin=True).why
    assert "what ran is not" in proved(text, ran(2.0)).why


@pytest.mark.parametrize("trust_plugin", [True, False])
def test_plug_in_cannot_claim_to_be_proved(folder: Path, trust_plugin: bool) -> None:
    text = line_of(write(folder, "bold", GOOD))
    proof = proved(text, put("plan", "claim", "proved"), trust_plugin=trust_plugin)
    assert proof.verdict in ("differs", "not proved")


def test_plug_in_is_proved_from_another_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = line_of(write(folder, "moved", GOOD))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    proof = proved(text, trust_plugin=True)
    assert proof.verdict == "proved", proof.why


def test_unusable_mechanisms_are_not_proved() -> None:
    text = line_of("dp-gaussian")
    for noise in (0.0, -2.5, 1e308):
        proof = proved(text, put("ledger", "mechanisms", -1, "noise_multiplier", noise))
        assert proof.verdict in ("not proved", "differs")


def test_failed_or_unaccounted_training_claims_nothing() -> None:
    text = line_of("dp-gaussian")
    for change in (
        put("error", {"type": "E", "message": "", "traceback": ""}),
        put("ledger", "unaccounted", "2 of 3"),
    ):
        assert proved(text, change).verdict == "no claim"


def test_delta_too_large_for_its_units_is_warned_of() -> None:
    row = make_row(delta=0.01, train_rows=200, clients=99)
    assert "1/n = 0.005 for the 200 training rows" in large_deltas([row, row])[0]
    assert len(large_deltas([row, row])) == 1
    assert large_deltas([changed(row, unit="client")]) == []
    assert large_deltas([changed(row, unit="client", clients=100)])
    assert large_deltas([changed(row, epsilon_target=None)]) == []


def test_verify_proves_a_run_and_finds_an_edited_line(bench, folder: Path, command) -> None:
    grid = small_grid("dp-gaussian", quick("dp-linear"), "fedavg-linear", epsilon=[2, math.inf])
    run = bench(grid, "run")
    assert run.code == 0
    done = command("verify", str(run.folder))
    assert done.returncode == 0, done.stdout
    assert "2 of 5 rows proved" in done.stdout
    assert "the code here rebuilt 2 of 2 plans" in done.stdout
    assert counted_by() in command("statement", str(run.folder)).stdout
    private = [line for line in read_results(run.folder).trainings.values() if line["plan"]]
    line = next(line for line in private if line["plan"]["epsilon_target"] == 2.0)
    ran(2.0)(line)
    add_lines(run.folder / "trainings.jsonl", [line])
    done = command("verify", str(run.folder))
    assert done.returncode == 1
    assert "what ran is not what was planned" in " ".join(done.stdout.split())
    statement = command("statement", str(run.folder)).stdout
    assert "guarantee: none: one of its results contradicts itself" in statement


def released(number: int, **fields) -> Row:
    """Return a result with a generator of its own that may be released."""
    mechanisms = fields.pop("mechanisms", [Mechanism(10.0)]) or ()
    base = {
        "cell_id": f"{number}",
        "generator": f"{number}",
        "noise": "secret",
        "claim": "proved",
        "accountant": "prv",
    }
    base |= {"delta": 1e-5, "mechanisms": [asdict(mechanism) for mechanism in mechanisms]}
    return make_row(**base | fields)


def released_clients(partitions: str) -> list[Row]:
    """Return results whose unit is a client, one for each partition, named by a letter."""
    return [
        released(number, unit="client", partition_hash=partition)
        for number, partition in enumerate(partitions)
    ]


def test_releases_of_the_same_data_compose() -> None:
    rows = [released(0, delta=1e-6)]
    for number in range(1, 18):
        mechanism = Mechanism(10.0, count=1 + number // 12)
        rows.append(released(number, mechanisms=[mechanism]))
    (line,) = together(rows)
    assert line.startswith("18 generators of digits")
    cost = re.search(r"cost ε = ([\d.]+) at δ = \S+ \(unit example\)", line)
    assert cost is not None
    expected, _ = epsilon([Mechanism(10.0, 1.0, 24)], 1e-5)
    assert float(cost[1]) == pytest.approx(expected, rel=0.01)


def test_only_releasable_results_of_the_same_units_compose() -> None:
    others = [
        released(1, noise="seeded"),
        released(1, claim="stated"),
        released(1, generator=None),
        released(1, status="overspent"),
        released(1, mechanisms=None),
        released(1, dataset_hash="other"),
        released(1, unit="patient"),
    ]
    for other in others:
        assert list(together([released(0), other])) == []


def test_clients_of_each_partition_compose_by_themselves() -> None:
    assert list(together(released_clients("ab"))) == []
    assert len(list(together(released_clients("aabb")))) == 2


def test_verify_says_what_all_releases_cost(bench, folder: Path, command) -> None:
    secret = {"privacy": {"noise": "secret"}, "epsilon": [1.0, 4.0], "seeds": [0, 1]}
    run = bench(small_grid("dp-gaussian", **secret), "run")
    verified = " ".join(command("verify", str(run.folder)).stdout.split())
    assert "4 generators of digits[:200] may be released, each under its ε" in verified
    assert "all of them together cost ε = " in verified
    statement = " ".join(command("statement", str(run.folder)).stdout.split())
    assert "what all of them cost is the composition" in statement


def test_equal_cells_are_one_release(bench) -> None:
    secret = {"privacy": {"noise": "secret"}, "epsilon": [1.0, 4.0]}
    one_alpha = read_results(bench(small_grid("dp-gaussian", **secret), "one").folder)
    two_alphas = small_grid("dp-gaussian", alpha=[0.5, 1.0], **secret)
    results = read_results(bench(two_alphas, "two").folder)
    assert len(results.rows) == 4

    def cost(results: RunResults) -> str:
        shown = repr(Proofs("run", tuple(proofs_of(results.every_row(), results))))
        return " ".join(shown.split()).partition("rows proved")[2].partition("2 generators")[2]

    assert "all of them together cost ε = " in cost(results)
    assert cost(results) == cost(one_alpha)


def test_one_shared_training_needs_no_composition(bench) -> None:
    grid = small_grid("dp-gaussian", alpha=[0.5, 1.0], privacy={"noise": "secret"})
    results = read_results(bench(grid).folder)
    proofs = Proofs("run", tuple(proofs_of(results.every_row(), results)))
    assert "2 of 2 rows proved" in repr(proofs)
    assert "together" not in repr(proofs)


def test_search_is_proved_composed_and_released(bench, tmp_path: Path) -> None:
    tune = {"trials": 2, "curves": ["tuned", "free"]}
    entry = quick("dp-gaussian") | {"tune": {"radius": [0.5, 0.8]}}
    grid = small_grid(entry, epsilon=[4.0, 8.0], privacy={"noise": "secret"}, tune=tune)
    folder = bench(grid).folder
    results = read_results(folder)
    rows = results.rows
    proofs = proofs_of(rows, results)
    assert [proof.why for proof in proofs] == [""] * 4
    assert [proof.verdict for proof in proofs] == ["proved"] * 4
    assert [row.claim for row in rows] == ["proved", "proved", "heuristic", "heuristic"]
    small = rows[0]
    (cost,) = together(rows)
    assert cost.startswith("2 generators")
    generator = load_generator(folder, small.cell_id)
    package = generator.release(tmp_path / "package").read_text()
    assert '"trained":null' in package.replace(" ", "")
    assert generator.facts.cell.params["radius"] == small.tuning["chosen"]["radius"]
    line = dump(results.trained[small.cell_id])
    selection = small.selection
    lies = (
        put("plan", "selection", None),
        put("plan", "selection", "score", 1e-3 * selection["score"]),
        put("cell", "tuning", "free", True),
        put("cell", "params", "radius", 0.7),
    )
    assert [proved(line, lie).verdict for lie in lies] == ["differs"] * 4
