"""Normal modes of known springs, and kinetic energy that is put into one of them."""

import ase
import ase.units
import numpy as np
import pytest
from ase.build import molecule
from scipy.spatial.transform import Rotation

from mdtrajnet_fast import Trajectory
from mdtrajnet_fast.analysis.normal_modes import mode_freedoms, mode_temperatures, normal_modes
from mdtrajnet_fast.mechanics import (
    InternalMotion,
    degrees_of_freedom,
    momenta_from_velocities,
)

C_CM_PER_S = 2.99792458e10


def springs(atoms, seed=0):
    """A random Hessian that neither moving nor turning feels (eV/Å^2)."""
    bonds = [(i, j) for i in range(len(atoms)) for j in range(i)]
    hessian = np.zeros((3 * len(atoms),) * 2)
    for k, (i, j) in zip(
        np.random.default_rng(seed).uniform(5, 50, len(bonds)), bonds, strict=True
    ):
        u = atoms.positions[i] - atoms.positions[j]
        along = np.zeros((len(atoms), 3))
        along[i], along[j] = u, -u
        hessian += k / (u @ u) * np.outer(along, along)
    return hessian


def test_wavenumber_of_a_diatomic_molecule():
    atoms = molecule("CO")
    (c, o), k = atoms.get_masses(), 118.0  # eV/Å^2
    line = np.array([0, 0, 1, 0, 0, -1])
    modes = normal_modes(atoms, k * np.outer(line, line))
    omega = np.sqrt(k * ase.units._e * 1e20 / (c * o / (c + o) * ase.units._amu))  # SI
    np.testing.assert_allclose(modes.wavenumbers, [omega / (2 * np.pi * C_CM_PER_S)], rtol=1e-6)


def test_modes_are_the_vibrations():
    atoms = molecule("CH3OH")
    modes = normal_modes(atoms, springs(atoms))
    count = 3 * len(atoms) - 6
    flat = modes.vectors.reshape(count, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(count), atol=1e-10)
    assert (modes.wavenumbers > 10).all() and (np.diff(modes.wavenumbers) >= 0).all()
    with pytest.raises(ValueError, match=r"\(18, 18\) in eV"):
        normal_modes(atoms, np.zeros((6, 6)))
    with pytest.raises(ValueError, match="finite"):
        normal_modes(atoms, np.full((18, 18), np.nan))


def test_temperature_of_one_mode():
    """All of the energy in one vibration of a molecule that flies and has been turned."""
    atoms = molecule("CH3OH")
    masses, freedom = atoms.get_masses(), degrees_of_freedom(atoms)
    modes = normal_modes(atoms, springs(atoms))
    chosen, speed = 4, np.array([0.03, -0.05, 0.01])  # sqrt(amu) Å/fs
    v = speed[:, None, None] * modes.vectors[chosen] / np.sqrt(masses)[:, None] + [0, 0.02, 0.01]
    turns = Rotation.random(3, rng=1).as_matrix()
    run = Trajectory(
        atoms,
        np.arange(3.0),
        [(atoms.positions + [5, 0, k]) @ turn for k, turn in enumerate(turns)],
        momenta_from_velocities(v @ turns, masses),
    )
    kelvin = mode_temperatures(run, modes)
    wanted = np.zeros(freedom)
    wanted[chosen] = (speed**2).mean() / ase.units.fs**2 / ase.units.kB
    np.testing.assert_allclose(kelvin, wanted, rtol=1e-8, atol=1e-6)


def test_freedoms_of_modes():
    """Far from the geometry of the modes: canonical momenta have kB T for each part of freedom."""
    atoms = molecule("CH3OH")
    modes, masses = normal_modes(atoms, springs(atoms)), atoms.get_masses()[:, None]
    bent = atoms.copy()
    bent.set_distance(0, 1, 2.2, fix=0)
    bent.rattle(0.2, seed=3)
    bent.rotate(40, [1, 2, 3])
    motion, rng = InternalMotion(bent), np.random.default_rng(0)
    spread = np.sqrt(masses * ase.units.kB * 300.0)
    momenta = [motion.of(spread * rng.standard_normal((6, 3))) for _ in range(20000)]
    run = Trajectory(atoms, np.arange(20000.0), np.tile(bent.positions, (20000, 1, 1)), momenta)
    kelvin, freedoms = mode_temperatures(run, modes), mode_freedoms(run[:1], modes)
    assert freedoms.min() < 0.97 and (freedoms < 1 + 1e-12).all()
    np.testing.assert_allclose(kelvin / freedoms, 300, rtol=0.05)
    assert abs(kelvin / 300 - freedoms).max() < 0.05
    at_home = Trajectory(atoms, [0.0], atoms.positions[None], np.zeros((1, 6, 3)))
    np.testing.assert_allclose(mode_freedoms(at_home, modes), 1, atol=1e-12)
