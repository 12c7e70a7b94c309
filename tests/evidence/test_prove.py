import math
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cells import SHIPPED, quick, small_grid
from edits import Edit, Line, planned_and_ran, proof_of, put, ran, record
from plug_ins import GOOD, write
from rows import add_lines, changed, make_row

from fedsim.evidence.prove import Proof, Proofs, proofs_of, recomputed, together
from fedsim.grid.cells import training_id_of
from fedsim.grid.models import Cell
from fedsim.json_lines import dump
from fedsim.plugins.code_hash import harness_hash, place_of
from fedsim.plugins.registry import EXTERNAL, lookup
from fedsim.privacy.accountant import counted_by, epsilon, rdp_epsilon
from fedsim.privacy.mechanism import Mechanism
from fedsim.results.columns import Row, large_deltas
from fedsim.results.generators import load_generator
from fedsim.results.join import read_results

PRIVATE = [name for name in SHIPPED if lookup(name).private]


MECHANISMS = [
    (Mechanism(10.0), Mechanism(2.5, 0.1, 40)),
    (Mechanism(0.8, 0.01, 200),),
    (Mechanism(40.0, 0.5, 1000),),
]


SECRET = {"privacy": {"noise": "secret"}}


@cache
def gaussian() -> str:
    return record("dp-gaussian")


@cache
def heuristic() -> str:
    return record(quick("fedhypevae", noised="shared"))


@pytest.mark.parametrize("mechanisms", MECHANISMS)
def test_two_accountants_agree(mechanisms: tuple[Mechanism, ...]) -> None:
    tight, _ = epsilon(mechanisms, 1e-4)
    assert recomputed(mechanisms, 1e-4, renyi=False) == pytest.approx(tight, rel=0.005)
    renyi = rdp_epsilon(mechanisms, 1e-4)
    assert recomputed(mechanisms, 1e-4, renyi=True) == pytest.approx(renyi, rel=1e-3)


@pytest.mark.parametrize(("unit", "trust"), [("example", "aggregate"), ("client", "silo")])
@pytest.mark.parametrize("name", PRIVATE)
def test_plans_of_shipped_algorithms_are_proved(
    name: str,
    unit: str,
    trust: str,
) -> None:
    if unit in lookup(name).units and trust in lookup(name).trusts:
        proof = proof_of(record(quick(name), unit=unit, trust=trust))
        assert proof.verdict == "proved"
        assert proof.why == ""


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (ran(count=1), "what ran is not what was planned"),
        (ran(noise=2.0), "what ran is not what was planned"),
        (planned_and_ran(noise=2.0), "its sigma is .* and in its algorithm's plan"),
        (put(ledger__epsilon_spent=0.01), "ε is 0.003 of what its mechanisms spend"),
        (put(ledger__epsilon_spent=None), "it records no ε"),
        (put(plan__sensitivity=1e-6), "its sensitivity is 1e-06 and"),
        (put(cell__params={"rounds": -1}), "cannot be compared with one of its algorithm"),
    ],
)
def test_line_that_contradicts_its_algorithm_differs(
    edit: Edit,
    word: str,
) -> None:
    proof = proof_of(record(quick("fedhypevae", rounds=40)), edit)
    assert proof.verdict == "differs"
    assert re.search(word, proof.why), proof.why


def test_claim_may_be_weaker_but_not_stronger() -> None:
    assert proof_of(heuristic()).verdict == "proved"
    stronger = proof_of(heuristic(), put(plan__claim="proved"))
    assert stronger.why == "it claims 'proved' and its algorithm 'heuristic'"
    assert proof_of(gaussian(), put(plan__claim="stated")).verdict == "proved"


def of_other_code(line: Line) -> None:
    """Change the source, and the id that follows from it, to those of code that is not here."""
    line["cell"]["source"] = "0123456789abcdef"
    cell = Cell.model_validate(line["cell"])
    training = training_id_of(
        cell,
        place_of(lookup(cell.algorithm)),
        harness_hash("evaluation"),
    )
    put(training_id=training, cell__training_id=training)(line)


def test_same_plan_of_other_code_is_proved() -> None:
    proof = proof_of(gaussian(), of_other_code)
    assert proof.verdict == "proved"
    assert proof.rebuilt


@pytest.mark.parametrize("edit", [put(plan__clip=9.0), put(plan__claim="proved")])
def test_different_plan_of_other_code_is_not_proved(edit: Edit) -> None:
    proof = proof_of(heuristic(), of_other_code, edit)
    assert proof.verdict == "not proved"
    assert proof.why.startswith("the code here is not the one that ran, and plans something else")


