import pickle

import pytest

from fedsim.errors import PluginError, UserError, at


def test_a_place_goes_before_the_error_s_own_from_the_outside_in() -> None:
    with pytest.raises(UserError) as caught, at("g.yaml:3: dataset[0]"), at("scans.csv"):
        raise UserError("", "has no rows", "give one row an image")
    assert (
        str(caught.value) == "g.yaml:3: dataset[0]: scans.csv: has no rows; give one row an image"
    )
    assert caught.value.where == "g.yaml:3: dataset[0]: scans.csv"


def test_an_error_keeps_its_kind_and_survives_a_pipe() -> None:
    with pytest.raises(PluginError) as caught, at("algorithms[0]"):
        raise PluginError("mine.py:3", "lacks loss", "define it")
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (made one line above)
    assert (type(again), str(again)) == (PluginError, str(caught.value))
