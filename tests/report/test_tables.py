import io
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from rows import make_failed, make_published, make_row

from fedsim.errors import UserError
from fedsim.grid.models import Published
from fedsim.plugins.registry import EXTERNAL
from fedsim.report.published import NOTE
from fedsim.report.table import MOST_LINES, Table, show_briefly
from fedsim.report.tables import (
    chosen_pair,
    difference_table,
    measures_of,
    results_table,
    site_table,
    tuned_table,
)
from fedsim.results.columns import Row
from fedsim.results.stats import SeedGroups, Spread, price_of_privacy


def table_of(
    rows: list[Row], measure: str = "balanced_accuracy", spread: Spread = "ci95", **how: Any
) -> Table:
    return results_table(SeedGroups.of(rows, spread), measure, **how)


def lines_of(table: Table | None) -> list[tuple[str, ...]]:
    """Place, method and the texts of each line."""
    assert table is not None
    return [
        (*key, *texts)
        for key, texts in zip(
            table.texts.index,
            table.texts.to_numpy().tolist(),
            strict=True,
        )
    ]


def methods_of(table: Table | None) -> list[str]:
    return [method for _, method, *_ in lines_of(table)]


def seeds(*values: float, measure: str = "balanced_accuracy", **fields: Any) -> list[Row]:
    return [
        make_row(**{"cell_id": f"{n}{fields}", "seed": n, measure: value} | fields)
        for n, value in enumerate(values)
    ]


def test_table_has_methods_by_place_and_references_below(
    quickstart: list[Row],
) -> None:
    table = table_of(quickstart)
    assert table.title == "Balanced accuracy · digits · dirichlet · 10 clients"
    assert table.texts.columns.tolist() == ["ε = 1", "ε = 4", "ε = ∞", "no ε"]
    methods = [
        "fedhypevae",
        "weight-noise",
        "fedavg-cvae (not private)",
        "ceiling",
        "local-only",
        "chance",
    ]
    assert table.texts.index.tolist() == [
        (place, method) for place in ("α = 0.1", "α = 1") for method in methods
    ]
    assert table.texts.loc[("α = 1", "local-only"), "no ε"] == "0.710"
    assert table_of([]).texts.empty


def test_reference_is_marked_where_a_method_has_its_name() -> None:
    row = make_row(
        label="ceiling",
        balanced_accuracy=0.5,
        ceiling_balanced_accuracy=0.9,
    )
    texts = table_of([row]).texts
    assert texts.loc[("", "ceiling"), "ε = 1"] == "0.500"
    assert texts.loc[("", "ceiling (reference)"), "no ε"] == "0.900"


@pytest.mark.parametrize(
    ("spread", "values", "text", "note"),
    [
        # s = 0.1, t_{0.975, 2} = 4.302653: 0.2484
        (
            "ci95",
            (0.5, 0.6, 0.7),
            "0.600±0.248",
            "Mean ± half-width of the Student-t 95 % confidence interval over 3 seeds",
        ),
        (
            "ci95",
            (0.5, 0.6),
            "0.550",
            "Mean of 2 seeds; no confidence interval (needs at least 3 seeds).",
        ),
        ("range", (0.5, 0.6), "0.550±0.050", "Mean ± half the range over 2 seeds"),
        ("ci95", (0.5,), "0.500", "One seed, so no confidence interval."),
        ("ci95", (0.5, 0.5, 0.5), "0.500", "Mean ± half-width"),
    ],
)
def test_a_value_is_a_mean_with_its_spread(
    spread: Spread, values: tuple[float, ...], text: str, note: str
) -> None:
    table = table_of(seeds(*values), spread=spread)
    assert table.texts.iloc[0, 0] == text
    assert table.notes[0].startswith(note)
    assert ("No ±: all seeds gave the same value." in table.notes) == (
        len(values) == 3 and len({*values}) == 1
    )


def test_table_names_missing_results() -> None:
    rows = seeds(0.5, 0.6, 0.7)
    rows += [
        make_row(cell_id="a", epsilon_target=4.0),
        make_failed(cell_id="b", epsilon_target=4.0, seed=1),
    ]
    ends = {8.0: "failed", 9.0: "overspent", 16.0: "unaccounted", 32.0: "refuted"}
    rows += [
        make_row(cell_id=status, epsilon_target=epsilon, status=status)
        for epsilon, status in ends.items()
    ]
    rows += [make_failed(cell_id="g", epsilon_target=32.0, seed=1)]
    table = table_of(rows)
    assert table.texts.iloc[0].tolist()[:-1] == ["0.600±0.248", "0.500 (n=1)", *ends.values()]
    left_out = "3 failed and 1 overspent and 1 unaccounted and 1 refuted experiments"
    assert f"{left_out} are left out of the averages." in table.notes


