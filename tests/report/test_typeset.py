import re
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


def test_both_formats_hold_every_value_label_place_and_note(quickstart):
    groups = group_seeds(quickstart)
    tables = [results_table(groups), *difference_tables(groups)]
    markdown, latex = typeset(tables, "md"), typeset(tables, "latex")
    assert len(tables) == 2
    for table in tables:
        told = [table.title, *table.columns, *table.notes]
        told += [text for block in table.blocks for line in block.lines for text in (block.place, *table.names(line), *line.values)]
        assert all(markdown_text(text) in markdown and latex_text(text) in latex for text in told)
    assert "**α = 0.1** · ceiling 0.953 · local-only 0.380 · chance 0.100" in markdown


def test_a_latex_table_is_booktabs_with_a_rule_above_every_block(quickstart):
    latex = typeset([results_table(group_seeds(quickstart))], "latex")
    assert latex.startswith("% \\usepackage{booktabs}\n")
    assert [latex.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 2, 1]
    assert r"\begin{tabular}{llrrrr}" in latex
    assert r"\multicolumn{6}{l}{\textbf{$\alpha$ = 0.1} $\cdot$ ceiling 0.953 $\cdot$ local-only 0.380 $\cdot$ chance 0.100} \\" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {6}


def test_a_label_in_brackets_is_not_the_argument_of_the_line_before(row):
    assert "\n{[a]} & " in typeset([results_table(group_seeds([row(label="[a]")]))], "latex")
