from fedsim.report.sites import draw_sites, site_panels, site_tables
from fedsim.results.groups import group_seeds


def told(cell: str, own: dict[str, float | None], shared: float = 0.5) -> list[dict]:
    lines = []
    for client, (name, value) in enumerate(own.items()):
        other = None if value is None else shared
        lines.append({"cell_id": cell, "client": client, "name": name, "own_balanced_accuracy": value, "shared_balanced_accuracy": other})
    return lines


def test_a_client_has_the_mean_over_seeds_at_every_epsilon(row):
    rows = [row(cell_id="a"), row(cell_id="b", seed=1), row(cell_id="c", epsilon_target=8.0, epsilon_spent=7.9)]
    lines = told("a", {"north": 0.4, "south": 0.6}) + told("b", {"north": 0.6, "south": 0.6}) + told("c", {"north": 0.9, "south": 0.7})
    (panel,) = site_panels(group_seeds(rows), lines)
    assert [(dot.name, dot.own, dot.shared) for dot in panel.dots[1.0]] == [("north", 0.5, 0.5), ("south", 0.6, 0.5)]
    assert [(dot.name, dot.own) for dot in panel.dots[8.0]] == [("north", 0.9), ("south", 0.7)]
    assert draw_sites(group_seeds(rows), lines) is not None


def test_clients_of_another_place_are_in_a_panel_of_their_own(row):
    for field, values in (("clients", (4, 10)), ("alpha", (0.1, 1.0)), ("dataset", ("blood", "organ"))):
        rows = [row(cell_id=str(value), **{field: value}) for value in values]
        panels = site_panels(group_seeds(rows), [line for n, value in enumerate(values) for line in told(str(value), {"north": n / 10})])
        assert [[dot.own for dot in panel.dots[1.0]] for panel in panels] == [[0.0], [0.1]]


def test_clients_without_test_rows_and_cells_without_clients_are_left_out(row):
    groups = group_seeds([row(cell_id="a"), row(cell_id="b", label="other")])
    (panel,) = site_panels(groups, told("a", {"north": 0.4, "west": None}))
    assert [dot.name for dot in panel.dots[1.0]] == ["north"]
    assert site_panels(groups, []) == []
    assert draw_sites(groups, told("a", {"west": None})) is None


def test_a_table_by_site_has_every_sites_mean_and_the_mean_over_them(row):
    rows = [row(cell_id=f"{seed}", seed=seed) for seed in range(3)] + [row(cell_id="n", label="open", epsilon_target=None)]
    lines = [line for seed in range(3) for line in told(str(seed), {"north": 0.4 + seed / 10, "<b>south": 0.7})]
    lines += told("n", {"north": 0.9, "<b>south": 0.8})
    alone = [line | {"local_only_balanced_accuracy": 0.6} for line in lines]
    (table,) = site_tables(group_seeds(rows), alone)
    assert table.title.startswith("Balanced accuracy by site · on the site's own test rows · digits")
    assert table.columns == ("north", "<b>south", "mean")
    assert [(block.place, [line.label for line in block.lines]) for block in table.blocks] == [
        ("ε = 1", ["fedhypevae"]),
        ("no ε", ["open", "the site's own real rows"]),
    ]
    assert table.blocks[0].lines[0].values == ("0.500±0.248", "0.700", "0.600±0.124")
    assert [line.values[:2] for line in table.blocks[1].lines] == [("0.900", "0.800"), ("0.600", "0.600")]


def test_sites_that_were_left_out_have_a_table_with_their_mean(row):
    scores = {"north": (0.5, 0.6), "south": (0.7, 0.6)}
    rows = [
        row(cell_id=f"{site}{seed}", dataset=f"digits ({site} unseen)", unseen=site, seed=seed, balanced_accuracy=score)
        for site, values in scores.items()
        for seed, score in enumerate(values)
    ]
    (table,) = site_tables(group_seeds(rows, "range"), [])
    assert table.title.startswith("Balanced accuracy by site · on a site that took no part · digits · ")
    assert (table.columns, table.blocks[0].lines[0].values) == (("north", "south", "mean"), ("0.550±0.050", "0.650±0.050", "0.600"))
