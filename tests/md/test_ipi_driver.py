import subprocess
import sys
from pathlib import Path

import cases
import numpy as np
import pytest
from cases import gentle
from ipi.utils.units import unit_to_internal

from mdtrajnet_fast import MDtrajNetCalculator
from mdtrajnet_fast.md import ipi_driver
from mdtrajnet_fast.model.checkpoint import save_model

# Constant pressure, no thermostat: what is conserved knows energy, forces and virial.
INPUT = """
<simulation verbosity="quiet">
  <output prefix="run">
    <properties stride="1" filename="out"> [conserved{{electronvolt}}, potential{{electronvolt}},
      volume{{angstrom3}}] </properties>
  </output>
  <total_steps> 40 </total_steps>
  <prng> <seed> 1 </seed> </prng>
  <ffdirect name="driver">
    <pes> custom </pes>
    <pes_path> {driver} </pes_path>
    <parameters> {{template: start.xyz, model: diamond}} </parameters>
  </ffdirect>
  <system>
    <initialize nbeads="1">
      <file mode="ase"> start.xyz </file>
      <velocities mode="thermal" units="kelvin"> 500 </velocities>
    </initialize>
    <forces> <force forcefield="driver"/> </forces>
    <ensemble>
      <temperature units="kelvin"> 500 </temperature>
      <pressure units="megapascal"> 0.1 </pressure>
    </ensemble>
    <motion mode="dynamics">
      <dynamics mode="npt">
        <timestep units="femtosecond"> 0.25 </timestep>
        <barostat mode="isotropic"> <tau units="femtosecond"> 20 </tau> </barostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


@pytest.mark.parametrize("periodic", [False, True])
def test_beads_are_what_the_calculator_says_in_atomic_units(tmp_path, periodic):
    atoms = cases.diamond((1, 1, 1)) if periodic else cases.hot("CH3CH2OH")
    save_model(gentle(**cases.OWN, **cases.WINDOW_POTENTIALS), tmp_path / "model")
    atoms.write(tmp_path / "start.xyz")
    driver = ipi_driver.MDtrajNetDriver(tmp_path / "start.xyz", str(tmp_path / "model"))
    calculator = MDtrajNetCalculator(tmp_path / "model")
    beads = [atoms.copy() for _ in range(3)]
    for k, bead in enumerate(beads):
        bead.rattle(0.05, seed=k)
        bead.calc = calculator
    box = np.asarray(atoms.cell) if periodic else 20 * np.eye(3)
    cells = [unit_to_internal("length", "angstrom", box.T)] * 3
    places = [unit_to_internal("length", "angstrom", bead.positions) for bead in beads]
    found = driver(cells, places)
    for bead, (energy, forces, virial, _) in zip(beads, found, strict=True):
        stress = bead.get_stress(voigt=False) if periodic else np.zeros((3, 3))
        expected = {
            "energy": (energy, "electronvolt", bead.get_potential_energy()),
            "force": (forces, "ev/ang", bead.get_forces()),
        }
        for kind, (value, unit, own) in expected.items():
            np.testing.assert_allclose(value, unit_to_internal(kind, unit, own), atol=1e-10)
        work = unit_to_internal("energy", "electronvolt", -stress * np.linalg.det(box))
        np.testing.assert_allclose(np.reshape(virial, (3, 3)), work, atol=1e-10)
    alone = driver(cells[0], places[0])
    for one, of_many in zip(alone[:3], found[0][:3], strict=True):
        np.testing.assert_array_equal(one, of_many)


def test_ipi_conserves_what_it_should_at_constant_pressure(tmp_path):
    cases.diamond((2, 2, 2)).write(tmp_path / "start.xyz")
    (tmp_path / "input.xml").write_text(INPUT.format(driver=ipi_driver.__file__))
    command = [str(Path(sys.executable).with_name("i-pi")), "input.xml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    conserved, potential, volume = np.loadtxt(tmp_path / "run.out", unpack=True)
    assert len(conserved) == 41
    assert np.ptp(volume) / volume[0] > 0.01
    assert np.ptp(conserved) < 0.01 * np.ptp(potential)


def test_a_slab_is_refused(tmp_path):
    atoms = cases.diamond((1, 1, 1))
    atoms.pbc = (True, True, False)
    atoms.write(tmp_path / "start.xyz")
    with pytest.raises(ValueError, match="periodic in three directions or"):
        ipi_driver.MDtrajNetDriver(tmp_path / "start.xyz")
