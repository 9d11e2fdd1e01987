"""Mechanics of atoms: momenta and velocities, temperature, degrees of freedom, rigid motion.

Arrays are NumPy float64: positions Å, velocities Å/fs, masses amu, temperatures K; momenta are
ASE's, sqrt(eV amu).
"""

from __future__ import annotations

import ase
import numpy as np
import scipy.linalg
from ase.data import chemical_symbols
from ase.units import fs, kB
from numpy.typing import ArrayLike, NDArray

from .system import check_atoms

Array = NDArray[np.float64]

EV = 1 / fs**2  # eV per amu (Å/fs)^2
HOTTEST = 20_000.0  # K, kB T = 1.7 eV: more is a mistake in a unit


def velocities_from_momenta(momenta: ArrayLike, masses: ArrayLike) -> Array:
    """Velocities [..., atoms, 3] in Å/fs from momenta [..., atoms, 3] in sqrt(eV amu).

    ``masses`` [atoms] in amu. Two correctly rounded float64 operations an element, so that the
    same bits in give the same bits out whatever the leading dimensions. Going there and back may
    change the last bit: the momenta are the state, the velocities a view of it.

    Raises ValueError for shapes that do not match or a mass that is not positive.
    """
    p, m = _matching(momenta, masses, "momenta")
    return p / m * fs


def momenta_from_velocities(velocities: ArrayLike, masses: ArrayLike) -> Array:
    """Momenta [..., atoms, 3] in sqrt(eV amu) from velocities [..., atoms, 3] in Å/fs.

    The other direction of :func:`velocities_from_momenta`, with the same guarantee.
    """
    v, m = _matching(velocities, masses, "velocities")
    return v / fs * m


def _matching(vectors: ArrayLike, masses: ArrayLike, name: str) -> tuple[Array, Array]:
    x = np.asarray(vectors, dtype=np.float64)
    m = np.asarray(masses, dtype=np.float64)
    if m.ndim != 1 or x.ndim < 2 or x.shape[-2:] != (len(m), 3):
        raise ValueError(
            f"got {name} of shape {x.shape} and masses of shape {m.shape}; expected "
            "[..., atoms, 3] and [atoms]"
        )
    if not np.all(m > 0):
        i = int(np.flatnonzero(~(m > 0))[0])
        raise ValueError(f"atom {i} has mass {m[i]}; set a positive one with atoms.set_masses()")
    return x, m[:, None]


def velocities_from_positions(positions: ArrayLike, dt_fs: float) -> Array:
    """[frames, atoms, 3] Å/fs, the slopes of cubic splines through positions [frames, atoms, 3] Å.

    dt_fs: time between frames. A vibration of frequency w comes out 3 sin x / (x (2 + cos x)) times
    as fast, x = w dt: 0.1 % too slow for an O-H stretch in frames every 1 fs, 3 % in frames every
    2 fs. Raises ValueError for fewer than four frames.
    """
    from scipy.interpolate import CubicSpline  # here, for it takes long to import

    x = np.asarray(positions, dtype=np.float64)
    if len(x) < 4:
        raise ValueError(f"got {len(x)} frames; velocities from positions need four")
    times = dt_fs * np.arange(len(x))
    return CubicSpline(times, x, axis=0)(times, 1)


# ---- Temperature.


def kinetic_temperature(
    velocities: ArrayLike, masses: ArrayLike, degrees_of_freedom: float | None = None
) -> Array:
    """sum_i m_i v_i^2 / (kB degrees_of_freedom) of each frame, [frames] in K.

    velocities [frames, atoms, 3] Å/fs, masses [atoms] amu. The default is 3N degrees of freedom,
    ASE's convention; see :func:`degrees_of_freedom` for what a molecule at rest has.
    """
    v, m = checked_velocities(velocities, masses)
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
    v, m = checked_velocities(velocities, masses)
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
    _, (axes,), (free,) = _inertia(r, m, np.zeros(1, int), np.zeros(len(m), int))
    return axes.T[free]


