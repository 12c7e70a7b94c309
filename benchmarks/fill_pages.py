"""Fill the tables of the results pages with the numbers of ``benchmarks/results/*.json``.

A page marks the place of a table with ``<!-- table: FUNCTION; ARGUMENTS -->`` and ``<!-- end -->``.
``<!-- chart: FILE.png; TITLE; AXIS; FUNCTION; ARGUMENTS -->`` names a bar chart of a table.

    python benchmarks/fill_pages.py           # write the tables into the pages
    python benchmarks/fill_pages.py --check   # write nothing; exit code 1 if a page differs
    python benchmarks/fill_pages.py --draw    # draw the bar charts of the pages as well
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from fedsim.results.ranks import ranks_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [*sorted(RESULTS.glob("*.md")), ROOT / "docs" / "public.md"]
PLACE = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end -->)", re.S)
CHART = re.compile(r"<!-- chart: (.*?); (.*?); (.*?); (.*?) -->")
CLASSES = {
    "organamnist": 11,
    "milk10k": 11,
    "ham10000": 7,
    "chest-xray": 3,
    "organamnist-effnet": 11,
    "ham10000-effnet": 7,
}
"""The numbers of classes of the data sets; those with ``-effnet`` have EfficientNet embeddings."""
MEASURES = {
    "balanced_accuracy": "balanced accuracy (linear probe)",
    "coverage": "coverage",
    "knn_balanced_accuracy": "balanced accuracy (nearest neighbours)",
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "real_or_synthetic": "two-sample accuracy (0.5 is best)",
    "frechet_distance": "Fréchet distance (0 is best)",
    "membership_auc": "membership AUC (0.5 is best)",
}
CLIENT_MEASURES = {
    "client_balanced_accuracy": "balanced accuracy of clients' own generators",
    "client_shared_balanced_accuracy": "balanced accuracy of the shared generator at clients",
}
"""The measures on each client's own test examples, which only some runs have."""
SEARCHES = ("search.yaml", "search_sites.yaml", "search_personal.yaml")
"""The grids of the searches, in ``benchmarks``."""
BUDGET = "epsilon_target"
FINITE = f"{BUDGET} < 1e9"
"""Selects the results with a finite budget."""
VERDICTS = ("better", "level", "worse")
LESS_IS_BETTER = ("frechet_distance", "real_or_synthetic", "membership_auc")
EVALUATORS = ["balanced_accuracy", "mlp_balanced_accuracy", "knn_balanced_accuracy"]
UNRANKED = {
    "fedhypevae, scope hypernetwork": " (heuristic ε)",
    "fedhypevae, form: per-example": " (heuristic ε)",
    "fedavg-cvae": " (not private)",
    "fedavg-cvae, found on OrganAMNIST": " (not private)",
    "fedpft": " (not private)",
    "local-only": " (classifier, not private)",
}
"""The labels that are never bold, because they have no proved ε, and the note behind each."""
CONTROL = ", no clip"
"""The end of the labels of controls without noise and without clipping, which are never bold."""
MOST_P = 0.05
"""A critical difference is shown if the p-value of Friedman's test is at most this."""
Entries = Iterator[tuple[str, str, str]]
"""The texts of a table, each with the names of its line and of its column."""


@cache
def frame_of(name: str) -> pd.DataFrame:
    """Return the records of a JSON file, in which infinity is a word."""
    records = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    if isinstance(records, dict):
        records = [record for group in records.values() for record in group]
    frame = pd.json_normalize(records)
    return frame.astype(dict.fromkeys({"epsilon", "epsilon_target"} & set(frame), float))


@cache
def all_results() -> pd.DataFrame:
    """Return the results of all runs."""
    frame = pd.concat([frame_of("paper"), frame_of("sites"), frame_of("ablation")])
    places = zip(frame["alpha"], frame["clients"], strict=True)
    frame["place"] = [f"α = {alpha:g}, {clients} clients" for alpha, clients in places]
    frame["share"] = frame["balanced_accuracy"] / frame["ceiling_balanced_accuracy"]
    return frame


@cache
def results(runs: str, query: str) -> pd.DataFrame:
    """Return the results of the runs whose names match, and which a pandas query selects."""
    frame = all_results()
    return frame[frame["run"].str.fullmatch(runs)].query(query)


def generators(runs: str) -> pd.DataFrame:
    """Return the results of generators at a finite ε; a classifier has no Fréchet distance."""
    return results(runs, FINITE).dropna(subset=["frechet_distance"])


def mean_and_half(values: pd.Series[float]) -> tuple[float, float]:
    """Return a mean and the half-width of its Student-t 95 % interval (0 for equal values)."""
    if values.max() - values.min() < 1e-12:
        return float(values.mean()), 0.0
    quantile = student_t.ppf(0.975, len(values) - 1)
    return float(values.mean()), float(quantile * values.std() / math.sqrt(len(values)))


