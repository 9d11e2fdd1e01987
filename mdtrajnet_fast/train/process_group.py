"""Processes that train one model together: each takes its share of a batch, gradients are summed.

On a CPU this is the way to use several cores: the tensors of a batch of molecules are too small to
share one among threads.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Member:
    """One process of a team: its number, and how many there are."""

    rank: int = 0
    size: int = 1

    def share(self, sizes: np.ndarray) -> np.ndarray:
        """Which of the things of these sizes are this member's, in order: to each about as much."""
        by_size = np.argsort(sizes, kind="stable")
        return np.sort(by_size[self.rank :: self.size])

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their sums over the team, the same bits in every process.

        Raises RuntimeError when another process has died.
        """
        if self.size == 1:
            return
        flat = torch.cat([x.flatten() for x in tensors])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:
            raise RuntimeError(
                f"one of the {self.size} training processes has died; what it said stands above. "
                "The same command goes on from the last checkpoint"
            ) from error
        parts = flat.split([x.numel() for x in tensors])
        for x, part in zip(tensors, parts, strict=True):
            x.copy_(part.view_as(x))


@contextmanager
def team(size: int, work: Callable[[Member, Any], None], argument: Any) -> Iterator[Member]:
    """This process as the first of a team, the others of which call work(member, argument).

    They are ended with the block, wherever they are. work and argument have to be importable and
    picklable: the processes are new interpreters ("spawn"), so that a script that asks for several
    needs the usual ``if __name__ == "__main__"``.
    """
    if size == 1:
        yield Member()
        return
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        others = [
            context.Process(
                target=_other, args=(Member(k, size), meeting, work, argument), daemon=True
            )
            for k in range(1, size)
        ]
        try:
            for process in others:
                process.start()
            _meet(Member(0, size), meeting)
            yield Member(0, size)
        finally:
            for process in others:
                process.terminate()
            for process in others:
                process.join()
            if dist.is_initialized():
                dist.destroy_process_group()


def _meet(member: Member, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=meeting, rank=member.rank, world_size=member.size)


def _other(
    member: Member, meeting: str, work: Callable[[Member, Any], None], argument: Any
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides when to stop
    _meet(member, meeting)
    work(member, argument)
