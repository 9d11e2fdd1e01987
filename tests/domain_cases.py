"""Systems that processes share. torchrun starts this file: its processes write what they find."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import ase
import cases
import numpy as np
import torch
from ase.build import bulk, molecule
from ase.units import fs

from mdtrajnet_fast import load_model, simulate
from mdtrajnet_fast.md.domains import Processes, Share
from mdtrajnet_fast.md.rollout import RolloutError
from mdtrajnet_fast.mechanics import thermal_velocities


def triclinic() -> ase.Atoms:
    """Carbon in a skewed, slanted cell, whose atoms lie in several images of it."""
    atoms = bulk("C", "diamond", a=3.567) * (4, 3, 3)
    atoms.rattle(0.03, seed=3)
    thermal_velocities(atoms, 500.0, 3)
    atoms.rotate(40, (1, 2, 3), rotate_cell=True)
    atoms.positions += np.random.default_rng(0).integers(-2, 3, (len(atoms), 3)) @ atoms.cell[:]
    return atoms


def gas() -> ase.Atoms:
    """Molecules apart, some of them across faces of bricks, each with a momentum of its own."""
    atoms = ase.Atoms(cell=3 * [16.0], pbc=True)
    random = np.random.default_rng(0)
    for place in np.ndindex(3, 3, 3):
        one = molecule("H2O")
        one.rotate(360 * random.random(), random.normal(size=3))
        one.positions += 16 / 3 * np.array(place)
        atoms += one
    thermal_velocities(atoms, 300.0, 0)
    return atoms


def fluid() -> ase.Atoms:
    """Hot argon, whose atoms find new owners."""
    atoms = bulk("Ar", "fcc", a=6.2, cubic=True) * (4, 4, 4)
    atoms.rattle(0.1, seed=0)
    thermal_velocities(atoms, 600.0, 0)
    return atoms


def network(**options):
    return cases.gentle(**cases.OWN, **cases.POTENTIAL, **options)


def windows():
    return cases.alone(cases.gentle(**cases.WINDOW_POTENTIALS))


LANGEVIN = {"thermostat": "langevin", "temperature_K": 400.0, "equilibration": 6.0, "seed": 5}
# Name: systems, models and settings of simulate.
CASES = {
    "crystal": (lambda: cases.diamond((3, 2, 2)), windows, {"duration": 30.0, "dt": 2.0}),
    "triclinic": (triclinic, windows, {"duration": 15.0, "dt": 3.0}),
    "slab": (cases.slab, windows, {"duration": 15.0, "dt": 3.0}),
    "gas": (gas, windows, {"duration": 15.0, "dt": 3.0}),
    "fluid": (fluid, lambda: load_model("argon", "float64"), {"duration": 1000.0, "dt": 500.0}),
    "thermostat": (lambda: cases.diamond((2, 2, 2)), windows, LANGEVIN | {"duration": 9.0}),
    "network": (triclinic, network, {"duration": 20.0, "dt": 5.0}),
    "network, plain": (gas, network, {"duration": 20.0, "dt": 5.0, "method": "plain"}),
    "published": (
        lambda: cases.diamond((2, 2, 2)),
        lambda: cases.gentle(30.0),
        {"duration": 10.0, "dt": 2.0, "method": "plain"},
    ),
}


def run(name: str, **options):
    atoms, model, settings = CASES[name]
    return simulate(atoms(), model=model(), **settings, **options)


def breaks() -> ase.Atoms:
    """One atom is faster than any that could stay on its course."""
    atoms = cases.diamond((3, 2, 2))
    velocities = cases.velocities(atoms)
    velocities[17] = 3.0, 0.0, 0.0
    atoms.set_velocities(velocities / fs)
    return atoms


def main(folder: Path) -> None:
    """Run all of them in the processes that torchrun has started."""
    warnings.simplefilter("ignore", RuntimeWarning)
    processes = Processes()
    torch.set_num_threads(4 // processes.size)
    found, owners = {}, []
    take = Share.take

    def counted(share: Share, positions: np.ndarray) -> None:
        take(share, positions)
        owners.append(share.ids)

    Share.take = counted
    for name in CASES:
        owners.clear()
        done = run(name, decompose=True)
        for part in ("positions", "momenta", "potential_energies", "heat"):
            values = getattr(done, part)
            found[f"{name}/{part}"] = np.empty(0) if values is None else values
        found[f"owners of {name}"] = np.array(len(owners))
    try:
        simulate(breaks(), 3.0, duration=30.0, model=windows(), decompose=True)
    except RolloutError as error:
        found["broken"] = np.array(str(error))
    one_half = cases.diamond((1, 1, 1))
    one_half.cell *= 2.5
    one_half.positions += 0.5
    refused = {
        "differ": cases.diamond(seed=processes.rank),
        "molecule": cases.hot("H2O"),
        "empty": one_half,
    }
    for name, atoms in refused.items():
        try:
            simulate(atoms, model=windows(), decompose=True)
        except ValueError as error:
            found[name] = np.array(str(error))
    np.savez(folder / f"{processes.rank}.npz", **found)
    processes.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