def test_plan_of_an_unknown_algorithm_is_not_proved() -> None:
    proof = proof_of(gaussian(), put(cell__algorithm="dp-gausian"))
    assert proof.verdict == "not proved"
    assert proof.why.startswith("its plan was not rebuilt: unknown algorithm 'dp-gausian'")
    assert not proof.rebuilt


def test_plan_of_a_plug_in_needs_trust(folder: Path) -> None:
    text = record(quick(write(folder, "theirs", GOOD)))
    untrusted = proof_of(text)
    assert untrusted.verdict == "not proved"
    assert untrusted.why.startswith("its plan was not rebuilt: its algorithm is the plug-in")
    trusted = proof_of(text, trust_plugin=True)
    assert trusted.verdict == "proved", trusted.why
    assert trusted.rebuilt
    more_noise = planned_and_ran(noise=2.0)
    assert "its sigma is" in proof_of(text, more_noise, trust_plugin=True).why
    assert "what ran is not" in proof_of(text, ran(noise=2.0)).why
    bold = proof_of(text, put(plan__claim="proved"), trust_plugin=True)
    assert bold.why == "it claims 'proved' and its algorithm 'stated'"


def test_plug_in_is_proved_from_another_folder(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = record(quick(write(folder, "moved", GOOD)))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    proof = proof_of(text, trust_plugin=True)
    assert proof.verdict == "proved", proof.why


@pytest.mark.parametrize("noise", [0.0, -2.5, 1e308])
def test_unusable_mechanism_is_not_proved(noise: float) -> None:
    def edit(line: Line) -> None:
        line["ledger"]["mechanisms"][-1]["noise_multiplier"] = noise

    assert proof_of(gaussian(), edit).verdict in ("not proved", "differs")


@pytest.mark.parametrize(
    "edit",
    [
        put(error={"type": "E", "message": "", "traceback": ""}),
        put(ledger__unaccounted="2 of 3"),
    ],
)
def test_failed_or_unaccounted_training_claims_nothing(edit: Edit) -> None:
    assert proof_of(gaussian(), edit).verdict == "no claim"


def test_delta_too_large_for_its_units_is_warned_of() -> None:
    row = make_row(delta=0.01, train_rows=200, clients=99)
    assert "1/n = 0.005 for the 200 training rows" in large_deltas([row, row])[0]
    assert len(large_deltas([row, row])) == 1
    assert large_deltas([changed(row, unit="client")]) == []
    assert large_deltas([changed(row, unit="client", clients=100)])
    assert large_deltas([changed(row, epsilon_target=None)]) == []


def test_verify_proves_a_run_and_finds_an_edited_line(
    bench,
    folder: Path,
    command,
) -> None:
    grid = small_grid(
        "dp-gaussian",
        quick("dp-linear"),
        "fedavg-linear",
        epsilon=[2, math.inf],
    )
    run = bench(grid, "run")
    assert run.code == 0
    done = command("verify", str(run.folder))
    assert done.returncode == 0, done.stdout
    assert "2 of 5 results proved" in done.stdout
    assert "the code here rebuilt 2 of 2 plans" in done.stdout
    assert counted_by() in command("statement", str(run.folder)).stdout
    private = [line for line in read_results(run.folder).trainings.values() if line["plan"]]
    line = next(line for line in private if line["plan"]["epsilon_target"] == 2.0)
    ran(noise=2.0)(line)
    add_lines(run.folder / "trainings.jsonl", [line])
    done = command("verify", str(run.folder))
    assert done.returncode == 1
    assert "what ran is not what was planned" in " ".join(done.stdout.split())
    statement = command("statement", str(run.folder)).stdout
    assert "guarantee: none: one of its results contradicts itself" in statement


def released(number: int, **fields) -> Row:
    """Return a result with a generator of its own that may be released."""
    base = {
        "cell_id": f"{number}",
        "generator": f"{number}",
        "noise": "secret",
        "claim": "proved",
        "accountant": "prv",
        "delta": 1e-5,
        "mechanisms": [asdict(Mechanism(10.0))],
    }
    return make_row(**base | fields)


def test_releases_of_the_same_data_compose() -> None:
    rows = [released(0, delta=1e-6)]
    for number in range(1, 18):
        mechanism = Mechanism(10.0, count=1 + number // 12)
        rows.append(released(number, mechanisms=[asdict(mechanism)]))
    (line,) = together(rows, {})
    assert line.startswith("18 generators of digits")
    cost = re.search(r"cost ε = ([\d.]+) at δ = \S+ \(unit example\)", line)
    assert cost is not None
    expected, _ = epsilon([Mechanism(10.0, 1.0, 24)], 1e-5)
    assert float(cost[1]) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"noise": "seeded"},
        {"claim": "stated"},
        {"generator": None},
        {"status": "overspent"},
        {"mechanisms": None},
        {"dataset_hash": "other"},
        {"unit": "patient"},
    ],
)
def test_only_releasable_results_of_the_same_units_compose(change: dict[str, Any]) -> None:
    assert list(together([released(0), released(1, **change)], {})) == []