def test_table_counts_a_single_missing_result() -> None:
    table = table_of([make_row(), make_failed(cell_id="b", seed=1)])
    assert "1 failed experiment is left out of the averages." in table.notes


def test_measures_with_values_have_tables_and_references() -> None:
    scores = {
        "client_balanced_accuracy": 0.7,
        "client_local_only_balanced_accuracy": 0.4,
        "personal_accuracy": 0.9,
    }
    rows = [
        make_row(**scores, personal_alone_accuracy=0.95),
        make_row(cell_id="b", epsilon_target=None, label="shared"),
    ]
    found = {
        measure: table_of(rows, measure).texts["no ε"].tolist()[2:]
        for measure in measures_of(SeedGroups.of(rows))
    }
    balanced = {
        "balanced_accuracy": ["0.953", "0.380", "0.100"],
        "client_balanced_accuracy": ["0.400", "0.100"],
    }
    assert found == {**balanced, "personal_accuracy": ["0.950"]}
    assert measures_of(SeedGroups.of(rows[1:])) == ["balanced_accuracy"]
    read = {"knn_balanced_accuracy": 0.8, "mlp_balanced_accuracy": 0.7, "coverage": 0.5}
    for asked, shown in (
        (["knn", "fidelity"], []),
        (["mlp", "knn"], ["knn_balanced_accuracy", "mlp_balanced_accuracy"]),
    ):
        settings = SeedGroups.of([make_row(evaluation={"evaluators": asked}, **read)])
        assert measures_of(settings, terminal=True) == ["balanced_accuracy", *shown]
    # a reference is the mean of partitions, however many rows each has
    rows = [
        make_row(
            cell_id=name,
            label=name,
            partition_hash="one",
            local_only_balanced_accuracy=0.2,
        )
        for name in "abc"
    ]
    rows.append(
        make_row(
            cell_id="d", label="a", seed=1, partition_hash="other", local_only_balanced_accuracy=0.8
        )
    )
    assert table_of(rows).texts.loc[("", "local-only"), "no ε"] == "0.500"


def test_a_note_says_that_references_use_a_choice_of_many_rows() -> None:
    whole = make_row(reference_rows=50_000, train_rows=50_000)
    choice = make_row(reference_rows=50_000, train_rows=1_281_167)
    note = (
        "Ceiling and local-only are computed on a fixed choice of about 50,000 training examples, "
        "with classes as equally frequent as possible."
    )
    assert note in table_of([choice]).notes
    assert note not in table_of([whole]).notes


def test_best_of_each_kind_is_bold_if_its_claim_holds() -> None:
    settings = [
        (label, epsilon, score)
        for label, score in (("a", 0.5), ("b", 0.6))
        for epsilon in (1.0, math.inf)
    ]
    rows = [
        make_row(
            cell_id=f"{each}", label=each[0], epsilon_target=each[1], balanced_accuracy=each[2]
        )
        for each in settings
    ]
    rows += [
        make_row(
            cell_id="h",
            label="heuristic",
            claim="heuristic",
            balanced_accuracy=0.9,
        )
    ]
    rows += [
        make_row(
            cell_id="f",
            label="found",
            check="failed",
            balanced_accuracy=0.9,
        )
    ]
    rows += [
        make_row(
            cell_id=label,
            label=label,
            yields="classifier",
            balanced_accuracy=score,
        )
        for label, score in (("c", 0.7), ("d", 0.8))
    ]
    table = table_of(rows)
    assert table.best is not None
    bold = {
        method: marks.tolist()[:2] for (_, method), marks in table.best.iterrows() if marks.any()
    }  # type: ignore[misc]
    assert bold == {"b": [True, True], "d (classifier)": [True, False]}
    html, latex, markdown = (table.text(as_) for as_ in ("html", "latex", "md"))  # type: ignore[arg-type]
    assert (html.count("<b>"), latex.count("\\textbf"), markdown.count("**0.")) == (3, 3, 3)
    # the smaller a distance, the better
    distances = [
        make_row(cell_id=label, label=label, frechet_distance=score)
        for label, score in (("near", 0.1), ("far", 0.2))
    ]
    best = table_of(distances, "frechet_distance").best
    assert best is not None
    assert best["ε = 1"].tolist() == [True, False]
    assert (
        table_of(
            [
                make_row(
                    cell_id=label,
                    label=label,
                    density=0.5,
                )
                for label in "ab"
            ],
            "density",
        ).best
        is None
    )