def score(values: pd.Series[float]) -> str:
    """Return a mean over seeds with its interval, as tables show it."""
    mean, half = mean_and_half(values)
    return f"{mean:.3f}±{half:.3f}" if half else f"{mean:.3f}"


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def paired(frame: pd.DataFrame, first: str, second: str, column: str) -> pd.Series[float]:
    """Return the differences of two methods, by seed."""
    by_seed = frame.pivot(index="seed", columns="label", values=column)
    return (by_seed[first] - by_seed[second]).dropna()


def difference(values: pd.Series[float]) -> str:
    """Return a mean difference with its interval, bold if the interval excludes 0."""
    mean, half = mean_and_half(values)
    text = f"{signed(mean)} ± {half:.3f}"
    return f"**{text}**" if abs(mean) > half else text


def is_unranked(label: str) -> bool:
    """Return whether a method is never bold, because it has no proved ε."""
    return label in UNRANKED or label.endswith(CONTROL)


def head(value: Any) -> str:
    """Return the head of a column: a budget, or a text without the limit of a data set."""
    if isinstance(value, str):
        return value.partition("[")[0]
    return "no ε" if math.isnan(value) else f"ε = {value:g}".replace("inf", "∞")


def scores(runs: str, columns: str, query: str = "seed >= 0", over: str = BUDGET) -> Entries:
    """Yield scores by method and budget, with the best generator and the best classifier bold."""
    frame = results(runs, query).sort_values(BUDGET, kind="stable")
    for suffix, named in product(("", " (classifier)"), columns.split(",")):
        column, _, title = named.partition("=")
        kind = frame[frame["frechet_distance"].isna() == bool(suffix)].dropna(subset=[column])
        is_ranked = ~kind["label"].map(is_unranked).astype(bool)
        ranked = kind[is_ranked]
        means = ranked.groupby([over, "label"])[column].mean().round(3).groupby(level=0)
        best = means.min() if column in LESS_IS_BETTER else means.max()
        for (label, value), group in kind.groupby(["label", over], sort=False, dropna=False):
            text = score(group[column])
            is_best = best.get(value) == round(group[column].mean(), 3)
            if is_best and not is_unranked(str(label)):
                text = f"**{text}**"
            yield f"{label}{UNRANKED.get(str(label), suffix)}", title or head(value), text
    if columns == "balanced_accuracy":
        yield from references(frame, over)


def references(frame: pd.DataFrame, over: str) -> Entries:
    """Yield the ceiling, local-only and chance, which have no ε."""
    frame = frame.assign(epsilon_target=math.nan)
    for value, group in frame.groupby(over, sort=False, dropna=False):
        means = group.drop_duplicates("seed").mean(numeric_only=True)
        yield "ceiling", head(value), f"{means['ceiling_balanced_accuracy']:.3f}"
        yield "local-only (reference)", head(value), f"{means['local_only_balanced_accuracy']:.3f}"
        yield "chance", head(value), f"{1 / CLASSES[group['dataset'].iloc[0]]:.3f}"


def verdicts(runs: str, method: str, rival: str, column: str) -> list[str]:
    """Return whether a method is better than its rival, level or worse, for every setting.

    A setting is level if the 95 % interval of the difference by seed contains 0. Settings in which
    one of the two methods has no value are left out.
    """
    found = []
    for _, group in results(runs, FINITE).groupby(["dataset", BUDGET]):
        gains = paired(group, method, rival, column)
        if gains.empty:
            continue
        mean, half = mean_and_half(gains)
        if abs(mean) <= half:
            found.append("level")
        elif (mean > 0) != (column in LESS_IS_BETTER):
            found.append("better")
        else:
            found.append("worse")
    return found


def outcomes(runs: str, *pairs: str) -> Entries:
    """Yield in how many settings the first of two methods is better, level and worse."""
    for column, title in MEASURES.items():
        for pair in pairs:
            method, rival = pair.split(" − ")
            found = verdicts(runs, method, rival, column)
            if not found:
                continue
            yield title, pair, "/".join(str(found.count(verdict)) for verdict in VERDICTS)


