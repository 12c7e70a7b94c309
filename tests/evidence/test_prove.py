import math
from dataclasses import replace
from pathlib import Path

import pytest
from cells import quick, small_grid
from rows import add_lines, add_rows, make_failed, make_row

from fedsim.evidence.prove import apart_words, prove, together, together_words
from fedsim.privacy.accountant import counted_by, epsilon, rdp_epsilon
from fedsim.privacy.mechanism import Mechanism
from fedsim.results.generators import load_generator, release
from fedsim.results.grid_rows import grid_rows
from fedsim.results.rows import Row
from fedsim.results.store import ResultStore

RAN = (Mechanism(10.0, 1.0, 1, "r1"), Mechanism(2.5, 0.1, 40, "r40"))


def counted(mechanisms=RAN, **fields) -> Row:
    """A row as a bench would have written it."""
    spent, name = epsilon(mechanisms, 1e-4)
    base = {
        "algorithm": "somebody.py:Method",  # code that does not run, so that mechanisms may be any
        "epsilon_target": 1.01 * spent,
        "epsilon_spent": spent,
        "accountant": name,
        "relation": "add-or-remove-one",
        "sensitivity": 1.0,
        "sample_rate": mechanisms[-1].sample_rate,
        "steps": sum(one.count for one in mechanisms),
        "mechanisms": mechanisms,
    }
    return make_row(**base | fields)


@pytest.mark.parametrize(
    "ran", [RAN, (Mechanism(3.0, 1.0, 20, "a"), Mechanism(3.0, 1.0, 20, "b")), (Mechanism(0.8, 0.01, 200),), (Mechanism(40.0, 0.5, 1000),)]
)
def test_an_honest_row_is_proved_by_an_accountant_of_its_own(ran) -> None:
    proof = prove(counted(ran))
    assert proof.verdict == "proved", proof.why
    assert proof.ratio == pytest.approx(1, abs=0.005)


def test_a_row_that_claims_less_than_its_mechanisms_spend_differs() -> None:
    row = counted()
    proof = prove(row.model_copy(update={"epsilon_spent": 0.98 * row.epsilon_spent}))
    assert proof.verdict == "differs"
    assert "0.98" in proof.why
    assert prove(row.model_copy(update={"epsilon_spent": 0.995 * row.epsilon_spent})).verdict == "differs"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"steps": 300}, "300 steps"),
        ({"mechanisms": [Mechanism(2.5, 0.1, 44)]}, "holds 44 mechanisms"),
        ({"mechanisms": [Mechanism(0.0, 1.0, 41)]}, "no mechanism of a finite target has noise multiplier 0"),
        ({"mechanisms": [Mechanism(math.inf, 1.0, 41)]}, "has noise multiplier ∞"),
        ({"mechanisms": [Mechanism(-2.5, 1.0, 41)]}, "has noise multiplier -2.5"),
        ({"mechanisms": [Mechanism(2.5, 0.1, 0)]}, "sample rate 0.1, count 0"),
        ({"delta": -1e-4}, "no mechanism of a finite target has δ -0.0001"),
        ({"delta": math.inf}, "has δ ∞"),
        ({"delta": 0.4}, "has δ 0.4"),
        ({"sigma": 0.0}, "has σ 0"),
        ({"sensitivity": 0.0}, "has sensitivity 0"),
        ({"mechanisms": [], "steps": 0, "epsilon_spent": 0.0}, "a finite target and no mechanism"),
        ({"sample_rate": 0.5}, "a sample rate of 0.5 and no mechanism has it"),
        ({"sensitivity": 1e-6}, "sensitivity 1e-6 is below the clip: a unit that is clipped to norm 1 may move a sum by as much"),
        ({"sensitivity": 0.5}, "sensitivity 0.5 is below the clip"),
        ({"epsilon_target": None, "epsilon_spent": 1.0}, "holds an ε of 1 and no finite target"),
        ({"epsilon_target": math.inf, "epsilon_spent": math.inf, "claim": "proved"}, "claims 'proved' and has no finite target"),
        ({"status": "overspent"}, "is overspent and holds ε"),
    ],
)
def test_what_does_not_fit_is_said(fields, word) -> None:
    proof = prove(counted(**fields))
    assert proof.verdict == "differs"
    assert word in proof.why


@pytest.mark.parametrize("event", [(1e308, 1.0, 1), (5e-324, 1.0, 1), (3.0, 5e-324, 1), (3.0, 1.0, 10**9)])
def test_numbers_that_no_accountant_composes_prove_nothing(event) -> None:
    proof = prove(counted(mechanisms=[Mechanism(*event)]))
    assert proof.verdict == "not proved"
    assert "dp-accounting cannot compose" in proof.why


def test_a_row_that_claims_more_differs_and_still_holds() -> None:
    row = counted()
    proof = prove(row.model_copy(update={"epsilon_target": 9.0, "epsilon_spent": 1.1 * row.epsilon_spent}))
    assert proof.verdict == "differs"
    assert "a bound that holds and is loose" in proof.why


