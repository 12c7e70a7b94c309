import math
from typing import Any

import numpy as np
import pandas as pd
from rows import make_failed, make_row

from fedsim.results.columns import COLUMNS, Row, frame_of, frame_of_lines


def row(cell_id: str, **fields: Any) -> Row:
    return make_row(**{"cell_id": cell_id, "label": "alg", "params": {"rounds": 3}, "evaluation": {"per_class": 10}, **fields})


def dtypes(frame: pd.DataFrame, *names: str) -> list[str]:
    return [str(frame[name].dtype) for name in names]


def test_a_frame_has_a_column_for_every_field_and_parameter() -> None:
    frame = frame_of([row("a"), row("b", label="other", params={"rounds": 2, "hidden": (8, 4), "warm": True, "beta": 0.5})])
    params = [f"params.{name}" for name in ("rounds", "hidden", "warm", "beta")]
    expected = [column for name in COLUMNS for column in {"params": params, "evaluation": ["evaluation.per_class"]}.get(name, [name])]
    assert list(frame.columns) == expected
    assert frame["params.hidden"].tolist()[1] == (8, 4)


def test_whole_numbers_are_whole_also_where_some_are_missing() -> None:
    frame = frame_of([row("a", train_groups=4, seed=1), row("b", params={"latent": 8}, seed=2)])
    assert dtypes(frame, "seed", "train_groups", "params.latent", "params.rounds") == ["int64", "Int64", "Int64", "Int64"]
    assert frame["train_groups"].isna().tolist() == [False, True]
    assert dtypes(frame_of([row("a", train_groups=None)]), "train_groups") == ["Int64"]


def test_numbers_that_are_not_whole_are_floats_whatever_they_are_today() -> None:
    frame = frame_of([row("a", epsilon_target=math.inf, epsilon_spent=math.inf), make_failed(cell_id="b"), row("c", epsilon_target=None)])
    assert dtypes(frame, "epsilon_target", "accuracy", "alpha", "personal_weight") == ["float64"] * 4
    assert frame["epsilon_target"].tolist()[:2] == [math.inf, 1.0]
    assert np.isnan(frame["epsilon_target"][2])


def test_a_frame_without_rows_has_the_columns() -> None:
    assert [name for name in frame_of([]) if "." not in name][:3] == ["cell_id", "source", "judged"]
    assert dtypes(frame_of([]), "seed", "accuracy") == ["Int64", "float64"]


def test_what_belongs_to_cells_says_where_they_stand_in_the_grid() -> None:
    records = [{"cell_id": "a", "round": 0, "loss": 1.0}, {"cell_id": "a", "round": 1}]
    frame = frame_of_lines(records, [row("a", seed=7, alpha=0.3)])
    assert frame.columns.tolist() == ["cell_id", "label", "dataset", "alpha", "clients", "epsilon_target", "seed", "round", "loss"]
    assert frame[["seed", "alpha", "round"]].to_numpy().tolist() == [[7, 0.3, 0], [7, 0.3, 1]]