@pytest.mark.parametrize("status", ["refuted", "overspent"])
def test_claims_are_named_beside_labels_and_explained_below(status: str) -> None:
    rows = [
        make_row(
            cell_id=word,
            label=word,
            claim=word,
        )
        for word in ("proved", "stated", "heuristic")
    ]
    rows += [
        make_row(cell_id="r", label="refuted"),
        make_row(cell_id="s", label="refuted", epsilon_target=4.0, status=status, refuted=True),
        make_row(cell_id="p", label="helped", public="BloodMNIST", public_hash="0"),
        make_row(cell_id="n", label="open", epsilon_target=None),
    ]
    table = table_of(rows)
    names = [
        "proved",
        "stated (stated ε)",
        "heuristic (heuristic ε)",
        "refuted (refuted ε)",
        "helped †",
        "open (not private)",
    ]
    assert methods_of(table)[:6] == names
    notes = " ".join(table.notes)
    for words in (
        "stated ε: the method's author states that ε is a theorem",
        "heuristic ε: ε is no theorem",
        "refuted ε: an audit refutes",
    ):
        assert words in notes
    assert table.notes[-1] == "† marks a method that uses public data: BloodMNIST."


@pytest.mark.parametrize("author_says", ["stated", "heuristic"])
def test_the_best_external_samples_are_not_bold(author_says: str) -> None:
    rows = [
        make_row(
            cell_id=label,
            label=label,
            balanced_accuracy=0.6,
        )
        for label in ("a", "b")
    ]
    rows[0] = make_row(cell_id="a", label="a", balanced_accuracy=0.5)
    theirs = make_row(
        cell_id="t", label="theirs", algorithm=EXTERNAL, claim=author_says, balanced_accuracy=0.9
    )
    table = table_of([*rows, theirs])
    assert table.best is not None
    bold = [method for (_, method), best in table.best["ε = 1"].items() if best]  # type: ignore[misc]
    assert bold == ["b"]


def test_external_samples_are_named_unverified() -> None:
    table = table_of([make_row(label="theirs", algorithm=EXTERNAL, claim="stated")])
    words = "ε as stated by the author, not verified"
    assert methods_of(table)[0] == f"theirs ({words})"
    assert any(note.startswith(words) for note in table.notes)
    assert table.numbers["claim"].tolist() == ["unverified"]


def test_unknown_measures_are_errors() -> None:
    with pytest.raises(
        UserError,
        match="there is no measure 'acuracy'; did you mean 'accuracy'",
    ):
        table_of([make_row()], "acuracy")
    with pytest.raises(UserError, match=r"no finished cell has a value of coverage; give .*acc"):
        table_of([make_row()], "coverage")


@pytest.mark.parametrize(
    ("as_", "text"),
    [
        ("md", r"\<b\>\|x\_\$"),
        ("html", "&lt;b&gt;|x_$"),
        ("latex", r"$<$b$>$\textbar{}x\_\$"),
        ("csv", "<b>|x_$"),
    ],
)
def test_what_users_wrote_is_text_in_every_format(as_: Any, text: str) -> None:
    assert text in table_of([make_row(label="<b>|x_$")]).text(as_)
    assert "'=HYPERLINK" in table_of([make_row(label='=HYPERLINK("http://x")')]).text("csv")
    table = table_of(seeds(0.5, 0.6, 0.7), "macro_f1", digits=2).text("latex")
    for words in (
        r"\begin{table}",
        r"\toprule",
        r"\bottomrule",
        r"\caption{Macro F1",
        r"\label{tab:macro-f1}",
        r"0.50",
    ):
        assert words in table


