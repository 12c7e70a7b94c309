import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from benches import PATIENCE
from rows import (
    add_lines,
    add_rows,
    changed,
    make_failed,
    make_published,
    make_rounds,
    make_row,
)

from fedsim.errors import UserError
from fedsim.report.report import NOT_PRIVATE, summary_html, write_report
from fedsim.results.columns import Row
from fedsim.results.join import read_results

CHROMIUM = shutil.which("chromium")
HOSTILE = "<script>document.title='taken'</script>"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--virtual-time-budget=2000",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
KNOWN = (
    "html head meta title style body header section figure figcaption img details summary pre h1 "
    "h2 h3 h4 p div ul li dl dt dd cite span a b code em table thead tbody tr th td"
)
"""The tags that a page is made of."""


class Elements(HTMLParser):
    """Tags with their attributes, and the text of all that is not style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self._style = False
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.text += data


def folder_with(tmp_path: Path, rows: list[Row], manifest: Any = None, records: Any = ()) -> Path:
    folder = tmp_path / "quick <b>start"
    path = tmp_path / "quick <b>start" / "manifest.json"
    add_rows(folder, *rows)
    add_lines(folder / "rounds.jsonl", records)
    if manifest is not None:
        whole = {cell["cell_id"]: cell for cell in json.loads(path.read_text())["cells"]}
        cells = [
            whole.get(cell["cell_id"], {"training_id": "none"}) | cell
            for cell in manifest.get("cells", whole.values())
        ]
        path.write_text(json.dumps({"format": 3, **manifest, "cells": cells}))
    return folder


def page_of(folder: Path) -> Elements:
    return Elements(write_report(folder).page.read_text(encoding="utf-8"))


def named(page: Elements, tag: str, attribute: str) -> list[str]:
    return [
        attributes[attribute]
        for each, attributes in page.tags
        if each == tag and attribute in attributes
    ]


def published(**values: Any) -> dict[str, Any]:
    """Return a published number as a manifest has it."""
    return make_published(**values).model_dump(mode="json")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, quickstart: list[Row]) -> Path:
    """The quickstart with a failed, an overspent and an unaccounted cell, and hostile text wherever
    a user can put some.
    """
    rows = [*quickstart]
    unknown = {
        "type": "Unaccounted",
        "message": f"client 0 has 0 steps of {HOSTILE}",
        "traceback": "",
    }
    rows[4] = changed(
        quickstart[4],
        status="unaccounted",
        epsilon_spent=None,
        error=unknown,
    )
    rows[3] = changed(quickstart[3], status="overspent", epsilon_spent=5.0)
    text: dict[str, Any] = {"label": HOSTILE, "algorithm": HOSTILE, "params": {HOSTILE: HOSTILE}}
    error = dict.fromkeys(("type", "message", "traceback"), HOSTILE)
    rows += [make_failed(cell_id="f", error=error, **text), make_row(cell_id=HOSTILE, **text)]
    manifest = {
        "versions": {"fedsim": "0.3.0", HOSTILE: HOSTILE},
        "revision": "61a3adb",
        "hardware": {"cpus": 2},
        "command": HOSTILE,
        "started": "2026-11-25T10:30:00Z",
        "grid": {"name": HOSTILE, "epsilon": [1, 4, "inf"]},
        "methods": [
            {
                "label": HOSTILE,
                "text": HOSTILE,
                "source": f"{HOSTILE}, arXiv 1602.05629; Sohn et al. 2015",
            }
        ],
        "refused": [{"algorithm": HOSTILE, "error": "g.yaml:2: mine.py:3: the loss"}],
        "published": [published(label=HOSTILE, source=HOSTILE)],
    }
    records = [record for each in rows for record in make_rounds(each.cell_id)]
    return folder_with(tmp_path_factory.mktemp("hostile"), rows, manifest, records)


def test_a_report_is_drawn_from_rows_alone(tmp_path: Path, quickstart: list[Row]) -> None:
    folder = folder_with(tmp_path, quickstart)
    page = page_of(folder)
    before = {"manifest.json", "trainings.jsonl", "evaluations.jsonl", "references.jsonl"}
    assert {path.name for path in folder.iterdir()} - before == {
        "results.jsonl",
        "report.html",
        "curves",
    }
    assert {path.name for path in (folder / "curves").iterdir()} == {
        "privacy_utility.png",
        "privacy_utility.svg",
    }
    assert all(each.cell_id in page.text for each in quickstart)
    assert f"{quickstart[0].balanced_accuracy:.3f}" in page.text
    assert page.text.count("fedhypevae − weight-noise") == 2
    assert named(page, "img", "alt") == ["Balanced accuracy against the privacy budget"]
    head = (
        "digits · partition dirichlet · α = 0.1, 1 · 10 clients · ε = 1, 4, ∞ · δ = 0.0001 · "
        "unit example · trust aggregate · 3 seeds"
    )
    assert head in page.text


def test_page_has_the_verdict_on_all_methods(tmp_path: Path, quickstart: list[Row]) -> None:
    page = page_of(folder_with(tmp_path, quickstart))
    assert named(page, "section", "id")[:3] == ["curve", "results", "verdict"]
    assert "Verdict by all measures" in page.text
    assert "fedhypevae: won/level/lost against" in page.text


def test_page_of_a_single_method_has_no_verdict(tmp_path: Path) -> None:
    page = page_of(folder_with(tmp_path, [make_row()]))
    assert "verdict" not in named(page, "section", "id")


def test_a_notebook_shows_every_text_of_a_run_escaped(hostile: Path) -> None:
    shown = summary_html(hostile)
    assert "<script" not in shown
    assert escape(HOSTILE) in shown
    assert '<li class="failed">1 cell failed</li>' in shown


def test_every_text_is_escaped_and_nothing_is_loaded(hostile: Path) -> None:
    page = page_of(hostile)
    assert {tag for tag, _ in page.tags} <= set(KNOWN.split())
    assert page.text.count(HOSTILE) >= 8
    attributes = [named for _, tag in page.tags for named in tag.items()]
    assert all(
        value.startswith("data:image/svg+xml;base64,")
        for name, value in attributes
        if name == "src"
    )
    assert not {"srcset", "data", "action", "background"} & {name for name, _ in attributes}
    assert [value for name, value in attributes if name in ("href", "xlink:href")] == [
        "https://arxiv.org/abs/1602.05629"
    ]
    assert not [name for name, _ in attributes if name.startswith("on")]
    for words in (
        "1 cell failed",
        "1 cell overspent",
        "1 cell unaccounted",
        "unaccounted: client 0 has 0 steps",
        "- .inf",
        NOT_PRIVATE,
        "ε spent 5 of 1",
        "neighbouring data sets differ in one example",
        "nothing made here may be released",
        "it is computed from a seed that is written in the results",
        "aggregate: the adversary sees only the sum over clients",
        "left out because its plug-in was refused: 1",
        "g.yaml:2: mine.py:3: the loss",
    ):
        assert words in page.text


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, pytest.param(390, marks=pytest.mark.slow)])
def test_a_browser_shows_the_page(tmp_path: Path, hostile: Path, width: int) -> None:
    page = write_report(hostile).page
    picture = tmp_path / "page.png"
    command = [
        str(CHROMIUM),
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},1400",
    ]
    command += [f"--screenshot={picture}", "--dump-dom", page.as_uri()]
    shown = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout
    assert "<title>quick &lt;b&gt;start · fedsim</title>" in shown
    assert "script" not in [tag for tag, _ in Elements(shown).tags]
    assert picture.stat().st_size > 30_000


def test_only_the_manifests_cells_count_and_their_labels_hold(tmp_path: Path) -> None:
    cells = [{"cell_id": name, "label": "renamed"} for name in "caz"]
    folder = folder_with(
        tmp_path,
        [make_row(cell_id=name, seed=seed) for seed, name in enumerate("abc")],
        {"cells": cells},
    )
    assert [(each.cell_id, each.label) for each in read_results(folder).rows] == [
        ("c", "renamed"),
        ("a", "renamed"),
    ]
    page = page_of(folder)
    assert ("1 cell not run yet" in page.text, "fedhypevae" in page.text) == (True, False)
    assert "Mean of 2 seeds; no confidence interval" in page.text


def many_failures(tmp_path: Path) -> Path:
    """A folder with ten settings that show a failure, and 300 failed cells."""
    rows = [
        make_row(
            cell_id=f"{epsilon}",
            epsilon_target=float(epsilon),
            balanced_accuracy=0.8,
        )
        for epsilon in range(2, 12)
    ]
    records = [record for each in rows for record in make_rounds(each.cell_id, kl=0.0)]
    rows += [
        make_failed(
            cell_id=f"{seed:04}",
            seed=seed,
            label="broken",
        )
        for seed in range(300)
    ]
    return folder_with(tmp_path, rows, records=records)


def test_main_table_comes_before_what_is_wrong(tmp_path: Path) -> None:
    page = page_of(many_failures(tmp_path))
    assert named(page, "section", "id")[:3] == ["curve", "results", "cautions"]
    words = [page.text.index(word) for word in ("ceiling", "Before you believe these numbers")]
    assert words == sorted(words)


def test_cautions_are_closed_lines_the_worst_first(tmp_path: Path) -> None:
    html = write_report(many_failures(tmp_path)).page.read_text(encoding="utf-8")
    _, section = html.split('<section id="cautions">')
    summaries = re.findall(
        "<summary.*?>(.*?)</summary>",
        section.split("</section>")[0],
    )
    assert summaries == ["Failed experiment: 300", "The KL term vanishes: 10 settings"]
    assert "<details open" not in html


def test_cautions_list_settings_in_a_table(tmp_path: Path) -> None:
    page = write_report(many_failures(tmp_path)).page.read_text(encoding="utf-8")
    assert page.count("<td>failed, ValueError: rows hold NaN</td>") == 300
    for epsilon in range(2, 12):
        assert f"<td>ε = {epsilon}</td>\n      <td>0</td>" in page
    assert "What usually helps: a smaller beta" in page
    assert page.count("<pre>") == 1


@pytest.mark.parametrize("status", ["failed", "refuted"])
def test_failed_cells_and_refuted_claims_are_red(tmp_path: Path, status: str) -> None:
    row = make_row(audit_epsilon_lower=4.5, status=status)
    if status == "failed":
        row = make_failed()
    assert named(
        page_of(folder_with(tmp_path, [row])),
        "summary",
        "class",
    ) == ["severe"]


def test_nothing_is_red_in_a_run_with_findings_only(tmp_path: Path) -> None:
    records = make_rounds("a", kl=0.0)
    page = page_of(folder_with(tmp_path, [make_row()], records=records))
    assert "The KL term vanishes: 1 setting" in page.text
    assert named(page, "summary", "class") == []


def test_everything_wide_scrolls_in_a_frame(hostile: Path) -> None:
    html = write_report(hostile).page.read_text(encoding="utf-8")
    for tag in ("<img", "<table"):
        assert html.count(tag) == len(
            re.findall(
                rf'<div class="scroll[ a-z]*">\s*{tag}',
                html,
            )
        )


def test_page_lists_numbers_of_cells_and_refuting_audits(
    tmp_path: Path,
) -> None:
    sent = {
        "uplink_bytes": 5_500_000,
        "downlink_bytes": 6_500_000,
        "parameters": 1_300,
        "train_seconds": 12.3,
    }
    audited = {
        "audit_epsilon_lower": 4.5,
        "audit_pairs": 500,
        "audit_canary_ratio": 0.98,
        "epsilon_target": 4.0,
        "status": "refuted",
    }
    canary = audited | {
        "audit_epsilon_lower": 0.0,
        "audit_canary_ratio": 2.93,
        "epsilon_target": 2.0,
    }
    rows = [
        make_row(cell_id="a", seed=3, epsilon_spent=0.9, **sent),
        make_row(cell_id="r", **audited),
        make_row(cell_id="c", **canary),
    ]
    page = write_report(folder_with(tmp_path, rows)).page
    table = page.read_text().split('<table class="dataframe cells">')[-1]
    heads = re.findall("<th>(.*?)</th>", table)
    values = re.findall("<td>(.*?)</td>", table)
    cell = dict(
        zip(
            heads,
            values[values.index("a") - len(heads) + 1 :],
            strict=False,
        )
    )
    expected = {
        "seed": "3",
        "status": "ok",
        "ε target": "1",
        "ε spent": "0.9",
        "seconds": "12.3",
        "mechanisms": "dp-sgd σ 4.2, q 0.08, × 400",
        "uplink MB": "5.5",
        "parameters": "1300",
    }
    assert {head: cell[head] for head in expected} == expected
    text = Elements(page.read_text()).text
    for words in (
        "refuted (ε = 4 claimed, an audit finds ε ≥ 4.5)",
        "refuted (ε = 2 claimed, a canary adds 2.93 of the claimed sensitivity)",
        "an audit refutes the claim at ε = 2",
    ):
        assert words in text


def test_broken_file_is_an_error_and_changes_nothing(
    tmp_path: Path,
) -> None:
    cell = {"cell_id": "a", "training_id": "t-a", "label": "a"}
    broken: list[Any] = [
        {"cells": ["a"]},
        {"cells": [cell | {"label": 1.0}]},
        {"cells": [cell | {"cell_id": []}]},
        {"refused": {}},
        [],
    ]
    folder = folder_with(tmp_path, [make_row()])
    for manifest in broken:
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=r"manifest\.json"):
            write_report(folder)
    (folder / "manifest.json").write_text(json.dumps({"cells": [cell]}))
    for name in ("rounds.jsonl", "partitions.json"):
        (folder / name).mkdir()
        before = sorted(folder.iterdir())
        with pytest.raises(UserError, match=name):
            write_report(folder)
        assert sorted(folder.iterdir()) == before
        (folder / name).rmdir()


def test_a_run_in_which_all_failed_still_has_a_report(tmp_path: Path) -> None:
    page = page_of(folder_with(tmp_path, [make_failed()]))
    for words in (
        "no experiment has finished",
        "failed, ValueError: rows hold NaN",
        "Traceback of the first one",
    ):
        assert words in page.text
    assert named(page, "img", "alt") == []


def page_with(tmp_path: Path, **values: Any) -> Elements:
    """Return the page of one result beside a published number."""
    manifest = {"published": [published(**values)]}
    return page_of(folder_with(tmp_path, [make_row()], manifest))


def test_page_cites_a_published_number_below_its_curve(tmp_path: Path) -> None:
    page = page_with(tmp_path)
    words = "Hollow black mark: DP-CVAE (published, not run here: Author 2025, Table 2)."
    assert words in page.text


def test_page_lists_published_numbers_of_any_measure(tmp_path: Path) -> None:
    page = page_with(tmp_path, measure="accuracy", delta=1e-5, epsilon=float("inf"))
    assert "accuracy 0.91 at ε = ∞, δ = 1e-5 Author 2025, Table 2" in page.text
    assert "Hollow black mark" not in page.text


def test_notebook_shows_a_published_number(tmp_path: Path) -> None:
    manifest = {"published": [published()]}
    shown = summary_html(folder_with(tmp_path, [make_row()], manifest))
    assert "published, not run here: Author 2025, Table 2" in shown


def test_damaged_published_number_is_one_message(tmp_path: Path) -> None:
    manifest = {"published": [published() | {"epsilon": "one"}]}
    folder = folder_with(tmp_path, [make_row()], manifest)
    with pytest.raises(UserError, match=r"manifest\.json"):
        write_report(folder)


def test_page_warns_of_a_weight_chosen_on_validation_examples(tmp_path: Path) -> None:
    rows = [make_row(evaluation={"personal": "held-out"})]
    page = page_of(folder_with(tmp_path, rows))
    assert "Personal scores are not private" in page.text
    assert "No ε covers that choice" in page.text


def test_page_has_no_such_warning_for_other_personal_scores(tmp_path: Path) -> None:
    rows = [make_row(evaluation={"personal": "synthetic"})]
    page = page_of(folder_with(tmp_path, rows))
    assert "Personal scores are not private" not in page.text
