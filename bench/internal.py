"""Internal coordinates of a molecule, the bonds, angles and dihedrals of a Z-matrix, and back."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from mdtrajnet_fast.analysis.observables import bonds

STRAIGHT = 0.15  # sine of an angle below which it defines no dihedral


class Tree(NamedTuple):
    """A Z-matrix: the atoms in the order they are placed, and the three that each refers to."""

    order: np.ndarray  # [atoms] atom k of the tree is atom order[k] of the molecule
    refs: np.ndarray  # [atoms, 3] bond, angle and dihedral partner, in the order of the tree


def bond_matrix(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Which atoms are bonded [atoms, atoms]; numbers [atoms], positions [atoms, 3] Å."""
    bonded = np.zeros((len(numbers),) * 2, dtype=bool)
    i, j = bonds(numbers, positions)[0].T
    bonded[i, j] = bonded[j, i] = True
    return bonded


def automorphisms(numbers: np.ndarray, positions: np.ndarray) -> list[list[int]]:
    """Orders of the atoms that leave elements and bonds as they are; positions [atoms, 3] Å."""
    bonded = bond_matrix(numbers, positions)
    found: list[list[int]] = [[]]
    for n in range(len(numbers)):
        found = [
            [*images, k]
            for images in found
            for k in np.flatnonzero(numbers == numbers[n]).tolist()
            if k not in images and (bonded[k, images] == bonded[n, :n]).all()
        ]
    return found


def z_matrix(numbers: np.ndarray, frames: np.ndarray) -> Tree:
    """The tree of a molecule from the bonds of its first frame.

    numbers: [atoms]; frames: [frames, atoms, 3] Å. Partners are bonded ones where the angle that a
    dihedral turns about stays away from 180 degrees in all frames, else any atom placed before.
    Raises ValueError for molecules without such partners (linear ones, and below three atoms) and
    for several molecules.
    """
    bonded = bond_matrix(numbers, frames[0])

    def sine(i: int, j: int, k: int) -> float:
        a, b = frames[:, i] - frames[:, j], frames[:, k] - frames[:, j]
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float((np.linalg.norm(np.cross(a, b), axis=1) / lengths).min())

    def grow(root: int) -> tuple[float, Tree]:
        order, parent, worst = [root], {root: root}, 1.0
        for a in order:  # breadth first, hydrogen last
            for k in sorted(np.flatnonzero(bonded[a]).tolist(), key=lambda k: (numbers[k] == 1, k)):
                if k not in parent:
                    parent[k] = a
                    order.append(k)
        place = {atom: k for k, atom in enumerate(order)}
        refs = np.zeros((len(order), 3), dtype=int)
        for n, k in enumerate(order[1:], 1):
            a, placed = parent[k], order[:n]
            options = [(1.0, 0, a, a)]  # the second atom has a bond only
            if n == 2:
                options = [(sine(k, a, b), 0, b, b) for b in placed if b != a]
            if n > 2:
                options = [
                    # the angle at the bond partner, and how far c is from the axis a-b
                    (min(sine(k, a, b), sine(c, a, b)), _distance(bonded, a, b, c), b, c)
                    for b in placed
                    for c in placed
                    if len({a, b, c}) == 3
                ]
            quality, _, b, c = min(
                options, key=lambda o: (o[0] < STRAIGHT, o[1], place[o[2]], place[o[3]])
            )
            worst = min(worst, quality)
            refs[n] = place[a], place[b], place[c]
        return worst, Tree(np.array(order), refs)

    grown = [grow(root) for root in np.flatnonzero(numbers > 1).tolist() or [0]]
    whole = [g for g in grown if len(g[1].order) == len(numbers) > 2 and g[0] >= STRAIGHT]
    if not whole:
        raise ValueError(
            f"no Z-matrix for atoms {numbers.tolist()}: expected one molecule of at least three "
            "atoms that does not become straight; choose other molecules with --molecules"
        )
    return max(whole, key=lambda g: g[0])[1]


def _distance(bonded: np.ndarray, a: int, b: int, c: int) -> int:
    """How far the angle and dihedral partners b and c are from the bond partner a, in steps."""
    near = 0 if bonded[a, b] else 4
    return near + (0 if bonded[a, c] else 1 if bonded[b, c] else 2)