def test_latex_caption_says_what_a_paper_needs() -> None:
    rows = seeds(0.5, 0.6, 0.7, dataset="ham (dinov2)")
    failed = make_failed(cell_id="f", label="failed", dataset="ham (dinov2)")
    caption, footnote = table_of([*rows, failed]).text("latex").split(r"\footnotesize")
    for words in (
        r"\caption{Balanced accuracy.",
        r"Data and encoder: ham (dinov2); partition dirichlet; $\alpha$ = 0.1; 10 clients",
        r"$\delta$ = 0.0001; unit example; trust aggregate.",
        r"Mean $\pm$ half-width of the Student-t 95 \% confidence interval over 3 seeds.",
        "Ceiling: a linear probe trained on all real training examples.",
        "Local-only: the mean over clients of",
    ):
        assert words in caption
    assert "1 failed experiment is left out" in footnote
    assert "Student-t" not in footnote


def test_latex_has_no_footnote_without_marks() -> None:
    latex = table_of(seeds(0.5, 0.6, measure="density"), "density").text("latex")
    assert "footnotesize" not in latex


def test_a_terminal_takes_labels_as_text_and_loses_no_value(quickstart: list[Row]) -> None:
    console = Console(file=(file := io.StringIO()), width=80)
    table_of(quickstart).show(console)
    table_of([make_row(label="[red]x[/red]")]).show(console)
    assert "[red]x[/red]" in file.getvalue()
    assert all(
        value in file.getvalue()
        for values in table_of(quickstart).texts.to_numpy()
        for value in values
    )


def test_differences_are_paired_and_written_with_their_p_values() -> None:
    rows = [*seeds(0.8, 0.7, 0.9, label="good"), *seeds(0.5, 0.45, 0.4, label="poor")]
    table = difference_table(SeedGroups.of(rows))
    # ttest_rel: differences 0.3, 0.25, 0.5
    assert [line[1:] for line in lines_of(table)] == [("good − poor", "+0.350±0.329 p=0.044")]
    assert table is not None
    assert table.numbers[["first", "second", "seeds"]].to_numpy().tolist() == [["good", "poor", 3]]
    assert difference_table(SeedGroups.of(rows[:4])) is None
    turned = difference_table(
        SeedGroups.of(rows),
        compared=chosen_pair("poor", "good"),
    )
    assert lines_of(turned)[0][1:] == ("poor − good", "-0.350±0.329 p=0.044")
    budgets = [("dp", 1.0), ("dp", math.inf), ("open", None)]
    rows = [
        line
        for label, epsilon in budgets
        for line in seeds(0.5, 0.6, label=label, epsilon_target=epsilon)
    ]
    private = difference_table(SeedGroups.of(rows), compared=price_of_privacy)
    assert methods_of(private) == ["dp − dp at ε = ∞", "dp − open"]


def test_what_tuned_cells_chose_has_a_table() -> None:
    tuned = {
        "space": {"clip": (1, 2)},
        "trials": 2.0,
        "distribution": "geometric",
        "held_out": 0.1,
        "free": False,
    }
    rows = [
        make_row(
            cell_id=f"{n}",
            seed=n,
            tuning={**tuned, "chosen": {"clip": 1}, "trained": n + 1},
        )
        for n in range(2)
    ]
    assert lines_of(tuned_table(SeedGroups.of(rows))) == [
        ("", "fedhypevae", "clip 1: 1; clip 1: 2")
    ]
    assert tuned_table(SeedGroups.of([make_row()])) is None


def test_site_table_has_means_by_site_and_over_all_sites() -> None:
    rows = [make_row(cell_id=f"{seed}", seed=seed) for seed in range(3)] + [
        make_row(cell_id="n", label="open", epsilon_target=None)
    ]
    scores = {"0": (0.4, 0.7), "1": (0.5, 0.7), "2": (0.6, 0.7), "n": (0.9, 0.8)}
    own = [
        (cell, *each, 0.6)
        for cell, two in scores.items()
        for each in zip(("north", "<b>south"), two, strict=True)
    ]
    clients = pd.DataFrame(
        own, columns=["cell_id", "name", "own_balanced_accuracy", "local_only_balanced_accuracy"]
    )
    table = site_table(SeedGroups.of(rows), clients)
    assert lines_of(table) == [
        ("ε = 1", "fedhypevae", "0.500±0.248", "0.700", "0.600±0.124"),
        ("", "open (not private)", "0.900", "0.800", "0.850"),
        ("", "the site's own real examples", "0.600", "0.600", "0.600"),
    ]
    assert table is not None
    assert table.title.startswith(
        "Balanced accuracy by site · on the site's own test examples · digits"
    )
    assert site_table(SeedGroups.of(rows), pd.DataFrame()) is None


