"""Compare ``dp-cvae`` with its authors' code on the same embeddings and clients, without noise.

    git clone https://github.com/myng15/federated-dp-cvae AUTHORS && git -C AUTHORS checkout e9c6077
    python benchmarks/authors_dp_cvae.py --authors AUTHORS --data FILE.npz [--rounds N]
        [--seeds N ...] [--out FOLDER] [--json FILE]

Both codes get the partition of fedsim (ten clients, Dirichlet 0.3), and the sizes, the learning
rate and the rounds that the authors published. fedsim evaluates the synthetic examples of all
clients as external samples. Two facts about the authors' weight of the KL divergence, 0.1, decide
the scores:

- Their code adds up the KL divergence over a batch but averages the squared error over batch and
  entries. For one example of 384 dimensions and a batch of 256 the weight is therefore 9,830. The
  script runs their code a second time with the weight at which both terms are averages.
- In their code, each client scales the entries of its rows to 0 .. 1. ``dp-cvae`` has rows of norm
  1, so its squared errors are smaller. The script gives ``dp-cvae`` the equivalent weight.

The script never changes the authors' checkout. Their code also needs Opacus. Samples that are
already in FOLDER are used again, so give another FOLDER with other data or other rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import fedsim
from fedsim.data.embeddings import Embeddings
from fedsim.data.sources.load import load
from fedsim.data.spec import DatasetSpec
from fedsim.partition.partition import make_partition
from fedsim.partition.schemes import PartitionSpec

CLIENTS = 10
ALPHA = 0.3
EPOCHS = 5
"""The local epochs of a round, as the authors' aggregator has them."""
BATCH = 256
"""The rows of a batch in the authors' data loaders."""
BETA = 0.1  # the authors' weight of the KL divergence
NO_CLIP = 1e6  # a clip norm that no gradient reaches
VALIDATION_SHARE = 20
"""One in this many training rows is a validation row too.

The authors' code prints the loss of validation rows and does nothing else with it.
"""


def authors_client(number: int, x: NDArray[np.float32], y: NDArray[np.int64]) -> SimpleNamespace:
    """Return one client as the authors' trainer and aggregator read it."""
    return SimpleNamespace(
        id=number,
        train_features=x,
        train_labels=y,
        val_features=x[::VALIDATION_SHARE],
        val_labels=y[::VALIDATION_SHARE],
        n_train_samples=len(x),
        n_val_samples=len(x[::VALIDATION_SHARE]),
    )


