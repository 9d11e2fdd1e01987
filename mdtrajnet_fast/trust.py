"""Whether to trust a trajectory: temperatures, conservation laws, bonds, in constant memory.

:class:`TrustMonitor` looks at a run while it goes; :func:`trust_summary` feeds a finished
:class:`Trajectory` through it. Units: Å, fs, amu, K.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from ase.data import chemical_symbols
from ase.units import kB
from numpy.typing import ArrayLike, NDArray
from scipy.special import fdtri

from .analysis import (
    EV,
    FRAME_ROWS,
    Array,
    BondChange,
    BondWatch,
    atomic_degrees_of_freedom,
    centre_of_mass,
    frames_as_systems,
    kinetic_temperature,
    off_a_straight_line,
    relative_angular_momentum,
    total_angular_momentum,
)
from .neighbors import NeighborList
from .trajectory import Trajectory, frame_arrays, velocities_from_momenta

# When to warn.
EQUIPARTITION = 0.10  # relative difference between elements, if it is beyond chance
DRIFT = 0.10  # relative change of the temperature, if it is beyond chance
CENTRE_OF_MASS = 0.01  # Å
ANGULAR_MOMENTUM = 0.05  # of its thermal size sqrt(kB T tr I)
# The kinetic energy of f degrees of freedom scatters by sqrt(2 / f), and one of its values tells
# nothing new for about this long. Beyond chance: three standard deviations.
_CORRELATION_FS = 100.0
# A molecule keeps what energy each mode was given for much longer, so the temperatures of two
# elements of f and g degrees of freedom differ as two draws do: their ratio follows the F
# distribution. Beyond chance: what one run in ten thousand would show.
_REDISTRIBUTION_FS = 10_000.0
_RARE = 1e-4
# Bonds and neighbours need no closer look than this: the dear part of watching a large system.
_LOOK_EVERY_FS = 5.0


@dataclass(frozen=True)
class Temperature:
    """Means in K over the run, its first fifth and its last fifth."""

    mean: float
    first: float
    last: float


@dataclass(frozen=True)
class TrustSummary:
    """What :class:`TrustMonitor` saw. ``print`` shows it; ``warnings`` is empty if all is well."""

    frames: int
    start_fs: float
    end_fs: float
    start_temperature: float  # K, of the first frame
    temperature: Temperature  # in the frame of the centre of mass; nan for one atom
    temperature_drift: float  # K/ps, least squares; nan for a single frame
    elements: dict[str, Temperature]
    centre_of_mass_drift: float  # Å, the farthest from straight-line motion
    angular_momentum_drift: float | None  # the largest change, of the thermal size; None: periodic
    bonds: int  # in the first frame
    broken: tuple[BondChange, ...]
    formed: tuple[BondChange, ...]
    lonely_atoms: tuple[int, ...]  # without a neighbour within the model's cutoff at some time
    unusable_from_fs: float | None  # first frame with a number that is not finite, or atoms that
    # sit on each other; nothing after it is counted
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is nothing to warn of."""
        return not self.warnings

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and text for JSON; None stands for what is not defined."""
        return _plain({**dataclasses.asdict(self), "ok": self.ok})

    def __str__(self) -> str:
        count = len(self.warnings)
        verdict = "no warnings" if self.ok else f"{count} warning{'s' if count > 1 else ''}"
        lines = [
            f"Trust: {verdict} in {self.frames} frames, {self.start_fs:g} to {self.end_fs:g} fs"
        ]
        for name, t in {"temperature": self.temperature, **self.elements}.items():
            label = name if name == "temperature" else f"  of {name}"
            value = f"{t.mean:8.1f} K   first fifth {t.first:.1f}, last fifth {t.last:.1f}"
            lines.append(f"  {label:<17}{'not defined' if math.isnan(t.mean) else value}")
        if not math.isnan(self.temperature_drift):
            lines[1] += f", drift {self.temperature_drift:+.1f} K/ps"
        if not math.isnan(self.start_temperature):
            lines[1] += f", first frame {self.start_temperature:.1f} K"
        lines.append(f"  centre of mass   {self.centre_of_mass_drift:8.1e} Å off a straight line")
        if self.angular_momentum_drift is not None:
            lines.append(
                f"  angular momentum {self.angular_momentum_drift:8.1e} of its thermal size"
            )
        lines.append(
            f"  bonds            {self.bonds:8d}, {len(self.broken)} broken, {len(self.formed)} "
            "formed"
        )
        return "\n".join(lines + [f"  WARNING: {text}" for text in self.warnings])


def trust_summary(trajectory: Trajectory, cutoff: float | None = None) -> TrustSummary:
    """Check a finished trajectory: temperatures, drift, bonds; see :class:`TrustMonitor`.

    cutoff: of the model that made it, in Å; None: do not look for atoms without neighbours.
    """
    monitor = TrustMonitor(trajectory.atoms, cutoff)
    for start in range(0, len(trajectory), 256):
        part = slice(start, start + 256)
        monitor.update(trajectory.times[part], trajectory.positions[part], trajectory.momenta[part])
    return monitor.summary()


class TrustMonitor:
    """Watches a run chunk by chunk in constant memory; the chunks do not change the result.

    atoms: numbers, masses, cell and pbc are taken from it. cutoff: the model's, in Å; None: do not
    look for atoms without neighbours. Raises ValueError for a cutoff that is not positive.

    ``update`` takes the frames in order, the first one being the reference; ``summary`` can be
    called at any time after it. What is warned of, and when:

    * elements differ in temperature by more than 10 % in the last fifth of the run, and more than
      chance allows for so few atoms;
    * the temperature changes by more than 10 % from the first to the last fifth, and more than
      chance allows in so short a time;
    * the mean temperature is less than half of that of the start, and more than chance allows (in
      runs of 500 fs or more);
    * the centre of mass leaves its straight line by more than 0.01 Å;
    * the angular momentum of an isolated system changes by more than 5 % of its thermal size;
    * bonds break or form (as :func:`bond_changes` has it) or atoms have no neighbour within the
      cutoff, looked for in frames at least 5 fs apart;
    * numbers are not finite, or atoms sit on each other.

    Temperatures are those of the motion relative to the centre of mass, with the degrees of freedom
    each atom really has (:func:`atomic_degrees_of_freedom`); the rotation of an isolated system
    counts as one if it rotates in the first frame.
    """

    def __init__(self, atoms: ase.Atoms, cutoff: float | None = None) -> None:
        self._atoms = atoms.copy()
        self._near = None if cutoff is None else NeighborList(cutoff, skin=0.5)
        self._lonely = np.zeros(len(atoms), dtype=bool)
        self._masses = atoms.get_masses()
        self._order = np.argsort(atoms.numbers, kind="stable")
        self._elements, self._starts = np.unique(atoms.numbers[self._order], return_index=True)
        self._periodic = bool(atoms.pbc.any())
        self._frames = 0
        self._next_look = -math.inf
        self._unusable: float | None = None
        self._com_drift = 0.0
        self._spin_drift = 0.0

    def update(self, times: ArrayLike, positions: ArrayLike, momenta: ArrayLike) -> None:
        """Look at frames: times [k] fs, positions [k, atoms, 3] Å, momenta [k, atoms, 3]
        sqrt(eV amu).

        Raises ValueError for wrong shapes, or if the very first frame is not usable.
        """
        t, x, p = frame_arrays(len(self._atoms), times, positions, momenta)
        if len(t) == 0 or self._unusable is not None:
            return
        v = velocities_from_momenta(p, self._masses)
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(x + v).all(axis=(1, 2)))
        if self._frames == 0:
            if not finite[0]:
                atom = int(np.argwhere(~np.isfinite(x[0] + v[0]))[0, 0])
                raise ValueError(
                    f"atom {atom} has a position or velocity that is not finite in the first frame"
                )
            self._begin(float(t[0]), x[0], v[0])
        usable = len(t) if np.all(finite) else int(np.argmin(finite))
        looks = []
        for k, time in enumerate(t[:usable].tolist()):
            if time >= self._next_look:
                self._next_look = time + _LOOK_EVERY_FS
                looks.append(k)
        step = max(1, FRAME_ROWS // len(self._atoms))
        for k in range(0, len(looks), step):
            some = looks[k : k + step]
            if (count := self._look(t[some], x[some])) < len(some):
                usable = some[count]
                break
        if usable < len(t):
            self._unusable = float(t[usable])
        if usable:
            self._add(t[:usable], x[:usable], v[:usable])

    def _look(self, t: Array, x: Array) -> int:
        """Look for bonds and lonely atoms; how many frames there are before one that is refused."""
        try:
            self._bonds.update(t, x)
            if self._near is not None:
                systems = frames_as_systems(x, self._bonds.cell, self._bonds.pbc)
                edges = self._near.update(x.reshape(-1, 3), *systems)
                degrees = np.diff(edges.row_ptr).reshape(len(t), -1)
                self._lonely |= (degrees == 0).any(axis=0)
        except ValueError:  # the neighbour list refuses atoms that sit on each other
            half = len(t) // 2
            if half == 0 or (first := self._look(t[:half], x[:half])) == 0:
                return 0
            return first if first < half else half + self._look(t[half:], x[half:])
        return len(t)

    def _begin(self, time: float, positions: Array, velocities: Array) -> None:
        m = self._masses
        x, v = positions[None], velocities[None]
        self._atoms.positions[:] = positions
        self._bonds = BondWatch(self._atoms, positions)
        self._start = time
        self._com, self._com_velocity = centre_of_mass(x, m)[0], centre_of_mass(v, m)[0]
        self._spin = total_angular_momentum(x, v, m)[0]
        self._inertia = 2 * float(m @ np.sum((positions - self._com) ** 2, axis=1))
        # An isolated system that rotates has the energy of its rotation in its temperature.
        relative = v - self._com_velocity
        kinetic = kinetic_temperature(relative, m)[0] * kB / EV
        still = float(self._spin @ self._spin) <= 1e-4 * self._inertia * kinetic
        dof = atomic_degrees_of_freedom(self._atoms, rotation=not self._periodic and still)
        dof = self._per_element(dof)
        self._dof = np.where(dof > 1e-9, dof, np.nan)  # a lone atom has no temperature
        energy = float(m @ np.sum(relative[0] ** 2, axis=1))
        self._start_temperature = energy * (EV / kB) / float(self._dof.sum())
        self._blocks = _BlockMeans(2 + len(self._elements))

    def _per_element(self, values: Array) -> Array:
        """Sums over the atoms of each element: [..., atoms] to [..., elements]."""
        return np.add.reduceat(values[..., self._order], self._starts, axis=-1)

    def _add(self, t: Array, x: Array, v: Array) -> None:
        m = self._masses
        self._end = float(t[-1])
        centre = centre_of_mass(x, m)
        drift = off_a_straight_line(t - self._start, centre, self._com, self._com_velocity)
        self._com_drift = max(self._com_drift, float(np.linalg.norm(drift, axis=1).max()))
        relative = v - centre_of_mass(v, m)[:, None]
        if not self._periodic:
            change = relative_angular_momentum(x - centre[:, None], relative, m) - self._spin
            self._spin_drift = max(self._spin_drift, float(np.linalg.norm(change, axis=1).max()))
        energy = m * np.sum(relative**2, axis=2)
        kinetic = self._per_element(energy)
        overall = kinetic.sum(axis=1) * (EV / kB) / self._dof.sum()
        each = kinetic * (EV / kB) / self._dof
        for row in np.column_stack((t, overall, each)):
            self._blocks.add(row)
        self._frames += len(t)

    def summary(self) -> TrustSummary:
        """The verdict so far. Raises ValueError before the first frame."""
        if self._frames == 0:
            raise ValueError("no frame has been seen yet: call update() first")
        means, weights = self._blocks.means()
        t = means[:, 0]
        fifth = (self._end - self._start) / 5
        parts = (
            weights,
            weights * (t <= max(self._start + fifth, t[0])),
            weights * (t >= min(self._end - fifth, t[-1])),
        )

        def over(column: int) -> Temperature:
            return Temperature(*(float(np.average(means[:, column], weights=w)) for w in parts))

        overall = over(1)
        elements = {chemical_symbols[z]: over(2 + k) for k, z in enumerate(self._elements)}
        slope = math.nan
        if len(t) > 1 and t[-1] > t[0]:
            dt = t - np.average(t, weights=weights)
            slope = 1000 * float((weights * dt) @ means[:, 1] / ((weights * dt) @ dt))
        spin: float | None = None
        if not self._periodic:
            thermal = math.sqrt(max(0.0, np.nan_to_num(overall.mean)) * kB / EV * self._inertia)
            spin = self._spin_drift / thermal if thermal > 0 else 0.0
        broken, formed = self._bonds.changes()
        summary = TrustSummary(
            frames=self._frames,
            start_fs=self._start,
            end_fs=self._end,
            start_temperature=self._start_temperature,
            temperature=overall,
            temperature_drift=slope,
            elements=elements,
            centre_of_mass_drift=self._com_drift,
            angular_momentum_drift=spin,
            bonds=len(self._bonds.pairs),
            broken=broken,
            formed=formed,
            lonely_atoms=tuple(np.flatnonzero(self._lonely).tolist()),
            unusable_from_fs=self._unusable,
            warnings=(),
        )
        return dataclasses.replace(summary, warnings=tuple(self._warnings(summary)))

    def _warnings(self, seen: TrustSummary) -> Iterable[str]:
        if seen.unusable_from_fs is not None:
            yield (
                f"at {seen.unusable_from_fs:g} fs the run broke down: numbers that are not finite, "
                "or atoms on top of each other; use nothing from then on"
            )
        if seen.broken:
            yield f"{len(seen.broken)} bond{_s(seen.broken)} broke: {_listed(seen.broken)}"
        if seen.formed:
            yield f"{len(seen.formed)} bond{_s(seen.formed)} formed: {_listed(seen.formed)}"

        fifth = (seen.end_fs - seen.start_fs) / 5
        independent = max(1.0, fifth / _CORRELATION_FS)
        chance = 3 * math.sqrt(4 / (self._dof.sum() * independent))
        overall, elements = seen.temperature, seen.elements
        change = overall.last / overall.first - 1 if overall.first > 0 else math.nan
        if abs(change) > max(DRIFT, chance):
            yield (
                f"the temperature {'rose' if change > 0 else 'fell'} by {100 * abs(change):.0f} % "
                f"from {overall.first:.0f} K to {overall.last:.0f} K: energy is not conserved"
            )

        # From a minimum of the potential half of the kinetic energy goes into vibrations; a start
        # drawn in equilibrium may be hotter than the mean by chance. Less than both is a loss.
        start = seen.start_temperature
        least = 0.5 * start / (1 + 3 * math.sqrt(2 / self._dof.sum()))
        if seen.frames > 1 and fifth >= _CORRELATION_FS and overall.mean < least:
            yield (
                f"the temperature fell from {start:.0f} K at the start to a mean of "
                f"{overall.mean:.0f} K, more than vibrations can take up: energy is lost"
            )

        # The two elements that differ most among those that differ by more than chance.
        shuffled = max(1.0, fifth / _REDISTRIBUTION_FS)
        found: tuple[float, str, str] | None = None
        for (a, hot), f in zip(elements.items(), self._dof, strict=True):
            for (b, cold), g in zip(elements.items(), self._dof, strict=True):
                if cold.last > 0:
                    excess = hot.last / cold.last - 1
                    chance = fdtri(f * shuffled, g * shuffled, 1 - _RARE) - 1
                    if excess > max(EQUIPARTITION, chance) and (not found or excess > found[0]):
                        found = excess, a, b
        if found is not None:
            excess, a, b = found
            before = (
                elements[a].first / elements[b].first - 1 if elements[b].first > 0 else math.nan
            )
            yield (
                f"element {a} is {100 * excess:.0f} % hotter than {b} in the last fifth of the run "
                f"({100 * before:+.0f} % in the first): equipartition is lost"
            )

        if seen.centre_of_mass_drift > CENTRE_OF_MASS:
            yield (
                f"the centre of mass left its straight line by {seen.centre_of_mass_drift:.3g} Å: "
                "momentum is not conserved"
            )
        spin = seen.angular_momentum_drift
        if spin is not None and spin > ANGULAR_MOMENTUM:
            yield (
                f"the angular momentum changed by {100 * spin:.0f} % of its thermal size: it is "
                "not conserved"
            )
        if lonely := seen.lonely_atoms:
            symbols = self._atoms.get_chemical_symbols()
            yield (
                f"{len(lonely)} atom{_s(lonely)} had no neighbour within the model's cutoff: "
                f"{_listed([f'{symbols[i]}{i}' for i in lonely])}; the model cannot see what acts "
                "on them"
            )


class _BlockMeans:
    """Means of a series over blocks of equal length: at most ``capacity``, then pairs merge."""

    def __init__(self, width: int, capacity: int = 128) -> None:
        self.capacity, self.length, self.count = capacity, 1, 0
        self.full: list[Array] = []
        self.sum = np.zeros(width)

    def add(self, row: Array) -> None:
        self.sum = self.sum + row
        self.count += 1
        if self.count == self.length:
            self.full.append(self.sum / self.count)
            self.sum, self.count = np.zeros_like(self.sum), 0
            if len(self.full) == self.capacity:
                self.full = [
                    (a + b) / 2 for a, b in zip(self.full[::2], self.full[1::2], strict=True)
                ]
                self.length *= 2

    def means(self) -> tuple[Array, Array]:
        """Block means [blocks, width] and how many frames each holds [blocks]."""
        rows, weights = list(self.full), [float(self.length)] * len(self.full)
        if self.count:
            rows, weights = rows + [self.sum / self.count], weights + [float(self.count)]
        return np.array(rows), np.array(weights)


def _s(items: Any) -> str:
    return "s" if len(items) > 1 else ""


def _listed(items: Iterable[Any], most: int = 5) -> str:
    texts = [str(item) for item in items]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
