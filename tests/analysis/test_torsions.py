"""Backbone torsions are those that ASE measures, with the sign of biochemistry."""

from __future__ import annotations

import cases
import numpy as np

from mdtrajnet_fast import Trajectory, read_structure
from mdtrajnet_fast.analysis.conformations import backbone_torsions


def frames(atoms, turned=()):
    """A trajectory of the atoms as they are, then with torsions (four atoms, degrees) set."""
    each = [atoms.copy(), *(atoms.copy() for _ in turned)]
    for one, (chain, angle, moved) in zip(each[1:], turned, strict=True):
        one.set_dihedral(*chain, angle, indices=moved)
    x = np.array([one.positions for one in each])
    return Trajectory(atoms, np.arange(float(len(each))), x, np.zeros_like(x))


def test_a_dipeptide():
    atoms = read_structure("alanine dipeptide")
    (alpha,), phi, psi = backbone_torsions(frames(atoms))
    assert phi.shape == psi.shape == (1, 1)
    symbols = np.array(atoms.get_chemical_symbols())
    near = atoms.get_all_distances() < 1.7
    (nitrogen,) = (a for a in np.flatnonzero(near[alpha]) if symbols[a] == "N")
    (carbonyl,) = (
        a
        for a in np.flatnonzero(near[alpha])
        if symbols[a] == "C" and a != alpha and "O" in symbols[near[a]]
    )
    (before,) = (a for a in np.flatnonzero(near[nitrogen]) if symbols[a] == "C" and a != alpha)
    (after,) = (a for a in np.flatnonzero(near[carbonyl]) if symbols[a] == "N")
    chain = [before, nitrogen, alpha, carbonyl, after]

    def signed(angle):
        return (angle + 180) % 360 - 180

    np.testing.assert_allclose(phi[0, 0], signed(atoms.get_dihedral(*chain[:4])), atol=1e-6)
    np.testing.assert_allclose(psi[0, 0], signed(atoms.get_dihedral(*chain[1:])), atol=1e-6)
    # where atoms turn, so does the angle: positive clockwise, seen along the bond
    _, _, psi = backbone_torsions(frames(atoms, [(chain[1:], -47.0, [after])]))
    np.testing.assert_allclose(psi[1, 0], -47, atol=1e-6)


def test_there_may_be_none():
    for atoms in (cases.hot("CH3CH2OH"), read_structure("acetamide"), cases.diamond((2, 2, 2))):
        carbons, phi, psi = backbone_torsions(frames(atoms))
        assert carbons == () and phi.shape == psi.shape == (1, 0)


def test_two_residues():
    atoms = read_structure("CC(=O)N[C@@H](C)C(=O)N[C@@H](C)C(=O)NC")
    carbons, phi, psi = backbone_torsions(frames(atoms))
    assert len(carbons) == 2 and phi.shape == (1, 2)
    assert all(atoms.symbols[a] == "C" for a in carbons)
    assert np.isfinite(phi).all() and np.isfinite(psi).all()
