from pathlib import Path

import pytest
from cells import small_grid
from rows import add_rows, make_row

from fedsim.evidence.together import apart_words, together, together_words
from fedsim.privacy.accountant import epsilon
from fedsim.results.rows import Mechanism, Row

pytest.importorskip("dp_accounting")


def released(number: int, **fields) -> Row:
    """A row with a generator of its own that may be released."""
    mechanisms = [Mechanism(release="moments", kind="gaussian", noise_multiplier=10.0, sample_rate=1.0, count=1)]
    base = {"cell_id": f"{number}", "generator": f"{number}", "noise": "secret", "claim": "proved", "accountant": "prv"}
    return make_row(**base | {"delta": 1e-5, "mechanisms": mechanisms} | fields)


def test_releases_of_the_same_data_cost_what_their_mechanisms_compose_to() -> None:
    twice = [Mechanism(release="moments", kind="gaussian", noise_multiplier=10.0, sample_rate=1.0, count=2)]
    rows = [
        released(0, delta=1e-6),
        *(released(i) for i in range(1, 12)),
        *(released(i, mechanisms=twice, label="b") for i in range(12, 18)),
    ]
    (found,) = together(rows)
    assert (found.generators, found.delta) == (18, 1e-5)
    assert found.epsilon == pytest.approx(epsilon([(10.0, 1.0, 24)], 1e-5)[0], rel=0.01)
    assert found.epsilon > 4 * epsilon([(10.0, 1.0, 1)], 1e-5)[0]
    (line,) = together_words([found])
    assert line.startswith("18 generators of")


def test_more_than_loss_distributions_hold_is_told_by_renyi_composition() -> None:
    loud = [Mechanism(release="moments", kind="gaussian", noise_multiplier=0.01, sample_rate=1.0, count=1)]
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
    told = " ".join(command("prove", str(ran.folder)).stdout.split())
    assert "4 generators of digits[:200] may be released, each under its ε; all of them together cost ε = " in told
    assert "all of them cost together" in ran.folder.joinpath("manifest.json").read_text()
    assert "what all of them cost is the composition" in " ".join(command("statement", str(ran.folder)).stdout.split())


def test_a_generator_whose_row_is_not_proved_is_not_told_as_one_that_may_be_released(folder: Path, command) -> None:
    for number in range(2):
        add_rows(Path("run"), released(number))
    done = command("prove", "run")
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