def to_internal(x: Tensor, refs: Tensor) -> Tensor:
    """Bonds (Å), angles and dihedrals (rad) [..., 3 atoms - 6] of positions [..., atoms, 3] (Å)."""
    k, (a, b, c) = x, (x[..., refs[:, n], :] for n in range(3))
    d = (k - a)[..., 1:, :]
    axis = (b - a)[..., 2:, :]
    axis = axis / axis.norm(dim=-1, keepdim=True)
    bond = d.norm(dim=-1)
    along = (d[..., 1:, :] * axis).sum(-1)
    angle = torch.atan2(torch.linalg.cross(axis, d[..., 1:, :]).norm(dim=-1), along)
    axis, p, r = axis[..., 1:, :], d[..., 2:, :], (c - a)[..., 3:, :]
    r = r - (r * axis).sum(-1, keepdim=True) * axis
    dihedral = torch.atan2((torch.linalg.cross(axis, r) * p).sum(-1), (r * p).sum(-1))
    return torch.cat([bond, angle, dihedral], dim=-1)


def to_cartesian(q: Tensor, refs: Tensor) -> Tensor:
    """Positions [..., atoms, 3] (Å) of internal coordinates: the first atom at the origin."""
    atoms = len(refs)
    bond, angle, dihedral = q.split([atoms - 1, atoms - 2, atoms - 3], dim=-1)
    zero = torch.zeros_like(bond[..., 0])
    x = [torch.stack([zero, zero, zero], dim=-1), torch.stack([bond[..., 0], zero, zero], dim=-1)]
    for n in range(2, atoms):
        a, b = x[refs[n, 0]], x[refs[n, 1]]
        axis = (b - a) / (b - a).norm(dim=-1, keepdim=True)
        if n == 2:
            r, phi = torch.stack([zero, zero + 1, zero], dim=-1), zero
        else:
            r, phi = x[refs[n, 2]] - a, dihedral[..., n - 3]
        r = r - (r * axis).sum(-1, keepdim=True) * axis
        r = r / r.norm(dim=-1, keepdim=True)
        side = phi.cos()[..., None] * r + phi.sin()[..., None] * torch.linalg.cross(axis, r)
        theta = angle[..., n - 2, None]
        x.append(a + bond[..., n - 1, None] * (theta.cos() * axis + theta.sin() * side))
    return torch.stack(x, dim=-2)


def derivatives(x: Tensor, refs: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
    """dq/dx [frames, 3 atoms - 6, 3 atoms] and its inverse dx/dq [frames, 3 atoms, 3 atoms - 6].

    Of all inverses the one whose motion has no momentum and no angular momentum.
    x: [frames, atoms, 3] Å; masses: [atoms] amu.
    """
    forth = vmap(jacrev(lambda one: to_internal(one, refs)), chunk_size=2048)(x).flatten(-2)
    weighted = (forth / masses.repeat_interleave(3)).mT
    return forth, weighted @ torch.linalg.inv(forth @ weighted)


def wrap(dq: Tensor, atoms: int) -> Tensor:
    """Differences of internal coordinates with those of dihedrals in [-pi, pi)."""
    bent = dq[..., 2 * atoms - 3 :]
    bent = torch.remainder(bent + math.pi, 2 * math.pi) - math.pi
    return torch.cat([dq[..., : 2 * atoms - 3], bent], dim=-1)


def superpose(x: Tensor, on: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
    """x [pairs, atoms, 3] moved rigidly onto `on`, least squares by mass; and the rotations."""
    weights = (masses / masses.sum())[:, None]
    centre, target = ((weights * y).sum(1, keepdim=True) for y in (x, on))
    u, _, vh = torch.linalg.svd((x - centre).mT @ (weights * (on - target)))
    flip = torch.ones_like(u[:, 0])
    flip[:, 2] = torch.linalg.det(u @ vh).sign()
    rotation = (u * flip[:, None]) @ vh
    return (x - centre) @ rotation + target, rotation


def rigid(x: Tensor, x0: Tensor, v0: Tensor, masses: Tensor) -> Tensor:
    """Velocities of rigid bodies at x with the momentum and angular momentum of x0 and v0.

    All [pairs, atoms, 3]; masses [atoms].
    """
    weights = (masses / masses.sum())[:, None]
    r, r0 = (y - (weights * y).sum(1, keepdim=True) for y in (x, x0))
    momentum = torch.linalg.cross(r0, weights * v0).sum(1)
    inertia = (weights * r).mT @ r
    inertia = torch.eye(3) * inertia.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] - inertia
    omega = torch.linalg.solve(inertia, momentum)[:, None]
    return (weights * v0).sum(1, keepdim=True) + torch.linalg.cross(omega.expand_as(r), r)
