"""mdtrajnet_fast.conservation.conserve in numpy, which its tests compare it with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import cross
from scipy.spatial.transform import Rotation

from mdtrajnet_fast.system import System

_STEPS = 6
_EXACT = 1e-15
_EYE = np.eye(3)


def conserve(
    system: System,
    t: np.ndarray,
    moved: np.ndarray,
    velocity: np.ndarray,
    component: np.ndarray,
    isolated: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Displacements and velocities with the momenta of the start."""
    total = _totals(component)
    mass = system.masses[:, None]
    total_mass = total(mass)

    def mean(x: np.ndarray) -> np.ndarray:
        return (total(mass * x) / total_mass).take(component, -2)

    v0 = system.velocities
    moved = moved - mean(moved - v0 * t[:, None, None])
    velocity = velocity - mean(velocity - v0)
    turns = isolated & (np.bincount(component)[component] > 1)
    if turns.any():
        x = system.positions + moved
        centre, drift = mean(x), mean(v0)
        wanted = cross(system.positions - mean(system.positions), v0)
        turning = np.bincount(component[turns]) > 0
        label = (turning.cumsum() - 1)[component[turns]]
        r, v = _turn(
            (x - centre)[:, turns],
            (velocity - drift)[:, turns],
            mass[turns],
            _totals(label)(mass[turns] * wanted[turns]),
            t,
            label,
        )
        moved[:, turns] = r + (centre - system.positions)[:, turns]
        velocity[:, turns] = v + drift[turns]
    return moved, velocity


def _totals(label: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function that sums [.., atoms, k] over the atoms of each label: [.., labels, k]."""
    order = np.argsort(label, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(label))[:-1]])
    return lambda x: np.add.reduceat(x.take(order, -2), starts, axis=-2)


def _pseudo_inverse(a: np.ndarray) -> np.ndarray:
    """Of symmetric positive semidefinite [.., 3, 3]: eigenvalues below 1e-10 of the largest are 0.

    To the bit of np.linalg.pinv, which sorts and transposes more than eigenvalues need.
    """
    value, vector = np.linalg.eigh(a)
    value, vector = value[..., ::-1, None], vector[..., ::-1]
    kept = value > 1e-10 * value[..., :1, :]
    inverse = np.divide(1.0, value, where=kept, out=np.zeros_like(value))
    return vector @ (inverse * vector.swapaxes(-1, -2))


def _turn(
    r: np.ndarray,  # [times, atoms, 3] Å, from the centre of mass
    v: np.ndarray,  # [times, atoms, 3] Å/fs, relative to it
    mass: np.ndarray,  # [atoms, 1] amu
    wanted: np.ndarray,  # [systems, 3] amu Å^2/fs, angular momenta
    t: np.ndarray,  # [times] fs
    label: np.ndarray,  # [atoms], the system of each atom
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities, turned until the angular momenta are those wanted."""
    total = _totals(label)

    def tensor(x: np.ndarray) -> np.ndarray:  # of inertia, [times, systems, 3, 3]
        outer = (x * x).sum(-1)[..., None, None] * _EYE - x[..., :, None] * x[..., None, :]
        return total((mass[..., None] * outer).reshape(*x.shape[:2], 9)).reshape(
            len(x), len(wanted), 3, 3
        )

    skew = np.zeros((len(wanted), 3, 3))  # theta -> theta x L
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = wanted[:, 2], -wanted[:, 1], wanted[:, 0]
    skew -= skew.transpose(0, 2, 1)
    t2 = (t**2)[:, None, None, None]
    for _ in range(_STEPS):
        lost = wanted - total(mass * cross(r, v))
        size = total(mass * np.sqrt((r * r).sum(-1) * (v * v).sum(-1))[..., None])
        going = (abs(lost) > _EXACT * size).any(-1, keepdims=True)
        if not going.any():
            break
        lost = np.where(going, lost, 0.0)  # who has arrived stays, whoever else is not there yet
        inertia = tensor(r)
        # pseudo-inverses leave out rotation about the axis of a linear molecule
        by_angle = t2 * _pseudo_inverse(inertia + t2 * tensor(v)) @ skew.transpose(0, 2, 1)
        omega = _pseudo_inverse(inertia + skew @ by_angle) @ lost[..., None]
        theta = (by_angle @ omega)[..., 0]
        turn = Rotation.from_rotvec(theta.reshape(-1, 3)).as_matrix()
        turn = turn.reshape(*theta.shape, 3).take(label, 1)
        r, v = (np.einsum("taij,taj->tai", turn, x) for x in (r, v))
        v = v + cross(omega[..., 0].take(label, 1), r)
    return r, v
