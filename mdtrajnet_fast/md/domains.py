"""One periodic cell shared out over processes: each computes the windows of the atoms in its brick.

The cell is cut into bricks along its periodic vectors, one for each process that torchrun has
started. Beside the atoms in its brick a process has ghosts, atoms of others that its own may see,
within the model's cutoff and the skin of the neighbour list. Between the layers of a network their
owners tell what is known of them (csrc/cpu/domain.hpp), so nothing is computed twice and the reach
of a window does not matter. Ghosts are found anew when an atom has moved by half the skin, and
atoms that have gone astray get the owner of the brick they are in, between windows.

Who owns an atom matters to rounding alone: sums over the processes are taken in another order.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ase.geometry import complete_cell

from .. import _C
from ..model.network import MDtrajNet
from ..model.predictor import NativePredictor
from ..processes import agree, each, together
from ..system import System
from .host_engine import HostEngine, native_engine
from .window import SKIN, Broke, Kept, Method, Plan, Windows, left_its_course

# How far (Å) an atom may be from its owner's brick: farther, and it gets a new owner, for which all
# accelerations are computed anew; nearer, and a process has a few ghosts more.
ASTRAY = 2.0
_CALLED = "processes that share a cell"


class Processes:
    """Those that torchrun has started, and how they speak with each other: gloo.

    All of them make the same calls in the same order. Raises ValueError in a process that torchrun
    has not started.
    """

    def __init__(self) -> None:
        if not dist.is_torchelastic_launched():
            raise ValueError(
                "a cell is shared out over the processes that torchrun starts: "
                "torchrun --nproc-per-node N SCRIPT, or torchrun --nproc-per-node N "
                "-m mdtrajnet_fast simulate ..."
            )
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        self._group = dist.group.WORLD
        if dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @classmethod
    def if_several(cls) -> Processes | None:
        """Those that torchrun has started, if these are several."""
        started = dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
        return cls() if started else None

    def close(self) -> None:
        """Leave the others, when all is done."""
        dist.destroy_process_group()

    def agree(self, **facts: Any) -> None:
        """Raise ValueError, with their name and values, where facts are not the same for all."""
        with self._together():
            agree(_CALLED, facts, self._group)

    def each(self, one: Any) -> list[Any]:
        """What each process has, a small thing that can be pickled, by rank."""
        with self._together():
            return each(one, self._group)

    def sum(self, x: np.ndarray) -> None:
        """Add up an array over all processes, in place."""
        with self._together():
            dist.all_reduce(torch.from_numpy(x), group=self._group)

    def rows(self, own: np.ndarray) -> list[np.ndarray]:
        """The rows of each process [own rows, width], of which each has its own number."""
        counts = np.zeros(self.size, dtype=np.int64)
        counts[self.rank] = len(own)
        self.sum(counts)
        room = np.zeros((max(1, counts.max()), *own.shape[1:]), dtype=own.dtype)
        room[: len(own)] = own
        all_rooms = [torch.empty(room.shape, dtype=torch.from_numpy(room).dtype) for _ in counts]
        with self._together():
            dist.all_gather(all_rooms, torch.from_numpy(room), group=self._group)
        return [rows.numpy()[:n] for rows, n in zip(all_rooms, counts, strict=True)]

    def begin_swap(
        self, out: np.ndarray, to: np.ndarray, into: np.ndarray, of: np.ndarray
    ) -> list[Any]:
        """Send parts of `out`, so many rows to each process, and receive those of `into`.

        Returns what is under way, for :meth:`end_swap`. The arrays must live until then.
        """
        sent, got = np.cumsum([0, *to]), np.cumsum([0, *of])
        work: list[Any] = []
        with self._together():
            for k in range(self.size):
                theirs, mine = into[got[k] : got[k + 1]], out[sent[k] : sent[k + 1]]
                if k == self.rank:
                    theirs[:] = mine
                    continue
                if len(theirs):
                    work.append(dist.irecv(torch.from_numpy(theirs), k, group=self._group))
                if len(mine):
                    work.append(dist.isend(torch.from_numpy(mine), k, group=self._group))
        return work

    def end_swap(self, work: list[Any]) -> None:
        """Wait for what :meth:`begin_swap` has begun."""
        with self._together():
            for one in work:
                one.wait()

    def _together(self) -> AbstractContextManager[None]:
        return together(_CALLED, self.size)


def bricks_of(cell: np.ndarray, pbc: np.ndarray, count: int) -> tuple[int, int, int]:
    """Into how many bricks to cut along each vector of a cell (Å), so that faces are small."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    ways = [
        (a, b, count // a // b)
        for a in range(1, count + 1)
        if count % a == 0
        for b in range(1, count // a + 1)
        if count // a % b == 0
    ]
    fine = [way for way in ways if all(n == 1 or p for n, p in zip(way, pbc, strict=True))]
    # of a brick, faces over volume
    return min(fine, key=lambda way: sum(n / h for n, h in zip(way, heights, strict=True) if n > 1))


class Share:
    """A process's share of a system: which atoms, where they are, and who has to know of them.

    reach: how far (Å) atoms may see, with the skin. What native code calls (:class:`_C.Domain`):
    sum, meet, begin_swap, end_swap, drop_swap and sum_named.
    """

    def __init__(self, processes: Processes, system: System, reach: float):
        self._processes, self._reach = processes, reach
        pbc = system.pbc[0]
        cell = complete_cell(np.where(pbc[:, None], system.cell[0], 0.0))
        self._cell, self._to_fractions = cell, np.linalg.inv(cell)
        self.bricks = np.array(bricks_of(cell, pbc, processes.size))
        self.cut = self.bricks > 1
        # how far atoms see, in fractions of the cell
        self._far = reach * np.linalg.norm(self._to_fractions, axis=0)
        self.met = 0  # how often ghosts have been found
        self.ids = np.empty(0, dtype=np.int64)
        self._swapped: list[Any] = []  # rows under way

    def take(self, positions: np.ndarray) -> None:
        """Own the atoms that are in the brick, of all of the system's positions [atoms, 3] (Å)."""
        fractions = positions @ self._to_fractions
        images = np.where(self.cut, np.floor(fractions), 0)
        brick = np.minimum((fractions - images) * self.bricks, self.bricks - 1).astype(int)
        owner = np.ravel_multi_index(tuple(np.where(self.cut, brick, 0).T), tuple(self.bricks))
        numbers = np.bincount(owner, minlength=self._processes.size)
        if not numbers.all():
            shape = " x ".join(map(str, self.bricks))
            raise ValueError(
                f"of {shape} bricks of the cell {(numbers == 0).sum()} have no atoms: start fewer "
                "processes"
            )
        self.ids = np.flatnonzero(owner == self._processes.rank)
        self._order = np.argsort(owner, kind="stable")  # the ids of all processes, by rank
        self._offsets = -images[self.ids] @ self._cell  # to the images that are in the brick

    def astray(self, positions: np.ndarray) -> bool:
        """Whether an atom of any process is far from its owner's brick; own positions (Å)."""
        place = np.unravel_index(self._processes.rank, tuple(self.bricks))
        low = np.array(place) / self.bricks
        fractions = (positions + self._offsets) @ self._to_fractions
        far = ASTRAY / self._reach * self._far
        out = (fractions < low - far) | (fractions > low + 1 / self.bricks + far)
        count = np.array([float(out[:, self.cut].any())])
        self._processes.sum(count)
        return bool(count[0])

    def whole(self, own: np.ndarray) -> np.ndarray:
        """Rows of all atoms, in the system's order, from those of the own ones [own, width]."""
        whole = np.empty((len(self._order), own.shape[1]))
        whole[self._order] = np.concatenate(self._processes.rows(own))
        return whole

    # ---------------------------------------------------------------- what native code calls

    def sum(self, x: memoryview) -> None:
        """Of float64: over all processes, in place."""
        self._processes.sum(np.frombuffer(x, np.float64))

    def meet(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the ghosts: the own atoms to tell others of, and offsets of all [own + ghosts, 3].

        Offsets (Å) go from an atom to the image of it that is seen here. Ghosts are sorted by
        process, and those of one process as it tells of them.
        """
        self.met += 1
        fractions = (positions + self._offsets) @ self._to_fractions
        box = np.stack([fractions.min(0), fractions.max(0)])
        boxes = np.stack(self._processes.rows(box.reshape(1, 6))).reshape(-1, 2, 3)
        atoms: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
        offsets: list[np.ndarray] = [np.empty((0, 3))]
        to = np.zeros(self._processes.size, dtype=np.int64)
        for k, (low, high) in enumerate(boxes):
            for n in self._images(box, low, high):
                if k == self._processes.rank and not n.any():
                    continue
                moved = fractions + n
                near = (moved >= low - self._far) & (moved <= high + self._far)
                found = np.flatnonzero(near[:, self.cut].all(1))
                atoms.append(found)
                offsets.append(self._offsets[found] + n @ self._cell)
                to[k] += len(found)
        self._to = to
        self._of = np.stack(self._processes.rows(to[None]))[:, 0, self._processes.rank].copy()
        of_ghosts = np.empty((self._of.sum(), 3))
        self._processes.end_swap(
            self._processes.begin_swap(np.concatenate(offsets), self._to, of_ghosts, self._of)
        )
        return np.concatenate(atoms), np.concatenate([self._offsets, of_ghosts])

    def _images(self, box: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterator[np.ndarray]:
        """By how many cells to move a box so that one with these corners may see it."""
        ranges = [
            range(math.ceil(a - far - to), math.floor(b + far - of) + 1) if cut else (0,)
            for a, b, of, to, far, cut in zip(low, high, *box, self._far, self.cut, strict=True)
        ]
        for n in itertools.product(*ranges):
            yield np.array(n, dtype=np.float64)

    def begin_swap(self, out: memoryview, into: memoryview, width: int) -> None:
        """Rows of so many bytes: of the atoms to tell others of, and of the ghosts."""
        sent = np.frombuffer(out, np.uint8)[: self._to.sum() * width].reshape(-1, width)
        got = np.frombuffer(into, np.uint8)[: self._of.sum() * width].reshape(-1, width)
        self._swapped = self._processes.begin_swap(sent, self._to, got, self._of)

    def end_swap(self) -> None:
        """Wait for the ghosts' rows."""
        self._processes.end_swap(self._swapped)
        self.drop_swap()

    def drop_swap(self) -> None:
        """Let go of rows that are under way."""
        self._swapped = []

    def sum_named(self, names: memoryview, rows: memoryview, width: int) -> None:
        """Of rows of float64 with int64 names: add up all of the same name, in place."""
        own_names = np.frombuffer(names, np.int64)
        own = np.frombuffer(rows, np.float64)[: len(own_names) * width].reshape(-1, width)
        # numbers of atoms are exact as float64, too
        everybody = np.concatenate(self._processes.rows(np.column_stack([own_names, own])))
        known, which = np.unique(everybody[:, 0], return_inverse=True)
        sums = np.zeros((len(known), width))
        np.add.at(sums, which, everybody[:, 1:])
        own[:] = sums[np.searchsorted(known, own_names)]


class DomainEngine(HostEngine):
    """An :class:`.Engine` of one periodic system, on the CPUs of several processes.

    All of them call the same methods with the same arguments, and get the same. Its state is that
    of the process's own atoms.
    """

    def __init__(
        self,
        model: MDtrajNet,
        predictor: NativePredictor,
        system: System,
        method: Method,
        processes: Processes,
    ):
        if len(system) != 1 or not system.pbc.any():
            raise ValueError(
                "processes share one system that is periodic; molecules, however many, are for "
                "campaigns (mdtrajnet campaign)"
            )
        self._done = deque()
        self.at_once = 1
        self._model, self._predictor, self._system = model, predictor, system
        self._method, self._processes = method, processes
        self._share = Share(processes, system, model.config.radial_cutoff + SKIN)
        self._kept = Kept.nothing(1)
        self._native: Any = None
        self._met = 0

    @property
    def kept(self) -> Kept:
        """See :class:`.Engine`."""
        return self._kept if self._native is None else Kept(*self._native.kept())

    @kept.setter
    def kept(self, kept: Kept) -> None:
        self._kept = kept
        if self._native is not None:
            self._native.keep(*kept)

    def set_state(self, positions: np.ndarray, momenta: np.ndarray) -> None:
        """See :meth:`.Engine.set_state`."""
        if self._native is None:
            self._own(positions)
        self._positions, self._momenta = positions[self._share.ids], momenta[self._share.ids]

    def _own(self, positions: np.ndarray) -> None:
        """Take the atoms in the brick, of the positions [atoms, 3] (Å) of all."""
        kept, system, share = self.kept, self._system, self._share
        share.take(positions)
        self._domain = _C.Domain(share, share.ids)
        own = replace(
            system,
            numbers=system.numbers[share.ids],
            positions=positions[share.ids],
            velocities=system.velocities[share.ids],
            masses=system.masses[share.ids],
            pbc=system.pbc & ~share.cut,
            ptr=np.array([0, len(share.ids)]),
        )
        self._native = native_engine(self._model, self._predictor, own, self._method, self._domain)
        self._native.keep(*kept)
        self._met = share.met + 1  # the first time, ghosts are found in any case

    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`.Engine.state`."""
        whole = self._share.whole(np.hstack([self._positions, self._momenta]))
        return np.ascontiguousarray(whole[:, :3]), np.ascontiguousarray(whole[:, 3:])

    def begin(self, plan: Plan) -> None:
        """See :meth:`.Engine.begin`."""
        if self._share.met > self._met and self._share.astray(self._positions):
            positions, momenta = self.state()
            self._own(positions)
            self.set_state(positions, momenta)
        self._met = max(self._met, self._share.met)
        times, wanted = plan.only
        positions, momenta, energies, *state, done, broken = self._native.advance(
            self._positions,
            self._momenta,
            number=plan.number,
            t=times,
            counts=[len(times)],
            wanted=wanted,
            threads=torch.get_num_threads(),
        )
        self._positions, self._momenta = state
        if broken is not None:
            self._done.append(self._broke(broken))
            return
        frames = [
            self._share.whole(np.hstack(both)) for both in zip(positions, momenta, strict=True)
        ]
        both = np.stack(frames) if frames else np.empty((0, len(self._system.numbers), 6))
        x, p = (np.ascontiguousarray(part) for part in np.split(both, 2, axis=2))
        self._done.append(Windows(x, p, energies, done))

    def _broke(self, broken: tuple[int, int, str]) -> Broke:
        """What broke, wherever it did: the same in all processes."""
        _, atom, why = broken
        if why:
            why += f" (atoms as process {self._processes.rank} counts them)"
        said = self._processes.each((int(self._share.ids[atom]) if atom >= 0 else -1, why))
        atoms = [atom for atom, _ in said if atom >= 0]
        reasons = [why for _, why in said if why]
        reason = left_its_course(self._model, min(atoms)) if atoms else reasons[0]
        return Broke(reason, 0, *self.state())
