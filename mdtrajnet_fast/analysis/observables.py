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
from ase.data import covalent_radii
from numpy.typing import ArrayLike, NDArray

from ..io.trajectory import Trajectory
from ..mechanics import (
    centre_of_mass,
    checked_velocities,
    off_a_straight_line,
    velocities_from_momenta,
)
from ..neighbors.host import NeighborList, neighbor_list

Array = NDArray[np.float64]

# Frames of small systems are looked at together, so many that they have about this many atoms: each
# by itself takes longer to hand over than to look at. More would wake threads for the search.
FRAME_ROWS = 2000

WAVENUMBER = 33356.40951981521  # cm^-1 per fs^-1: 1 / (speed of light in cm/fs)

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
    v, m = checked_velocities(velocities, masses)
    segment = _segment(len(v), dt_fs, resolution, max_wavenumber)
    found = _normalised(*_power(v, m, dt_fs, segment), max_wavenumber)
    if found is None:
        raise ValueError("the velocities are all zero or not finite: there is no spectrum")
    return found


def infrared_spectrum(
    dipoles: ArrayLike, dt_fs: float, *, resolution: float = 20.0, max_wavenumber: float = 4500.0
) -> tuple[Array, Array]:
    """Line shape of the infrared absorption: power spectrum of the time derivative of the dipole,
    the Fourier transform of <mu'(0) . mu'(t)>, by Welch's method as
    :func:`vibrational_density_of_states`.

    Absorption is w (1 - exp(-h w / kT)) times the quantum mechanical spectrum of the dipole; the
    harmonic quantum correction takes for that the classical one times
    (h w / kT) / (1 - exp(-h w / kT)), h being Planck's constant over 2 pi, so that w^2 times the
    classical spectrum remains, whatever the temperature (R. Ramírez, T. López-Ciudad, P. Kumar P,
    D. Marx, J. Chem. Phys. 121, 3973 (2004)). Free rotation of a polar molecule shows below some
    hundred cm^-1.

    The derivative is exact to the end of the spectrum: differences from frame to frame, which show
    a vibration of frequency w with sin(w dt / 2) / (w dt / 2) of its derivative, are divided by it.

    Arguments
        dipoles: [frames, 3] e Å (any unit), frames evenly spaced; those of an isolated molecule.
        dt_fs, resolution, max_wavenumber: as for :func:`vibrational_density_of_states`.

    Returns (wavenumber [bins] in cm^-1, intensity [bins] in cm), at the wavenumbers of
    :func:`vibrational_density_of_states` of the same frames. From zero to the Nyquist wavenumber
    the intensity integrates to 1.

    Raises ValueError for a wrong shape, dipoles that never change or are not finite, frames too
    coarse for ``max_wavenumber``, or a run too short for ``resolution``.
    """
    mu = np.asarray(dipoles, dtype=np.float64)
    if mu.ndim != 2 or mu.shape[1] != 3:
        raise ValueError(f"got dipoles of shape {mu.shape}; expected [frames, 3]")
    segment = _segment(len(mu), dt_fs, resolution, max_wavenumber)
    change = np.diff(mu, axis=0)[:, None]
    step, power = _power(change, np.ones(1), dt_fs, min(segment, len(change)), segment)
    x = np.pi * step * np.arange(len(power)) * dt_fs / WAVENUMBER  # w dt / 2
    found = _normalised(step, power / np.sinc(x / np.pi) ** 2, max_wavenumber)
    if found is None:
        raise ValueError("the dipoles never change or are not finite: there is no spectrum")
    return found


def _segment(frames: int, dt_fs: float, resolution: float, max_wavenumber: float) -> int:
    """Frames of a segment; refused where they, or the run, are too few."""
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
    return segment


def _power(
    vectors: Array, weights: Array, dt_fs: float, segment: int, unpadded: int | None = None
) -> tuple[float, Array]:
    """Spacing (cm^-1) and bins of the power spectrum of vectors [frames, n, 3] of weights [n].

    segment: frames of one, padded with zeros to at least four times `unpadded`; None for itself.
    """
    from scipy.fft import next_fast_len  # here, for they take long to import
    from scipy.signal import welch

    frames, count = vectors.shape[:2]
    padded = next_fast_len(4 * (unpadded or segment), real=True)
    power = np.zeros(padded // 2 + 1)
    at_once = max(1, _AT_ONCE // frames)
    for start in range(0, count, at_once):
        part = slice(start, start + at_once)
        _, p = welch(vectors[:, part], nperseg=segment, nfft=padded, detrend=False, axis=0)
        power += np.einsum("fax,a->f", p, weights[part])
    return WAVENUMBER / (padded * dt_fs), power


def _normalised(step: float, power: Array, max_wavenumber: float) -> tuple[Array, Array] | None:
    """Wavenumbers and what integrates to 1 over all of them, up to one; None if nothing does."""
    wavenumber = step * np.arange(len(power), dtype=np.float64)
    total = step * np.sum(power[1:] + power[:-1]) / 2  # trapezoids
    if not (np.isfinite(total) and total > 0):
        return None
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
