"""What a trajectory says: spectra, temperatures, bonds, conservation laws, and whether to trust it.

Arrays are NumPy float64: positions Å, velocities Å/fs, times fs, masses amu, temperatures K.
Positions are unwrapped, as this package writes them. :class:`TrustMonitor` looks at a run while it
goes, in constant memory; :func:`trust_summary` feeds a finished :class:`Trajectory` through it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.units import fs, kB
from numpy.typing import ArrayLike, NDArray
from scipy.fft import next_fast_len
from scipy.special import fdtri

from .neighbors import NeighborList, neighbor_list
from .trajectory import Trajectory, velocities_from_momenta

Array = NDArray[np.float64]

WAVENUMBER = 33356.40951981521  # cm^-1 per fs^-1: 1 / (speed of light in cm/fs)
EV = 1 / fs**2  # eV per amu (Å/fs)^2

# ---------------------------------------------------------------------------------- spectra

# Width at half maximum of the power spectrum of a Hann window, in units of 1 / its length.
_HANN_WIDTH = 1.44
_AT_ONCE = 2**20  # vectors to transform together: bounds the memory


def vibrational_density_of_states(
    velocities: ArrayLike,
    masses: ArrayLike,
    dt_fs: float,
    *,
    resolution: float = 20.0,
    max_wavenumber: float = 4500.0,
) -> tuple[Array, Array]:
    """Power spectrum of the mass-weighted velocities, the Fourier transform of
    sum_i m_i <v_i(0) . v_i(t)>, by Welch's method.

    The run is cut into segments that overlap by half, just long enough that a sharp line comes out
    ``resolution`` wide (full width at half maximum); each is tapered with a Hann window, padded
    with zeros to at least four times its length, and the squared transforms are averaged.

    Arguments
        velocities: [frames, atoms, 3] Å/fs, frames evenly spaced.
        masses: [atoms] amu.
        dt_fs: time between frames.
        resolution: cm^-1; a segment lasts 48,033 fs / resolution (2.4 ps at 20 cm^-1).
        max_wavenumber: cm^-1, where the result ends.

    Returns (wavenumber [bins] in cm^-1, intensity [bins] in cm). The integral of the intensity
    from zero to the Nyquist wavenumber is 1, so that what is returned integrates to the share of
    the kinetic energy below ``max_wavenumber``; times 3N it is a density of modes if every mode
    has the same energy.

    Raises ValueError for wrong shapes, velocities that are all zero or not finite, frames too
    coarse for ``max_wavenumber`` (Nyquist), or a run too short for ``resolution``.
    """
    from scipy.signal import welch  # here, for it takes long to import

    v, m = _velocities(velocities, masses)
    frames, atoms = v.shape[:2]
    if not dt_fs > 0:
        raise ValueError(f"got dt_fs = {dt_fs}; expected a positive time between frames in fs")
    if not 0 < resolution < max_wavenumber:
        raise ValueError(
            f"got resolution = {resolution} and max_wavenumber = {max_wavenumber} cm^-1; expected "
            "0 < resolution < max_wavenumber"
        )
    nyquist = WAVENUMBER / (2 * dt_fs)
    if nyquist < max_wavenumber:
        raise ValueError(
            f"frames every {dt_fs:g} fs show wavenumbers up to {nyquist:.0f} cm^-1, not "
            f"{max_wavenumber:g}: save a frame every {WAVENUMBER / (2 * max_wavenumber):.2f} fs or "
            "less, or lower max_wavenumber if nothing vibrates faster"
        )
    segment = math.ceil(_HANN_WIDTH * WAVENUMBER / (resolution * dt_fs))
    if frames < segment:
        finest = _HANN_WIDTH * WAVENUMBER / (frames * dt_fs)
        raise ValueError(
            f"{frames} frames every {dt_fs:g} fs resolve {finest:.1f} cm^-1, not {resolution:g}: "
            f"give at least {segment} frames ({segment * dt_fs / 1000:.2f} ps) or "
            f"resolution >= {finest:.1f}"
        )
    padded = next_fast_len(4 * segment, real=True)
    power = np.zeros(padded // 2 + 1)
    at_once = max(1, _AT_ONCE // frames)  # atoms
    for start in range(0, atoms, at_once):
        part = slice(start, start + at_once)
        _, p = welch(v[:, part], nperseg=segment, nfft=padded, detrend=False, axis=0)
        power += np.einsum("fax,a->f", p, m[part])
    step = WAVENUMBER / (padded * dt_fs)
    wavenumber = step * np.arange(len(power))
    total = step * np.sum(power[1:] + power[:-1]) / 2  # trapezoids
    if not (np.isfinite(total) and total > 0):
        raise ValueError("the velocities are all zero or not finite: there is no spectrum")
    keep = wavenumber <= max_wavenumber
    return wavenumber[keep], power[keep] / total


def peaks(
    wavenumber: ArrayLike, intensity: ArrayLike, count: int = 10, prominence: float = 0.02
) -> list[tuple[float, float]]:
    """The ``count`` highest peaks as (wavenumber, intensity), in the order of the wavenumber.

    A peak must rise above its surroundings by ``prominence`` times the highest intensity.
    """
    from scipy.signal import find_peaks

    w, y = np.asarray(wavenumber), np.asarray(intensity)
    found, _ = find_peaks(y, prominence=prominence * y.max())
    highest = sorted(found[np.argsort(-y[found])[:count]])
    return [(float(w[i]), float(y[i])) for i in highest]


# ---------------------------------------------------------------------------------- temperature


def kinetic_temperature(
    velocities: ArrayLike, masses: ArrayLike, degrees_of_freedom: float | None = None
) -> Array:
    """sum_i m_i v_i^2 / (kB degrees_of_freedom) of each frame, [frames] in K.

    velocities [frames, atoms, 3] Å/fs, masses [atoms] amu. The default is 3N degrees of freedom,
    ASE's convention; see :func:`degrees_of_freedom` for what a molecule at rest has.
    """
    v, m = _velocities(velocities, masses)
    dof = 3 * len(m) if degrees_of_freedom is None else degrees_of_freedom
    if not dof > 0:
        raise ValueError(f"got {dof} degrees of freedom; a temperature needs a positive number")
    return np.einsum("a,fax,fax->f", m, v, v) * (EV / (kB * dof))


def temperature_per_element(
    velocities: ArrayLike,
    masses: ArrayLike,
    numbers: ArrayLike,
    degrees_of_freedom: ArrayLike | None = None,
) -> dict[str, Array]:
    """The kinetic temperature of the atoms of each element, {symbol: [frames] in K}.

    ``degrees_of_freedom`` [atoms], 3 each by default. In a small system without net momentum and
    rotation the atoms have fewer, the heavy ones most of all (0.2 for the oxygen of one water
    molecule): take them from :func:`atomic_degrees_of_freedom`, or oxygen looks cold.
    """
    v, m = _velocities(velocities, masses)
    z = np.asarray(numbers)
    dof = np.full(len(m), 3.0) if degrees_of_freedom is None else np.asarray(degrees_of_freedom)
    if z.shape != m.shape or dof.shape != m.shape:
        raise ValueError(
            f"got numbers {z.shape} and degrees_of_freedom {dof.shape} for {len(m)} atoms; "
            "expected [atoms] of both"
        )
    return {
        chemical_symbols[element]: kinetic_temperature(
            v[:, z == element], m[z == element], float(dof[z == element].sum())
        )
        for element in np.unique(z)
    }


def rotation_axes(atoms: ase.Atoms) -> Array:
    """The orthonormal principal axes about which an isolated system can rotate, [axes, 3].

    Three of them; two for a linear system, turning about whose line moves nothing; none for one
    atom. A system counts as linear if all atoms are within 0.3 Å of one line through the centre
    of mass: vibrations bend it. Whether the system is isolated is for the caller to say.
    """
    if len(atoms) < 2:
        return np.empty((0, 3))
    m = atoms.get_masses()
    r = atoms.positions - m @ atoms.positions / m.sum()
    _, _, axes = np.linalg.svd(r * np.sqrt(m)[:, None])  # the first: the line closest to all atoms
    off_axis = np.linalg.norm(r - np.outer(r @ axes[0], axes[0]), axis=1)
    return axes if off_axis.max() > 0.3 else axes[1:]


def atomic_degrees_of_freedom(atoms: ase.Atoms, rotation: bool | None = None) -> Array:
    """How many degrees of freedom each atom has once overall motion is taken out, [atoms].

    At equilibrium <m_i v_i^2> = kB T times this number. It is 3 less the share of atom i in the
    motions taken out: the diagonal of the projector on the mass-weighted translations
    sqrt(m_i) e_a and, for the :func:`rotation_axes` e, rotations sqrt(m_i) e x (r_i - centre).
    The sum is 3N - 3 for a periodic system, 3N - 6 for an isolated one and 3N - 5 for a linear one.

    rotation: whether the overall rotation is taken out, too; by default if no axis is periodic.
    """
    if rotation is None:
        rotation = not atoms.pbc.any()
    m = atoms.get_masses()
    about = rotation_axes(atoms) if rotation else np.empty((0, 3))
    r = atoms.positions - m @ atoms.positions / m.sum()
    modes = np.empty((len(m), 3, 3 + len(about)))
    modes[:, :, :3] = np.eye(3)
    modes[:, :, 3:] = np.cross(about, r[:, None]).transpose(0, 2, 1)
    modes *= np.sqrt(m)[:, None, None]
    basis, _ = np.linalg.qr(modes.reshape(3 * len(m), -1))
    return 3 - np.sum(basis**2, axis=1).reshape(-1, 3).sum(axis=1)


def degrees_of_freedom(atoms: ase.Atoms, rotation: bool | None = None) -> int:
    """3N less 3 for the net momentum, less 3 (linear: 2) for the rotation of an isolated system.

    The sum of :func:`atomic_degrees_of_freedom`, which see.
    """
    return round(float(atomic_degrees_of_freedom(atoms, rotation).sum()))


# ---------------------------------------------------------------------------------- bonds

# A pair is bonded at the start if nearer than BONDED times the sum of its covalent radii; such a
# bond is broken once longer than BROKEN times it, and a pair that was not bonded forms a bond once
# nearer than FORMED times it. Vibrations stay inside the gaps up to some 1000 K.
BONDED, BROKEN, FORMED = 1.3, 1.5, 1.15


@dataclass(frozen=True)
class BondChange:
    """A bond that broke or formed: the atoms, when first, and how long it was then."""

    atoms: tuple[int, int]
    elements: tuple[str, str]
    time_fs: float
    length: float  # Å

    def __str__(self) -> str:
        (i, j), (a, b) = self.atoms, self.elements
        return f"{a}{i}-{b}{j} at {self.time_fs:g} fs ({self.length:.2f} Å)"


class BondChanges(NamedTuple):
    """What :func:`bond_changes` found, each in the order of time."""

    broken: tuple[BondChange, ...]
    formed: tuple[BondChange, ...]


def bonds(
    numbers: ArrayLike,
    positions: ArrayLike,
    cell: ArrayLike | None = None,
    pbc: ArrayLike | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of atoms nearer than 1.3 times the sum of their covalent radii, each once.

    numbers [atoms], positions [atoms, 3] Å, cell [3, 3] Å, pbc [3].
    Returns pairs [bonds, 2] and shifts [bonds, 3]: the second atom sits at
    ``positions[j] + shift @ cell``. Linear cost. Raises ValueError as ``neighbor_list``.
    """
    x = np.asarray(positions, dtype=np.float64)
    radii = covalent_radii[np.asarray(numbers)]
    edges = neighbor_list(x, 2 * BONDED * radii.max(), cell, pbc)
    i = np.repeat(np.arange(len(x)), np.diff(edges.row_ptr))
    j, shift = edges.neighbor.astype(np.int64), edges.shift.astype(np.int64)
    # Each pair once: i < j, and of an atom and its own image the one whose shift is positive in
    # its first component that is not zero (signs weighed 4, 2, 1 add up to the sign of that one).
    once = (i < j) | ((i == j) & (np.sign(shift) @ [4, 2, 1] > 0))
    lengths = _lengths(x, i, j, shift, cell)
    kept = once & (lengths < BONDED * (radii[i] + radii[j]))
    return np.stack((i, j), axis=1)[kept], shift[kept]


