"""Shapes of molecules: dihedral angles, maps of them, how long they last.

Angles are rad in (-pi, pi], with the sign of IUPAC: positive where the last bond, seen along the
middle one, is turned clockwise from the first. Positions are Å, of molecules that are whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import ase
import numpy as np
from ase.units import kB
from numpy.typing import ArrayLike, NDArray

from ..io.trajectory import Trajectory
from .observables import Array, bonds


def dihedral_angles(positions: ArrayLike, atoms: ArrayLike) -> Array:
    """The dihedral angles of quadruples of atoms, [frames, angles].

    positions: [frames, atoms, 3] Å. atoms: [angles, 4] indices. Raises ValueError for other shapes.
    """
    x, quadruples = np.asarray(positions, dtype=np.float64), np.asarray(atoms)
    if x.ndim != 3 or x.shape[-1] != 3 or quadruples.ndim != 2 or quadruples.shape[1] != 4:
        raise ValueError(
            f"got positions of shape {x.shape} and atoms of shape {quadruples.shape}; expected "
            "[frames, atoms, 3] and [angles, 4]"
        )
    a, b, c, d = (x[:, column] for column in quadruples.T)
    middle = c - b
    first, second = np.cross(b - a, middle), np.cross(middle, d - c)
    length = np.linalg.norm(middle, axis=-1)
    sine = length * ((b - a) * second).sum(-1)
    return np.arctan2(sine, (first * second).sum(-1))


class Backbone(NamedTuple):
    """Quadruples of atoms, [residues, 4] each, whose dihedral angles are phi and psi."""

    phi: NDArray[np.int64]  # C'-N-CA-C'
    psi: NDArray[np.int64]  # N-CA-C'-N


def backbone(atoms: ase.Atoms) -> Backbone:
    """The dihedral angles phi and psi of the residues of a peptide, found by its bonds.

    A residue is a carbon atom between the N of one amide group and the C' of another; terminal ones
    that have only one of the angles are left out. In the order of the carbon atoms. Raises
    ValueError where there is none.
    """
    found = _residues(atoms)
    if not len(found):
        raise ValueError(
            f"{atoms.get_chemical_formula()} has no carbon atom between two amide groups, so it "
            "has no phi and psi"
        )
    return Backbone(found[:, :4], found[:, 1:])


class BackboneTorsions(NamedTuple):
    """Of every residue between two amide groups, in degrees from -180 to 180.

    alpha_carbons: [residues] indices of atoms. phi, psi: [frames, residues].
    """

    alpha_carbons: tuple[int, ...]
    phi: Array
    psi: Array


def backbone_torsions(trajectory: Trajectory) -> BackboneTorsions:
    """phi and psi of the residues of isolated molecules, by the bonds of the first frame.

    G. N. Ramachandran, C. Ramakrishnan, V. Sasisekharan, J. Mol. Biol. 7, 95 (1963). There may be
    no residue (:func:`backbone`); of periodic systems none is found.
    """
    periodic = trajectory.atoms.pbc.any()
    found = np.empty((0, 5), int) if periodic else _residues(trajectory[0])
    phi, psi = (
        np.rad2deg(dihedral_angles(trajectory.positions, chain))
        for chain in (found[:, :4], found[:, 1:])
    )
    return BackboneTorsions(tuple(found[:, 2].tolist()), phi, psi)


def _residues(atoms: ase.Atoms) -> NDArray[np.int64]:
    """C', N, CA, C', N of every residue, [residues, 5]."""
    numbers = atoms.numbers
    near: list[list[int]] = [[] for _ in numbers]
    for i, j in bonds(numbers, atoms.positions, atoms.cell, atoms.pbc)[0]:
        near[i].append(int(j))
        near[j].append(int(i))

    def of(atom: int, number: int) -> list[int]:
        return [other for other in near[atom] if numbers[other] == number]

    def carbonyls(atom: int) -> list[int]:
        """Its carbon atoms that are double bonded to an oxygen atom."""
        return [c for c in of(atom, 6) if any(len(near[o]) == 1 for o in of(c, 8))]

    found = [
        (before, n, alpha, carbon, after)
        for alpha in np.flatnonzero(numbers == 6).tolist()
        for n in of(alpha, 7)
        for before in carbonyls(n)
        for carbon in carbonyls(alpha)
        for after in of(carbon, 7)
        if before != alpha and after != n and len(near[alpha]) == 4
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 5)


class AngleMap(NamedTuple):
    """How often pairs of angles come: edges [bins + 1] rad, of both; density [bins, bins] 1/rad²
    by the first and the second angle, with an integral of 1."""

    edges: Array
    density: Array

    def free_energy(self, temperature_K: float) -> Array:
        """eV above the lowest, [bins, bins]; inf where no frame is."""
        with np.errstate(divide="ignore"):
            energy = -kB * temperature_K * np.log(self.density)
        return energy - energy.min()


def angle_map(
    first: ArrayLike, second: ArrayLike, *, bins: int = 36, weights: ArrayLike | None = None
) -> AngleMap:
    """The map of two angles, as of phi and psi (Ramachandran's): of any shape, the same for all.

    first, second: rad. bins: along each axis, from -pi to pi. weights: of the frames; None for 1.
    Raises ValueError for shapes that differ and where there is no frame.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    w = np.ones(x.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if not x.shape == y.shape == w.shape or x.size == 0:
        raise ValueError(
            f"got angles of shapes {x.shape} and {y.shape} with weights {w.shape}; expected the "
            "same shape, of some frames"
        )
    edges = np.linspace(-np.pi, np.pi, bins + 1)
    density, *_ = np.histogram2d(
        x.ravel(), y.ravel(), bins=(edges, edges), weights=w.ravel(), density=True
    )
    return AngleMap(edges, density)


def jensen_shannon_divergence(one: AngleMap, other: AngleMap) -> float:
    """Between two maps with the same bins, in bits: 0 of the same, 1 of maps without overlap.

    Half the Kullback-Leibler divergences from their mean (J. Lin, IEEE Trans. Inf. Theory 37, 145
    (1991)). Raises ValueError for maps with other bins.
    """
    from scipy.spatial.distance import jensenshannon  # here, for it takes long to import

    if one.density.shape != other.density.shape:
        raise ValueError(
            f"got maps of {one.density.shape} and {other.density.shape} bins; expected the same"
        )
    return float(jensenshannon(one.density.ravel(), other.density.ravel(), base=2) ** 2)


def angle_autocorrelation(angles: ArrayLike, lags: int) -> Array:
    """How long an angle lasts: <cos(a(t) - a(0))> less its limit, over its value at 0; [lags].

    angles: [runs, frames] rad, evenly spaced in time. lags: so many, from 0 on, in frames. The
    limit is that of independent angles, with the mean over all runs. Raises ValueError for other
    shapes and lags beyond the frames.
    """
    from scipy.fft import irfft, next_fast_len, rfft

    a = np.asarray(angles, dtype=np.float64)
    if a.ndim != 2 or not 0 < lags <= a.shape[1]:
        raise ValueError(
            f"got angles of shape {a.shape} and {lags} lags; expected [runs, frames] and 1 to "
            "as many lags as frames"
        )
    frames, total = a.shape[1], np.zeros(lags)
    n = next_fast_len(frames + lags, real=True)
    for part in (np.cos(a), np.sin(a)):
        power = np.abs(rfft(part - part.mean(), n, axis=1)) ** 2
        total += irfft(power, n, axis=1)[:, :lags].mean(0)
    total /= frames - np.arange(lags)
    return total / total[0]


def count_transitions(angles: ArrayLike, cores: Sequence[tuple[float, float]]) -> NDArray[np.int64]:
    """How often an angle went from one core to another, [cores, cores].

    angles: [runs, frames] rad. cores: (from, to) rad, each an arc that may pass pi (from > to); a
    run is in a core until it is in another one, so that to and fro at a border counts for nothing
    (milestones; C. Schütte et al., J. Chem. Phys. 134, 204105 (2011)).
    """
    counts = np.zeros((len(cores), len(cores)), dtype=np.int64)
    for run in np.atleast_2d(np.asarray(angles, dtype=np.float64)):
        state = np.full(run.shape, -1)
        for k, (begin, end) in enumerate(cores):
            width = (end - begin) % (2 * np.pi)
            state[(run - begin) % (2 * np.pi) <= width] = k
        state = state[state >= 0]
        moved = np.flatnonzero(state[1:] != state[:-1])
        np.add.at(counts, (state[moved], state[moved + 1]), 1)
    return counts


def rotational_weights(positions: ArrayLike, masses: ArrayLike) -> Array:
    """Weights [frames] that make frames of a molecule that does not turn those of one that does.

    A thermostat that leaves the angular momentum J at zero samples shapes with probabilities that
    are those of the canonical ensemble times 1/sqrt(det I), I the tensor of inertia: J of canonical
    momenta is normally distributed with the covariance kB T I, and that is its density at zero.

    positions: [frames, atoms, 3] Å. masses: [atoms] amu. The mean weight is 1.
    """
    x, m = np.asarray(positions, dtype=np.float64), np.asarray(masses, dtype=np.float64)
    r = x - (m @ x / m.sum())[:, None]
    moments = np.einsum("a,fax,fay->fxy", m, r, r)
    inertia = np.trace(moments, axis1=1, axis2=2)[:, None, None] * np.eye(3) - moments
    weights = np.sqrt(np.linalg.det(inertia))
    return weights / weights.mean()