HOSPITALS = ("Hospital Clínic Barcelona", "MSKCC", "Medical University of Vienna", "ViDIR")


def hospitals(clients: int = 4) -> Table:
    """A table by site, of names that take several words."""
    rows = [make_row(cell_id=f"{seed}", seed=seed) for seed in range(3)]
    own = [
        (row.cell_id, f"{HOSPITALS[client % 4]} {client}", 0.5 + row.seed / 100, 0.6)
        for row in rows
        for client in range(clients)
    ]
    columns = ["cell_id", "name", "own_balanced_accuracy", "local_only_balanced_accuracy"]
    table = site_table(SeedGroups.of(rows), pd.DataFrame(own, columns=columns))
    assert table is not None
    return table


def printed(table: Table, width: int) -> str:
    console = Console(file=(file := io.StringIO()), width=width)
    table.show(console)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("clients", [4, 8])
def test_no_word_or_number_of_a_table_is_broken(width: int, clients: int) -> None:
    table = hospitals(clients)
    whole = set(printed(table, 1000).split())
    note = "The terminal is too narrow for . --format csv writes all columns."
    text = printed(table, width)
    broken = {word for word in text.split() if "─" not in word} - whole - {*note.split()}
    assert broken <= {"column.", "columns.", *map(str, range(10))}
    assert all(len(line) <= width for line in text.splitlines())


def test_columns_that_do_not_fit_are_counted_and_the_mean_stays() -> None:
    text = printed(hospitals(8), 80)
    assert "The terminal is too narrow for 5 columns." in text
    assert len([line for line in text.splitlines() if line.rstrip().endswith(" mean")]) == 2
    assert "too narrow" not in printed(hospitals(8), 200)


def many_places(alphas: int) -> list[Row]:
    return [
        make_row(
            cell_id=f"{n}",
            alpha=0.1 + n,
            client_balanced_accuracy=0.5,
        )
        for n in range(alphas)
    ]


def briefly(rows: list[Row], folder: str = "runs/mine") -> str:
    settings = SeedGroups.of(rows)
    tables = [results_table(settings, measure) for measure in measures_of(settings)]
    console = Console(file=(file := io.StringIO()), width=80)
    show_briefly([*tables, hospitals()], Path(folder), console)
    return file.getvalue()


def test_a_terminal_shows_every_table_of_a_small_grid() -> None:
    text = briefly(many_places(1))
    assert text.count("Balanced accuracy") == 3
    assert "the report page" not in text


def test_terminal_says_how_to_print_tables_without_room() -> None:
    text = briefly(many_places(4))
    assert text.count("ceiling") == 4
    assert "Only in the report page: Balanced accuracy by site.\n" in text
    assert "\nTo print it: fedsim report runs/mine --table sites\n" in text
    assert "\nTo print it: fedsim report runs/mine --measure client_balanced_accuracy\n" in text


def test_command_that_prints_a_table_can_be_pasted_for_any_folder() -> None:
    text = briefly(many_places(4), "runs/my run")
    assert "\nTo print it: fedsim report 'runs/my run' --table sites\n" in text


def test_a_long_main_table_is_cut_between_its_parts() -> None:
    text = briefly(many_places(20))
    assert len(text.splitlines()) <= MOST_LINES + 10
    shown = text.count("ceiling")
    assert 1 <= shown < 20
    assert f"Only in the report page: {20 - shown} of 20 parts of this table." in text
    assert "\nTo print it: fedsim report runs/mine --measure balanced_accuracy\n" in text


def test_methods_stand_as_given_the_best_first_or_by_name() -> None:
    rows = [
        make_row(cell_id=label, label=label, balanced_accuracy=score)
        for label, score in (("m", 0.1), ("z", 0.9), ("a", 0.5))
    ]
    methods = {
        order: methods_of(table_of(rows, order=order))[:3] for order in ("given", "best", "name")
    }
    assert methods == {"given": ["m", "z", "a"], "best": ["z", "a", "m"], "name": ["a", "m", "z"]}


