import pytest
from fedsim.report.differences import difference_table, difference_tables
from fedsim.results.groups import group_seeds


def test_a_line_for_every_two_methods_and_a_column_for_every_epsilon(quickstart):
    table = difference_table(group_seeds(quickstart))
    assert table.title == "Balanced accuracy, paired differences · digits · dirichlet · 10 clients"
    assert table.columns == ("ε = 1", "ε = 4", "ε = ∞")
    assert [block.place for block in table.blocks] == ["α = 0.1", "α = 1"]
    assert [line.label for block in table.blocks for line in block.lines] == ["fedhypevae − weight-noise"] * 2


def test_a_value_is_the_mean_with_its_interval_and_the_corrected_p_value(row):
    scores = {("good", 1.0): (0.8, 0.7, 0.9), ("poor", 1.0): (0.5, 0.45, 0.4), ("good", 4.0): (0.8, 0.9), ("poor", 4.0): (0.8, 0.8)}
    rows = [
        row(cell_id=f"{label}{epsilon}{seed}", label=label, epsilon_target=epsilon, seed=seed, balanced_accuracy=value)
        for (label, epsilon), values in scores.items()
        for seed, value in enumerate(values)
    ]
    table = difference_table(group_seeds(rows))
    # differences 0.3, 0.25, 0.5: t = 4.58, p = 0.0445, twice that; and 0, 0.1: t = 1, p = 0.5
    assert table.blocks[0].lines[0].values == ("+0.350±0.329 p=0.089", "+0.050 p=0.500 (n=2)")
    assert table.notes[-1] == "over 3 seeds, or as many as n says"


def test_methods_without_an_epsilon_have_a_column_of_their_own(row):
    rows = [row(cell_id=f"{label}{seed}", label=label, epsilon_target=None, seed=seed) for label in ("a", "b") for seed in range(2)]
    (table,) = difference_tables(group_seeds(rows))
    assert (table.columns, table.blocks[0].lines[0].values) == (("no ε",), ("+0.000",))


def test_one_seed_gives_no_table(row):
    assert difference_tables(group_seeds([row(), row(cell_id="b", label="other")])) == []


@pytest.mark.parametrize("judged", [False, True])
def test_the_clients_own_scores_are_compared_where_they_were_judged(row, judged):
    own = {"client_balanced_accuracy": 0.4} if judged else {}
    rows = [row(cell_id=f"{label}{seed}", label=label, seed=seed, **own) for label in ("a", "b") for seed in range(2)]
    assert len(difference_tables(group_seeds(rows))) == 1 + judged
