import io
import math
from itertools import pairwise

import pytest
from fedsim.results.groups import group_seeds
from rich.console import Console

from fedsim.report.tables import claim, results_table, results_tables, rich_tables, same_everywhere


def printed(rows, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(rich_tables(group_seeds(rows)))
    return console.file.getvalue()


def test_a_block_for_every_partition_and_a_column_for_every_epsilon(quickstart):
    table = results_table(group_seeds(quickstart))
    assert table.title == "Balanced accuracy · digits · dirichlet · 10 clients"
    assert table.columns == ("ε = 1", "ε = 4", "ε = ∞", "no ε")
    assert [block.place for block in table.blocks] == ["α = 0.1", "α = 1"]
    assert [line.label for line in table.blocks[0].lines] == ["fedhypevae", "weight-noise", "fedavg-cvae"]
    assert table.blocks[1].references == (("ceiling", "0.953"), ("local-only", "0.710"), ("chance", "0.100"))


def test_a_value_is_the_mean_and_students_half_width(row):
    rows = [row(seed=seed, balanced_accuracy=value) for seed, value in enumerate((0.5, 0.6, 0.7))]
    # s = 0.1, t_{0.975, 2} = 4.302653: 0.2484.
    assert results_table(group_seeds(rows)).blocks[0].lines[0].values == ("0.600±0.248",)


def test_a_value_that_no_column_holds_is_short(row):
    rows = [row(seed=seed, frechet_distance=value) for seed, value in enumerate((9.2e59, 9.3e59, 9.4e59))]
    assert results_table(group_seeds(rows), "frechet_distance").blocks[0].lines[0].values == ("9.3e+59±2.484e+58",)


def test_one_seed_has_no_interval_and_the_note_says_so(row):
    table = results_table(group_seeds([row(balanced_accuracy=0.5)]))
    assert table.blocks[0].lines[0].values == ("0.500",)
    assert table.notes == ("one seed, so no interval",)


def test_what_is_missing_is_told(row, failed):
    rows = [row(cell_id=f"{seed}", seed=seed, balanced_accuracy=0.5 + seed / 10) for seed in range(3)]
    rows += [row(cell_id="a", epsilon_target=4.0), failed(cell_id="b", epsilon_target=4.0, seed=1)]
    rows += [failed(cell_id="c", epsilon_target=8.0)]
    rows += [row(cell_id="d", epsilon_target=9.0, status="overspent", epsilon_spent=10.0)]
    unknown = {"type": "Unaccounted", "message": "no step", "traceback": ""}
    rows += [row(cell_id="e", epsilon_target=16.0, status="unaccounted", epsilon_spent=None, error=unknown)]
    rows += [
        row(cell_id="f", epsilon_target=32.0, status="refuted", audit_epsilon_lower=33.0),
        failed(cell_id="g", epsilon_target=32.0, seed=1),
    ]
    table = results_table(group_seeds(rows))
    assert table.blocks[0].lines[0].values == ("0.600±0.248", "0.500 (n=1)", "failed", "overspent", "unaccounted", "refuted")
    assert "in no mean: 3 failed and 1 overspent and 1 unaccounted and 1 refuted (the report says why)" in table.notes


def test_the_clients_own_generators_have_a_table_of_their_own_where_they_were_judged(row):
    rows = [
        row(client_balanced_accuracy=0.7, client_local_only_balanced_accuracy=0.4),
        row(cell_id="b", epsilon_target=None, label="shared"),
    ]
    assert len(results_tables(group_seeds(rows[1:]))) == 1
    first, second = results_tables(group_seeds(rows))
    assert first.title.startswith("Balanced accuracy · digits")
    assert second.title.startswith("Balanced accuracy of each client's own generator")
    # the clients' own rows on the same test rows; the ceiling is of all of them
    assert second.blocks[0].references == (("local-only", "0.400"), ("chance", "0.100"))
    assert [line.values for line in second.blocks[0].lines] == [("0.700", ""), ("", "")]
    assert "each client's own generator" in printed(rows)


def test_a_claim_speaks_of_finite_budgets_only(row):
    assert claim(group_seeds([row(epsilon_target=1.0), row(epsilon_target=math.inf)])) == "proved"
    assert claim(group_seeds([row(epsilon_target=1.0, claim="heuristic"), row(epsilon_target=4.0)])) == "heuristic"
    assert claim(group_seeds([row(epsilon_target=None)])) == "not private"


def test_a_claim_that_an_audit_refuted_at_one_budget_is_none_at_the_others(row):
    groups = group_seeds([row(epsilon_target=1.0), row(epsilon_target=4.0, status="refuted")])
    assert claim(groups) == "refuted"
    assert "refuted ε: an audit refutes what is claimed at one budget or more" in results_table(groups).notes


def test_the_quickstart_fits_a_terminal_of_80_columns(quickstart):
    text = printed(quickstart, width=80)
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    header = next(line for line in text.splitlines() if line.startswith("method"))
    assert header.split("  ")[-1].strip() == "no ε"


@pytest.mark.parametrize("width", [80, 60, 44])
def test_a_narrow_terminal_loses_no_value(quickstart, width):
    values = [value for block in results_table(group_seeds(quickstart)).blocks for line in block.lines for value in line.values if value]
    text = printed(quickstart, width)
    assert len(values) == 14
    assert all(value in text for value in values)


def test_a_label_is_text_not_markup(row):
    assert "[red]x[/red]" in printed([row(label="[red]x[/red]")])


def test_no_rows_give_an_empty_table():
    assert printed([]).strip() == "Balanced accuracy"


def test_a_mean_over_seeds_has_the_claim_that_is_worth_the_least(row):
    order = ["none", "heuristic", "stated", "proved"]
    for worse, better in pairwise(order):
        rows = [row(cell_id="a", claim=better), row(cell_id="b", seed=1, claim=worse)]
        assert claim(group_seeds(rows)) == worse


def test_which_methods_predict_and_do_not_generate_is_said_below_the_table(row):
    rows = [row(label="makes", yields="generator", coverage=0.5), row(cell_id="b", label="predicts", yields="classifier")]
    first, second = (results_table(group_seeds(rows), measure) for measure in ("balanced_accuracy", "coverage"))
    assert "classifiers, which generate no rows: predicts" in first.notes
    assert not any("classifier" in note for note in second.notes)


def test_what_a_stated_epsilon_is_is_said_below_the_table(row):
    rows = [row(cell_id=name, label=name, claim=name) for name in ("stated", "proved")]
    notes = results_table(group_seeds(rows)).notes
    assert any(note.startswith("stated ε: ") and "whether a fedsim check refutes it" in note for note in notes)


def test_a_reference_is_the_mean_of_partitions_however_many_rows_each_has(row):
    rows = [row(cell_id=name, label=name, partition_hash="one", local_only_balanced_accuracy=0.2) for name in "abc"]
    rows.append(row(cell_id="d", label="a", seed=1, partition_hash="other", local_only_balanced_accuracy=0.8))
    assert ("local-only", "0.500") in results_table(group_seeds(rows)).blocks[0].references


def test_what_clients_reach_together_stands_beside_what_their_own_classifiers_reach_alone(row):
    found = results_table(group_seeds([row(personal_accuracy=0.9, personal_alone_accuracy=0.95)]), "personal_accuracy")
    assert found.blocks[0].references == (("own classifier alone", "0.950"),)


@pytest.mark.parametrize("measure", ["knn_balanced_accuracy", "mlp_balanced_accuracy", "client_worst_balanced_accuracy"])
def test_a_linear_ceiling_and_a_mean_floor_stand_beside_no_other_score(row, measure):
    assert results_table(group_seeds([row(**{measure: 0.9})]), measure).blocks[0].references == (("chance", "0.100"),)


def test_seeds_that_change_nothing_give_no_interval_and_the_note_says_so(row):
    table = results_table(group_seeds([row(cell_id=f"{seed}", seed=seed, balanced_accuracy=0.5) for seed in range(3)]))
    assert table.blocks[0].lines[0].values == ("0.500",)
    assert "no ±: each seed gave the same" in table.notes
    varied = [row(cell_id=f"{seed}", seed=seed, balanced_accuracy=seed / 4, worst_class_recall=0.0) for seed in range(3)]
    assert "no ±: each seed gave the same" not in results_table(group_seeds(varied)).notes
    assert "no ±: each seed gave the same" in results_table(group_seeds(varied), "worst_class_recall").notes


def test_n_counts_the_rows_that_have_the_measure(row):
    rows = [row(cell_id=f"{seed}", seed=seed, **({"coverage": 0.4} if seed else {})) for seed in range(2)]
    assert results_table(group_seeds(rows), "coverage").blocks[0].lines[0].values == ("0.400 (n=1)",)


def test_scores_of_two_judges_are_told_apart_in_words(row):
    rows = [row(cell_id="a", judged="1"), row(cell_id="b", seed=1, judged="2")]
    assert any(note.startswith("scores are from 2 states of the code that judges") for note in results_table(group_seeds(rows)).notes)


def test_two_seeds_have_no_interval_unless_another_spread_is_asked_for(row):
    rows = [row(cell_id=f"{seed}", seed=seed, balanced_accuracy=0.5 + seed / 10) for seed in range(2)]
    table = results_table(group_seeds(rows))
    assert table.blocks[0].lines[0].values == ("0.550",)
    assert any(note.startswith("mean over 2 seeds, without intervals: ") and "give `spread` range" in note for note in table.notes)
    for spread, value in (("range", "0.550±0.050"), ("sd", "0.550±0.071")):
        shown = results_table(group_seeds(rows, spread))
        assert shown.blocks[0].lines[0].values == (value,)
        assert shown.notes[0] == f"mean ± {'half the range' if spread == 'range' else 'standard deviation'} over 2 seeds"


def test_what_is_the_same_at_every_place_has_a_block_of_its_own_and_a_reason(row):
    scores = {"same": (0.5, 0.5), "other": (0.6, 0.7)}
    rows = [
        row(cell_id=f"{label}{alpha}", label=label, alpha=alpha, balanced_accuracy=score)
        for label, values in scores.items()
        for alpha, score in zip((0.1, 1.0), values, strict=True)
    ]
    table = results_tables(group_seeds(rows))[0]
    assert [(block.place, [line.label for line in block.lines]) for block in table.blocks] == [
        ("every α and number of clients", ["same"]),
        ("α = 0.1", ["other"]),
        ("α = 1", ["other"]),
    ]
    assert any(note.startswith("every α and number of clients: the numbers are the same") for note in table.notes)
    assert [len(block.lines) for block in results_table(group_seeds(rows)).blocks] == [2, 2]
    assert all(value in printed(rows) for value in ("0.500", "0.600", "0.700"))


def test_one_place_or_one_missing_place_is_not_every_place(row):
    rows = [row(cell_id=f"{alpha}", alpha=alpha, balanced_accuracy=0.5) for alpha in (0.1, 1.0)]
    other = row(cell_id="o", label="other", alpha=1.0)
    assert same_everywhere(group_seeds(rows[:1]), ["balanced_accuracy"]) == set()
    assert same_everywhere(group_seeds([*rows, other]), ["balanced_accuracy"]) == {"fedhypevae"}


def test_a_method_that_used_public_rows_is_marked_and_the_rows_are_named_below(row):
    rows = [row(label="alone"), row(label="helped", public="BloodMNIST", public_hash="0")]
    table = results_table(group_seeds(rows))
    assert [table.names(line)[0] for line in table.blocks[0].lines] == ["alone", "helped †"]
    assert table.notes[-1] == "†: uses public data: BloodMNIST"
    assert "helped †" in printed(rows)


def test_rows_of_two_public_data_sets_are_never_in_one_mean(row):
    rows = [row(label="helped", public=name, public_hash=name, seed=seed) for seed, name in enumerate(("blood", "organ"))]
    assert [group.label for group in group_seeds(rows)] == ["helped (public=blood)", "helped (public=organ)"]
