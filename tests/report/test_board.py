"""A board: which rows stand on it, in what order, and that what users wrote is text in every
format.
"""

from typing import Any

import pytest
from rows import make_row

from fedsim.evidence.prove import Proof
from fedsim.plugins.registry import EXTERNAL
from fedsim.report.board import Board
from fedsim.results.columns import Row

TUNED = {
    "space": {"clip": (1, 2)},
    "trials": 10.0,
    "distribution": "geometric",
    "held_out": 0.1,
    "chosen": {"clip": 1},
    "trained": 2,
}


def scored(label: str, score: float, **fields: Any) -> Row:
    given = {
        "label": label,
        "cell_id": f"{label}{fields}",
        "ceiling_balanced_accuracy": 0.8,
        "balanced_accuracy": score,
    }
    return make_row(**given | fields)


def board(*rows: Row) -> Board:
    return Board.of([Proof(row, "proved") for row in rows])


def test_board_is_sorted_by_data_set_epsilon_and_score() -> None:
    rows = [
        scored(
            "a",
            0.4,
            epsilon_target=4.0,
            tuning=TUNED | {"free": True},
            claim="heuristic",
        ),
        scored("b", 0.6, epsilon_target=4.0, tuning=TUNED | {"free": False}),
        scored("c", 0.1, epsilon_target=1.0, epsilon_spent=1.0),
        scored("d", 0.9, epsilon_target=4.0, dataset="another"),
    ]
    found = board(*rows).frame
    assert found["method"].tolist() == ["d", "c", "b", "a (heuristic ε)"]
    assert found["tuned"].fillna("-").tolist() == [
        "-",
        "-",
        "private tuning (included in ε)",
        "tuning on test data (not private)",
    ]
    facts = board(scored("a", 0.4, seed=0), scored("a", 0.6, seed=1)).frame.iloc[0]
    assert (facts["balanced accuracy"], facts["seeds"], facts["sd"]) == (
        pytest.approx(0.5),
        2,
        pytest.approx(0.02**0.5),
    )


def test_board_names_no_alpha_where_the_partition_has_none() -> None:
    frame = board(scored("a", 0.5, scheme="iid", alpha=None)).frame
    assert frame["partition"].tolist() == ["iid · 10 clients"]


def external(label: str, score: float, **fields: Any) -> Proof:
    """External samples, whose epsilon verify leaves alone."""
    row = scored(label, score, algorithm=EXTERNAL, claim="stated", **fields)
    return Proof(row, "no claim")


UNDER_OWN_HEADING = "ε as stated by the author, not verified"


def test_external_samples_stand_under_a_heading_of_their_own() -> None:
    made = Board.of([external("theirs", 0.9), Proof(scored("ours", 0.5), "proved")])
    assert made.frame["method"].tolist() == ["ours"]
    assert made.external["method"].tolist() == [f"theirs ({UNDER_OWN_HEADING})"]
    headings = made.table.texts.index.get_level_values(0).tolist()
    assert headings == ["digits", f"digits, external samples: {UNDER_OWN_HEADING}"]


def test_a_board_counts_no_external_sample_as_proved() -> None:
    made = Board.of([external("theirs", 0.9), Proof(scored("ours", 0.5), "proved")])
    notes = made.table.notes
    assert notes[1].startswith("1 result; fedsim verify proved each finite ε")
    assert notes[2] == f"1 result of external samples: {UNDER_OWN_HEADING}."


@pytest.mark.parametrize("as_", ["md", "html", "csv"])
def test_every_format_says_which_epsilon_nobody_verified(as_: Any) -> None:
    made = Board.of([external("theirs", 0.9), Proof(scored("ours", 0.5), "proved")])
    (line,) = [line for line in made.table.text(as_).splitlines() if "theirs" in line]
    assert "not verified" in line


def test_a_board_of_external_samples_alone_proves_nothing() -> None:
    table = Board.of([external("theirs", 0.9)]).table
    assert table.notes[1].startswith("0 results;")
    assert len(table.texts) == 1


def test_unproved_results_are_left_out_of_a_board_and_counted() -> None:
    good = scored("good", 0.5)
    bad = scored("bad", 0.9)
    made = Board.of(
        [
            Proof(good, "proved"),
            Proof(
                bad,
                "differs",
                "ε is 0.5 of what its mechanisms spend",
            ),
        ]
    )
    assert made.frame["method"].tolist() == ["good"]
    reason = "differs: ε is 0.5 of what its mechanisms spend"
    assert made.table.notes[-1] == f"Left out: 1 result of bad on {bad.dataset} ({reason})."
    none = Board.of([Proof(bad, "not proved", "it is old")]).table
    assert none.numbers.empty
    assert "Left out: 1 result" in none.text("md")


@pytest.mark.parametrize(
    ("as_", "text"), [("md", r"\<b\>\|x"), ("html", "&lt;b&gt;|x"), ("csv", "<b>|x")]
)
def test_board_escapes_labels_and_warns_of_exact_scores(as_: Any, text: str) -> None:
    said = board(scored("<b>|x", 0.5)).table.text(as_)
    assert text in said
    assert as_ == "csv" or "computed from real examples without noise" in said
