"""Pairs of frames, the examples that models are trained and judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .data import Record
from .system import System


@dataclass(frozen=True)
class Batch:
    """Start states and where their atoms are after each one's own lag."""

    system: System
    t: np.ndarray  # [atoms] fs
    displacement: np.ndarray  # [atoms, 3] Å
    velocity: np.ndarray  # [atoms, 3] Å/fs


class Choice(NamedTuple):
    """Which frames make up each pair of a batch."""

    record: np.ndarray  # [pairs]
    first: np.ndarray  # [pairs] number of the start's frame
    last: np.ndarray  # [pairs] and of the other
    t: np.ndarray  # [pairs] fs
    sign: np.ndarray  # [pairs] of the velocities: -1 for a pair that runs backwards


class Pairs:
    """Pairs of frames (start, later) of many trajectories, in flat arrays."""

    def __init__(self, records: Sequence[Record]):
        if not records:
            raise ValueError("no trajectories to draw pairs from")
        self.records = list(records)
        self._atoms = np.array([len(r.numbers) for r in records])
        self._frames = np.array([len(r.positions) for r in records])
        self._frame_fs = np.array([r.frame_fs for r in records])
        self._offset = np.concatenate([[0], np.cumsum(self._atoms * self._frames)])
        self._numbers_offset = np.concatenate([[0], np.cumsum(self._atoms)])
        self._positions = np.concatenate([r.positions.reshape(-1, 3) for r in records])
        self._velocities = np.concatenate([r.velocities.reshape(-1, 3) for r in records])
        self._numbers = np.concatenate([r.numbers for r in records])
        self._masses = np.concatenate([r.masses for r in records])
        self._cell = np.stack([r.cell for r in records])
        self._pbc = np.stack([r.pbc for r in records])

    def choose(
        self,
        rng: np.random.Generator,
        count: int,
        max_lag_fs: float,
        *,
        lag_fs: float | None = None,
        lag_power: float = 0.0,
        time_reversal: bool = False,
    ) -> Choice:
        """`count` random pairs: trajectory and start uniform, longer lags more often.

        max_lag_fs: longest lag; lag_fs: one lag for all pairs instead. Lags are whole frames; of
            the first k frames' lags the share is (k / longest)^(1 + lag_power).
        time_reversal: half of the pairs backwards in time, with their velocities negated.

        Raises ValueError where a trajectory has no frames so far apart.
        """
        record = rng.integers(len(self.records), size=count)
        longest = np.minimum(
            np.floor(max_lag_fs / self._frame_fs[record] + 1e-6).astype(int),
            self._frames[record] - 1,
        )
        self._refuse(record[longest < 1], f"a lag of at most {max_lag_fs:g} fs")
        if lag_fs is None:
            lag = 1 + (rng.random(count) ** (1 / (1 + lag_power)) * longest).astype(int)
        else:
            lag = np.rint(lag_fs / self._frame_fs[record]).astype(int)
            wrong = (lag > longest) | (abs(lag * self._frame_fs[record] - lag_fs) > 1e-6)
            self._refuse(record[wrong], f"a lag of {lag_fs:g} fs")
        start = (rng.random(count) * (self._frames[record] - lag)).astype(int)
        backwards = (rng.random(count) < 0.5) & time_reversal
        first, last = (
            np.where(backwards, start + lag, start),
            np.where(backwards, start, start + lag),
        )
        sign = np.where(backwards, -1.0, 1.0)
        return Choice(record, first, last, lag * self._frame_fs[record], sign)

    def draw(
        self, rng: np.random.Generator, count: int, max_lag_fs: float, **options: Any
    ) -> Batch:
        """A batch of pairs chosen at random; arguments and errors as in :meth:`choose`."""
        return self.batch(self.choose(rng, count, max_lag_fs, **options))

    def batch(self, choice: Choice) -> Batch:
        """The frames of pairs that were chosen."""
        record, first, last, t, sign = choice
        atoms = self._atoms[record]
        ptr = np.concatenate([[0], np.cumsum(atoms)])
        within = np.arange(ptr[-1]) - np.repeat(ptr[:-1], atoms)
        a = np.repeat(self._offset[record] + first * atoms, atoms) + within
        b = np.repeat(self._offset[record] + last * atoms, atoms) + within
        n = np.repeat(self._numbers_offset[record], atoms) + within
        flip = np.repeat(sign, atoms)[:, None]
        system = System(
            numbers=self._numbers[n],
            positions=self._positions[a].astype(np.float64),
            velocities=self._velocities[a] * flip,
            masses=self._masses[n],
            cell=self._cell[record],
            pbc=self._pbc[record],
            ptr=ptr,
        )
        return Batch(
            system=system,
            t=np.repeat(t, atoms),
            displacement=self._positions[b].astype(np.float64) - system.positions,
            velocity=self._velocities[b] * flip,
        )

    def _refuse(self, records: np.ndarray, lag: str) -> None:
        if len(records):
            bad = self.records[int(records[0])]
            raise ValueError(
                f"{bad.molecule}/{bad.trajectory}: {len(bad.positions)} frames every "
                f"{bad.frame_fs:g} fs hold no pair with {lag}"
            )