def authors_samples(
    data: Embeddings,
    rows: Sequence[NDArray[np.int64]],
    rounds: int,
    beta: float,
    seed: int,
    folder: Path,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Train the authors' CVAE without privacy and return the samples of all clients.

    Args:
        data: the embeddings.
        rows: the numbers of the training rows of each client.
        rounds: the number of rounds.
        beta: the weight of the KL divergence, ``cvae_beta``.
        seed: the seed of weights, batches and samples.
        folder: where their code writes its checkpoints.

    Returns:
        Embeddings ``[n, d]`` and labels ``[n]``.
    """
    from aggregator import CVAEAggregator  # type: ignore[import-not-found]
    from anonymizer.cvae import CVAEAnonymizer  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    arguments = Namespace(
        device="cpu",
        backbone="small_patch14_dinov2",
        experiment="organsmnist",
        lr=1e-3,
        cvae_beta=beta,
        cvae_var=1.0,
        generated_factor=1.0,
        chkpts_dir=str(folder),
        enable_dp=False,
        max_grad_norm=None,
        epsilon=None,
        delta=None,
    )
    anonymizer = CVAEAnonymizer(arguments, torch.Generator().manual_seed(seed))
    clients = [
        authors_client(number, data.x_train[client_rows], data.y_train[client_rows])
        for number, client_rows in enumerate(rows)
    ]
    for client in clients:
        client.trainer = anonymizer.get_trainer(client=client, is_trained=False)
    server = anonymizer.get_trainer(client=None, is_trained=False)
    aggregator = CVAEAggregator(clients, server, anonymizer, verbose=0, seed=seed)
    for _ in range(rounds):
        aggregator.mix()
    x = []
    y = []
    for client in clients:
        anonymizer.prepare_data(
            client.train_features, client.train_labels, client.val_features, client.val_labels
        )
        samples, labels = anonymizer.generate_samples(
            client.trainer.model,
            client.train_labels.tolist(),
            anonymizer.train_min,
            anonymizer.train_max,
        )
        x.append(np.asarray(samples, np.float32))
        y.append(np.asarray(labels, np.int64))
    return np.concatenate(x), np.concatenate(y)


def betas(dim: int) -> dict[str, float]:
    """Return the weights to try with the authors' code, by a description of each."""
    return {"KL added up": BETA, "KL averaged": BETA / (BATCH * dim)}


def error_scale(data: Embeddings, rows: Sequence[NDArray[np.int64]]) -> float:
    """Return the factor on a squared error if each client scales its entries to 0 .. 1.

    It is the mean of 1 / (max - min)² over entries and clients.
    """
    factors = []
    for client_rows in rows:
        x = data.x_train[client_rows]
        spread = x.max(axis=0) - x.min(axis=0)
        factors.append(np.mean(1 / spread**2))
    return float(np.mean(factors))


def entries_of_ours(dim: int, rounds: int, scale: float) -> Iterator[dict[str, Any]]:
    """Yield grid entries of ``dp-cvae`` with the published sizes, equivalent weights and no clip.

    An epoch is counted as 5 steps: a client of 1,200 rows has 5 batches of at most 256 rows.

    Args:
        dim: the number of dimensions.
        rounds: the number of rounds.
        scale: the result of :func:`error_scale`.
    """
    for words, authors_beta in betas(dim).items():
        beta = authors_beta * BATCH * dim / scale
        params = {
            "rounds": rounds,
            "local_steps": 5 * EPOCHS,
            "learning_rate": 1e-3,
            "latent": 100,
            "hidden": [256, 256, 256],
            "beta": beta,
            "clip": NO_CLIP,
        }
        yield {"name": "dp-cvae", "label": f"dp-cvae, {words}", "params": params}


def compared(source: Path, rounds: int, seed: int, folder: Path) -> list[dict[Any, Any]]:
    """Train both codes with one seed and return the scores, one record per method and weight.

    Args:
        source: the file of embeddings, ``.npz``.
        rounds: the number of rounds.
        seed: the seed.
        folder: where samples, checkpoints and fedsim's run are written.
    """
    dataset = {"npz": str(source.absolute()), "overlap": "drop"}
    data = load(DatasetSpec.model_validate(dataset))
    partition = make_partition(
        data.y_train,
        spec=PartitionSpec(),
        alpha=ALPHA,
        clients=CLIENTS,
        seed=seed,
        columns=data.columns,
    )
    entries: list[dict[str, Any]] = []
    for words, beta in betas(data.dim).items():
        checkpoints = folder / f"authors {words}"
        target = folder / f"{words}.npz"
        if not target.exists():
            x, y = authors_samples(data, partition.rows, rounds, beta, seed, checkpoints)
            np.savez(target, x=x, y=y)
        entries.append({"rows": str(target.absolute()), "label": f"authors' code, {words}"})
    entries += entries_of_ours(data.dim, rounds, error_scale(data, partition.rows))
    grid = {
        "name": "dp-cvae-and-its-authors-code",
        "dataset": dataset,
        "alpha": ALPHA,
        "clients": CLIENTS,
        "epsilon": float("inf"),
        "seeds": [seed],
        "algorithms": entries,
    }
    run = fedsim.bench(grid, out=folder / "run", yes=True)
    assert isinstance(run, fedsim.Run)
    columns = ["label", "seed", "balanced_accuracy", "accuracy", "coverage", "frechet_distance"]
    return run.rows[columns].to_dict("records")


def shown(scores: Sequence[dict[Any, Any]]) -> Table:
    """Return a table of the mean balanced accuracy and coverage over seeds."""
    table = Table("method", "balanced accuracy", "coverage", "seeds")
    for label in dict.fromkeys(score["label"] for score in scores):
        by_seed = [score for score in scores if score["label"] == label]
        accuracy = np.mean([score["balanced_accuracy"] for score in by_seed])
        coverage = np.mean([score["coverage"] for score in by_seed])
        table.add_row(label, f"{accuracy:.3f}", f"{coverage:.3f}", str(len(by_seed)))
    return table


def main() -> None:
    """Train both with every seed, print the mean scores, and write all scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--authors", type=Path, required=True, help="the authors' checkout")
    parser.add_argument("--data", type=Path, required=True, help="384 dimensions, 11 classes")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/authors_dp_cvae"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(options.authors.absolute()))
    sys.dont_write_bytecode = True  # nothing is written into the authors' checkout
    scores = []
    for seed in options.seeds:
        folder = options.out / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        scores += compared(options.data, options.rounds, seed, folder)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=0) + "\n", encoding="utf-8")
    Console().print(shown(scores))


if __name__ == "__main__":
    main()
