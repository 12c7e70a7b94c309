import math
import sys
from pathlib import Path

import pytest
from cells import quick, small_grid
from rows import make_failed, make_row

from fedsim.privacy.accountant import epsilon, rdp_epsilon, replace_one_epsilon
from fedsim.privacy.counted_by import counted_by
from fedsim.proof.prove import prove, recomputed
from fedsim.results.rows import Mechanism, Row
from fedsim.results.store import ResultStore

pytest.importorskip("dp_accounting")
EVENTS = [(10.0, 1.0, 1), (2.5, 0.1, 40)]


def mechanism(noise: float, rate: float, count: int) -> Mechanism:
    kind = "gaussian" if rate == 1 else "sampled-gaussian"
    return Mechanism(release=f"r{count}", kind=kind, noise_multiplier=noise, sample_rate=rate, count=count)


def counted(events=EVENTS, **fields) -> Row:
    """A row as a bench would have written it."""
    spent, name = epsilon(events, 1e-4)
    base = {
        "epsilon_target": 1.01 * spent,
        "epsilon_spent": spent,
        "epsilon_spent_replace_one": replace_one_epsilon(events, 1e-4),
        "accountant": name,
        "relation": "add-or-remove-one",
        "sensitivity": 1.0,
        "sample_rate": events[-1][1],
        "steps": sum(count for *_, count in events),
        "mechanisms": [mechanism(*event) for event in events],
    }
    return make_row(**base | fields)


@pytest.mark.parametrize("events", [EVENTS, [(3.0, 1.0, 20)] * 2, [(0.8, 0.01, 200)], [(40.0, 0.5, 1000)]])
def test_an_honest_row_is_proved_by_an_accountant_of_its_own(events) -> None:
    proof = prove(counted(events))
    assert proof.verdict == "proved", proof.why
    assert proof.ratio == pytest.approx(1, abs=0.005)
    assert proof.replace_one_ratio == pytest.approx(1, abs=0.01)


def test_a_row_that_claims_less_than_its_mechanisms_spend_differs() -> None:
    row = counted()
    proof = prove(row.model_copy(update={"epsilon_spent": 0.98 * row.epsilon_spent}))
    assert proof.verdict == "differs"
    assert "0.98" in proof.why
    assert prove(row.model_copy(update={"epsilon_spent": 0.995 * row.epsilon_spent})).verdict == "differs"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"epsilon_spent_replace_one": 1.0}, "replace-one"),
        ({"steps": 300}, "300 steps"),
        ({"mechanisms": [mechanism(2.5, 0.1, 44)]}, "holds 44 mechanisms"),
        ({"mechanisms": [mechanism(0.0, 1.0, 41)]}, "no mechanism of a finite target has noise multiplier 0"),
        ({"mechanisms": [mechanism(math.inf, 1.0, 41)]}, "has noise multiplier ∞"),
        ({"mechanisms": [mechanism(-2.5, 1.0, 41)]}, "has noise multiplier -2.5"),
        ({"mechanisms": [mechanism(2.5, 0.1, 0)]}, "sample rate 0.1, count 0"),
        ({"delta": -1e-4}, "no mechanism of a finite target has δ -0.0001"),
        ({"delta": math.inf}, "has δ ∞"),
        ({"sensitivity": 0.0}, "has sensitivity 0"),
        ({"mechanisms": [], "steps": 0, "epsilon_spent": 0.0}, "a finite target and no mechanism"),
        ({"sample_rate": 0.5}, "a sample rate of 0.5 and no mechanism has it"),
        ({"mechanisms": [mechanism(2.5, 0.1, 41).model_copy(update={"kind": "gaussian"})]}, "kind and its sample rate do not fit"),
    ],
)
def test_what_does_not_fit_is_said(fields, word) -> None:
    proof = prove(counted(**fields))
    assert proof.verdict == "differs"
    assert word in proof.why


@pytest.mark.parametrize("event", [(1e308, 1.0, 1), (5e-324, 1.0, 1), (3.0, 5e-324, 1), (3.0, 1.0, 10**9)])
def test_numbers_that_no_accountant_composes_prove_nothing(event) -> None:
    proof = prove(counted(mechanisms=[mechanism(*event)]))
    assert proof.verdict == "not proved"
    assert "dp-accounting cannot compose" in proof.why


def test_a_row_that_claims_more_differs_and_still_holds() -> None:
    row = counted()
    proof = prove(row.model_copy(update={"epsilon_target": 9.0, "epsilon_spent": 1.1 * row.epsilon_spent}))
    assert proof.verdict == "differs"
    assert "a bound that holds and is loose" in proof.why


