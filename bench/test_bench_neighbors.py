"""Neighbour lists over the number of atoms: ours beside vesin, matscipy and ASE.

Run with `pytest bench/test_bench_neighbors.py`.  Every provider returns the full list with shifts,
in double precision; ours is also sorted.  One thread unless MDTRAJNET_BENCH_THREADS says otherwise.
"skin" is an update within the skin, which filters without a search.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import ase
import ase.build
import ase.neighborlist
import pytest

from mdtrajnet_fast.neighbors.host import NeighborList, neighbor_list

THREADS = int(os.environ.get("MDTRAJNET_BENCH_THREADS", "1"))
CUTOFF = 4.0  # Å; 46 neighbours in diamond
SYSTEMS = {
    "ethanol": 0,  # 9 atoms, not periodic
    "diamond-64": 2,
    "diamond-1000": 5,
    "diamond-10648": 11,
    "diamond-97336": 23,
}
SLOW_ABOVE = {"ase": 11_000}


def make(name: str) -> ase.Atoms:
    if name == "ethanol":
        return ase.build.molecule("CH3CH2OH")
    n = SYSTEMS[name]
    return ase.build.bulk("C", "diamond", a=3.567, cubic=True) * (n, n, n)


def provider(name: str, atoms: ase.Atoms) -> Callable[[], object]:
    positions, cell, pbc = atoms.positions, atoms.cell[:], atoms.pbc
    if name == "ours":
        ours = (cell, pbc) if pbc.any() else (None, None)
        return lambda: neighbor_list(positions, CUTOFF, *ours, threads=THREADS)
    if name == "skin":
        ours = (cell, pbc) if pbc.any() else (None, None)
        skinned = NeighborList(CUTOFF, 1.0, THREADS)
        skinned.update(positions, *ours)
        return lambda: skinned.update(positions, *ours)
    if name == "vesin":
        vesin = pytest.importorskip("vesin")
        search = vesin.NeighborList(cutoff=CUTOFF, full_list=True, n_threads=THREADS)
        return lambda: search.compute(positions, cell, pbc, "ijS", copy=False)
    if name == "matscipy":
        matscipy = pytest.importorskip("matscipy.neighbours")
        return lambda: matscipy.neighbour_list("ijS", atoms=atoms, cutoff=CUTOFF)
    return lambda: ase.neighborlist.neighbor_list("ijS", atoms, CUTOFF)


@pytest.mark.parametrize("name", ["ours", "skin", "vesin", "matscipy", "ase"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_neighbor_list(benchmark, system, name):
    atoms = make(system)
    if len(atoms) > SLOW_ABOVE.get(name, len(atoms)):
        pytest.skip(f"{name} takes too long on {len(atoms)} atoms")
    if name == "matscipy" and not atoms.pbc.any():
        atoms.center(vacuum=2 * CUTOFF)  # it needs a cell
    benchmark.group = system
    benchmark.extra_info.update(atoms=len(atoms), cutoff=CUTOFF, threads=THREADS)
    rounds = 2000 if len(atoms) < 100 else 7
    benchmark.pedantic(provider(name, atoms), rounds=rounds, warmup_rounds=1)