def test_a_row_of_renyi_composition_is_proved_by_renyi_composition() -> None:
    row = counted(accountant="rdp")
    spent = rdp_epsilon(RAN, 1e-4)
    proof = prove(row.model_copy(update={"epsilon_target": spent, "epsilon_spent": spent}))
    assert proof.verdict == "proved", proof.why


def test_a_row_that_is_older_than_its_mechanisms_cannot_be_proved() -> None:
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


def test_the_rows_of_a_bench_are_proved_and_their_statement_holds_their_numbers(bench, folder: Path, command) -> None:
    ran = bench(small_grid("fedhypevae", "dp-gaussian", quick("dp-cvae"), "fedavg-linear", epsilon=[2, math.inf]), "run")
    assert ran.code == 0
    rows = {(row.algorithm, row.epsilon_target): row for row in grid_rows(ran.folder)}
    row = rows["dp-gaussian", 2.0]
    assert row.mechanisms is not None
    assert {m.release: (m.kind, m.count) for m in row.mechanisms} == dict.fromkeys(("mean", "spread", "moments"), ("gaussian", 1))
    assert (row.relation, row.sensitivity, row.noise_at, row.counted_by) == ("add-or-remove-one", 1.0, "sum", counted_by())
    assert rows["dp-cvae", 2.0].noise_at == "clients"
    assert rows["fedavg-linear", None].mechanisms is None
    assert Row.from_json(row.to_json()) == row

    done = command("verify", str(ran.folder))
    assert done.returncode == 0, done.stdout
    assert "3 of 7 rows proved" in done.stdout

    told = command("statement", str(ran.folder)).stdout
    for words in ("add-or-remove-one", "σ =", "PRV", "Poisson sample", "not covered", "every client adds the full noise", counted_by()):
        assert words in told
    assert (ran.folder / "report.html").read_text().count("privacy statement:") == 4


def test_a_changed_row_makes_the_command_fail(folder: Path, command) -> None:
    run = Path("run")
    add_rows(run, counted(cell_id="a"), make_row(cell_id="b", seed=1))
    assert command("verify", "run").returncode == 1
    add_rows(run, counted(cell_id="b", seed=1))
    assert command("verify", "run").returncode == 0
    add_rows(run, counted(cell_id="b", seed=1, epsilon_spent=0.5))
    done = command("verify", "run")
    assert done.returncode == 1
    assert "differs" in done.stdout


def test_a_row_that_is_not_what_its_algorithm_plans_is_not_proved_and_its_method_has_no_guarantee(bench, folder: Path, command) -> None:
    bench(small_grid("dp-gaussian"), "run")
    (line,) = ResultStore("run").trainings().values()
    twice = [m | {"noise_multiplier": 2 * m["noise_multiplier"]} for m in line["ledger"]["mechanisms"]]
    spent, _ = epsilon([(m["noise_multiplier"], m["sample_rate"], m["count"]) for m in twice], 1e-4)
    add_lines(Path("run/trainings.jsonl"), [line | {"ledger": line["ledger"] | {"mechanisms": twice, "epsilon_spent": spent}}])
    done = command("verify", "run")
    assert done.returncode == 1
    assert "and in its plan" in done.stdout
    told = command("statement", "run").stdout
    assert "guarantee: none: a row of it contradicts itself: release 'mean' is of noise multiplier" in told
    assert "claim:" not in told


def test_a_folder_without_results_is_a_mistake(folder: Path, command) -> None:
    for name in ("verify", "statement"):
        done = command(name, "nowhere")
        assert done.returncode == 2
        assert "nowhere" in done.stderr


def released(number: int, **fields) -> Row:
    """A row with a generator of its own that may be released."""
    mechanisms = [Mechanism(10.0)]
    base = {"cell_id": f"{number}", "generator": f"{number}", "noise": "secret", "claim": "proved", "accountant": "prv"}
    return make_row(**base | {"delta": 1e-5, "mechanisms": mechanisms} | fields)


def test_releases_of_the_same_data_cost_what_their_mechanisms_compose_to() -> None:
    twice = [Mechanism(10.0, count=2)]
    rows = [
        released(0, delta=1e-6),
        *(released(i) for i in range(1, 12)),
        *(released(i, mechanisms=twice, label="b") for i in range(12, 18)),
    ]
    (found,) = together(rows)
    assert (found.generators, found.delta) == (18, 1e-5)
    assert found.epsilon == pytest.approx(epsilon([Mechanism(10.0, 1.0, 24)], 1e-5)[0], rel=0.01)
    assert found.epsilon > 4 * epsilon([Mechanism(10.0)], 1e-5)[0]
    (line,) = together_words([found])
    assert line.startswith("18 generators of")


def test_more_than_loss_distributions_hold_is_told_by_renyi_composition() -> None:
    loud = [Mechanism(0.01)]
    (found,) = together([released(0, mechanisms=loud), released(1, mechanisms=loud)])
    assert found.epsilon == pytest.approx(2 * 0.5 / 0.01**2, rel=0.1)


