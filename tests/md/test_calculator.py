import io

import ase
import cases
import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.md import MDLogger
from ase.optimize import BFGS
from ase.units import fs
from cases import gentle

from mdtrajnet_fast import MDtrajNetCalculator, MDtrajNetDynamics
from mdtrajnet_fast.system import System

MODEL = gentle(**cases.OWN, **cases.WINDOW_POTENTIALS)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("periodic", [False, True])
def test_forces_are_slopes_of_the_energy(backend, periodic):
    model = gentle(**cases.OWN, **cases.WINDOW_POTENTIALS)
    model.backend = backend
    atoms = cases.diamond((1, 1, 1)) if periodic else cases.hot("CH3CH2OH")
    atoms.calc = MDtrajNetCalculator(model)
    forces = atoms.get_forces()
    assert abs(forces).max() > 0.01
    expected = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 3, 7])
    np.testing.assert_allclose(forces[[0, 3, 7]], expected, atol=1e-6)
    assert atoms.get_potential_energy() == pytest.approx(atoms.get_potential_energies().sum())
    assert atoms.get_potential_energy() == pytest.approx(
        float(model.potential_energy(System.from_atoms(atoms))), abs=1e-9
    )


def test_stress_is_the_slope_with_strain():
    atoms = cases.diamond((2, 1, 1))
    atoms.set_cell(atoms.cell @ (np.eye(3) + [[0.02, 0.03, 0], [0, -0.01, 0], [0, 0.01, 0]]), True)
    atoms.calc = MDtrajNetCalculator(gentle(**cases.OWN, **cases.WINDOW_POTENTIALS))
    stress = atoms.get_stress()
    assert abs(stress).min() > 1e-5
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5), atol=1e-6)


def test_atoms_out_of_sight_of_each_other_have_no_stress():
    atoms = ase.Atoms("C2", [[0, 0, 0], [0, 0, 15]], cell=[30, 30, 30], pbc=True)
    atoms.calc = MDtrajNetCalculator(MODEL)
    np.testing.assert_array_equal(atoms.get_stress(), 0)


def test_stress_needs_a_cell():
    atoms = cases.hot("CH3CH2OH")
    atoms.calc = MDtrajNetCalculator(MODEL)
    with pytest.raises(PropertyNotImplementedError, match="periodic in three directions"):
        atoms.get_stress()


def test_cells_relax():
    atoms = cases.diamond((1, 1, 1))
    atoms.set_cell(1.03 * atoms.cell, True)
    atoms.calc = MDtrajNetCalculator("diamond")
    assert abs(atoms.get_stress()).max() > 0.1
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.001, steps=50)
    assert abs(atoms.get_stress()).max() < 1e-3


def test_loggers_print_energies():
    atoms, log = cases.hot("CH3CH2OH"), io.StringIO()
    dynamics = MDtrajNetDynamics(atoms, 3.0 * fs, model=MODEL)
    dynamics.attach(MDLogger(dynamics, atoms, log))
    dynamics.run(20)
    table = np.loadtxt(io.StringIO(log.getvalue()), skiprows=1)
    assert np.isfinite(table).all() and np.ptp(table[:, 2]) > 0


def test_a_model_without_is_refused():
    with pytest.raises(ValueError, match="no window potentials"):
        MDtrajNetCalculator(gentle(**cases.OWN))