@pytest.mark.parametrize(("partitions", "sentences"), [("ab", 0), ("aabb", 2)])
def test_clients_of_each_partition_compose_by_themselves(
    partitions: str,
    sentences: int,
) -> None:
    rows = [
        released(number, unit="client", partition_hash=partition)
        for number, partition in enumerate(partitions)
    ]
    assert len(list(together(rows, {}))) == sentences


def shown(folder: Path) -> str:
    """Return what the proofs of a run say, on one line."""
    results = read_results(folder)
    proofs = Proofs("run", tuple(proofs_of(results.every_row(), results)))
    return " ".join(repr(proofs).split())


def test_external_samples_are_not_counted_among_plans() -> None:
    proofs = (
        Proof(make_row(), "proved", rebuilt=True),
        Proof(make_row(algorithm=EXTERNAL), "not proved", "it contradicts itself"),
    )
    assert "the code here rebuilt 1 of 1 plan" in repr(Proofs("run", proofs))


def test_verify_says_what_all_releases_cost(bench, command) -> None:
    run = bench(small_grid("dp-gaussian", epsilon=[1.0, 4.0], seeds=[0, 1], **SECRET), "run")
    verified = " ".join(command("verify", str(run.folder)).stdout.split())
    assert "4 generators of digits[:200] may be released, each under its ε" in verified
    assert "all of them together cost ε = " in verified
    statement = " ".join(command("statement", str(run.folder)).stdout.split())
    assert "the cost of all releases is their composition" in statement


def test_equal_cells_are_one_release(bench) -> None:
    keys = {"epsilon": [1.0, 4.0], **SECRET}
    one = shown(bench(small_grid("dp-gaussian", **keys), "one").folder)
    two = shown(bench(small_grid("dp-gaussian", alpha=[0.5, 1.0], **keys), "two").folder)
    assert "4 of 4 results proved" in two
    _, _, cost = one.partition("2 generators")
    assert "all of them together cost ε = " in cost
    assert two.endswith(cost)


def test_search_is_proved_composed_and_released(bench, tmp_path: Path) -> None:
    tune = {"trials": 2, "curves": ["tuned", "free"]}
    entry = quick("dp-gaussian") | {"tune": {"radius": [0.5, 0.8]}}
    grid = small_grid(entry, epsilon=[4.0, 8.0], tune=tune, **SECRET)
    folder = bench(grid).folder
    results = read_results(folder)
    rows = results.rows
    proofs = proofs_of(rows, results)
    assert [proof.why for proof in proofs] == [""] * 4
    assert [proof.verdict for proof in proofs] == ["proved"] * 4
    assert [row.claim for row in rows] == ["proved", "proved", "heuristic", "heuristic"]
    small = rows[0]
    (cost,) = together(rows, {})
    assert cost.startswith("2 generators")
    generator = load_generator(folder, small.cell_id)
    package = generator.release(tmp_path / "package").read_text()
    assert '"trained":null' in package.replace(" ", "")
    assert generator.facts.cell.params["radius"] == small.tuning["chosen"]["radius"]
    line = dump(results.trained[small.cell_id])
    lies = (
        put(plan__selection=None),
        put(plan__selection__score=1e-3 * small.selection["score"]),
        put(cell__tuning__free=True),
        put(cell__params__radius=0.7),
    )
    assert [proof_of(line, lie).verdict for lie in lies] == ["differs"] * 4


def test_a_record_with_held_out_examples_is_proved() -> None:
    held_out = record("dp-gaussian", evaluation={"personal": "held-out"})
    assert proof_of(held_out).verdict == "proved"


def test_a_record_that_hides_its_held_out_examples_is_not_proved() -> None:
    held_out = record("dp-gaussian", evaluation={"personal": "held-out"})
    proof = proof_of(held_out, put(cell__evaluation__personal="synthetic"))
    assert "its training_id is not the hash of its cell" in proof.why