def mean_ranks(runs: str) -> Entries:
    """Yield the mean rank of every generator in each measure, and the two tests of ranks.

    The critical difference has a dash if Friedman's test finds no difference between generators.
    """
    frame = generators(runs)
    for column, title in MEASURES.items():
        losses = frame.pivot_table(column, ["dataset", BUDGET], "label")
        if column not in LESS_IS_BETTER:
            losses = -losses
        ranks = ranks_of(losses.dropna(axis="columns"))
        by_label = ranks.set_index("label")["mean_rank"].sort_index()
        for label, rank in by_label.items():
            yield title, str(label), f"{rank:.2f}"
        friedman_p, critical_difference = ranks.loc[0, ["friedman_p", "critical_difference"]]
        yield title, "Friedman's p", f"{friedman_p:.1g}"
        is_shown = friedman_p <= MOST_P
        yield title, "critical difference", f"{critical_difference:.2f}" if is_shown else "–"


def ranks_by_generator(runs: str) -> Entries:
    """Yield the entries of :func:`mean_ranks` with a line for every generator."""
    for measure, generator, text in mean_ranks(runs):
        yield generator, measure, text


def rivals(runs: str, *methods: str) -> Entries:
    """Yield the outcomes of each method against every other generator, one line a pair."""
    for method, rival in product(methods, generators(runs)["label"].unique()):
        if method == rival:
            continue
        pair = f"{method} − {rival}"
        for measure, _, text in outcomes(runs, pair):
            yield pair, measure, text


def differences(runs: str, column: str, *pairs: str) -> Entries:
    """Yield the paired differences of methods, by data set and budget.

    A method without ε is compared at every budget.
    """
    frame = results(runs, "seed >= 0").sort_values(BUDGET, kind="stable")
    for first, second in (pair.split(" − ") for pair in pairs):
        of_pair = frame[frame["label"].isin([first, second])]
        for (dataset, epsilon), group in of_pair.groupby(["dataset", BUDGET], sort=False):
            without = of_pair[of_pair[BUDGET].isna() & (of_pair["dataset"] == dataset)]
            both = pd.concat([group, without])
            if both["label"].nunique() < 2:
                continue
            line = f"{dataset}: {first} − {second}"
            yield line, head(epsilon), difference(paired(both, first, second, column))


def by_measure(runs: str, pair: str) -> Entries:
    """Yield the paired differences of two methods by every measure, in a run with one data set."""
    first, second = pair.split(" − ")
    frame = results(runs, "seed >= 0")
    for column, title in (MEASURES | CLIENT_MEASURES).items():
        for epsilon, group in frame.dropna(subset=[column]).groupby(BUDGET, sort=False):
            yield title, head(epsilon), difference(paired(group, first, second, column))


def noise_costs(runs: str, column: str) -> Entries:
    """Yield what noise costs each method: its score at ε = ∞ minus its score at each ε, by seed."""
    for label, group in results(runs, "seed >= 0").groupby("label", sort=False):
        by_budget = group.pivot(index="seed", columns=BUDGET, values=column)
        if math.inf not in by_budget:
            continue
        for budget in by_budget.columns.drop([math.inf]):
            cost = difference(by_budget[math.inf] - by_budget[budget])
            yield str(label), head(budget), cost


def personal(dataset: str, column: str) -> Entries:
    """Yield the scores of personal classifiers on one data set, each with the mean weight λ."""
    frame = results("personal", f"dataset == '{dataset}'").sort_values(BUDGET, kind="stable")
    for (label, value), group in frame.groupby(["label", BUDGET], sort=False, dropna=False):
        text = score(group[column])
        weight = group["personal_held_out_weight"].mean()
        if not math.isnan(weight):
            text = f"{text} (λ = {weight:.2f})"
        yield str(label), head(value), text


def pivot(name: str, line: str, columns: str, query: str) -> Entries:
    """Yield columns of the records of a JSON file as they are; a column may be NAME=TITLE."""
    for record in frame_of(name).query(query).to_dict("records"):
        label = ", ".join(str(record[part]) for part in line.split(",")).replace(", nan", "")
        for column, _, title in (named.partition("=") for named in columns.split(",")):
            text = record[column]
            if not isinstance(text, str):
                text = f"{text:,.0f}" if text >= 1000 else f"{text:.3g}".replace("nan", "")
            yield label, title or column, text


def means(name: str, columns: str) -> Entries:
    """Yield means over seeds of columns of a JSON file, by label."""
    for label, group in frame_of(name).groupby("label", sort=False):
        for column in columns.split(","):
            yield str(label), column.replace("_", " "), score(group[column])


def probe_rule(other: str) -> Entries:
    """Yield the score by the rule and what it gains over another penalty, ``fixed`` or ``best``."""
    frame = frame_of("probe_rule")
    frame = frame[frame["best"].isna() == (other == "fixed")]
    for (name, method, epsilon), group in frame.groupby(["set", "method", "epsilon"], sort=False):
        gain = signed((group["rule"] - group[other]).mean(), 4)
        yield f"{name}, {method}", head(epsilon), f"{group['rule'].mean():.3f} ({gain})"