def bond_changes(trajectory: Trajectory) -> BondChanges:
    """Bonds of the first frame that break later, and pairs that form one, each with its first time.

    The thresholds are far apart, so that a vibration is neither (times the sum of covalent radii):
    bonded below 1.3, broken above 1.5, formed below 1.15. A pair of atoms counts once whatever the
    periodic image.
    """
    watch = _BondWatch(trajectory.atoms, trajectory.positions[0])
    for time, positions in zip(trajectory.times, trajectory.positions, strict=True):
        watch.update(float(time), positions)
    return watch.changes()


class _BondWatch:
    def __init__(self, atoms: ase.Atoms, positions: Array) -> None:
        periodic = bool(atoms.pbc.any())
        self.cell = atoms.cell[:] if periodic else None
        self.pbc = atoms.pbc if periodic else None
        self.symbols = atoms.get_chemical_symbols()
        self.radii = covalent_radii[atoms.numbers]
        self.pairs, self.shifts = bonds(atoms.numbers, positions, self.cell, self.pbc)
        self.limits = BROKEN * self.radii[self.pairs].sum(axis=1)
        # Sorted, with a last one above all others, so that a search always ends on a key.
        self.keys = np.append(np.unique(self._key(*self.pairs.T)), np.iinfo(np.int64).max)
        self.near = NeighborList(2 * FORMED * self.radii.max(), skin=0.5)
        self.broken: dict[int, BondChange] = {}
        self.formed: dict[int, BondChange] = {}

    def _key(self, i: NDArray, j: NDArray) -> NDArray[np.int64]:
        return i.astype(np.int64) * len(self.radii) + j

    def _change(self, i: int, j: int, time: float, length: float) -> BondChange:
        elements = (self.symbols[i], self.symbols[j])
        return BondChange((int(i), int(j)), elements, time, float(length))

    def update(self, time: float, positions: Array) -> None:
        i, j = self.pairs.T
        lengths = _lengths(positions, i, j, self.shifts, self.cell)
        for k in np.flatnonzero(lengths > self.limits).tolist():
            if k not in self.broken:
                self.broken[k] = self._change(i[k], j[k], time, lengths[k])

        edges = self.near.update(positions, self.cell, self.pbc)
        i = np.repeat(np.arange(len(positions)), np.diff(edges.row_ptr))
        j = edges.neighbor
        half = i < j
        i, j, shift = i[half], j[half], edges.shift[half]
        lengths = _lengths(positions, i, j, shift, self.cell)
        keys = self._key(i, j)
        known = self.keys[np.searchsorted(self.keys, keys)] == keys
        close = ~known & (lengths < FORMED * (self.radii[i] + self.radii[j]))
        for k in np.flatnonzero(close).tolist():
            if (key := int(keys[k])) not in self.formed:
                self.formed[key] = self._change(i[k], j[k], time, lengths[k])

    def changes(self) -> BondChanges:
        return BondChanges(tuple(self.broken.values()), tuple(self.formed.values()))


