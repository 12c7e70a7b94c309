"""Embedding as Ray work: every actor loads the encoder once and takes every N-th shard; the driver alone writes files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import ray
import torch

from fedsim.data.encoding.embed import EmbedJob, Work
from fedsim.data.encoding.shards import Shard, embedded_shards
from fedsim.errors import RunLost, UserError
from fedsim.runs.need import Node


class EmbedActor:
    """An encoder on one device."""

    def __init__(self, job: EmbedJob, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.job, self.threads = job, 1 if device == "cpu" else threads
        self.encoder = job.encoder.load(device)

    def run(self, numbers: Sequence[int]) -> Iterator[Shard]:
        """A stream of shards, ascending."""
        yield from embedded_shards(self.encoder, self.job.images, numbers, self.job.batch, self.threads)


def on_actors(actors: int, node: Node, engine: AbstractContextManager[Any]) -> Work:
    """Work for :func:`fedsim.data.encoding.embed.embed` on ``actors`` actors that share this machine's GPUs, or its CPUs without one.

    Args:
        actors: how many.
        node: what this machine has.
        engine: entered for the work, if there is any; Ray is connected inside.

    Raises:
        UserError: there are more actors than CPUs.
    """
    if actors > node.cpus:
        raise UserError("--actors", f"{actors} actors need as many CPUs, and there are {node.cpus:g}", f"give at most {node.cpus:g}")

    def work(job: EmbedJob, numbers: Sequence[int]) -> Iterator[Shard]:
        with engine:
            share = gpu_share(actors, node)
            threads = max(1, int(node.cpus // actors))
            actor: Any = ray.remote(EmbedActor)
            remote = actor.options(num_cpus=threads, num_gpus=share)
            shared = ray.put(job)
            hosts = [remote.remote(shared, "cuda" if share else "cpu", threads) for _ in range(actors)]
            streams = [
                host.run.options(num_returns="streaming").remote(list(numbers[position::actors])) for position, host in enumerate(hosts)
            ]
            yield from _shards(streams)

    return work


def gpu_share(actors: int, node: Node) -> float:
    """The share of a GPU for one of so many actors on a machine, such that all have room: a share lies on one GPU."""
    return math.floor(10_000 / math.ceil(actors / node.gpus)) / 10_000 if node.gpus else 0.0


def _shards(streams: Sequence[Any]) -> Iterator[Shard]:
    waiting = list(streams)
    while waiting:
        ready: Any = ray.wait(waiting)[0][0]
        try:
            shard: Shard = ray.get(next(ready))
        except StopIteration:
            waiting.remove(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except ray.exceptions.RayActorError as error:
            what = "an actor died (killed, or out of memory)"
            raise RunLost("--actors", what, "run the same command again, it goes on; perhaps with fewer actors") from error
        else:
            waiting.append(waiting.pop(waiting.index(ready)))  # behind the others, so that none is served more often
            yield shard
