import pickle

import pytest

from fedsim.errors import PluginError, UserError, at, nearest


def test_outer_location_goes_before_the_inner_one() -> None:
    with pytest.raises(UserError) as caught, at("g.yaml:3: dataset[0]"), at("scans.csv"):
        raise UserError("", "has no rows", "write one row per image")
    location = "g.yaml:3: dataset[0]: scans.csv"
    assert caught.value.where == location
    assert str(caught.value) == f"{location}: has no rows; write one row per image"


def test_error_keeps_its_kind_and_can_be_pickled() -> None:
    with pytest.raises(PluginError) as caught, at("algorithms[0]"):
        raise PluginError("mine.py:3", "MyMethod has no method loss", "define it")
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (made one line above)
    assert type(again) is PluginError
    assert str(again) == str(caught.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("FedAvg-CVAE", "fedavg-cvae"),
        ("FedHypeVAE", "fedhypevae"),
        ("dp-gausian", "dp-gaussian"),
        ("SITE", "Site"),
    ],
)
def test_nearest_name_is_found_in_any_case(given: str, meant: str) -> None:
    names = ["fedavg-cvae", "fedhypevae", "dp-gaussian", "Site"]
    assert nearest(given, names).startswith(f"did you mean '{meant}'? (known: ")