def _lengths(x: Array, i: NDArray, j: NDArray, shift: NDArray, cell: ArrayLike | None) -> Array:
    r = x[j] - x[i]
    if cell is not None:
        r += shift @ np.asarray(cell)
    return np.sqrt(np.einsum("ij,ij->i", r, r))


# ---------------------------------------------------------------------------------- conservation


def total_momentum(velocities: ArrayLike, masses: ArrayLike) -> Array:
    """sum_i m_i v_i, [frames, 3] in amu Å/fs."""
    v, m = _velocities(velocities, masses)
    return _sum(m, v)


def total_angular_momentum(positions: ArrayLike, velocities: ArrayLike, masses: ArrayLike) -> Array:
    """sum_i m_i (r_i - R) x (v_i - V) about the centre of mass, [frames, 3] in amu Å^2/fs.

    Conserved by an isolated system, not by a periodic one.
    """
    v, m = _velocities(velocities, masses)
    x = np.asarray(positions, dtype=np.float64)
    x = x - _centre(x, m)[:, None]
    v = v - _centre(v, m)[:, None]
    return _sum(m, np.cross(x, v))


def centre_of_mass_drift(trajectory: Trajectory) -> Array:
    """How far the centre of mass is from the straight line R(0) + V(0) t, [frames, 3] in Å.

    Zero up to rounding if the total momentum is conserved.
    """
    m = trajectory.atoms.get_masses()
    return _drift(
        trajectory.times - trajectory.times[0],
        _centre(trajectory.positions, m),
        _centre(trajectory.positions[:1], m)[0],
        _centre(velocities_from_momenta(trajectory.momenta[:1], m), m)[0],
    )


