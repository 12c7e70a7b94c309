from cells import digits_of_writers, one_cell, quick


def test_units_are_examples_groups_or_clients(tmp_path):
    writers = {
        "dataset": {"npz": str(digits_of_writers(tmp_path)), "overlap": "keep"},
        "unit": {"column": "writer"},
    }
    for unit, keys in {"example": {}, "client": {"unit": "client"}, "group": writers}.items():
        trial, data, _ = one_cell(quick("fedhypevae"), epsilon=4.0, **keys)
        if unit == "group":
            groups = len(set(data.columns["writer"]))
        else:
            groups = None
        assert trial.units == {"example": 200, "client": 4, "group": groups}[unit]
