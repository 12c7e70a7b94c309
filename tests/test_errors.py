import pickle

import pytest

from fedsim.errors import PluginError, UserError, at, nearest


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


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("FedAvg-CVAE", "fedavg-cvae"),
        ("FedHypeVAE", "fedhypevae"),
        ("dp-gausian", "dp-gaussian"),
        ("SITE", "Site"),
    ],
)
def test_the_nearest_name_is_found_in_any_case(given: str, meant: str) -> None:
    names = ["fedavg-cvae", "fedhypevae", "dp-gaussian", "Site"]
    assert nearest(given, names).startswith(f"did you mean '{meant}'? (known: ")