def _centre(x: Array, m: Array) -> Array:
    return _sum(m / m.sum(), x)


def _sum(weights: Array, x: Array) -> Array:
    # Not einsum: its order of summation, thus the last bit, depends on the number of frames.
    return np.sum(weights[:, None] * x, axis=1)


def _drift(elapsed: Array, centre: Array, start: Array, velocity: Array) -> Array:
    return centre - start - elapsed[:, None] * velocity


def _velocities(velocities: ArrayLike, masses: ArrayLike) -> tuple[Array, Array]:
    v = np.asarray(velocities, dtype=np.float64)
    m = np.asarray(masses, dtype=np.float64)
    if v.ndim != 3 or m.ndim != 1 or v.shape[1:] != (len(m), 3) or len(v) == 0:
        raise ValueError(
            f"got velocities of shape {v.shape} and masses of shape {m.shape}; expected "
            "[frames, atoms, 3] with at least one frame, and [atoms]"
        )
    return v, m


# ---------------------------------------------------------------------------------- trust

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
        chunk = Trajectory(self._atoms, times, positions, momenta)
        if len(chunk) == 0 or self._unusable is not None:
            return
        t, x, v = chunk.times, chunk.positions, chunk.velocities
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(x + v).all(axis=(1, 2)))
        if self._frames == 0:
            if not finite[0]:
                atom = int(np.argwhere(~np.isfinite(x[0] + v[0]))[0, 0])
                raise ValueError(
                    f"atom {atom} has a position or velocity that is not finite in the first frame"
                )
            self._begin(float(t[0]), x[0], v[0])
        usable = len(t) if np.all(finite) else int(np.argmin(finite))
        for k in range(usable):
            if t[k] < self._next_look:
                continue
            self._next_look = float(t[k]) + _LOOK_EVERY_FS
            try:
                self._bonds.update(float(t[k]), x[k])
                if self._near is not None:
                    edges = self._near.update(x[k], self._bonds.cell, self._bonds.pbc)
                    self._lonely |= np.diff(edges.row_ptr) == 0
            except ValueError:  # the neighbour list refuses atoms that sit on each other
                usable = k
                break
        if usable < len(t):
            self._unusable = float(t[usable])
        if usable:
            self._add(t[:usable], x[:usable], v[:usable])

    def _begin(self, time: float, positions: Array, velocities: Array) -> None:
        m = self._masses
        x, v = positions[None], velocities[None]
        self._atoms.positions[:] = positions
        self._bonds = _BondWatch(self._atoms, positions)
        self._start = time
        self._com, self._com_velocity = _centre(x, m)[0], _centre(v, m)[0]
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
        drift = _drift(t - self._start, _centre(x, m), self._com, self._com_velocity)
        self._com_drift = max(self._com_drift, float(np.linalg.norm(drift, axis=1).max()))
        if not self._periodic:
            change = total_angular_momentum(x, v, m) - self._spin
            self._spin_drift = max(self._spin_drift, float(np.linalg.norm(change, axis=1).max()))
        relative = v - _centre(v, m)[:, None]
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