@pytest.mark.parametrize(
    "fields",
    [{"noise": "seeded"}, {"claim": "stated"}, {"generator": None}, {"status": "overspent"}, {"mechanisms": None}],
    ids=["seeded", "stated", "no generator", "overspent", "older"],
)
def test_what_may_not_be_released_is_not_counted(fields) -> None:
    assert together([released(0), released(1, **fields)]) == []


def test_data_sets_and_units_are_told_apart_and_clients_of_two_partitions_too() -> None:
    others = [{"dataset_hash": "other"}, {"unit": "patient"}, *({"unit": "client", "partition_hash": each} for each in "ab")]
    assert together([released(0), *(released(i, **fields) for i, fields in enumerate(others, 1))]) == []
    found = together([released(i, unit=unit, partition_hash=f"{i % 2}") for unit in ("example", "client") for i in range(4)])
    assert [(each.unit, each.generators) for each in found] == [("example", 4), ("client", 2), ("client", 2)]


def test_a_run_with_secret_noise_tells_what_all_of_it_costs(bench, folder: Path, command) -> None:
    ran = bench(small_grid("dp-gaussian", privacy={"noise": "secret"}, epsilon=[1.0, 4.0], seeds=[0, 1]), "run")
    told = " ".join(command("verify", str(ran.folder)).stdout.split())
    assert "4 generators of digits[:200] may be released, each under its ε; all of them together cost ε = " in told
    assert "all of them cost together" in ran.folder.joinpath("manifest.json").read_text()
    assert "what all of them cost is the composition" in " ".join(command("statement", str(ran.folder)).stdout.split())


def test_a_generator_whose_row_is_not_proved_is_not_told_as_one_that_may_be_released(folder: Path, command) -> None:
    for number in range(2):
        add_rows(Path("run"), released(number))
    done = command("verify", "run")
    assert done.returncode == 1
    assert "may be released" not in done.stdout


def test_generators_of_two_kinds_of_units_or_partitions_cost_a_row_more_than_each_kind_and_it_says_so() -> None:
    (line,) = apart_words([released(0), released(1, unit="client")])
    assert line.startswith("2 generators of digits may be released whose units are of 2 kinds or partitions (unit example and unit client)")
    (line,) = apart_words([released(0, unit="client", partition_hash="a"), released(1, unit="client", partition_hash="b")])
    assert "2 kinds or partitions (unit client)" in line


def test_generators_of_two_data_sets_may_share_units_and_it_says_so() -> None:
    rows = [released(0), released(1, dataset_hash="other", dataset="cut")]
    (line,) = apart_words(rows)
    assert line.startswith("generators of 2 data sets may be released (digits, cut): a unit that is in several")
    assert not list(apart_words(rows[:1]))
    assert not list(apart_words([rows[0], rows[1].model_copy(update={"noise": "seeded"})]))


def test_a_search_is_proved_from_its_row_alone_released_and_composed_and_no_lie_is(bench, tmp_path) -> None:
    tune = {"trials": 2, "curves": ["tuned", "free"]}
    entry = quick("dp-gaussian") | {"tune": {"radius": [0.5, 0.8]}}
    searched_run = bench(small_grid(entry, epsilon=[4.0, 8.0], privacy={"noise": "secret"}, tune=tune))
    rows = grid_rows(searched_run.folder)
    assert [(prove(row).verdict, row.claim, row.tuning.free) for row in rows] == [
        ("proved", "proved", False),
        ("proved", "proved", False),
        ("proved", "heuristic", True),
        ("proved", "heuristic", True),
    ]
    small, large, *_ = rows
    assert [0.99 * row.epsilon_target <= row.epsilon_spent <= row.epsilon_target for row in (small, large)] == [True, True]
    (cost,) = together(rows)
    assert (cost.generators, large.epsilon_spent < cost.epsilon < 12.5) == (2, True)
    path, facts = release(searched_run.folder, small.cell_id, tmp_path / "package")
    assert facts.cell.params["radius"] == small.tuning.chosen["radius"]
    assert '"trained"' not in path.read_text()
    assert load_generator(tmp_path / "package").sample([0, 1]).shape[0] == 2
    selection, tuning = small.selection, small.tuning
    quieter = tuple(replace(m, noise_multiplier=1e-3) if m.release == "score" else m for m in small.mechanisms or ())
    lies = {
        "no cost of the search": {"selection": None},
        "fewer trainings": {"selection": replace(selection, mean=1.0)},
        "a score of less noise": {"mechanisms": quieter},
        "both of less noise": {"mechanisms": quieter, "selection": replace(selection, score=1e-3)},
        "a training of other noise": {"selection": replace(selection, trainings=((Mechanism(50.0),),))},
        "a theorem for a free search": {"tuning": tuning.model_copy(update={"free": True})},
        "whose messages were seen": {"trust": "silo"},
        "a point that was not in the space": {"params": small.params | {"radius": 0.7}},
    }
    for lie, fields in lies.items():
        assert prove(small.model_copy(update=fields)).verdict == "differs", lie
