"""Velocities at a temperature."""

import ase
import cases
import numpy as np
import pytest
from ase.build import molecule
from ase.constraints import FixAtoms

from mdtrajnet_fast import thermal_velocities
from mdtrajnet_fast.mechanics import rotation_axes

SYSTEMS = [
    (molecule("CH3CH2OH"), 21),
    (molecule("H2O"), 3),
    (molecule("CO2"), 4),
    (molecule("N2"), 1),
    (cases.diamond((1, 1, 1)), 21),
]


@pytest.mark.parametrize(("atoms", "freedom"), SYSTEMS, ids=lambda x: str(getattr(x, "symbols", x)))
def test_exact_temperature_without_overall_motion(atoms, freedom):
    atoms = atoms.copy()
    thermal_velocities(atoms, 250.0, 3)
    kinetic = 2 * atoms.get_kinetic_energy() / (freedom * ase.units.kB)
    np.testing.assert_allclose(kinetic, 250.0, rtol=1e-12)
    np.testing.assert_allclose(atoms.get_momenta().sum(0), 0, atol=1e-12)
    if not atoms.pbc.any():
        np.testing.assert_allclose(atoms.get_angular_momentum(), 0, atol=1e-11)


def test_slightly_bent_molecules_count_as_linear():
    """What is taken out is what the degrees of freedom do not count: two rotations, not three."""
    atoms = molecule("CO2")
    atoms.rattle(0.03, seed=1)
    thermal_velocities(atoms, 300.0, 0)
    np.testing.assert_allclose(atoms.get_kinetic_energy(), 0.5 * 4 * ase.units.kB * 300, rtol=1e-12)
    axes = rotation_axes(atoms)
    assert len(axes) == 2
    np.testing.assert_allclose(axes @ atoms.get_angular_momentum(), 0, atol=1e-12)


def test_draws_are_maxwell_boltzmann_and_repeat():
    atoms = molecule("CH3CH2OH")
    sums, draws = np.zeros(9), 400
    for seed in range(draws):
        thermal_velocities(atoms, 300.0, seed)
        sums += (atoms.get_momenta() ** 2).sum(1) / atoms.get_masses()
    per_atom = sums / draws / (ase.units.kB * 300)
    assert per_atom.sum() == pytest.approx(21)
    assert (per_atom[:3] < 2.4).all() and (per_atom[3:] > 2.3).all()  # heavy atoms lose more
    first = atoms.get_momenta()
    thermal_velocities(atoms, 300.0, draws - 1)
    np.testing.assert_array_equal(atoms.get_momenta(), first)


def test_refusals():
    atoms = molecule("H2O")
    for temperature in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="temperature_K"):
            thermal_velocities(atoms, temperature, 0)
    with pytest.raises(ValueError, match="no degrees of freedom"):
        thermal_velocities(ase.Atoms("O"), 300.0, 0)
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="constraints"):
        thermal_velocities(atoms, 300.0, 0)