def _inertia(
    r: Array, m: Array, starts: NDArray[np.intp], system: NDArray[np.intp]
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Of systems with atoms at r [atoms, 3] from their centres of mass: principal moments of
    inertia [systems, 3], their axes, which are columns, and which of these they can turn about.

    starts: [systems] the first atom of each. system: [atoms] to which one each belongs.
    """
    spread = np.add.reduceat(m[:, None, None] * (r[:, :, None] * r[:, None]), starts)
    moments, axes = np.linalg.eigh(spread.trace(0, 1, 2)[:, None, None] * np.eye(3) - spread)
    along = axes[system, :, 0]  # the line closest to all atoms
    off_axis = np.linalg.norm(r - (r * along).sum(-1, keepdims=True) * along, axis=-1)
    free = np.ones(moments.shape, dtype=bool)
    free[:, 0] = np.maximum.reduceat(off_axis, starts) > 0.3
    return moments, axes, free


def rigid_motions(atoms: ase.Atoms, rotation: bool | None = None) -> Array:
    """Orthonormal mass-weighted motions of a system as a whole, [3N, motions].

    The span of the translations sqrt(m_i) e_a and, for the :func:`rotation_axes` e, the rotations
    sqrt(m_i) e x (r_i - centre).

    rotation: whether the overall rotation is among them; by default if no axis is periodic.
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
    # NumPy's own QR crashes where memory ends
    basis, _ = scipy.linalg.qr(modes.reshape(3 * len(m), -1), mode="economic")
    return basis


def atomic_degrees_of_freedom(atoms: ase.Atoms, rotation: bool | None = None) -> Array:
    """How many degrees of freedom each atom has once overall motion is taken out, [atoms].

    At equilibrium <m_i v_i^2> = kB T times this number. It is 3 less the share of atom i in the
    motions taken out: the diagonal of the projector on the :func:`rigid_motions`. The sum is 3N - 3
    for a periodic system, 3N - 6 for an isolated one and 3N - 5 for a linear one.

    rotation: whether the overall rotation is taken out, too; by default if no axis is periodic.
    """
    basis = rigid_motions(atoms, rotation)
    return 3 - np.sum(basis**2, axis=1).reshape(-1, 3).sum(axis=1)


def degrees_of_freedom(atoms: ase.Atoms, rotation: bool | None = None) -> int:
    """3N less 3 for the net momentum, less 3 (linear: 2) for the rotation of an isolated system.

    The sum of :func:`atomic_degrees_of_freedom`, which see.
    """
    return round(float(atomic_degrees_of_freedom(atoms, rotation).sum()))


# ---- Momentum.


def total_momentum(velocities: ArrayLike, masses: ArrayLike) -> Array:
    """sum_i m_i v_i, [frames, 3] in amu Å/fs."""
    v, m = checked_velocities(velocities, masses)
    return _sum(m, v)


def total_angular_momentum(positions: ArrayLike, velocities: ArrayLike, masses: ArrayLike) -> Array:
    """sum_i m_i (r_i - R) x (v_i - V) about the centre of mass, [frames, 3] in amu Å^2/fs.

    Conserved by an isolated system, not by a periodic one.
    """
    v, m = checked_velocities(velocities, masses)
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


def centre_of_mass(x: Array, m: Array) -> Array:
    """Mean of x [frames, atoms, 3] over the atoms, weighted with their masses: [frames, 3]."""
    return _sum(m / m.sum(), x)


def _sum(weights: Array, x: Array) -> Array:
    # Not einsum: its order of summation, thus the last bit, depends on the number of frames.
    return np.sum(weights[:, None] * x, axis=1)


def off_a_straight_line(elapsed: Array, centre: Array, start: Array, velocity: Array) -> Array:
    """Centres [frames, 3] less start + elapsed [frames] times velocity, both [3]."""
    return centre - start - elapsed[:, None] * velocity


def checked_velocities(velocities: ArrayLike, masses: ArrayLike) -> tuple[Array, Array]:
    """Velocities [frames, atoms, 3] and masses [atoms] as float64; ValueError for other shapes."""
    v = np.asarray(velocities, dtype=np.float64)
    m = np.asarray(masses, dtype=np.float64)
    if v.ndim != 3 or m.ndim != 1 or v.shape[1:] != (len(m), 3) or len(v) == 0:
        raise ValueError(
            f"got velocities of shape {v.shape} and masses of shape {m.shape}; expected "
            "[frames, atoms, 3] with at least one frame, and [atoms]"
        )
    return v, m


# ---- Velocities at a temperature.


def set_standard_masses(atoms: ase.Atoms) -> None:
    """Give atoms the standard masses of their elements, in place; their velocities stay."""
    velocities = atoms.get_velocities()
    atoms.set_masses("defaults")
    atoms.set_velocities(velocities)


def set_velocities(atoms: ase.Atoms, velocities: np.ndarray) -> None:
    """Set velocities [atoms, 3] in Å/fs, in place.

    Raises ValueError for another shape or values that are not finite.
    """
    v = np.asarray(velocities, dtype=np.float64)
    if v.shape != (len(atoms), 3) or not np.isfinite(v).all():
        raise ValueError(
            f"velocities must be finite and of shape ({len(atoms)}, 3), in Å/fs; got {v.shape}"
        )
    atoms.set_momenta(momenta_from_velocities(v, atoms.get_masses()))


def thermal_velocities(
    atoms: ase.Atoms, temperature_K: float, seed: int | np.random.Generator | None
) -> None:
    """Draw velocities at exactly the given kinetic temperature, in place.

    Maxwell-Boltzmann velocities without net momentum and, for an isolated molecule, without net
    rotation, scaled so that the kinetic energy is k_B T / 2 for each of the degrees of freedom that
    are left. The temperature is that of the kinetic energy now: nothing is doubled for a start at
    a potential minimum, from which half of it flows into the vibrations.

    Raises ValueError for a temperature that is not positive or above 20,000 K, a seed that is none,
    a system without such freedom, and what :func:`~mdtrajnet_fast.system.check_atoms` refuses.
    """
    check_atoms(atoms)
    if not 0 < temperature_K <= HOTTEST:
        raise ValueError(
            f"temperature_K must be positive and at most {HOTTEST:g} K, where nothing is bound any "
            f"more, got {temperature_K}; temperatures are in K"
        )
    freedom = degrees_of_freedom(atoms)
    if freedom < 1:
        raise ValueError(
            f"{atoms.get_chemical_formula()} has no degrees of freedom once momentum and rotation "
            "are taken out; give velocities instead of a temperature"
        )
    try:
        random = np.random.default_rng(seed)
    except (ValueError, TypeError) as error:
        raise ValueError(f"seed must be a whole number, 0 or more, got {seed!r}") from error
    normal = random.standard_normal((len(atoms), 3))
    spread = np.sqrt(atoms.get_masses() * ase.units.kB * temperature_K)
    atoms.set_momenta(normal * spread[:, None])
    _stop(atoms)
    wanted = 0.5 * freedom * ase.units.kB * temperature_K
    atoms.set_momenta(atoms.get_momenta() * np.sqrt(wanted / atoms.get_kinetic_energy()))


def _stop(atoms: ase.Atoms) -> None:
    """Take out the net momentum and, for an isolated system, the net rotation."""
    atoms.set_momenta(InternalMotion(atoms).of(atoms.get_momenta()))


class InternalMotion:
    """The part of momenta that neither moves a system nor, if it is isolated, turns it.

    systems: of which atoms are looked at together, with their masses, and where they are until
        :meth:`at` says something else. What comes of one does not depend on the others.

    masses: [atoms] amu, of all systems one after the other. freedom: [systems] int, their degrees
    of freedom, :func:`degrees_of_freedom` of the atoms given here.
    """

    def __init__(self, *systems: ase.Atoms):
        self.masses = np.concatenate([one.get_masses() for one in systems])
        self.freedom = np.array([degrees_of_freedom(one) for one in systems])
        sizes = [len(one) for one in systems]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._system = np.repeat(np.arange(len(systems)), sizes)
        self._turns = np.array([not one.pbc.any() and len(one) > 1 for one in systems])
        self._m = self.masses[:, None]
        self._total = self._of_systems(self._m)
        self._at: Array | None = None
        self.at(np.concatenate([one.positions for one in systems]))

    def _of_systems(self, values: Array) -> Array:
        """Sums of values [atoms, ...] over the atoms of each system, [systems, ...]."""
        sums: Array = np.add.reduceat(values, self._starts)
        return sums

    def at(self, positions: Array) -> None:
        """From here on the atoms are there, [atoms, 3] Å."""
        if self._at is not None and np.array_equal(positions, self._at):
            return  # a window starts where the last one ended
        self._at = np.array(positions)
        centre = self._of_systems(self._m * positions) / self._total
        self._r = positions - centre[self._system]
        moments, axes, free = _inertia(self._r, self.masses, self._starts, self._system)
        free &= self._turns[:, None]
        inverse = np.divide(1.0, moments, where=free, out=np.zeros_like(moments))
        self._inverse = (axes * inverse[:, None]) @ axes.swapaxes(1, 2)  # of inertia tensors

    def of(self, momenta: Array) -> Array:
        """The internal part of momenta [atoms, 3], in the mass-weighted metric."""
        inner = momenta - self._m * (self._of_systems(momenta) / self._total)[self._system]
        if self._turns.any():
            angular = self._of_systems(_cross(self._r, inner))
            omega = (self._inverse * angular[:, None]).sum(-1)
            inner -= self._m * _cross(omega[self._system], self._r)
        return inner

    def kinetic(self, momenta: Array) -> Array:
        """Kinetic energies of momenta [atoms, 3], ASE's units: [systems] eV."""
        energies: Array = 0.5 * self._of_systems((momenta**2 / self._m).sum(-1))
        return energies


# ---- Times.


def check_even(times: np.ndarray, name: str, rtol: float) -> None:
    """Refuse times [frames] (fs) whose spacing varies, by more than rtol of it, with a ValueError.

    name: in the message, whose times they are.
    """
    steps = np.diff(times)
    if len(steps) and not np.allclose(steps, steps[0], rtol=rtol, atol=1e-6):
        at = int(np.argmax(np.abs(steps - steps[0])))
        raise ValueError(
            f"{name}: frames are unevenly spaced: {steps[0]:g} fs from frame 0 to 1, "
            f"{steps[at]:g} fs from frame {at} to {at + 1}"
        )
