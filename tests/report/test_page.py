import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from benches import PATIENCE
from rows import add_lines, add_rows, changed

from fedsim.errors import UserError
from fedsim.report.page import LISTED
from fedsim.report.report import write_report
from fedsim.report.rounds import NOT_PRIVATE
from fedsim.results.run import read_results

CHROMIUM = shutil.which("chromium")
HOSTILE = "<script>document.title='taken'</script>"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--virtual-time-budget=2000"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


class Elements(HTMLParser):
    """Tags with their attributes, and the text of all that is not style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self._style = [], "", False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        self.text += "" if self._style else data


def folder_with(tmp_path, rows, manifest=None, records=()):
    folder, path = tmp_path / "quick <b>start", tmp_path / "quick <b>start" / "manifest.json"
    add_rows(folder, *rows)
    add_lines(folder / "rounds.jsonl", records)
    if manifest is not None:
        whole = {cell["cell_id"]: cell for cell in json.loads(path.read_text())["cells"]}
        cells = [whole.get(cell["cell_id"], {"training_id": "none"}) | cell for cell in manifest.get("cells", whole.values())]
        path.write_text(json.dumps({"format": 3, **manifest, "cells": cells}))
    return folder


KNOWN = {
    *("html", "head", "meta", "title", "style", "body", "header", "section", "figure", "img", "details", "summary", "code", "pre", "em"),
    *("h1", "h2", "h3", "h4", "p", "div", "ul", "li", "dl", "dt", "dd", "cite", "span", "a", "b"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
"""The tags that a page is made of."""
LINES = {"manifest.json", "trainings.jsonl", "judgements.jsonl", "references.jsonl"}
"""What a bench leaves, from which a report is drawn."""


def sections(page):
    return [attributes["id"] for tag, attributes in page.tags if tag == "section"]


def pictures(page):
    return [attributes["alt"] for tag, attributes in page.tags if tag == "img"]


def page_of(folder):
    return Elements(write_report(folder).page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(quickstart, row, failed):
    """The quickstart with a failed, an overspent and an unaccounted cell, and hostile text wherever a user can put some."""
    rows = [*quickstart]
    unknown = {"type": "Unaccounted", "message": f"client 0 has 0 steps of {HOSTILE}", "traceback": ""}
    rows[4] = changed(quickstart[4], status="unaccounted", epsilon_spent=None, error=unknown)
    rows[3] = changed(quickstart[3], status="overspent", epsilon_spent=5.0)
    error = {"type": HOSTILE, "message": HOSTILE, "traceback": HOSTILE}
    hostile = {"label": HOSTILE, "algorithm": HOSTILE, "dataset": "digits", "params": {HOSTILE: HOSTILE}}
    return [*rows, failed(cell_id="f", error=error, **hostile), row(cell_id=HOSTILE, **hostile)]


def manifest_of(rows):
    return {
        "versions": {"fedsim": "0.3.0", HOSTILE: HOSTILE},
        "revision": "61a3adb",
        "hardware": {"cpus": 2},
        "command": HOSTILE,
        "started": "2026-11-25T10:30:00Z",
        "grid": {"name": HOSTILE, "epsilon": [1, 4, "inf"]},
        "cells": [{"cell_id": each.cell_id, "label": each.label} for each in rows],
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory, quickstart):
    """The run folder of the quickstart with its report, drawn from rows alone."""
    folder = folder_with(tmp_path_factory.mktemp("plain"), quickstart)
    assert write_report(folder).page == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, full):
    return page_of(folder_with(tmp_path_factory.mktemp("hostile"), full, manifest_of(full)))


def test_a_report_is_drawn_from_rows_alone(plain, quickstart):
    drawn = {"results.jsonl", "summary.csv", "report.html", "curves"}
    assert {path.name for path in plain.iterdir()} - LINES == drawn
    assert {path.suffix for path in (plain / "curves").iterdir()} == {".png", ".svg"}
    page = Elements((plain / "report.html").read_text(encoding="utf-8"))
    assert all(each.cell_id in page.text for each in quickstart)
    assert f"{quickstart[0].balanced_accuracy:.3f}" in page.text
    assert page.text.count("fedhypevae − weight-noise") == 2
    assert sections(page) == ["curve", "wrong", "results", "run"]
    assert pictures(page) == ["Privacy against utility"]


def test_every_text_is_escaped_and_nothing_is_loaded(hostile):
    names = [tag for tag, _ in hostile.tags]
    assert "script" not in names
    assert set(names) <= KNOWN
    assert hostile.text.count(HOSTILE) >= 8
    attributes = [named for _, tag in hostile.tags for named in tag.items()]
    assert all(value.startswith("data:image/svg+xml;base64,") for name, value in attributes if name == "src")
    assert not {"srcset", "data", "action", "background"} & {name for name, _ in attributes}
    links = [value for name, value in attributes if name in ("href", "xlink:href")]
    assert all(value.startswith(("#", "https://arxiv.org/abs/")) for value in links)
    ids = {value for name, value in attributes if name == "id"}
    assert {value[1:] for value in links if value.startswith("#")} <= ids
    assert not [name for name, _ in attributes if name.startswith("on")]


def test_the_page_says_what_failed_what_was_overspent_or_unaccounted_and_what_the_numbers_mean(hostile):
    text = " ".join(hostile.text.split())
    for words in (
        *("1 cell failed", "1 cell overspent", "1 cell unaccounted", "nothing is known of its ε: client 0 has 0 steps", "- .inf"),
        *("ε = 5 was spent where 1 was allowed", "neighbouring data sets differ in one example", "nothing made here may be released"),
        *("it follows from a seed that stands in the results", "aggregate, that is only the sum over clients is seen"),
    ):
        assert words in text


def test_a_stranger_reads_what_ran_and_what_each_method_is_with_its_paper(tmp_path, row):
    methods = [{"label": "a", "text": f"A {HOSTILE} method.", "source": f"{HOSTILE} 2017, arXiv 1602.05629; Sohn et al. 2015"}]
    rows = [row(cell_id=f"{label}{seed}", label=label, seed=seed) for label in ("a", "ab") for seed in (0, 1)]
    cells = [{"cell_id": each.cell_id, "label": each.label} for each in rows]
    page = page_of(folder_with(tmp_path, rows, {"cells": cells, "methods": methods}))
    text = " ".join(page.text.split())
    assert "digits · partition dirichlet · α = 0.1 · 10 clients · ε = 1 · δ = 0.0001 · unit example · trust aggregate · 2 seeds" in text
    assert text.count(f"A {HOSTILE} method. {HOSTILE} 2017, arXiv 1602.05629; Sohn et al. 2015") == 1
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert "https://arxiv.org/abs/1602.05629" in links
    assert "Two seeds, so no bars and no intervals" in text


def test_only_the_manifests_cells_count_and_their_labels_hold(tmp_path, row):
    rows = [row(cell_id=name, seed=seed) for seed, name in enumerate("abc")]
    cells = [
        {"cell_id": "c", "label": "renamed"},
        {"cell_id": "a", "label": "renamed"},
        {"cell_id": "z", "label": "renamed"},
    ]
    folder = folder_with(tmp_path, rows, {"cells": cells})
    assert [(each.cell_id, each.label) for each in read_results(folder).rows] == [("c", "renamed"), ("a", "renamed")]
    page = page_of(folder)
    assert "renamed" in page.text
    assert "1 cell not run yet" in page.text
    assert "fedhypevae" not in page.text


def test_a_run_in_which_all_failed_still_has_a_report(tmp_path, failed):
    page = page_of(folder_with(tmp_path, [failed()]))
    assert "no cell ended with status ok" in page.text
    assert "ValueError: rows hold NaN" in page.text
    assert "traceback of a" in page.text
    assert "img" not in [tag for tag, _ in page.tags]


def test_what_is_wrong_stands_right_below_the_curve_and_long_lists_unfold(tmp_path, row, failed, training):
    rows = [row(cell_id=f"{epsilon}", epsilon_target=float(epsilon), balanced_accuracy=0.8) for epsilon in range(2, 12)]
    rows += [failed(cell_id=f"{seed:04}", seed=seed, label="broken") for seed in range(300)]
    records = [record for each in rows[:10] for record in training(each.cell_id, kl=0.0)]
    page = page_of(folder_with(tmp_path, rows, records=records))
    assert sections(page)[:3] == ["curve", "wrong", "results"]
    assert "What usually helps: a lower beta" in page.text
    assert all(f"10 clients · ε = {epsilon}: 0 nats an example" in page.text for epsilon in range(2, 12))
    assert page.text.count("ValueError: rows hold NaN") == 300
    assert all(f"{len(items) - LISTED} more" in page.text for items in (range(10), range(300)))
    assert [tag for tag, _ in page.tags].count("pre") == 1
    assert pictures(page)[-1] == "Diagnostics of the rounds"
    assert NOT_PRIVATE in page.text


def test_every_measure_has_its_table_and_the_main_one_is_open(tmp_path, row):
    scores = {"coverage": 0.5, "worst_class_recall": 0.1, "client_balanced_accuracy": 0.4, "frechet_distance": 2.0}
    page = page_of(folder_with(tmp_path, [row(cell_id=f"{seed}", seed=seed, **scores) for seed in range(3)]))
    titles = ("Balanced accuracy · digits", "Recall of the worst class", "Fréchet distance", "Coverage", "mean over clients")
    places = [page.text.index(title, page.text.index("Results")) for title in titles]
    assert places == sorted(places)
    assert [tag for tag, attributes in page.tags if "results" in attributes.get("class", "")] == ["table"] * 5


def test_every_number_of_a_cell_stands_under_its_head_and_what_refutes_one_is_told(tmp_path, row):
    facts = {"audit_epsilon_lower": 1.5, "audit_pairs": 500, "audit_canary_ratio": 0.98}
    sent = {"uplink_bytes": 5_500_000, "downlink_bytes": 6_500_000, "parameters": 1_300, "train_seconds": 12.3}
    rows = [row(cell_id="a", seed=3, epsilon_spent=0.9, **sent), row(cell_id="r", status="refuted", **facts)]
    page = write_report(folder_with(tmp_path, rows)).page.read_text(encoding="utf-8")
    table = page[page.index("<table class='cells'>") :]
    heads = re.findall(r"<th [^>]*>(.*?)</th>", table[: table.index("</thead>")])
    told = dict(zip(heads, re.findall(r"<td[^>]*>(.*?)</td>", table[: table.index("</tr>", table.index("<tbody>"))]), strict=True))
    assert [told[head] for head in ("seed", "status", "ε target", "ε spent", "seconds")] == ["3", "ok", "1", "0.9", "12.3"]
    assert told["mechanisms"] == "dp-sgd σ 4.2, q 0.08, × 400"
    assert [told[head] for head in ("uplink MB", "downlink MB", "parameters")] == ["5.5", "6.5", "1300"]
    said = "refuted, ε = 1 is claimed and 500 pairs of trainings refute every ε below 1.5, with a canary that adds 0.98 of the claimed"
    assert said in " ".join(Elements(page).text.split())
    assert "(ε, δ) is claimed, and an audit refutes it at one budget or more" in page
    canary = {"audit_epsilon_lower": 0.0, "audit_pairs": 500, "audit_canary_ratio": 2.93, "audit_params": {"rounds": 6}}
    text = page_of(folder_with(tmp_path / "canary", [row(status="refuted", **canary)])).text
    said = "refuted, ε = 1 is claimed and there is a canary that adds 2.93 of the claimed sensitivity, of a short form: rounds 6"
    assert said in " ".join(text.split())


def test_a_plug_in_that_was_left_out_is_told(tmp_path, row):
    refused = [{"algorithm": HOSTILE, "error": "g.yaml:2: mine.py:3: the loss"}]
    page = page_of(folder_with(tmp_path, [row(cell_id="a")], {"refused": refused}))
    assert f"{HOSTILE}: left out, its plug-in was refused: g.yaml:2: mine.py:3: the loss" in page.text
    assert "script" not in [tag for tag, _ in page.tags]


def test_a_folder_without_results_or_with_a_broken_manifest_is_a_users_mistake(tmp_path, row):
    with pytest.raises(UserError, match="there are no results here"):
        write_report(tmp_path)
    cell = {"cell_id": row().cell_id, "label": "a"}
    broken = [
        {"cells": ["a"]},
        {"cells": [cell | {"label": 1.0}]},
        {"cells": [cell | {"cell_id": []}]},
        {"refused": {}},
        {"hardware": 1},
        [],
    ]
    folder = folder_with(tmp_path, [row()])
    for manifest in broken:
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=r"manifest\.json"):
            write_report(folder)


@pytest.mark.parametrize("name", ["rounds.jsonl", "partitions.json"])
def test_a_file_that_cannot_be_read_leaves_the_folder_as_it_was(tmp_path, row, name):
    folder = folder_with(tmp_path, [row()], {})
    (folder / name).mkdir()
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=name):
        write_report(folder)
    assert sorted(folder.iterdir()) == before


def browsed(page, profile, *flags):
    """The page as a browser has it."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page_and_nothing_is_wider_than_it(tmp_path, full, training, width):
    records = [record for each in full for record in training(each.cell_id)]
    page = write_report(folder_with(tmp_path, full, manifest_of(full), records)).page
    picture = tmp_path / "page.png"
    shown = browsed(page, tmp_path / "profile", f"--window-size={width},1400", f"--screenshot={picture}")
    tree = Elements(shown)
    assert re.search(r"<title>quick &lt;b&gt;start · fedsim</title>", shown)
    assert "script" not in [tag for tag, _ in tree.tags]
    assert sections(tree) == ["curve", "wrong", "results", "run"]
    assert picture.stat().st_size > 30_000


def test_a_delta_that_is_too_large_for_the_data_is_said_and_a_small_one_is_not(tmp_path, row):
    text = page_of(folder_with(tmp_path / "large", [row(train_rows=12_000)])).text
    assert "δ = 0.0001 is not below 1/n = 8.3e-05 for the 12000 training rows of digits" in text
    for name, fields in {"small": {"train_rows": 9_999}, "client": {"train_rows": 12_000, "unit": "client"}}.items():
        assert "is not below 1/n" not in page_of(folder_with(tmp_path / name, [row(**fields)])).text


def test_without_a_manifest_rows_of_older_code_are_left_out(tmp_path, row):
    rows = [
        row(cell_id="a", source="old"),
        row(cell_id="b", seed=1, source="old"),
        row(cell_id="c", source="new"),
        row(cell_id="d", label="other"),
    ]
    folder = folder_with(tmp_path, rows)
    (folder / "manifest.json").unlink()
    assert [each.cell_id for each in read_results(folder).rows] == ["c", "d"]
