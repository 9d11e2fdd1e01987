"""Systems to measure, made reproducibly: molecules, diamond and a Lennard-Jones-like fluid."""

from __future__ import annotations

import ase
import numpy as np
from cases import diamond, hot

from mdtrajnet_fast.mechanics import thermal_velocities
from mdtrajnet_fast.neighbors.host import neighbor_list

# Atoms per Å^3 that put about as many neighbours within 4 Å as diamond has, 46.
_DENSITY = 0.174


def ethanols(count: int) -> list[ase.Atoms]:
    """Ethanol molecules (9 atoms each), distorted and moving, no two alike."""
    return [hot("CH3CH2OH", seed=k) for k in range(count)]


def crystal(cells: int) -> ase.Atoms:
    """Diamond of 8 cells^3 carbon atoms, rattled and moving."""
    return diamond((cells, cells, cells))


def fluid(count: int, seed: int = 0) -> ase.Atoms:
    """A disordered fluid of carbon atoms in a cubic cell, with diamond's number of neighbours.

    The structure of a dense Lennard-Jones liquid without the molecular dynamics: random points,
    pushed apart until nearly none lie within 0.8 of the mean spacing. The numbers of neighbours
    vary from atom to atom, and atoms near in space are far apart in memory.
    """
    rng = np.random.default_rng(seed)
    length = (count / _DENSITY) ** (1 / 3)
    cell = length * np.eye(3)
    spacing = _DENSITY ** (-1 / 3)
    x = rng.uniform(0, length, (count, 3))
    for _ in range(40):
        edges = neighbor_list(x, 0.9 * spacing, cell, True)
        i = np.repeat(np.arange(count), np.diff(edges.row_ptr))
        r = x[edges.neighbor] + edges.shift @ cell - x[i]
        d = np.linalg.norm(r, axis=1, keepdims=True)
        push = -0.3 * (0.9 * spacing - d) * r / d
        for axis in range(3):
            x[:, axis] += np.bincount(i, push[:, axis], count)
        x %= length
    atoms = ase.Atoms(f"C{count}", positions=x, cell=cell, pbc=True)
    thermal_velocities(atoms, 500.0, seed)
    return atoms


# By name, as (builder, size, neighbours of an atom).
SYSTEMS = {
    **{f"ethanol-{k}": (ethanols, k, 8) for k in (1, 8, 64, 1024)},
    **{f"diamond-{8 * n**3}": (crystal, n, 46) for n in (2, 3, 4, 5, 8, 11, 17, 23)},
    **{f"fluid-{k}": (fluid, k, 46) for k in (216, 512, 1_000, 4_000, 10_000, 40_000, 100_000)},
}
