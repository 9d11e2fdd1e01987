"""Processes that train one model together: each takes its share of a batch, gradients are summed.

On a CPU this is the way to use several cores: the tensors of a batch of molecules are too small to
share one among threads. On several GPUs or machines torchrun starts the processes.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from ..io.interruptions import deaf_children
from ..processes import agree, together

_CALLED = "training processes"


@dataclass(frozen=True)
class Member:
    """One process of those that train a model together: its number, and how many there are.

    local: its number, and how many there are, on its machine. equal: whether torchrun has started
    all of them, which hear signals; else the first has started the others, and decides.
    """

    rank: int = 0
    size: int = 1
    local: tuple[int, int] = (0, 1)
    equal: bool = False

    @classmethod
    def here(cls, device: str) -> Member:
        """This process, as torchrun says; it joins the others, with NCCL for a CUDA device."""
        if not dist.is_torchelastic_launched():
            return cls()
        local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if not dist.is_initialized():
            cuda = torch.device(device).type == "cuda"
            if cuda:
                torch.cuda.set_device(local[0])
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), local, equal=True)

    def share(self, sizes: np.ndarray) -> np.ndarray:
        """Which of the things of these sizes are this member's, in order: to each about as much."""
        by_size = np.argsort(sizes, kind="stable")
        return np.sort(by_size[self.rank :: self.size])

    def sum(self, tensors: Sequence[Tensor]) -> Tensor:
        """Sums of tensors over all members, one after another; the same bits in every process.

        Raises ChildProcessError when another process has died.
        """
        whole = torch.cat([x.flatten() for x in tensors])
        if self.size > 1:
            with self._together():
                dist.all_reduce(whole)
        return whole

    def agree(self, **facts: Any) -> None:
        """Raise ValueError, with their name and values, where facts are not the same for all."""
        with self._together():
            agree(_CALLED, facts)

    def _together(self) -> AbstractContextManager[None]:
        then = ". The same command goes on from the last checkpoint"
        return together(_CALLED, self.size, then)


@contextmanager
def team(size: int, work: Callable[[Member, Any], None], argument: Any) -> Iterator[Member]:
    """This process as the first of a team, the others of which call work(member, argument).

    They are ended with the block, wherever they are. work and argument have to be importable and
    picklable: the processes are new interpreters ("spawn"), so that a script that asks for several
    needs the usual ``if __name__ == "__main__"``. (torchrun's launcher, called from here, would
    replace the caller's signal handlers.)
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        first, *rest = (Member(k, size, (k, size)) for k in range(size))
        others = [
            context.Process(target=_other, args=(one, meeting, work, argument), daemon=True)
            for one in rest
        ]
        try:
            with deaf_children():  # this process decides when to stop
                for process in others:
                    process.start()
            _meet(first, meeting)
            yield first
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
