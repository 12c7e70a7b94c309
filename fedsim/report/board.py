"""The board: one table over many runs.

It has the results whose epsilon ``fedsim verify`` proved again, and those without an epsilon. Each
line is a method in a setting, with its budget, score, claim, audit, tuning and public data.
External samples are listed apart, because nobody verified their epsilon.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import pandas as pd
from rich.console import Console

from fedsim.evidence.prove import Proof
from fedsim.plugins.registry import EXTERNAL
from fedsim.report.names import claim_words, named, setting_words
from fedsim.report.table import Table
from fedsim.report.tables import decimal
from fedsim.report.terminal import texts_of
from fedsim.results.columns import UNVERIFIED
from fedsim.results.stats import SeedGroups
from fedsim.words import Printed, counted, wide_console

EXACT = (
    "Scores are computed from real examples without noise, and no ε covers them. Publish them only "
    "if the data may be published."
)
"""The warning for those who publish a board."""
_SHOWN = {
    "dataset": "data set",
    "method": "method",
    "partition": "partition",
    "epsilon_target": "ε",
    "claim": "claim",
    "delta": "δ",
    "unit": "unit",
    "trust": "trust",
    "n": "seeds",
    "mean": "balanced accuracy",
    "sd": "sd",
    "share_of_ceiling": "share of the ceiling",
    "audit": "ε by audit, at least",
    "tuned": "tuned",
    "public": "public data",
}
"""The columns of a board, by the names of result columns, with their heads."""
_PARTITION = ("scheme", "alpha", "clients")
"""The columns that describe a partition."""
_DECIMALS = ["balanced accuracy", "sd", "share of the ceiling"]
"""The heads of the columns that are shown with a fixed number of decimals."""


@dataclass(frozen=True, repr=False)
class Board(Printed):
    """A board over the results of one or more runs.

    Attributes:
        frame: One line per method and setting, sorted by data set, epsilon and score. Its numbers
            are not rounded.
        external: The same for external samples, whose epsilon nobody verified.
        left_out: The number of results that are left out, by method, data set and reason.
        rows: The number of results that are averaged in ``frame``.
        external_rows: The number of results that are averaged in ``external``.
    """

    frame: pd.DataFrame
    external: pd.DataFrame
    left_out: Mapping[str, int]
    rows: int
    external_rows: int

    @classmethod
    def of(cls, proofs: Sequence[Proof]) -> Board:
        """Return the board of the results that are proved or have no claim to prove.

        The other results, and those of cells that failed, are left out and counted.

        Args:
            proofs: The verdicts of ``fedsim verify``, one per result.
        """
        results = []
        left_out: Counter[str] = Counter()
        for proof in proofs:
            row = proof.row
            refusal = _refusal(proof)
            if refusal:
                left_out[f"{row.label} on {row.dataset} ({refusal})"] += 1
            else:
                results.append(row)
        lines = _lines(SeedGroups.of(results, "sd"))
        is_external = lines["algorithm"] == EXTERNAL
        shown = lines[[*_SHOWN]].rename(columns=_SHOWN)
        external_rows = sum(row.is_external for row in results)
        return cls(
            shown[~is_external].reset_index(drop=True),
            shown[is_external].reset_index(drop=True),
            left_out,
            len(results) - external_rows,
            external_rows,
        )

    @property
    def table(self) -> Table:
        """The board as a table: a block per data set; blocks of external samples come last."""
        heading = f"external samples: {claim_words(UNVERIFIED)}"
        numbers = pd.concat(
            [self.frame, self.external],
            ignore_index=True,
        )
        texts = numbers.apply(texts_of)
        texts[_DECIMALS] = numbers[_DECIMALS].map(
            decimal,
            na_action="ignore",
        )
        texts.loc[len(self.frame) :, "data set"] += f", {heading}"
        notes = [
            EXACT,
            f"{counted(self.rows, 'result')}; fedsim verify proved each finite ε from the result "
            "alone.",
        ]
        if self.external_rows:
            notes.append(f"{counted(self.external_rows, 'result')} of {heading}.")
        for reason, count in self.left_out.items():
            notes.append(f"Left out: {counted(count, 'result')} of {reason}.")
        texts = texts.astype("object").fillna("").replace("", "–").set_index(["data set", "method"])
        return Table("board", "Board", texts, tuple(notes), numbers)

    def show(self, console: Console) -> None:
        """Print the board as wide as it is, up to 400 characters."""
        self.table.show(wide_console(console, 400))


def _lines(settings: SeedGroups) -> pd.DataFrame:
    """Return one line per setting, sorted by data set, epsilon and score.

    Returns:
        The lines of :meth:`SeedGroups.means` for balanced accuracy, with the columns of a board.
    """
    cells = settings.averaged.groupby("setting")
    is_free = cells["tuning"].first().dropna().map(itemgetter("free"))
    lines = settings.means(["balanced_accuracy"]).set_index("setting").sort_index()
    lines = lines.assign(
        method=lines["label"].map(named(settings.facts)),
        partition=[setting_words(line, _PARTITION) for line in lines.to_dict("records")],
        epsilon_target=lines["epsilon_target"].astype("float64"),
        sd=(lines["high"] - lines["low"]) / 2,
        share_of_ceiling=cells["share_of_ceiling"].mean(),
        # An audit that refutes nothing has the bound 0, which is shown as missing.
        audit=cells["audit_epsilon_lower"].max().astype("float64").replace(0, None),
        tuned=is_free.map(
            {
                True: "tuning on test data (not private)",
                False: "private tuning (included in ε)",
            }
        ),
    )
    return lines.sort_values(
        ["dataset", "epsilon_target", "mean"],
        ascending=[True, True, False],
    )


def _refusal(proof: Proof) -> str:
    """Return why a result is left off the board; empty if it is on the board."""
    if proof.row.status != "ok":
        return str(proof.row.status)
    if proof.verdict in ("proved", "no claim"):
        return ""
    return f"{proof.verdict}: {proof.why}"