def parts(sets: str) -> Entries:
    """Yield what each evaluator's balanced accuracy loses without a part of the warm form."""
    frame = frame_of("parts")
    frame = frame[frame["set"].str.fullmatch(sets)]
    values = frame.set_index(["without", "set", "epsilon", "seed"])[EVALUATORS]
    for part in frame.loc[frame["without"] != "", "without"].unique():
        lost = (values.loc[""] - values.loc[part]).mean()
        for title, value in zip(("linear probe", "small network", "neighbours"), lost, strict=True):
            yield part, title, signed(value, 4)
        yield part, "mean", signed(lost.mean(), 4)


def growth() -> Entries:
    """Yield the exponents with which the seconds of training grow with the number of rows."""
    frame = frame_of("scale").query(
        "clients == 100 and rows >= 20_000 and not method.str.contains(' ')"
    )
    for (method, classes), group in frame.groupby(["method", "classes"]):
        measured = group.sort_values("rows").to_dict("records")
        for before, after in pairwise(measured):
            seconds = math.log(after["training"] / before["training"])
            exponent = seconds / math.log(after["rows"] / before["rows"])
            column = f"{before['rows']:,} to {after['rows']:,} rows"
            yield f"{method}, {classes} classes", column, f"{exponent:.2f}".replace("-", "−")


def search() -> Entries:
    """Yield what the search of each method found: shares of the ceiling, and what won."""
    records = json.loads((RESULTS / "search.json").read_text(encoding="utf-8"))
    for method in dict.fromkeys(record["method"] for record in records):
        settings = [record for record in records if record["method"] == method]
        (winner,) = (record for record in settings if record["wins"])
        params = [f"{name}: {value}" for name, value in winner["params"].items()]
        yield method, "settings", str(len(settings))
        yield method, "default before", f"{settings[0]['both']:.3f}"
        yield method, "best", f"{max(record['both'] for record in settings):.3f}"
        yield method, "what won", ", ".join(params) or "the default"


def spaces() -> Entries:
    """Yield the space of each method that was searched: the values of each parameter."""
    for file in SEARCHES:
        grid = yaml.safe_load((ROOT / "benchmarks" / file).read_text(encoding="utf-8"))
        for entry in grid["algorithms"]:
            parameters = []
            for name, values in entry["tune"].items():
                listed = " / ".join(str(value).lower() for value in values)
                parameters.append(f"{name}: {listed}")
            yield entry["name"], "values of each parameter", "; ".join(parameters)


FUNCTIONS: list[Callable[..., Entries]] = [
    scores,
    outcomes,
    mean_ranks,
    ranks_by_generator,
    rivals,
    differences,
    by_measure,
    noise_costs,
    personal,
    pivot,
    means,
    probe_rule,
    parts,
    growth,
    search,
    spaces,
]
TABLES = {function.__name__: function for function in FUNCTIONS}


def texts_of(marker: str) -> pd.DataFrame:
    """Return the texts of the table that a marker names; empty where a line lacks a column."""
    name, *arguments = marker.split("; ")
    lines: dict[str, dict[str, str]] = {}
    for line, column, text in TABLES[name](*arguments):
        lines.setdefault(line, {})[column] = text
    return pd.DataFrame.from_dict(lines, orient="index").fillna("")


def table(marker: str) -> str:
    """Return the table that a marker names in Markdown."""
    texts = texts_of(marker)
    rows = [f"| | {' | '.join(map(str, texts))} |", "| --- |" + " ---: |" * len(texts.columns)]
    rows += [f"| {' | '.join(row)} |" for row in texts.itertuples()]
    return "\n".join(rows)


def draw(name: str, title: str, axis: str, marker: str) -> None:
    """Draw a table as horizontal bars, with one colour for each column."""
    texts = texts_of(marker).iloc[::-1]
    values = texts.map(lambda text: float(text.split()[0].replace("−", "-")))
    figure = Figure(figsize=(9, 1.5 + 0.3 * len(values)), layout="constrained")
    values.plot.barh(ax=figure.subplots(), xlabel=axis, title=title, legend=False)
    if len(values.columns) > 1:
        figure.legend(loc="outside lower center", ncols=len(values.columns))
    figure.savefig(RESULTS / name, dpi=150)


def main() -> int:
    """Fill the pages or compare them; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    differing = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        filled = PLACE.sub(lambda place: f"{place[1]}\n{table(place[2])}\n\n{place[3]}", text)
        if filled != text:
            differing.append(page.name)
        if not options.check:
            page.write_text(filled, encoding="utf-8")
        if options.draw:
            for chart in CHART.findall(text):
                draw(*chart)
    print(f"pages that differ from the results: {', '.join(differing) or 'none'}")
    return int(options.check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
