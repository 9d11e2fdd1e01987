"""Whether vibrations grow: eigenvalues of the Jacobian of one window at a relaxed geometry.

    python bench/window_jacobian.py CCO CC#N "O=CN" --model molecules-nve --window 4

The true motion turns every vibration of frequency w by the angle w h in a window of h, with
eigenvalues exp(+-i w h) of modulus 1. A larger modulus grows from window to window: 1.01 by an
e-fold in a hundred. Geometry, vibrations and their coordinates are those of GFN2-xTB (needs the
[data] extra); rigid motions, which momenta rule, are left out, and the energy is not corrected.
Printed are the largest moduli and their angles, for each method that the model has.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import ase
import numpy as np
import torch
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from mdtrajnet_fast import MDtrajNet, load_model, read_structure
from mdtrajnet_fast.analysis.observables import WAVENUMBER
from mdtrajnet_fast.data.generate import make_calculator
from mdtrajnet_fast.md.rollout import rollout
from mdtrajnet_fast.md.window import METHODS, stride_of
from mdtrajnet_fast.mechanics import momenta_from_velocities, velocities_from_momenta
from mdtrajnet_fast.system import System

STEP = 0.004  # Å sqrt(amu), of the displacements
RATE = 0.1  # 1/fs, makes velocities of coordinates
SOFTEST = 60.0  # cm^-1


def vibrations(smiles: str) -> tuple[ase.Atoms, np.ndarray, np.ndarray]:
    """The relaxed molecule, its wavenumbers [modes] and mass-weighted modes [3 atoms, modes]."""
    atoms = read_structure(f"smiles:{smiles}")
    atoms.calc = make_calculator("gfn2-xtb")
    BFGS(atoms, logfile=None).run(fmax=0.001, steps=500)
    with tempfile.TemporaryDirectory() as folder:
        vibration = Vibrations(atoms, name=str(Path(folder) / "vib"), delta=0.005)
        vibration.run()
        data = vibration.get_vibrations()
        hessian = data.get_hessian_2d()
    root = np.sqrt(np.repeat(atoms.get_masses(), 3))
    squares, modes = np.linalg.eigh(hessian / np.outer(root, root))
    wavenumbers = np.sign(squares) * np.sqrt(abs(squares)) * 521.47  # of sqrt(eV / amu) / Å
    kept = wavenumbers > SOFTEST
    atoms.calc = None
    return atoms, wavenumbers[kept], modes[:, kept]


def moduli(
    model: MDtrajNet, atoms: ase.Atoms, modes: np.ndarray, window: float, method: str
) -> np.ndarray:
    """Eigenvalues [2 modes] of one window, the largest modulus first."""
    count, root = modes.shape[1], np.sqrt(np.repeat(atoms.get_masses(), 3))
    step = STEP * modes.T / root
    shape = (-1, len(atoms), 3)
    still = np.zeros_like(step)
    x = np.concatenate([step, -step, still, still]).reshape(shape) + atoms.positions
    v = RATE * np.concatenate([still, still, step, -step]).reshape(shape)
    system = System.from_atoms([ase.Atoms(atoms.numbers, y, masses=atoms.get_masses()) for y in x])
    system = dataclasses.replace(system, velocities=v.reshape(-1, 3))
    momenta = momenta_from_velocities(system.velocities, system.masses)
    settings = {"dt": window, "window": window, "method": method, "duration": window}
    (frames,) = rollout(model, system, momenta, energy_rate=0.0, **settings)
    velocities = velocities_from_momenta(frames.momenta, system.masses)[0]
    ends = np.concatenate(
        [
            (frames.positions[0].reshape(shape) - atoms.positions).reshape(4 * count, -1)
            * root
            @ modes,
            velocities.reshape(4 * count, -1) * root @ modes / RATE,
        ],
        axis=1,
    )
    jacobian = np.concatenate(
        [ends[:count] - ends[count : 2 * count], ends[2 * count : 3 * count] - ends[3 * count :]]
    ) / (2 * STEP)
    found = np.linalg.eigvals(jacobian.T)
    return found[np.argsort(-abs(found))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("smiles", nargs="+")
    parser.add_argument("--model", default="molecules-nve")
    parser.add_argument("--window", type=float, help="fs (default: the model's own)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model, dtype="float64")
    model.potential = None  # the map alone
    methods = [name for name in METHODS if name != "symplectic" or model.window_potentials]
    print(f"{model.name}; phases and angles in units of pi")
    for smiles in options.smiles:
        atoms, wavenumbers, modes = vibrations(smiles)
        print(f"{smiles}: {len(wavenumbers)} vibrations")
        for name in methods:
            window = stride_of(model, name, None if name == "symplectic" else options.window)
            phases = 2 * wavenumbers / WAVENUMBER * window
            found = moduli(model, atoms, modes, window, name)
            sizes, angles = abs(found), abs(np.angle(found)) / np.pi
            print(
                f"  {name:<11} {window:g} fs, phases {phases[0]:.2f} to {phases[-1]:.2f}: "
                f"largest moduli {np.round(sizes[:4], 4)} "
                f"at {np.round(angles[:4], 2)}; {(sizes > 1.01).sum()} of {len(sizes)} above 1.01, "
                f"determinant {sizes.prod():.3f}"
            )


if __name__ == "__main__":
    main()
