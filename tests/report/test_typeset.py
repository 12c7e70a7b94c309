import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from fedsim.report.differences import difference_tables
from fedsim.report.tables import results_table
from fedsim.report.typeset import latex_text, markdown_text, typeset
from fedsim.results.groups import group_seeds

SPECIAL = r"a_b & 50% #1 $x$ {y} ~ ^ \z | <i>"


class Cells(HTMLParser):
    """The texts of a rendered page's cells, a list a row."""

    def __init__(self, html):
        super().__init__()
        self.rows, self._inside = [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        self._inside = tag in ("th", "td")

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.rows[-1][-1] += data


def test_every_special_character_of_latex_is_spelled_out():
    expected = r"a\_b \& 50\% \#1 \$x\$ \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}z \textbar{} $<$i$>$"
    assert latex_text(SPECIAL) == expected


def test_every_special_character_of_markdown_is_escaped():
    assert markdown_text(SPECIAL) == r"a\_b \& 50% \#1 \$x\$ \{y\} \~ ^ \\z \| \<i\>"
    assert markdown_text("*a* [b](c) `d`") == r"\*a\* \[b\](c) \`d\`"


@pytest.mark.parametrize("text", [latex_text, markdown_text])
def test_a_text_stays_on_its_line(text):
    assert text("two\nlines") == "two lines"


@pytest.mark.parametrize(
    "label", [SPECIAL, "a|b", r"c\|d", "*a* [b](c) `d`", "<script>", "&amp; &lt;", "_a_ __b__", "![x](y)", "- a", "1. b"]
)
def test_rendered_markdown_shows_a_label_as_it_is(row, label):
    table = results_table(group_seeds([row(label=label, balanced_accuracy=0.5)]))
    html = MarkdownIt("commonmark").enable(["table"]).render(typeset([table], "md"))
    assert Cells(html).rows == [["method", "claim", "ε = 1"], [label, "proved", "0.500"]]


def test_both_formats_hold_every_number_label_place_and_note(quickstart):
    groups = group_seeds(quickstart)
    tables = [results_table(groups), *difference_tables(groups)]
    markdown, latex = typeset(tables, "md"), typeset(tables, "latex")
    assert len(tables) == 2
    for table in tables:
        lines = [(block, line) for block in table.blocks for line in block.lines]
        shown = [table.title, *table.columns, *table.notes, *(text for block, line in lines for text in (block.place, line.named))]
        assert all(latex_text(text) in latex for text in shown)
        shown += [text for _, line in lines for text in (*table.names(line), *line.values)]
        assert all(markdown_text(text) in markdown for text in [*table.columns, *table.notes])
        for interval in (interval for _, line in lines for interval in line.intervals if interval):
            assert f"{interval.mean:.3f} +- {interval.half_width:.3f}" in latex.replace("+-0", "-0").replace("+0.", "0.")
            assert f"{interval.mean:.3f}±{interval.half_width:.3f}" in markdown
    assert "**α = 0.1** · ceiling 0.953 · local-only 0.380 · chance 0.100" in markdown
    assert r"$\alpha$ = 0.1: ceiling 0.953, local-only 0.380, chance 0.100; " in latex


def test_a_latex_table_is_booktabs_and_siunitx_with_a_label_and_a_rule_above_every_block(quickstart):
    latex = typeset([results_table(group_seeds(quickstart))], "latex")
    assert latex.startswith("% \\usepackage{booktabs,siunitx}\n")
    assert [latex.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 2, 1]
    assert r"\label{tab:balanced-accuracy}" in latex
    assert latex.count("S[table-format=1.3(2)]") == 4
    assert r"\multicolumn{5}{@{}l}{\textbf{$\alpha$ = 0.1}} \\" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {5}


def test_the_best_number_of_a_column_is_bold_if_its_claim_holds_and_another_one_is_there(row):
    rows = [
        row(cell_id=f"{label}{seed}", label=label, seed=seed, balanced_accuracy=score + 0.01 * seed, claim=claim)
        for label, score, claim in (("good", 0.8, "proved"), ("poor", 0.5, "proved"), ("loud", 0.9, "heuristic"))
        for seed in range(3)
    ]
    table = results_table(group_seeds(rows))
    assert re.findall(r"\*\*(.*?)\*\*", typeset([table], "md")) == ["0.810±0.025"]
    assert [line.split(" & ")[0] for line in typeset([table], "latex").splitlines() if r"\bfseries" in line] == ["good"]
    alone = results_table(group_seeds(rows[:3]))
    assert "**" not in typeset([alone], "md")


@pytest.mark.parametrize(("measure", "best"), [("frechet_distance", "0.100"), ("real_or_synthetic", "0.600"), ("density", None)])
def test_the_best_number_is_the_least_or_the_nearest_to_a_half_where_the_measure_says_so(row, measure, best):
    rows = [row(cell_id=label, label=label, **{measure: score}) for label, score in (("a", 0.1), ("b", 0.6))]
    assert re.findall(r"\*\*(.*?)\*\*", typeset([results_table(group_seeds(rows), measure)], "md")) == ([best] if best else [])


def test_csv_has_a_line_a_number_and_no_formula(row):
    rows = [
        row(cell_id=f"{label}{seed}", label=label, seed=seed, balanced_accuracy=0.5 + 0.1 * seed)
        for label in ("=a", "b")
        for seed in (0, 1)
    ]
    lines = list(csv.DictReader(io.StringIO(typeset([results_table(group_seeds(rows), digits=2)], "csv"))))
    assert [(line["method"], line["column"], line["mean"], line["ci95"], line["seeds"]) for line in lines] == [
        ("'=a", "ε = 1", "0.55", "0.64", "2"),
        ("b", "ε = 1", "0.55", "0.64", "2"),
    ]


def test_a_label_in_brackets_is_not_the_argument_of_the_line_before(row):
    assert "\n{[a]} & " in typeset([results_table(group_seeds([row(label="[a]")]))], "latex")


PAPER = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs,siunitx}
\setlength{\textwidth}{17.6cm}\setlength{\columnsep}{0.6cm}
\begin{document}
%s
\end{document}
"""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize(
    ("labels", "fits"),
    [
        (("fedhypevae-warm", "dp-gmm", "dp-linear"), True),
        (("fedhypevae-sites clip=0.1", "fedhypevae-warm", "weight noise C=1"), True),
        ((SPECIAL, "[a]", "*b"), False),
    ],
)
def test_tables_of_three_methods_and_budgets_compile_and_fit_a_column(row, tmp_path, labels, fits):
    rows = [
        row(cell_id=f"{label}{epsilon}{seed}", label=label, epsilon_target=epsilon, seed=seed, balanced_accuracy=0.5 + 0.01 * seed * at)
        for at, label in enumerate(labels, 1)
        for epsilon in (1.0, 4.0, 8.0)
        for seed in range(3)
    ]
    groups = group_seeds(rows)
    tables = [results_table(groups), results_table(groups, digits=2), *difference_tables(groups)]
    (tmp_path / "t.tex").write_text(PAPER % typeset(tables, "latex"))
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert not fits or b"Overfull" not in done.stdout
    assert (tmp_path / "t.pdf").stat().st_size > 0