def test_sites_that_were_left_out_have_a_table_with_their_mean() -> None:
    scores = [("north", 0, 0.5), ("north", 1, 0.6), ("south", 0, 0.7), ("south", 1, 0.6)]
    rows = [
        make_row(
            cell_id=f"{site}{n}",
            dataset=f"digits ({site} unseen)",
            unseen=site,
            seed=n,
            balanced_accuracy=score,
        )
        for site, n, score in scores
    ]
    table = site_table(SeedGroups.of(rows, "range"), pd.DataFrame())
    assert [texts for _, _, *texts in lines_of(table)] == [["0.550±0.050", "0.650±0.050", "0.600"]]
    assert table is not None
    assert table.title.startswith(
        "Balanced accuracy by site · on a site that took no part in training · digits · "
    )


# --- published numbers ---

PUBLISHED = "DP-CVAE (published, not run here: Author 2025, Table 2)"
"""The name of a published number in a table."""


def settings_with(*numbers: Published) -> SeedGroups:
    """Return two methods at ε = 1, three seeds each, beside published numbers."""
    rows = [*seeds(0.3, 0.4, 0.5, label="a"), *seeds(0.5, 0.6, 0.8, label="b")]
    return SeedGroups.of(rows, published=numbers)


def test_published_number_has_a_line_below_the_methods() -> None:
    table = results_table(settings_with(make_published()))
    assert methods_of(table)[:4] == ["a", "b", PUBLISHED, "ceiling"]
    assert table.texts.loc[("", PUBLISHED), "ε = 1"] == "0.91"


def test_label_that_says_published_says_it_once() -> None:
    table = results_table(settings_with(make_published(label="DP-CVAE (published)")))
    assert PUBLISHED in methods_of(table)


def test_published_number_is_not_bold() -> None:
    table = results_table(settings_with(make_published()))
    assert table.best is not None
    assert table.best["ε = 1"].to_dict()[("", "b")]
    assert not table.best["ε = 1"].to_dict()[("", PUBLISHED)]


def test_published_numbers_change_no_mean_of_a_table() -> None:
    alone = results_table(settings_with())
    beside = results_table(settings_with(make_published()))
    assert beside.numbers.equals(alone.numbers)
    assert lines_of(alone) == [line for line in lines_of(beside) if line[1] != PUBLISHED]


def test_published_number_is_in_no_difference() -> None:
    alone = difference_table(settings_with())
    beside = difference_table(settings_with(make_published()))
    assert lines_of(beside) == lines_of(alone)


def test_table_says_what_a_published_number_is() -> None:
    assert NOTE in results_table(settings_with(make_published())).notes
    assert NOTE not in results_table(settings_with()).notes


def test_table_of_another_measure_has_no_published_number() -> None:
    table = results_table(settings_with(make_published(measure="accuracy")))
    assert PUBLISHED not in methods_of(table)


def test_published_epsilon_that_nothing_ran_at_has_a_column() -> None:
    table = results_table(settings_with(make_published(epsilon=2)))
    assert table.texts.columns.tolist() == ["ε = 1", "ε = 2", "no ε"]


def test_table_shows_a_published_number_at_its_data_set_alone() -> None:
    rows = [make_row(cell_id=name, dataset=name) for name in ("digits", "PACS")]
    settings = SeedGroups.of(rows, published=[make_published(dataset="PACS")])
    places = [place for place, method, *_ in lines_of(results_table(settings)) if "DP" in method]
    assert places == ["PACS"]


@pytest.mark.parametrize(
    ("as_", "text"),
    [("latex", r"A \& B"), ("html", "A &amp; B"), ("md", r"A \& B")],
)
def test_source_of_a_published_number_is_escaped(as_: Any, text: str) -> None:
    table = results_table(settings_with(make_published(source="A & B")))
    assert text in table.text(as_)


@pytest.mark.parametrize("score", ["accuracy", "balanced_accuracy"])
def test_tables_of_held_out_scores_say_that_they_are_not_private(score: str) -> None:
    measure = f"personal_held_out_{score}"
    table = table_of([make_row(**{measure: 0.8})], measure)
    assert "(not private)" in table.title
    assert any(note.startswith("Not private: ") for note in table.notes)


def test_held_out_scores_stand_beside_the_client_alone() -> None:
    values = {"personal_held_out_accuracy": 0.8, "personal_held_out_alone_accuracy": 0.6}
    table = table_of([make_row(**values)], "personal_held_out_accuracy")
    assert methods_of(table)[-1] == "own classifier alone"
    assert lines_of(table)[-1][-1] == "0.600"
