"""Torsions of peptide backbones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase.geometry import get_dihedrals

from ..io.trajectory import Trajectory
from .observables import Array, bonds


class BackboneTorsions(NamedTuple):
    """Of every residue between two peptide bonds, in degrees from -180 to 180.

    alpha_carbons: [residues] indices of atoms. phi, psi: [frames, residues].
    """

    alpha_carbons: tuple[int, ...]
    phi: Array
    psi: Array


def backbone_torsions(trajectory: Trajectory) -> BackboneTorsions:
    """phi (C-N-CA-C) and psi (N-CA-C-N) of the residues of isolated molecules.

    G. N. Ramachandran, C. Ramakrishnan, V. Sasisekharan, J. Mol. Biol. 7, 95 (1963). Residues are
    found by the bonds of the first frame: an alpha carbon between an amide nitrogen and the
    carbonyl carbon of the next peptide bond. There may be none; of periodic systems none is found.
    """
    chains = [] if trajectory.atoms.pbc.any() else _backbones(trajectory)
    angles = np.empty((2, len(trajectory), len(chains)))
    for k, chain in enumerate(chains):
        x = trajectory.positions[:, chain]
        first, second, third, fourth = np.diff(x, axis=1).swapaxes(0, 1)
        angles[0, :, k] = get_dihedrals(first, second, third)
        angles[1, :, k] = get_dihedrals(second, third, fourth)
    phi, psi = (angles + 180) % 360 - 180  # ASE's go from 0 to 360
    return BackboneTorsions(tuple(chain[2] for chain in chains), phi, psi)


def _backbones(trajectory: Trajectory) -> list[list[int]]:
    """C, N, CA, C, N of every residue between two peptide bonds."""
    symbols = trajectory.atoms.get_chemical_symbols()
    near: list[list[int]] = [[] for _ in symbols]
    for i, j in bonds(trajectory.atoms.numbers, trajectory.positions[0])[0].tolist():
        near[i].append(j)
        near[j].append(i)

    def of(atom: int, element: str) -> list[int]:
        return [other for other in near[atom] if symbols[other] == element]

    carbonyl = {
        a
        for a, symbol in enumerate(symbols)
        if symbol == "C" and len(near[a]) == 3 and any(len(near[o]) == 1 for o in of(a, "O"))
    }
    return [
        [before, nitrogen, alpha, after, following]
        for alpha, symbol in enumerate(symbols)
        if symbol == "C" and alpha not in carbonyl
        for nitrogen in of(alpha, "N")
        for before in sorted({*of(nitrogen, "C")} & carbonyl)
        for after in sorted({*of(alpha, "C")} & carbonyl)
        for following in of(after, "N")
        if following != nitrogen and before != after
    ]
