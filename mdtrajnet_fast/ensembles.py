"""Ensembles: initial velocities at a temperature."""

from __future__ import annotations

import ase
import numpy as np

from .analysis import degrees_of_freedom, rotation_axes
from .system import check_atoms
from .trajectory import momenta_from_velocities


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

    Raises ValueError for a temperature that is not positive, a system without such freedom, and
    what :func:`~mdtrajnet_fast.system.check_atoms` refuses.
    """
    check_atoms(atoms)
    if not (np.isfinite(temperature_K) and temperature_K > 0):
        raise ValueError(f"temperature_K must be positive and finite, got {temperature_K}")
    freedom = degrees_of_freedom(atoms)
    if freedom < 1:
        raise ValueError(
            f"{atoms.get_chemical_formula()} has no degrees of freedom once momentum and rotation "
            "are taken out; give velocities instead of a temperature"
        )
    normal = np.random.default_rng(seed).standard_normal((len(atoms), 3))
    spread = np.sqrt(atoms.get_masses() * ase.units.kB * temperature_K)
    atoms.set_momenta(normal * spread[:, None])
    _stop(atoms)
    wanted = 0.5 * freedom * ase.units.kB * temperature_K
    atoms.set_momenta(atoms.get_momenta() * np.sqrt(wanted / atoms.get_kinetic_energy()))


def _stop(atoms: ase.Atoms) -> None:
    """Take out the net momentum and, for an isolated system, the net rotation."""
    masses = atoms.get_masses()[:, None]
    momenta = atoms.get_momenta()
    momenta -= masses * (momenta.sum(0) / masses.sum())
    if not atoms.pbc.any():
        axes = rotation_axes(atoms)
        r = atoms.positions - atoms.get_center_of_mass()
        turns = np.stack([np.cross(axis, r) for axis in axes]) if len(axes) else np.zeros((0, 1, 3))
        inertia = np.einsum("kax,lax->kl", turns, masses * turns)
        omega = np.linalg.solve(inertia, np.einsum("kax,ax->k", turns, momenta))
        momenta -= masses * np.einsum("k,kax->ax", omega, turns)
    atoms.set_momenta(momenta)
