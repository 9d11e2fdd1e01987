"""What a trajectory says: spectra, temperatures, bonds, conservation laws.

Arrays are NumPy float64: positions Å, velocities Å/fs, times fs, masses amu, temperatures K.
Positions are unwrapped, as this package writes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import ase
import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.units import fs, kB
from numpy.typing import ArrayLike, NDArray
from scipy.fft import next_fast_len

from .neighbors import NeighborList, neighbor_list
from .trajectory import Trajectory, velocities_from_momenta

Array = NDArray[np.float64]

# Frames of small systems are looked at together, so many that they have about this many atoms: each
# by itself takes longer to hand over than to look at. More would wake threads for the search.
FRAME_ROWS = 2000

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
    watch = BondWatch(trajectory.atoms, trajectory.positions[0])
    step = max(1, FRAME_ROWS // len(trajectory.atoms))
    for k in range(0, len(trajectory), step):
        watch.update(trajectory.times[k : k + step], trajectory.positions[k : k + step])
    return watch.changes()


class BondWatch:
    """Looks, frame by frame, for bonds of the first frame that break and others that form.

    atoms: elements, cell and pbc. positions: [atoms, 3] Å, the first frame, unwrapped.
    """

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

    def update(self, times: Array, positions: Array) -> None:
        """Look at frames: times [k] fs, positions [k, atoms, 3] Å.

        Raises ValueError, with nothing noted, if the neighbour list refuses one of the frames.
        """
        flat = positions.reshape(-1, 3)
        edges = self.near.update(flat, *frames_as_systems(positions, self.cell, self.pbc))

        i, j = self.pairs.T
        lengths = _lengths(positions, i, j, self.shifts, self.cell)
        for frame, k in np.argwhere(lengths > self.limits).tolist():
            if k not in self.broken:
                self.broken[k] = self._change(i[k], j[k], float(times[frame]), lengths[frame, k])

        i = np.repeat(np.arange(len(flat)), np.diff(edges.row_ptr))
        j = edges.neighbor
        half = i < j
        i, j, shift = i[half], j[half], edges.shift[half]
        lengths = _lengths(flat, i, j, shift, self.cell)
        frames, i = np.divmod(i, len(self.radii))
        j = j % len(self.radii)
        keys = self._key(i, j)
        known = self.keys[np.searchsorted(self.keys, keys)] == keys
        close = ~known & (lengths < FORMED * (self.radii[i] + self.radii[j]))
        for k in np.flatnonzero(close).tolist():
            if (key := int(keys[k])) not in self.formed:
                self.formed[key] = self._change(i[k], j[k], float(times[frames[k]]), lengths[k])

    def changes(self) -> BondChanges:
        """The first time each bond was seen broken, and each new one formed."""
        return BondChanges(tuple(self.broken.values()), tuple(self.formed.values()))


def frames_as_systems(
    positions: Array, cell: ArrayLike | None, pbc: ArrayLike | None
) -> tuple[Array | None, NDArray | None, NDArray[np.int64]]:
    """cell, pbc and ptr that make one neighbour search of frames [k, atoms, 3]."""
    k, atoms = positions.shape[:2]
    ptr = atoms * np.arange(k + 1)
    if cell is None or pbc is None:
        return None, None, ptr
    return np.broadcast_to(cell, (k, 3, 3)), np.broadcast_to(pbc, (k, 3)), ptr


def _lengths(x: Array, i: NDArray, j: NDArray, shift: NDArray, cell: ArrayLike | None) -> Array:
    """Lengths [.., pairs] of the pairs i, j of x [.., atoms, 3]."""
    r = x.take(j, -2) - x.take(i, -2)
    if cell is not None:
        r += shift @ np.asarray(cell)
    r *= r  # summed by hand: the same bits whatever the number of frames
    return np.sqrt(r[..., 0] + r[..., 1] + r[..., 2])


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
    return relative_angular_momentum(
        x - centre_of_mass(x, m)[:, None], v - centre_of_mass(v, m)[:, None], m
    )


def relative_angular_momentum(x: Array, v: Array, m: Array) -> Array:
    """The same of positions and velocities relative to the centre of mass."""
    return _sum(m, _cross(x, v))


_YZX, _ZXY = np.array([1, 2, 0]), np.array([2, 0, 1])


def _cross(a: Array, b: Array) -> Array:
    """Cross products of [.., 3], to the bit of np.cross, which spends its time on axes."""
    return a.take(_YZX, -1) * b.take(_ZXY, -1) - a.take(_ZXY, -1) * b.take(_YZX, -1)


def centre_of_mass_drift(trajectory: Trajectory) -> Array:
    """How far the centre of mass is from the straight line R(0) + V(0) t, [frames, 3] in Å.

    Zero up to rounding if the total momentum is conserved.
    """
    m = trajectory.atoms.get_masses()
    return off_a_straight_line(
        trajectory.times - trajectory.times[0],
        centre_of_mass(trajectory.positions, m),
        centre_of_mass(trajectory.positions[:1], m)[0],
        centre_of_mass(velocities_from_momenta(trajectory.momenta[:1], m), m)[0],
    )


def centre_of_mass(x: Array, m: Array) -> Array:
    """Mean of x [frames, atoms, 3] over the atoms, weighted with their masses: [frames, 3]."""
    return _sum(m / m.sum(), x)


def _sum(weights: Array, x: Array) -> Array:
    # Not einsum: its order of summation, thus the last bit, depends on the number of frames.
    return np.sum(weights[:, None] * x, axis=1)


def off_a_straight_line(elapsed: Array, centre: Array, start: Array, velocity: Array) -> Array:
    """Centres [frames, 3] less start + elapsed [frames] times velocity, both [3]."""
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