@pytest.mark.parametrize("events", [[(0.8, 0.2, 20)], [(0.45, 0.1, 60)], [(1.2, 0.1, 300)]])
def test_a_bound_under_replace_one_that_sampling_makes_loose_is_still_one(events) -> None:
    row = counted(events)
    proof = prove(row)
    assert (proof.verdict, proof.why) == ("proved", "")
    assert proof.replace_one is not None
    assert math.isfinite(proof.replace_one)
    less = prove(row.model_copy(update={"epsilon_spent_replace_one": 0.98 * proof.replace_one}))
    assert (less.verdict, less.why) == ("differs", "ε under replace-one is 0.980 of what its mechanisms spend")


def test_a_row_of_renyi_composition_is_proved_by_renyi_composition() -> None:
    row = counted(accountant="rdp", epsilon_spent_replace_one=recomputed(tuple(EVENTS), 1e-4, True)[1])
    spent = rdp_epsilon(EVENTS, 1e-4)
    proof = prove(row.model_copy(update={"epsilon_target": spent, "epsilon_spent": spent}))
    assert proof.verdict == "proved", proof.why


def test_a_row_that_is_older_than_its_mechanisms_cannot_be_proved() -> None:
    assert prove(counted(epsilon_spent_replace_one=None)).verdict == "not proved"
    assert prove(counted(epsilon_target=None, epsilon_spent=1.0)).verdict == "not proved"
    proof = prove(make_row())
    assert proof.verdict == "not proved"
    assert "mechanisms" in proof.why
    assert "older" in proof.why


@pytest.mark.parametrize(
    "row",
    [
        make_row(epsilon_target=None),
        make_row(epsilon_target=math.inf),
        make_failed(),
        counted().model_copy(update={"status": "refuted"}),
        counted().model_copy(update={"status": "unaccounted"}),
    ],
)
def test_a_row_without_a_budget_or_an_account_claims_nothing(row) -> None:
    assert prove(row).verdict == "no claim"


def test_without_dp_accounting_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, folder: Path, command) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting.pld", None)
    ResultStore("run").append(counted([(3.21, 1.0, 7)]))
    done = command("prove", "run")
    assert done.returncode == 2
    assert "fedsim[proof]" in done.stderr


def test_the_rows_of_a_bench_are_proved_and_their_statement_holds_their_numbers(folder: Path, command, bench) -> None:
    ran = bench(small_grid("fedhypevae", "dp-gaussian", quick("dp-cvae"), "fedavg-linear", epsilon=[2, math.inf]), "run")
    assert ran.code == 0
    rows = {(row.algorithm, row.epsilon_target): row for row in ResultStore(ran.folder).rows()}
    row = rows["dp-gaussian", 2.0]
    assert row.mechanisms is not None
    assert {m.release: (m.kind, m.count) for m in row.mechanisms} == {"mean": ("gaussian", 1), "moments": ("gaussian", 1)}
    assert (row.relation, row.sensitivity, row.noise_at, row.counted_by) == ("add-or-remove-one", 1.0, "sum", counted_by())
    assert rows["dp-cvae", 2.0].noise_at == "clients"
    assert rows["fedavg-linear", None].mechanisms is None
    assert Row.from_json(row.to_json()) == row

    done = command("prove", str(ran.folder))
    assert done.returncode == 0, done.stdout
    assert "3 of 7 rows proved" in done.stdout

    told = command("statement", str(ran.folder)).stdout
    for words in ("add-or-remove-one", "σ =", "PRV", "Poisson sample", "not covered", "every client adds the full noise", counted_by()):
        assert words in told
    assert (ran.folder / "report.html").read_text().count("privacy statement:") == 4


def test_a_changed_row_makes_the_command_fail(folder: Path, command) -> None:
    store = ResultStore("run")
    store.append(counted(cell_id="a"))
    store.append(make_row(cell_id="b", seed=1))
    assert command("prove", "run").returncode == 1
    store.append(counted(cell_id="b", seed=1))
    assert command("prove", "run").returncode == 0
    store.append(counted(cell_id="b", seed=1, epsilon_spent=0.5))
    done = command("prove", "run")
    assert done.returncode == 1
    assert "differs" in done.stdout


def test_a_folder_without_results_is_a_mistake(folder: Path, command) -> None:
    for name in ("prove", "statement"):
        done = command(name, "nowhere")
        assert done.returncode == 2
        assert "nowhere" in done.stderr
