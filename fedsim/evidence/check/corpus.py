"""Draws that found known faults (``tests/broken``), with which every search begins."""

from fedsim.evidence.check.neighbours import NEAR_ZERO, Draw

LATE = (9, 19, 257)
CORPUS: dict[str, dict[str, Draw]] = {
    "row": {
        "ordinary": Draw(copies=3, rounds=LATE),
        "first row": Draw(position=0.0, direction="opposite"),
        "beside none": Draw(size=0, direction="random"),
        "new label": Draw(size=4, copies=12, others=(0,), label=0),
        "label six": Draw(label=6),
        "beside ten alike": Draw(size=10, copies=12, sampled="alone"),
        "beside sixty of its label": Draw(size=60, alike=True),
        "beside thousands": Draw(size=2000, direction="batch mean", position=0.0),
        "against another": Draw(size=1, direction="opposite", sampled="alone", weights=NEAR_ZERO),
        "against two alike": Draw(size=2, large=1.0, direction="opposite", magnitude=2.0, sampled="alone", weights=NEAR_ZERO),
        "moves the median": Draw(size=80, large=0.5, magnitude=1.0, sampled="alone"),
        "moves the mean": Draw(size=80, large=0.5, magnitude=1.10884, sampled="alone"),
        "moves a high quantile": Draw(size=40, large=0.1, magnitude=1.0, sampled="alone"),
        "in the first sample": Draw(size=13, large=0.08, magnitude=1.0, sampled="first", rounds=(1, 2, 3)),
        "in no sample": Draw(way="replaced", weights=NEAR_ZERO, rounds=tuple(range(1, 12))),
    },
    "client": {
        "ordinary": Draw(rounds=LATE),
        "replaced": Draw(way="replaced", client=3, seed=1),
        "resampled": Draw(way="resampled", client_rate=0.5),
        "left out": Draw(client_rate=0.5, rounds=(1, 2, 3)),
        "moves the median": Draw(size=12, others=(150, 150, 12), magnitude=0.65),
    },
}
"""By what the unit is: a row or a group of rows, or a client."""
