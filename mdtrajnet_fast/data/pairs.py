"""Pairs of frames, the examples that models are trained and judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..system import System, check_masses
from .records import Record, as_trajectory

# Weights of the differences over 1, 2 and 3 steps to either side in a derivative of sixth order.
SLOPE = (3 / 4, -3 / 20, 1 / 60)
MARGIN = len(SLOPE)


@dataclass(frozen=True)
class Batch:
    """Start states and where their atoms are after each one's own lag."""

    system: System
    t: np.ndarray  # [atoms] fs
    displacement: np.ndarray  # [atoms, 3] Å
    velocity: np.ndarray  # [atoms, 3] Å/fs

    @property
    def end(self) -> System:
        """The systems as they are after the lags."""
        positions = self.system.positions + self.displacement
        return replace(self.system, positions=positions, velocities=self.velocity)

    def moved(self, start: System) -> Batch:
        """The same ends from other starts: `start` replaces the first of the systems."""
        system = self.system
        positions, velocities = system.positions.copy(), system.velocities.copy()
        atoms = len(start.numbers)
        positions[:atoms], velocities[:atoms] = start.positions, start.velocities
        return replace(
            self,
            system=replace(system, positions=positions, velocities=velocities),
            displacement=self.displacement + system.positions - positions,
        )


class Choice(NamedTuple):
    """Which frames make up each pair of a batch."""

    record: np.ndarray  # [pairs]
    first: np.ndarray  # [pairs] number of the start's frame
    last: np.ndarray  # [pairs] and of the other
    t: np.ndarray  # [pairs] fs
    sign: np.ndarray  # [pairs] of the velocities: -1 for a pair that runs backwards

    def part(self, which: slice | np.ndarray) -> Choice:
        """Some of the pairs."""
        return Choice(*(x[which] for x in self))


