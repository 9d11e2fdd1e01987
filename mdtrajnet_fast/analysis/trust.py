"""Whether to trust a trajectory: temperatures, conservation laws, bonds, in constant memory.

:class:`TrustMonitor` looks at a run while it goes; :func:`trust_summary` feeds a finished
:class:`Trajectory` through it. Units: Å, fs, amu, K, eV.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.data import chemical_symbols
from ase.units import kB
from numpy.typing import ArrayLike, NDArray
from scipy.special import fdtri

from ..io.trajectory import Trajectory, frame_arrays
from ..mechanics import (
    EV,
    atomic_degrees_of_freedom,
    centre_of_mass,
    kinetic_temperature,
    off_a_straight_line,
    relative_angular_momentum,
    total_angular_momentum,
    velocities_from_momenta,
)
from ..neighbors.host import NeighborList
from .block_means import BlockMeans
from .equipartition import (
    SEGMENT_FS,
    BandWatch,
    chance_of_bands,
    chance_of_elements,
    chance_of_stretches,
    chance_of_work,
    occupied_bands,
    share_of_stretches,
    strongest_band,
)
from .observables import FRAME_ROWS, Array, BondWatch, frames_as_systems
from .summary import Energies, Temperature, TrustSummary


class Unsure(NamedTuple):
    """What a model knows of the errors of its forces.

    of: expected errors [k, atoms] (eV/Å) at positions [k, atoms, 3] (Å). usual: what those of
    nearly all atoms are below that are like what the model was trained on.
    """

    of: Callable[[Array], Array]
    usual: float


# When to warn.
EQUIPARTITION = 0.10  # relative difference between elements, if it is beyond chance
DRIFT = 0.10  # relative change of the temperature, if it is beyond chance
CENTRE_OF_MASS = 0.01  # Å
_ROUNDED = 0.005  # of the way at the thermal speed: velocities in files are rounded
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
# Limits for isolated molecules over a picosecond and more; docs/study.md says how often runs of
# molecular dynamics and collapsed rollouts pass them.
_UNEVEN = 10**-3.2  # chances of bands, of stretches, of elements and of the work, multiplied
_PHASES = 8  # parts of a window
_PHASE = 0.06  # difference of their temperatures, relative, in 5 ps; more in less
_PHASE_FS = 5000.0
# Change of the temperature after these times (fs), when a start at rest in its minimum has found
# its balance: relative, and times sqrt(1 / degrees of freedom), whichever is more.
_EARLY_FS = (100.0, 300.0)
_CHANGED, _CHANGED_BY_CHANCE = 0.10, 0.9
_CHANGED_FS = 1000.0  # looked at in runs of this length and more
# The energy of the start is the mean over this time (fs), the one that rollouts keep.
_FIRST_FS = 200.0
_STEP_FS = 8.0  # frames this close tell the change of the energies along a path
_ENERGY = 0.25  # total energy off by this part of the kinetic energy
# With a thermostat in this time (fs): what comes in does not stay. A friction of 1/ps leaves the
# temperature 1 % too high where the energy drifts as fast as that.
_ENERGY_FS = 10_000.0
_UNSURE_EVERY_FS = (
    250.0  # frames whose forces' errors are asked for: the surroundings change slowly
)


def trust_summary(trajectory: Trajectory, cutoff: float | None = None) -> TrustSummary:
    """Check a finished trajectory: temperatures, energies, bonds; see :class:`TrustMonitor`.

    cutoff: of the model that made it, in Å; None: do not look for atoms without neighbours. The
    window and the temperature of a thermostat are those of the trajectory's metadata, energies and
    heat its own.
    """
    said = trajectory.metadata
    thermostat_K = said["temperature_K"] if "thermostat" in said else None
    monitor = TrustMonitor(trajectory.atoms, cutoff, said.get("window_fs"), thermostat_K)
    for start in range(0, len(trajectory), 256):
        part = trajectory[start : start + 256]
        monitor.update(part.times, part.positions, part.momenta, **part.scalars)
    return monitor.summary()


class TrustMonitor:
    """Watches a run chunk by chunk in constant memory; the chunks do not change the result.

    atoms: numbers, masses, cell and pbc are taken from it. cutoff: the model's, in Å; None: do not
    look for atoms without neighbours. window: stride of the rollout (fs); None: do not compare the
    parts of windows. thermostat_K: what a thermostat keeps the temperature at; None: constant
    energy. unsure: what the model knows of the errors of its forces. Raises ValueError for a cutoff
    that is not positive.

    ``update`` takes the frames in order, with their potential energies and the heat of a thermostat
    or without, the first one being the reference; ``summary`` can be called at any time after it.
    What is warned of, and when:

    * in an isolated molecule the energy is spread less evenly over bands of the spectrum, stretches
      and elements than chance allows (:mod:`.equipartition`), in all of a run of a picosecond or
      more or in its last half; where potential energies are known, the less is allowed the less
      their work accounts for the changes of the kinetic energy (in frames at least 5 fs apart);
    * elements differ in temperature by more than 10 % in the last fifth of the run, and more than
      chance allows for so few atoms;
    * the temperature depends on the time within the window, where frames divide it evenly;
    * the total energy leaves that of the start by a quarter of the kinetic energy; with a
      thermostat, which takes away what comes in, that less its heat, as fast as that in 10 ps and
      by more than it wanders by chance;
    * the temperature after 300 fs differs from that of 100 to 300 fs by more than 10 %, and more
      than chance allows (in runs of a picosecond or more);
    * the temperature changes by more than 10 % from the first to the last fifth, and more than
      chance allows in so short a time;
    * the mean temperature is less than half of that of the start, and more than chance allows (in
      runs of 500 fs or more);
    * with a thermostat, instead of these three: the temperature of the last fifth differs from the
      thermostat's by more than 10 %, and more than chance allows;
    * the centre of mass leaves its straight line by more than 0.01 Å, and by more than 0.5 % of the
      way it makes at its thermal speed (velocities are rounded in some files);
    * the angular momentum of an isolated system changes by more than 5 % of its thermal size;
    * bonds break or form (as :func:`bond_changes` has it) or atoms have no neighbour within the
      cutoff, looked for in frames at least 5 fs apart;
    * the model expects larger errors of the forces on an atom than on those it was trained on;
    * numbers are not finite, those of the energies among them, or atoms sit on each other.

    Temperatures are those of the motion relative to the centre of mass, with the degrees of freedom
    each atom really has (:func:`atomic_degrees_of_freedom`); the rotation of an isolated system
    counts as one if it rotates in the first frame.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        cutoff: float | None = None,
        window: float | None = None,
        thermostat_K: float | None = None,
        unsure: Unsure | None = None,
    ) -> None:
        self._thermostat_K = thermostat_K
        self._unsure = unsure
        self._squares = np.zeros(len(atoms))  # of the expected errors of forces (eV/Å)^2, summed
        self._asked = 0  # frames
        self._next_unsure = -math.inf
        self._window = window
        self._bands = BandWatch(atoms.get_masses())
        self._spacing: float | None = None  # of the first two frames (fs)
        self._phases = np.zeros((_PHASES, 2))  # temperatures summed, and how many
        self._early = np.zeros(2)  # likewise, at the times _EARLY_FS
        self._later = np.zeros(2)  # and after them
        self._known: set[str] | None = None  # of potential_energies and heat; the first will tell
        # The total energy less the heat is called conserved here.
        # rows of time (fs), conserved energy less the start's, kinetic energy and heat (eV)
        self._energies = BlockMeans(4)
        self._heat = 0.0  # eV, of the last frame
        # rows of time (fs), and the squares of the changes of conserved and kinetic energy since
        # the frame before (eV^2), of frames that are looked at
        self._work = BlockMeans(3)
        self._before: tuple[float, float, float] | None = None  # time, conserved, kinetic energy
        self._start_energy: float | None = None
        self._no_energy_from = math.inf  # fs
        self._early_energy = np.zeros(2)  # summed over the first _FIRST_FS, and how many
        self._first_lonely = math.inf
        self._said: list[_Doubt] = []
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

    def update(
        self,
        times: ArrayLike,
        positions: ArrayLike,
        momenta: ArrayLike,
        potential_energies: ArrayLike | None = None,
        heat: ArrayLike | None = None,
    ) -> None:
        """Look at frames: times [k] fs, positions [k, atoms, 3] Å, momenta [k, atoms, 3]
        sqrt(eV amu), potential energies, and heat that a thermostat has put in by then, [k] eV of
        all frames or, with None, of none.

        Energies that are not finite are left out, and warned of. Raises ValueError for wrong
        shapes, if the very first frame is not usable, or if only some frames have energies or heat.
        """
        t, x, p, scalars = frame_arrays(
            len(self._atoms),
            times,
            positions,
            momenta,
            potential_energies=potential_energies,
            heat=heat,
        )
        if len(t) == 0 or self._unusable is not None:
            return
        if self._known is None:
            self._known = set(scalars)
        for name in sorted(self._known.symmetric_difference(scalars)):
            these, before = ("have no", "had") if name in self._known else ("have", "had no")
            raise ValueError(
                f"frames from {t[0]:g} fs on {these} {name.replace('_', ' ')}, those before "
                f"{before}: give them of all frames, or of none"
            )
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
        if self._unsure is not None:
            self._add_unsure(self._unsure, t[:usable], x[:usable])
        if usable and "potential_energies" in scalars:
            seen = {k for k in looks if k < usable}
            given = scalars.get("heat", np.zeros(len(t)))
            self._add_energies(
                t[:usable], v[:usable], scalars["potential_energies"][:usable], given[:usable], seen
            )
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
                alone = degrees == 0
                self._lonely |= alone.any(axis=0)
                if np.isinf(self._first_lonely) and alone.any():
                    self._first_lonely = float(t[alone.any(axis=1)][0])
        except ValueError:  # the neighbour list refuses atoms that sit on each other
            half = len(t) // 2
            if half == 0 or (first := self._look(t[:half], x[:half])) == 0:
                return 0
            return first if first < half else half + self._look(t[half:], x[half:])
        return len(t)

    def _add_energies(
        self, t: Array, v: Array, potential: Array, given: Array, looks: set[int]
    ) -> None:
        """Take in the energies of all frames, and the work between those that are looked at."""
        kinetic = 0.5 * EV * np.sum(self._masses[:, None] * v**2, axis=(1, 2))
        columns = t, kinetic + potential - given, kinetic, given
        for k, (time, energy, moving, heat) in enumerate(np.column_stack(columns).tolist()):
            if not math.isfinite(energy):
                self._no_energy_from = min(self._no_energy_from, time)
                continue
            if self._start_energy is None:
                self._start_energy = energy
            relative = energy - self._start_energy
            self._energies.add(np.array([time, relative, moving, heat]))
            self._heat = heat
            if time - self._start <= _FIRST_FS:
                self._early_energy += relative, 1
            if k in looks:
                change = work = 0.0
                if self._before is not None and time - self._before[0] <= _STEP_FS + 1e-6:
                    change, work = energy - self._before[1], moving - self._before[2]
                self._before = time, energy, moving
                self._work.add(np.array([time, change**2, work**2]))

    def _add_unsure(self, unsure: Unsure, t: Array, x: Array) -> None:
        asked = []
        for k, time in enumerate(t.tolist()):
            if time >= self._next_unsure:
                self._next_unsure = time + _UNSURE_EVERY_FS
                asked.append(k)
        step = max(1, FRAME_ROWS // len(self._atoms))
        for begin in range(0, len(asked), step):
            errors = unsure.of(x[asked[begin : begin + step]])
            self._squares += np.square(errors).sum(0)
            self._asked += len(errors)

    def _begin(self, time: float, positions: Array, velocities: Array) -> None:
        m = self._masses
        x, v = positions[None], velocities[None]
        self._atoms.positions[:] = positions
        self._bonds = BondWatch(self._atoms, positions)
        light = (self._atoms.numbers == 1) & (self._masses < 1.5)
        bonded = np.isin(np.arange(len(light)), self._bonds.pairs)
        heavier = (self._atoms.numbers == 1) & ~light
        self._hydrogens = 0 if heavier.any() else int((light & bonded).sum())
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
        self._freedom = float(np.nansum(self._dof))
        energy = float(m @ np.sum(relative[0] ** 2, axis=1))
        self._start_temperature = energy * (EV / kB) / float(self._dof.sum())
        self._blocks = BlockMeans(2 + len(self._elements))

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
        if not self._periodic:
            self._bands.update(t, relative)
        if self._spacing is None and self._frames + len(t) > 1:
            self._spacing = float(t[1] - t[0] if len(t) > 1 else t[0] - self._start)
        if self._window is not None and self._tells_phases(self._window):
            # a window's end belongs to it: its frames are (0, window]
            part = np.ceil((t - self._start) / self._window * _PHASES - 1e-6).astype(int) - 1
            for k, value in zip((part % _PHASES).tolist(), overall.tolist(), strict=True):
                self._phases[k] += value, 1
        begin, stop = _EARLY_FS
        for time, value in zip((t - self._start).tolist(), overall.tolist(), strict=True):
            if time > stop:
                self._later += value, 1
            elif time >= begin:
                self._early += value, 1
        self._frames += len(t)

    def _tells_phases(self, window: float) -> bool:
        """Whether frames come at the same parts of every window.

        Where they do not, a part is met at a spacing that slow vibrations keep time with, and their
        kinetic energy looks like a dependence on the part.
        """
        if self._spacing is None:
            return True
        if self._spacing <= 0:
            return False
        frames = window / self._spacing
        return abs(frames - round(frames)) < 1e-6 * frames

    def doubt(self, since_fs: float, text: str) -> None:
        """Warn, first of all, of something that frames do not show, and since when."""
        self._said.append(_Doubt(since_fs, text))

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
        spin: float | None = None
        if not self._periodic:
            thermal = math.sqrt(max(0.0, np.nan_to_num(overall.mean)) * kB / EV * self._inertia)
            spin = self._spin_drift / thermal if thermal > 0 else 0.0
        broken, formed = self._bonds.changes()
        power = self._bands.power()
        summary = TrustSummary(
            frames=self._frames,
            start_fs=self._start,
            end_fs=self._end,
            start_temperature=self._start_temperature,
            temperature=overall,
            temperature_drift=1000 * _slope(t, means[:, 1], weights),
            elements=elements,
            strongest_band=None if power is None else strongest_band(power, self._bands.bin),
            occupied_bands=None if power is None else occupied_bands(power, self._bands.bin),
            phase_spread=self._phase_spread(),
            energies=self._energy_means(),
            energy_change=self._energy_change(),
            unexplained_work=self._unexplained_work(),
            force_errors=self._force_errors(),
            centre_of_mass_drift=self._com_drift,
            angular_momentum_drift=spin,
            bonds=len(self._bonds.pairs),
            broken=broken,
            formed=formed,
            lonely_atoms=tuple(np.flatnonzero(self._lonely).tolist()),
            unusable_from_fs=self._unusable,
            believable_fs=self._end,
            warnings=(),
        )
        warnings = [*self._said, *self._warnings(summary)]
        return dataclasses.replace(
            summary,
            believable_fs=min([self._end, *(since for since, _ in warnings)]),
            warnings=tuple(text for _, text in warnings),
        )

    def _energy_means(self) -> Energies | None:
        if self._start_energy is None:
            return None
        rows, count = self._energies.means()
        conserved, kinetic, heat = np.average(rows[:, 1:], axis=0, weights=count).tolist()
        total = self._start_energy + conserved + heat
        drift: float | None = None
        if self._tells_conserved() and len(rows) > 1:
            drift = 1e6 * _slope(rows[:, 0], rows[:, 1], count) / len(self._atoms)
        last = self._heat if self._with_heat() else None
        return Energies(total, total - kinetic, kinetic, drift, last)

    def _with_heat(self) -> bool:
        return self._known is not None and "heat" in self._known

    def _tells_conserved(self) -> bool:
        """Whether what is known of the energies should stay as it is."""
        return self._thermostat_K is None or self._with_heat()

    def _energy_change(self) -> float | None:
        """Of the conserved energy, if it is known, from the first _FIRST_FS to the last fifth."""
        if not self._early_energy[1] or not self._tells_conserved():
            return None
        rows, count = self._energies.means()
        late = rows[:, 0] >= min(self._end - (self._end - self._start) / 5, rows[-1, 0])
        early = self._early_energy[0] / self._early_energy[1]
        return float(np.average(rows[:, 1], weights=count * late) - early)

    def _wandering(self) -> float:
        """How far (eV) the conserved energy gets by chance: three standard deviations.

        With a thermostat it wanders though nothing is wrong. Windows of finite length conserve
        something near the energy; by how much they are off is drawn anew as the thermostat acts,
        and the heat sums that up (the shadow work of D. A. Sivak, J. D. Chodera, G. E. Crooks,
        Phys. Rev. X 3, 011007 (2013)). Means of neighbouring blocks of a random walk differ by two
        thirds of its variance in a block.
        """
        if not self._with_heat():
            return 0.0
        rows, _ = self._energies.means()
        return 3 * math.sqrt(1.5 * float(np.sum(np.diff(rows[:, 1]) ** 2)))

    def _phase_spread(self) -> float | None:
        """Relative difference of the temperatures of parts of the window, where frames tell."""
        total, count = self._phases[self._phases[:, 1] >= 50].T
        if len(total) < 2 or not total.sum() > 0:
            return None
        means = total / count
        return float(np.ptp(means) / means.mean())

    def _force_errors(self) -> tuple[float, ...] | None:
        if not self._asked:
            return None
        return tuple(np.sqrt(self._squares / self._asked).tolist())

    def _unexplained_work(self, begin: float = -math.inf, end: float = math.inf) -> float | None:
        """How much of the kinetic energy's changes the potential does not account for."""
        if self._start_energy is None or self._thermostat_K is not None:
            return None
        rows, count = self._work.means()
        change, work = (count * ((rows[:, 0] >= begin) & (rows[:, 0] <= end))) @ rows[:, 1:]
        return math.sqrt(change / work) if work > 0 else None

    def _uneven_since(self) -> float | None:
        """From when on (fs) energy is spread less evenly than chance allows, if it is at all.

        Looked at over the whole run and its last half; then, to say since when, over parts of it.
        """
        if self._bands.power() is None or len(self._atoms) < 3:
            return None
        means, weights = self._blocks.means()
        # stretches of bonds to hydrogen lie close together, in some two bands
        distinct = self._freedom - max(0, self._hydrogens - 2)

        def chance(begin: float, end: float) -> float:
            power = self._bands.power(begin, end)
            frames = weights * ((means[:, 0] >= begin) & (means[:, 0] <= end))
            if power is None or not frames.any():
                return 1.0
            elements = np.average(means[:, 2:], axis=0, weights=frames)
            return (
                chance_of_bands(occupied_bands(power, self._bands.bin), distinct)
                * chance_of_stretches(power, self._bands.bin, self._hydrogens, self._freedom)
                * chance_of_elements(elements, self._dof)
                * chance_of_work(self._unexplained_work(begin, end))
            )

        start, end = self._start, self._end
        if min(chance(start, end), chance((start + end) / 2, end)) >= _UNEVEN:
            return None
        parts = np.linspace(start, end, 1 + max(1, min(10, int((end - start) / SEGMENT_FS))))
        since = start
        for begin, stop in zip(parts, parts[1:], strict=False):
            if chance(begin, stop) >= _UNEVEN**0.5:
                since = float(stop)
        return min(since, float(parts[-2])) if len(parts) > 2 else start

    def _warnings(self, seen: TrustSummary) -> Iterator[_Doubt]:
        start_fs, end_fs = seen.start_fs, seen.end_fs
        if seen.unusable_from_fs is not None:
            yield _Doubt(
                seen.unusable_from_fs,
                f"at {seen.unusable_from_fs:g} fs the run broke down: numbers that are not finite, "
                "or atoms on top of each other; use nothing from then on",
            )
        if seen.broken:
            yield _Doubt(
                seen.broken[0].time_fs,
                f"{len(seen.broken)} bond{_s(seen.broken)} broke: {_listed(seen.broken)}",
            )
        if seen.formed:
            yield _Doubt(
                seen.formed[0].time_fs,
                f"{len(seen.formed)} bond{_s(seen.formed)} formed: {_listed(seen.formed)}",
            )
        yield from self._temperature_doubts(seen)
        yield from self._equipartition_doubts(seen)
        if self._unsure is not None and seen.force_errors is not None:
            errors, usual = np.array(seen.force_errors), self._unsure.usual
            far = np.flatnonzero(errors > usual)
            if len(far):
                worst = far[np.argsort(-errors[far])]
                yield _Doubt(
                    start_fs,
                    f"the model expects errors of up to {errors.max():.2f} eV/Å in the forces on "
                    f"{len(far)} atom{_s(far)}, where those of what it was trained on stay below "
                    f"{usual:.2f}: {_listed([self._name(i) for i in worst])}; it has seen nothing "
                    "like these surroundings",
                )

        if self._no_energy_from < math.inf:
            yield _Doubt(
                self._no_energy_from,
                f"the potential energy{' or the heat' if self._with_heat() else ''} at "
                f"{self._no_energy_from:g} fs is not a finite number",
            )
        if seen.phase_spread is not None:
            length = max(end_fs - start_fs, 1e-9)
            if seen.phase_spread > _PHASE * max(1.0, _PHASE_FS / length):
                yield _Doubt(
                    start_fs,
                    "the temperature depends on the time within the window, by "
                    f"{100 * seen.phase_spread:.0f} %: the run is locked to the window",
                )

        kinetic = 0.5 * kB * float(np.nan_to_num(seen.temperature.mean * self._freedom))
        allowed = _ENERGY * kinetic
        if self._with_heat():
            allowed *= max(1.0, (end_fs - start_fs) / _ENERGY_FS)
        if seen.energy_change is not None and abs(seen.energy_change) > max(
            allowed, self._wandering()
        ):
            less = " less the heat put in" if self._with_heat() else ""
            yield _Doubt(
                start_fs + (end_fs - start_fs) / 5,
                f"the total energy{less} left that of the start by {seen.energy_change:+.3f} eV, "
                f"where the kinetic energy is {kinetic:.3f} eV",
            )

        speed = math.sqrt(3 * kB / EV * np.nan_to_num(seen.temperature.mean) / self._masses.sum())
        rounded = _ROUNDED * speed * (end_fs - start_fs)
        if seen.centre_of_mass_drift > max(CENTRE_OF_MASS, rounded):
            yield _Doubt(
                start_fs,
                "the centre of mass left its straight line by "
                f"{seen.centre_of_mass_drift:.3g} Å: momentum is not conserved",
            )
        spin = seen.angular_momentum_drift
        if spin is not None and spin > ANGULAR_MOMENTUM:
            yield _Doubt(
                start_fs,
                f"the angular momentum changed by {100 * spin:.0f} % of its thermal size: it is "
                "not conserved",
            )
        if lonely := seen.lonely_atoms:
            yield _Doubt(
                self._first_lonely,
                f"{len(lonely)} atom{_s(lonely)} had no neighbour within the model's cutoff: "
                f"{_listed([self._name(i) for i in lonely])}; the model cannot see what acts "
                "on them",
            )

    def _name(self, atom: int) -> str:
        return f"{self._atoms.symbols[atom]}{atom}"

    def _temperature_doubts(self, seen: TrustSummary) -> Iterator[_Doubt]:
        """Heating and cooling."""
        overall = seen.temperature
        fifth = (seen.end_fs - seen.start_fs) / 5
        independent = max(1.0, fifth / _CORRELATION_FS)
        one = math.sqrt(2 / (self._freedom * independent)) if self._freedom else math.nan
        if self._thermostat_K is not None:
            off = overall.last / self._thermostat_K - 1
            if fifth >= _CORRELATION_FS and abs(off) > max(DRIFT, 3 * one):
                yield _Doubt(
                    seen.start_fs + 4 * fifth,
                    f"the temperature of the last fifth is {overall.last:.0f} K, that of the "
                    f"thermostat {self._thermostat_K:.0f} K",
                )
            return
        change = overall.last / overall.first - 1 if overall.first > 0 else math.nan
        if abs(change) > max(DRIFT, 3 * math.sqrt(2) * one):
            yield _Doubt(
                seen.start_fs + fifth,
                f"the temperature {'rose' if change > 0 else 'fell'} by {100 * abs(change):.0f} % "
                f"from {overall.first:.0f} K to {overall.last:.0f} K: energy is not conserved",
            )
        elif self._early[1] and self._later[1] and seen.end_fs - seen.start_fs >= _CHANGED_FS:
            early, later = (total / count for total, count in (self._early, self._later))
            change = later / early - 1 if early > 0 else math.nan
            if abs(change) > max(_CHANGED, _CHANGED_BY_CHANCE / math.sqrt(self._freedom)):
                yield _Doubt(
                    seen.start_fs + _EARLY_FS[1],
                    f"the temperature {'rose' if change > 0 else 'fell'} from {early:.0f} K at "
                    f"{_EARLY_FS[0]:g} to {_EARLY_FS[1]:g} fs to {later:.0f} K later: energy is "
                    "not conserved",
                )

        # From a minimum of the potential half of the kinetic energy goes into vibrations; a start
        # drawn in equilibrium may be hotter than the mean by chance. Less than both is a loss.
        start = seen.start_temperature
        least = 0.5 * start / (1 + 3 * math.sqrt(2 / self._freedom)) if self._freedom else 0.0
        if seen.frames > 1 and fifth >= _CORRELATION_FS and overall.mean < least:
            yield _Doubt(
                seen.start_fs,
                f"the temperature fell from {start:.0f} K at the start to a mean of "
                f"{overall.mean:.0f} K, more than vibrations can take up: energy is lost",
            )

    def _equipartition_doubts(self, seen: TrustSummary) -> Iterator[_Doubt]:
        """Vibrations and elements that have more than their share of the energy."""
        elements = seen.elements
        if (since := self._uneven_since()) is not None:
            power = self._bands.power()
            assert power is not None and seen.strongest_band is not None
            share, where = seen.strongest_band
            hot = max(elements, key=lambda name: elements[name].mean)
            cold = min(elements, key=lambda name: elements[name].mean)
            hydrogen = share_of_stretches(power, self._bands.bin)
            of_hydrogen = ""
            if self._hydrogens and hydrogen is not None:
                of_hydrogen = (
                    f"; stretches of bonds to hydrogen hold {100 * hydrogen:.0f} %, of "
                    f"{100 * self._hydrogens / self._freedom:.0f} %"
                )
            work = ""
            if seen.unexplained_work is not None:
                work = (
                    f"; the potential leaves {100 * seen.unexplained_work:.0f} % of the "
                    "changes of the kinetic energy unexplained"
                )
            yield _Doubt(
                since,
                f"energy is not spread as at equilibrium: a band at {where:.0f} cm^-1 holds "
                f"{100 * share:.0f} % of the kinetic energy, {hot} is at "
                f"{elements[hot].mean:.0f} K and {cold} at {elements[cold].mean:.0f} K"
                f"{of_hydrogen}{work}",
            )

        # The two elements that differ most among those that differ by more than chance.
        fifth = (seen.end_fs - seen.start_fs) / 5
        shuffled = max(1.0, fifth / _REDISTRIBUTION_FS)
        found: tuple[float, str, str] | None = None
        for (a, hotter), f in zip(elements.items(), self._dof, strict=True):
            for (b, colder), g in zip(elements.items(), self._dof, strict=True):
                if colder.last > 0:
                    excess = hotter.last / colder.last - 1
                    chance = fdtri(f * shuffled, g * shuffled, 1 - _RARE) - 1
                    if excess > max(EQUIPARTITION, chance) and (not found or excess > found[0]):
                        found = excess, a, b
        if found is not None:
            excess, a, b = found
            before = (
                elements[a].first / elements[b].first - 1 if elements[b].first > 0 else math.nan
            )
            yield _Doubt(
                seen.end_fs - fifth,
                f"element {a} is {100 * excess:.0f} % hotter than {b} in the last fifth of the run "
                f"({100 * before:+.0f} % in the first): equipartition is lost",
            )


def _slope(times: Array, values: Array, weights: Array) -> float:
    """Of the line of least squares, per fs; nan for one time."""
    if not times[-1] > times[0]:
        return math.nan
    t = times - np.average(times, weights=weights)
    return float((weights * t) @ values / ((weights * t) @ t))


class _Doubt(NamedTuple):
    """What there is to warn of, and since when (fs)."""

    since_fs: float
    text: str


def _s(items: Any) -> str:
    return "s" if len(items) > 1 else ""


def _listed(items: Iterable[Any], most: int = 5) -> str:
    texts = [str(item) for item in items]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
