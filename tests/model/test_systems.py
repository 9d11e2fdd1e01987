"""What a model is for: molecules or periodic matter, and what is said of anything else."""

import ase
import cases
import numpy as np
import pytest
from ase.build import bulk

from mdtrajnet_fast import MDtrajNet, MDtrajNetCalculator, MDtrajNetDynamics, load_model, simulate
from mdtrajnet_fast.md.export import export_model
from mdtrajnet_fast.md.simulation import model_hash
from mdtrajnet_fast.model.config import ModelConfig
from mdtrajnet_fast.system import System


def made(systems: str | None) -> MDtrajNet:
    return cases.alone(cases.gentle(systems=systems, **cases.WINDOW_POTENTIALS))


def wire() -> ase.Atoms:
    atoms = cases.hot("C2H2")
    atoms.set_cell([12.0, 12.0, 12.0])
    atoms.pbc = (False, False, True)
    return atoms


def without_a_cell() -> ase.Atoms:
    atoms = cases.hot("C2H2")
    atoms.pbc = True
    return atoms


def boxed(vacuum: float) -> ase.Atoms:
    """Acetylene across the faces of a box, so far from its images."""
    atoms = cases.hot("C2H2")
    atoms.center(vacuum / 2)
    atoms.pbc = True
    atoms.positions -= 0.5 * atoms.cell.sum(0)
    atoms.wrap()
    return atoms


def silicon() -> ase.Atoms:
    return bulk("Si", "diamond", a=5.43, cubic=True)


def primitive() -> ase.Atoms:
    return bulk("C", "diamond", a=3.567)


REFUSED = {
    "a crystal": ("molecules", cases.diamond, "isolated molecules, and system 0 is periodic"),
    "a chain": ("molecules", lambda: boxed(3.0), r"meets its own images .* atoms.pbc = False"),
    "a box": ("molecules", without_a_cell, "cell vector 0 is"),
    "a molecule": ("periodic", lambda: cases.hot("H2O"), r"pbc = \[False, False, False\]"),
    "a wire": ("periodic", wire, r"pbc = \[False, False, True\]: give a cell"),
    "no cell": ("periodic", without_a_cell, r"cell vector 0 is \[0, 0, 0\] but pbc is True"),
    "a small cell": ("periodic", primitive, r"2.06 Å high.*cutoff of model.*atoms.repeat\(2\)"),
    "another element": ("periodic", silicon, "does not know the elements Si"),
}


@pytest.mark.parametrize(("systems", "make", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_others_are_refused_by_all_that_take_atoms(systems, make, said, tmp_path):
    model, atoms = made(systems), make()
    if atoms.cell.rank < 3 and systems == "periodic" and atoms.pbc.all():
        atoms.set_momenta(np.ones((len(atoms), 3)))  # what draws velocities needs no cell
    with pytest.raises(ValueError, match=said):
        simulate(atoms, 3, duration=6, model=model, temperature_K=None, velocities=moving(atoms),
                 trajectory=tmp_path / "run.h5")  # fmt: skip
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match=said):
        MDtrajNetCalculator(model).calculate(atoms)
    with pytest.raises(ValueError, match=said):
        model.potential_energy(System.from_atoms(atoms))
    if "cell vector" not in said:
        with pytest.raises(ValueError, match=said):
            MDtrajNetDynamics(atoms, 1.0, model)


def moving(atoms: ase.Atoms) -> np.ndarray:
    return 1e-3 * np.random.default_rng(0).standard_normal((len(atoms), 3))


def test_the_first_of_many_is_named():
    with pytest.raises(ValueError, match="system 1 is periodic"):
        made("molecules").graph(System.from_atoms([cases.hot("H2O"), cases.diamond()]))


@pytest.mark.parametrize(("systems", "make"), [
    ("periodic", lambda: cases.diamond((2, 2, 2))),
    ("molecules", lambda: cases.hot("H2O")),
    (None, lambda: primitive()),
    (None, lambda: cases.hot("H2O")),
])  # fmt: skip
def test_what_a_model_is_for_changes_nothing(systems, make):
    model, free, atoms = made(systems), made(None), make()
    v = moving(atoms)
    one, other = (simulate(atoms, 3, duration=30, model=m, velocities=v) for m in (model, free))
    np.testing.assert_array_equal(one.positions, other.positions)
    assert model_hash(model) == model_hash(free)


def test_configurations_say_it_and_older_ones_do_not():
    config = cases.config(systems="periodic")
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert "systems" not in cases.config().to_dict()
    with pytest.raises(ValueError, match="got 'gas'"):
        cases.config(systems="gas")


def test_molecules_may_be_in_a_box_that_keeps_them_from_their_images():
    model = made("molecules")
    atoms = boxed(model.config.radial_cutoff + 1)
    assert np.ptp(atoms.positions, axis=0).min() > 4  # in pieces
    free = cases.hot("C2H2")
    found = [float(model.potential_energy(System.from_atoms(x))) for x in (atoms, free)]
    assert found[0] == pytest.approx(found[1], abs=1e-9)
    trajectory = simulate(atoms, 3, duration=30, model=model, velocities=moving(atoms))
    assert len(trajectory) == 11


@pytest.mark.parametrize("name", ["molecules-nve", "molecules-nve-small"])
def test_models_of_molecules_refuse_crystals(name):
    with pytest.raises(ValueError, match=f"model '{name}' is for isolated molecules"):
        simulate(cases.diamond(), model=load_model(name))


def test_a_motion_that_keeps_a_temperature(tmp_path):
    """It is the plain map, of which a run says whether it is at that temperature."""
    cold, free = cases.gentle(temperature_K=0.01), cases.gentle()
    atoms = cases.hot("H2O")
    one = simulate(atoms, 4, duration=600, model=cold, temperature_K=900)
    same = simulate(atoms, 4, duration=600, model=free, temperature_K=900, method="plain")
    np.testing.assert_array_equal(one.positions, same.positions)
    assert model_hash(cold) == model_hash(free)
    assert any("thermostat" in said for said in one.trust.warnings)
    assert not any("thermostat" in said for said in same.trust.warnings)
    assert ModelConfig.from_dict(cold.config.to_dict()) == cold.config
    assert "temperature_K" not in free.config.to_dict()
    with pytest.raises(ValueError, match="by its plain map, which a file cannot say"):
        export_model(cold, tmp_path / "cold.mdtrajnet")
    with pytest.raises(ValueError, match="positive number of K, got -300"):
        cases.config(temperature_K=-300)
    with pytest.raises(ValueError, match="cannot keep an energy"):
        cases.config(temperature_K=300, **cases.WINDOW_POTENTIALS)
