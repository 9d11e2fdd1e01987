"""Systems that the tests of all neighbour lists share; needs nothing that only tests need."""

from __future__ import annotations

import ase
import ase.build
import numpy as np

from mdtrajnet_fast.neighbors import Edges


def diamond(n: int) -> ase.Atoms:
    atoms = ase.build.bulk("C", "diamond", a=3.567, cubic=True) * (n, n, n)
    atoms.rattle(0.03, seed=n)
    return atoms


def triclinic() -> ase.Atoms:
    rng = np.random.default_rng(1)
    cell = np.array([[9.0, 0.0, 0.0], [3.1, 8.0, 0.0], [-2.7, 2.2, 7.4]])
    return ase.Atoms("H40", scaled_positions=rng.random((40, 3)), cell=cell, pbc=True)


def slab() -> ase.Atoms:
    atoms = ase.build.fcc111("Cu", (4, 3, 3), vacuum=None)
    atoms.rattle(0.05, seed=3)
    atoms.cell[2] = 0  # what ASE leaves when no vacuum is asked for
    return atoms


def wire() -> ase.Atoms:
    rng = np.random.default_rng(4)
    positions = rng.normal(scale=1.5, size=(30, 3))
    positions[:, 1] += rng.uniform(0, 6, 30)
    return ase.Atoms("H30", positions, cell=[0, 6.0, 0], pbc=[False, True, False])


def thin() -> ase.Atoms:
    cell = [[2.1, 0, 0], [0.9, 1.8, 0], [0.2, 0.5, 2.5]]
    return ase.Atoms("H2", [[0.1, 0.2, 0.3], [1.2, 1.0, 0.8]], cell=cell, pbc=True)


def outside() -> ase.Atoms:
    atoms = triclinic()
    jumps = np.random.default_rng(5).integers(-7, 8, size=(len(atoms), 3))
    atoms.positions += jumps @ atoms.cell[:]
    return atoms


def gas(n: int, pbc: bool | list[bool], seed: int = 6) -> ase.Atoms:
    rng = np.random.default_rng(seed)
    return ase.Atoms(f"H{n}", rng.uniform(0, 20, (n, 3)), cell=[20, 20, 20], pbc=pbc)


SYSTEMS = {
    "molecule": ase.build.molecule("CH3CH2OH"),
    "large molecule": gas(400, False),
    "diamond": diamond(3),
    "triclinic": triclinic(),
    "slab": slab(),
    "wire": wire(),
    "thin": thin(),
    "one atom": ase.Atoms("H", [[0.3, 0.1, 0.2]], cell=[1.3, 1.4, 1.5], pbc=True),
    "outside": outside(),
    "gas": gas(300, True),
    "gas, two directions": gas(300, [True, False, True]),
    "gas, one direction": gas(300, [False, False, True]),
}
CUTOFFS = (1.7, 3.3, 6.1)


def periodicity(atoms: ase.Atoms) -> tuple:
    return (atoms.cell[:], atoms.pbc) if atoms.pbc.any() else (None, None)


def batched(systems: list[ase.Atoms]) -> dict:
    return {
        "positions": np.concatenate([atoms.positions for atoms in systems]),
        "cell": np.stack([atoms.cell[:] for atoms in systems]),
        "pbc": np.stack([atoms.pbc for atoms in systems]),
        "ptr": np.cumsum([0, *map(len, systems)]),
    }


def assert_equal(a: Edges, b: Edges) -> None:
    for field in ("row_ptr", "neighbor", "shift"):
        ours, theirs = getattr(a, field), getattr(b, field)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
