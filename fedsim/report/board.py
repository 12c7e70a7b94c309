"""One table over many runs, of rows whose epsilon is proved again: budget, score, claim, audit,
tuning and public data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import Console

from fedsim.evidence.prove import Proof
from fedsim.plugins.registry import EXTERNAL
from fedsim.report.tables import Table, claim_words, decimal, named
from fedsim.results.columns import UNVERIFIED
from fedsim.results.stats import PLACE, SeedGroups
from fedsim.words import Printed, counted, number, setting, wide_console

EXACT = (
    "scores are exact functions of real rows, which no ε here covers: publish them only "
    "where the data may be"
)
"""What whoever publishes a board has to know."""
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
"""Columns of a setting as the board names them."""


@dataclass(frozen=True, repr=False)
class Board(Printed):
    """A board.

    Attributes:
        frame: its lines, by data set, epsilon and score; numbers as numbers.
        external: the same of external samples, whose epsilon nobody verified.
        left_out: how many rows are left out, by method and reason.
        rows, external_rows: how many rows are averaged in each of them.
    """

    frame: pd.DataFrame
    external: pd.DataFrame
    left_out: Mapping[str, int]
    rows: int
    external_rows: int

    @classmethod
    def of(cls, proofs: Sequence[Proof]) -> Board:
        """Of rows that are proved, of rows without a budget, and apart from both of external
        samples; all others are counted.
        """
        kept = [proof.row for proof in proofs if not _refused(proof)]
        refused = Counter(
            f"{proof.row.label} on {proof.row.dataset} ({why})"
            for proof in proofs
            if (why := _refused(proof))
        )
        settings = SeedGroups.of(kept, "sd")
        rows = settings.averaged.groupby("setting")
        audits = rows["audit_epsilon_lower"].max().astype("float64")
        free = (
            rows["tuning"]
            .first()
            .map(lambda tuning: tuning["free"] if isinstance(tuning, dict) else None)
        )
        lines = settings.means(["balanced_accuracy"]).set_index("setting").sort_index()
        lines = lines.assign(
            method=lines["label"].map(named(settings.facts)),
            partition=[
                setting(scheme, alpha=alpha, clients=clients)
                for _, scheme, alpha, clients in lines[PLACE].to_numpy(object)
            ],
            epsilon_target=lines["epsilon_target"].astype("float64"),
            sd=(lines["high"] - lines["low"]) / 2,
            share_of_ceiling=rows["share_of_ceiling"].mean(),
            audit=audits.replace(0, None),
            tuned=free.map({True: "free, on test rows", False: "for its price"}),
        )
        lines = lines.sort_values(
            ["dataset", "epsilon_target", "mean"], ascending=[True, True, False]
        )
        is_external = lines["algorithm"] == EXTERNAL
        shown = lines[[*_SHOWN]].rename(columns=_SHOWN)
        external_rows = sum(row.is_external for row in kept)
        return cls(
            shown[~is_external].reset_index(drop=True),
            shown[is_external].reset_index(drop=True),
            refused,
            len(kept) - external_rows,
            external_rows,
        )

    @property
    def table(self) -> Table:
        """As tables are printed, a block a data set, and then one of its external samples."""
        decimals = ("balanced accuracy", "sd", "share of the ceiling")
        heading = f"external samples: {claim_words(UNVERIFIED)}"
        numbers = pd.concat([self.frame, self.external], ignore_index=True)
        texts = numbers.apply(
            lambda column: column.map(
                decimal if column.name in decimals else _text, na_action="ignore"
            )
        )
        texts.loc[len(self.frame) :, "data set"] += f", {heading}"
        proved = (
            f"{counted(self.rows, 'row')}, each finite ε proved from the row alone by fedsim verify"
        )
        out = [f"{count} × {what}" for what, count in self.left_out.items()]
        if out:
            left_out = f"left out: {sum(self.left_out.values())}"
        else:
            left_out = "none is left out"
        notes = [EXACT, f"{proved}; {left_out}"]
        if self.external_rows:
            notes.append(f"{counted(self.external_rows, 'row')} of {heading}")
        return Table(
            "board",
            "Board",
            texts.astype("object").fillna("–").set_index(["data set", "method"]),
            (*notes, *out),
            numbers,
        )

    def show(self, console: Console) -> None:
        """Print it."""
        self.table.show(wide_console(console, 400))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return number(float(value))


def _refused(proof: Proof) -> str:
    """Why a row is on no board; "" if it is on one."""
    if proof.row.status != "ok":
        return str(proof.row.status)
    if proof.verdict in ("proved", "no claim"):
        return ""
    return f"{proof.verdict}: {proof.why}"
