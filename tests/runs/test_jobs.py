"""Which cells share a reference."""

from cells import small_cells

from fedsim.runs.jobs import references_of

DATA = [{"name": "digits", "limit": limit} for limit in (200, 300)]


def test_a_reference_is_of_one_data_set_one_probe_and_below_the_ceiling_of_one_partition() -> None:
    depends_on: dict[tuple[str, ...], set[tuple[object, ...]]] = {}
    for probe_c in (0.1, 0.3):
        evaluation = {"per_class": 10, "probe_c": probe_c}
        prepared = small_cells("local-only", "fedavg-linear", dataset=DATA, alpha=[0.1, 1.0], evaluation=evaluation)
        for trial in prepared.trials:
            ceiling, local_only = references_of(trial)
            depends_on.setdefault(ceiling.key, set()).add((trial.data_key, probe_c))
            depends_on.setdefault(local_only.key, set()).add((trial.data_key, probe_c, trial.partition.fingerprint))
    assert all(len(each) == 1 for each in depends_on.values())
    assert len(depends_on) == 2 * 2 + 2 * 2 * 2