class Pairs:
    """Pairs of frames (start, later) of many trajectories, in flat arrays.

    Raises ValueError for no records, and for isotopes, of which models know nothing.
    """

    def __init__(self, records: Sequence[Record]):
        if not records:
            raise ValueError("no trajectories to draw pairs from")
        for record in records:
            check_masses(record.numbers, record.masses, f"{record.molecule}/{record.trajectory}")
        self.records = list(records)
        self.atoms = np.array([len(r.numbers) for r in records])  # of each record
        self._frames = np.array([len(r.positions) for r in records])
        self._frame_fs = np.array([r.frame_fs for r in records])
        self._offset = np.concatenate([[0], np.cumsum(self.atoms * self._frames)])
        self._numbers_offset = np.concatenate([[0], np.cumsum(self.atoms)])
        self._positions = np.concatenate([r.positions.reshape(-1, 3) for r in records])
        self._velocities = np.concatenate([r.velocities.reshape(-1, 3) for r in records])
        self._numbers = np.concatenate([r.numbers for r in records])
        self._masses = np.concatenate([r.masses for r in records])
        self._cell = np.stack([r.cell for r in records])
        self._pbc = np.stack([r.pbc for r in records])

    @property
    def content(self) -> tuple[np.ndarray, ...]:
        """What makes these pairs: elements, positions and velocities of all frames."""
        return self._numbers, self._positions, self._velocities

    def choose(
        self,
        rng: np.random.Generator,
        count: int,
        max_lag_fs: float,
        *,
        lag_fs: float | None = None,
        lag_power: float = 0.0,
        time_reversal: bool = False,
        history_fs: float = 0.0,
        margin: int = 0,
    ) -> Choice:
        """`count` random pairs: trajectory and start uniform, longer lags more often.

        max_lag_fs: longest lag; lag_fs: one lag for all pairs instead. Lags are whole frames; of
            the first k frames' lags the share is (k / longest)^(1 + lag_power).
        time_reversal: half of the pairs backwards in time, with their velocities negated.
        history_fs: so much of the trajectory lies before every start (see :meth:`before`).
        margin: so many frames lie before and after all of that (see :meth:`accelerations`).

        Raises ValueError where a trajectory has no frames so far apart.
        """
        record = rng.integers(len(self.records), size=count)
        history = self._frames_in(history_fs, record)
        longest = np.minimum(
            np.floor(max_lag_fs / self._frame_fs[record] + 1e-6).astype(int),
            self._frames[record] - 1 - history - 2 * margin,
        )
        self._refuse(record[longest < 1], f"a lag of at most {max_lag_fs:g} fs")
        if lag_fs is None:
            lag = 1 + (rng.random(count) ** (1 / (1 + lag_power)) * longest).astype(int)
        else:
            lag = self._frames_in(lag_fs, record)
            self._refuse(record[lag > longest], f"a lag of {lag_fs:g} fs")
        span = history + lag
        start = margin + (rng.random(count) * (self._frames[record] - span - 2 * margin)).astype(
            int
        )
        backwards = (rng.random(count) < 0.5) & time_reversal
        first, last = (
            np.where(backwards, start + lag, start + history),
            np.where(backwards, start, start + span),
        )
        sign = np.where(backwards, -1.0, 1.0)
        return Choice(record, first, last, lag * self._frame_fs[record], sign)

    def choose_frames(self, rng: np.random.Generator, count: int) -> Choice:
        """`count` random frames, each with the next one: trajectory and frame uniform."""
        return self.choose(rng, count, float(self._frame_fs.max()))

    def draw(
        self, rng: np.random.Generator, count: int, max_lag_fs: float, **options: Any
    ) -> Batch:
        """A batch of pairs chosen at random; arguments and errors as in :meth:`choose`."""
        return self.batch(self.choose(rng, count, max_lag_fs, **options))

    def before(self, choice: Choice, history_fs: float) -> Choice:
        """The pairs that end where those of `choice` start, history_fs later than they start."""
        frames = self._frames_in(history_fs, choice.record)
        first = choice.first - np.where(choice.sign > 0, frames, -frames)
        return choice._replace(first=first, last=choice.first, t=np.full(len(first), history_fs))

    def accelerations(self, choice: Choice) -> np.ndarray:
        """Those at the starts of pairs: [atoms, 3] Å/fs^2, by central differences of velocities.

        Of the sixth order: of a vibration that turns by x from frame to frame x^6 / 140 are
        missing. Needs :data:`MARGIN` frames around every start.
        """
        atoms = self.atoms[choice.record]
        within = np.arange(atoms.sum()) - np.repeat(np.cumsum(atoms) - atoms, atoms)
        found = np.zeros((len(within), 3))
        for k, weight in enumerate(SLOPE, start=1):
            for step, sign in ((k, 1), (-k, -1)):
                rows = self._offset[choice.record] + (choice.first + step) * atoms
                there = self._velocities[np.repeat(rows, atoms) + within].astype(np.float64)
                found += sign * weight * there
        return found / np.repeat(self._frame_fs[choice.record], atoms)[:, None]

    @cached_property
    def potential_energies(self) -> list[np.ndarray]:
        """Of the frames of each record, [frames] eV; not numbers where they are not known."""
        return [
            (np.nan if record.energy is None else record.energy)
            - as_trajectory(record).kinetic_energies
            for record in self.records
        ]

    def starts(self, choice: Choice) -> np.ndarray:
        """Where the starts of pairs are among all frames of all records, [pairs]."""
        return np.concatenate([[0], np.cumsum(self._frames)])[choice.record] + choice.first

    def dipoles(self, choice: Choice) -> np.ndarray:
        """Those at the starts of pairs: [pairs, 3] e Å.

        Raises ValueError, with its name, where any trajectory has none.
        """
        return self._dipoles[self.starts(choice)]

    @cached_property
    def _dipoles(self) -> np.ndarray:
        """Of all frames of all records."""
        found = [r.dipole for r in self.records if r.dipole is not None]
        if len(found) < len(self.records):
            bad = next(r for r in self.records if r.dipole is None)
            raise ValueError(
                f"{bad.molecule}/{bad.trajectory} has no dipoles: make data with a calculator that "
                "has them, or leave the file out"
            )
        return np.concatenate(found).astype(np.float64)

    def batch(self, choice: Choice) -> Batch:
        """The frames of pairs that were chosen."""
        record, first, last, t, sign = choice
        atoms = self.atoms[record]
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

    def _frames_in(self, time_fs: float, record: np.ndarray) -> np.ndarray:
        """How many frames a time is in each of the records; refused where it is no whole number."""
        frames = np.rint(time_fs / self._frame_fs[record]).astype(int)
        wrong = abs(frames * self._frame_fs[record] - time_fs) > 1e-6
        self._refuse(record[wrong], f"a lag of {time_fs:g} fs")
        return frames

    def _refuse(self, records: np.ndarray, lag: str) -> None:
        if len(records):
            bad = self.records[int(records[0])]
            raise ValueError(
                f"{bad.molecule}/{bad.trajectory}: {len(bad.positions)} frames every "
                f"{bad.frame_fs:g} fs hold no pair with {lag}: choose times that are multiples of "
                "the spacing (--times of mdtrajnet evaluate)"
            )
