"""Processes that train one model together: each takes its share of a batch, gradients are summed.

On a CPU this is the way to use several cores: the tensors of a batch of molecules are too small to
share one among threads.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from ..io.interruptions import deaf_children


@dataclass
class Member:
    """One process of a team: its number, and how many there are.

    shared: [2, size, elements], memory of all of them for what they sum, by turns in either half:
        one may still read a sum when another writes the next.
    """

    rank: int = 0
    size: int = 1
    shared: Tensor = field(default_factory=lambda: torch.empty(0))
    _turn: int = 0

    def share(self, sizes: np.ndarray) -> np.ndarray:
        """Which of the things of these sizes are this member's, in order: to each about as much."""
        by_size = np.argsort(sizes, kind="stable")
        return np.sort(by_size[self.rank :: self.size])

    def sum(self, tensors: Sequence[Tensor]) -> Tensor:
        """Sums of tensors over the team, one after another; the same bits in every process.

        Raises ChildProcessError when another process has died.
        """
        parts = [x.flatten() for x in tensors]
        if self.size == 1:
            return torch.cat(parts)
        self._turn = 1 - self._turn
        slots = self.shared[self._turn, :, : sum(map(len, parts))]
        torch.cat(parts, out=slots[self.rank])
        try:
            dist.barrier()
        except RuntimeError as error:
            raise ChildProcessError(
                f"one of the {self.size} training processes has died; what it said stands above. "
                "The same command goes on from the last checkpoint"
            ) from error
        return slots.sum(0)


@contextmanager
def team(
    size: int, elements: int, dtype: torch.dtype, work: Callable[[Member, Any], None], argument: Any
) -> Iterator[Member]:
    """This process as the first of a team, the others of which call work(member, argument).

    They sum up to `elements` numbers of one type at a time. They are ended with the block, wherever
    they are. work and argument have to be importable and picklable: the processes are new
    interpreters ("spawn"), so that a script that asks for several needs the usual
    ``if __name__ == "__main__"``.
    """
    if size == 1:
        yield Member()
        return
    context = multiprocessing.get_context("spawn")
    shared = torch.zeros(2, size, elements, dtype=dtype).share_memory_()
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        others = [
            context.Process(
                target=_other, args=(Member(k, size, shared), meeting, work, argument), daemon=True
            )
            for k in range(1, size)
        ]
        try:
            with deaf_children():  # this process decides when to stop
                for process in others:
                    process.start()
            member = Member(0, size, shared)
            _meet(member, meeting)
            yield member
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
    _meet(member, meeting)
    work(member, argument)
    signal.pause()  # the others may not have heard that this one is through; the first one ends it
