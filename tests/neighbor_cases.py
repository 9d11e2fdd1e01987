"""Systems that the tests of all neighbour lists share; needs nothing that only tests need."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import product

import ase
import ase.build
import numpy as np
import torch

from mdtrajnet_fast.neighbors.device import Cells, DeviceEdges
from mdtrajnet_fast.neighbors.host import Edges, neighbor_list


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


def fluid(seed: int) -> dict:
    """A few random atoms in a random cell, on a coarse grid or not, two of them at the cutoff."""
    rng = np.random.default_rng(seed)
    while True:
        cell = rng.integers(-8, 9, (3, 3)) / 2
        lengths = np.linalg.norm(cell, axis=1)
        if abs(np.linalg.det(cell)) > 0.2 * np.prod(lengths) > 0.5:
            break
    pbc = rng.random(3) < 0.6
    positions = rng.integers(-36, 37, (rng.integers(2, 13), 3)) / 4
    positions += seed % 2 * rng.normal(scale=0.1, size=positions.shape)
    shifts = rng.integers(-9, 10, (999, 3)) * pbc
    distances = np.linalg.norm(positions[1] + shifts @ cell - positions[0], axis=1)
    cutoff = rng.choice([*distances[(distances > 0.5) & (distances < 6)][:5], 2.0])
    return {"positions": positions, "cell": cell, "pbc": pbc, "cutoff": cutoff}


def calls() -> Iterator[tuple[str, dict]]:
    """Names and arguments of neighbor_list; some of the fluids it refuses, for coincident atoms."""
    for (name, atoms), cutoff in product(SYSTEMS.items(), CUTOFFS):
        cell, pbc = periodicity(atoms)
        yield (
            f"{name}, {cutoff} Å",
            {"positions": atoms.positions, "cell": cell, "pbc": pbc, "cutoff": cutoff},
        )
    small = [atoms for atoms in SYSTEMS.values() if len(atoms) < 100]
    batch = [ase.Atoms(), *small, ase.Atoms(), diamond(2), *small, ase.Atoms()]
    yield "batch", {**batched(batch), "cutoff": 3.3}
    yield "batch without cells", {**batched(batch), "cutoff": 3.3, "cell": None, "pbc": None}
    yield "more than one tile of a scan", {"positions": gas(1100, False).positions, "cutoff": 1.9}
    for origin in (0.0, 0.25, -3.0, 1e6 + 0.5):
        for cutoff in (1.0, np.nextafter(1.0, 0)):
            yield (
                f"at the cutoff from {origin}, {cutoff!r}",
                {
                    "positions": np.full((1, 3), origin),
                    "cell": np.eye(3),
                    "pbc": True,
                    "cutoff": cutoff,
                },
            )
    for cutoff in (5.0, np.nextafter(5.0, 0)):
        pair = np.array([[0.0, 0, 0], [3.0, 4.0, 0]])
        yield f"pair at the cutoff, {cutoff!r}", {"positions": pair, "cutoff": cutoff}
    for n in (7, 49, 98):  # bins as wide as the cutoff, and an atom on every edge, or almost
        chain = np.outer(np.arange(float(n)), [1, 0, 0])
        for offset in (0.0, 1 / 3, 12345.678):
            ring = {"positions": chain + offset, "cell": np.eye(3) * n, "pbc": [1, 0, 0]}
            yield f"ring of {n} at the cutoff, from {offset:.3f}", {**ring, "cutoff": 1.0}
    one = {"positions": np.zeros((1, 3)), "cell": np.eye(3), "pbc": True}
    yield "a long row", {**one, "cutoff": 8.03}
    rng = np.random.default_rng(0)
    yield "long rows", {"positions": rng.uniform(0, 3, (150, 3)), "cutoff": 6.0}
    for n in (1, 2, 3, 32, 33, 128, 129, 130):  # with n - 1 neighbours each
        yield f"cluster of {n}", {"positions": rng.uniform(0, 3, (n, 3)), "cutoff": 6.0}
    for name, ptr in {"no atoms": [0, 0], "no systems": [0], "empty systems": [0, 0, 0]}.items():
        yield name, {"positions": np.empty((0, 3)), "cutoff": 3.0, "ptr": np.array(ptr)}
    chain = np.outer(np.arange(70.0), [0, 0, 1.0])
    yield "chain", {"positions": chain, "cutoff": 2.0}
    yield "lone atoms", {"positions": chain, "cutoff": 2.0, "ptr": np.arange(71)}
    for seed in range(120):
        yield f"fluid {seed}", fluid(seed)


def refusals() -> Iterator[tuple[str, dict]]:
    """Names and arguments of neighbor_list that it refuses for what is in the arrays."""
    positions = diamond(2).positions
    cell = np.eye(3) * 2 * 3.567
    good = {"positions": positions, "cutoff": 3.0, "cell": cell, "pbc": True}

    def changed(array: np.ndarray, row, value) -> np.ndarray:
        array = array.copy()
        array[row] = value
        return array

    yield "not a number", {**good, "positions": changed(positions, 40, np.nan)}
    yield "infinite", {**good, "positions": changed(positions, (63, 2), np.inf)}
    yield "too far", {**good, "positions": changed(positions, 3, 1e300)}
    yield "cells away", {**good, "positions": changed(positions, 3, 1e12)}
    yield "coincident", {**good, "positions": changed(positions, 50, positions[4] + 4e-7)}
    yield (
        "coincident through an image",
        {**good, "positions": changed(positions, 50, positions[4] + cell[1])},
    )
    yield "cell not finite", {**good, "cell": changed(cell, (1, 2), np.nan)}
    yield "no lattice vector", {**good, "cell": changed(cell, 2, 0)}
    yield "degenerate cell", {**good, "cell": changed(cell, 1, cell[0]), "pbc": [1, 1, 0]}
    yield "thin cell", {**good, "positions": positions[:1], "cell": np.eye(3) * 2e-6}
    ptr = np.array([0, 20, 20, 64])
    cells, pbcs = np.stack([cell] * 3), np.ones((3, 3), bool)
    batch = {"positions": positions, "cutoff": 2.0, "ptr": ptr, "cell": cells, "pbc": pbcs}
    yield "cell of an empty system", {**batch, "cell": changed(cells, (1, 0), 0)}
    yield "last system", {**batch, "positions": changed(positions, 63, positions[62])}


def assert_device_list(edges: DeviceEdges, positions: torch.Tensor, cells: Cells) -> None:
    """Those of neighbor_list within 4 Å; what room is left behind them does not count."""
    count = int(edges.row_ptr[-1])
    found = edges.row_ptr, edges.neighbor[:count], edges.shift[:count]
    expected = neighbor_list(positions.numpy(), 4.0, **cells.arguments())
    for a, b in zip(found, dataclasses.astuple(expected), strict=True):
        np.testing.assert_array_equal(a.numpy(), b)
