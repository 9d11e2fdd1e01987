"""Normal modes of a system, and how much kinetic energy a trajectory has in each.

Arrays are NumPy float64: positions Å, masses amu, temperatures K, wavenumbers cm^-1.
"""

from __future__ import annotations

from typing import NamedTuple

import ase
import numpy as np
import scipy.linalg
from ase.units import fs, kB
from numpy.typing import NDArray

from ..io.trajectory import Trajectory
from ..mechanics import EV, rigid_motions
from .observables import WAVENUMBER

Array = NDArray[np.float64]


class NormalModes(NamedTuple):
    """The vibrations about a geometry, softest first.

    positions: [atoms, 3] Å, relative to the centre of mass. wavenumbers: [modes] cm^-1, negative
    for a direction in which the potential falls. vectors: [modes, atoms, 3], orthonormal and
    mass-weighted.
    """

    positions: Array
    wavenumbers: Array
    vectors: Array


def normal_modes(atoms: ase.Atoms, hessian: Array) -> NormalModes:
    """Diagonalise the mass-weighted Hessian of the potential energy, without overall motion.

    hessian: [3 atoms, 3 atoms] eV/Å^2 where the atoms are. There are 3N - 6 modes (3N - 5 of a
    linear system, 3N - 3 of a periodic one): E. B. Wilson, J. C. Decius, P. C. Cross, Molecular
    Vibrations (1955). Raises ValueError for another shape and for numbers that are not finite.
    """
    count = len(atoms)
    if hessian.shape != (3 * count, 3 * count) or not np.isfinite(hessian).all():
        raise ValueError(
            f"got a Hessian of shape {hessian.shape}; expected finite numbers of shape "
            f"{(3 * count, 3 * count)} in eV/Å^2"
        )
    masses = atoms.get_masses()
    root = np.repeat(np.sqrt(masses), 3)
    rigid = rigid_motions(atoms)
    # the rest of an orthonormal basis of all motions
    inner = scipy.linalg.qr(rigid)[0][:, rigid.shape[1] :]
    weighted = inner.T @ (hessian / np.outer(root, root)) @ inner
    squares, vectors = np.linalg.eigh((weighted + weighted.T) / 2)
    frequencies = np.sign(squares) * np.sqrt(abs(squares)) * fs / (2 * np.pi)  # 1/fs
    return NormalModes(
        atoms.positions - masses @ atoms.positions / masses.sum(),
        WAVENUMBER * frequencies,
        (inner @ vectors).T.reshape(-1, count, 3),
    )


def mode_temperatures(trajectory: Trajectory, modes: NormalModes) -> Array:
    """Mean kinetic energy of every mode along a trajectory, as a temperature: [modes] K.

    Every frame is turned onto the geometry of the modes by the rotation of least squared
    mass-weighted distance (W. Kabsch, Acta Cryst. A 32, 922 (1976)), an isolated system's; its
    velocities are projected onto the modes. Far from the geometry the modes are no longer those
    of the potential, but the directions are as orthogonal as they were, so that equipartition
    gives each the same temperature, but for :func:`mode_freedoms`.
    """
    masses = trajectory.atoms.get_masses()
    _, turns = turned(trajectory, modes)
    velocities = trajectory.velocities @ turns
    speeds = np.einsum("kax,a,fax->fk", modes.vectors, np.sqrt(masses), velocities, optimize=True)
    return np.mean(speeds**2, axis=0) * EV / kB


def mode_freedoms(trajectory: Trajectory, modes: NormalModes) -> Array:
    """What part of a degree of freedom internal motion has along every mode: [modes], mean.

    Away from the geometry of the modes a part of each moves or turns the system as a whole, which
    motion without net momentum and rotation has no energy in. Equipartition gives each mode the
    temperature :func:`mode_temperatures` / mode_freedoms: with the projector P on the internal
    motion at a geometry, the mass-weighted momenta p have <(q . p)^2> = kB T q . P q.
    """
    positions, _ = turned(trajectory, modes)
    flat = modes.vectors.reshape(len(modes.vectors), -1)
    frame, lost = trajectory.atoms.copy(), np.zeros(len(flat))
    for frame.positions in positions:
        lost += ((flat @ rigid_motions(frame)) ** 2).sum(axis=1)
    return 1 - lost / len(positions)


def turned(trajectory: Trajectory, modes: NormalModes) -> tuple[Array, Array]:
    """Positions turned onto the geometry of modes as in :func:`mode_temperatures`, and the turns.

    Positions: [frames, atoms, 3] Å, relative to the centre of mass. Turns: [frames, 3, 3], by which
    row vectors are multiplied.
    """
    masses = trajectory.atoms.get_masses()
    weights = masses / masses.sum()
    x = trajectory.positions - np.einsum("a,fax->fx", weights, trajectory.positions)[:, None]
    if trajectory.atoms.pbc.any():
        return x, np.broadcast_to(np.eye(3), (len(x), 3, 3))
    u, _, vt = np.linalg.svd(np.einsum("a,fax,ay->fxy", weights, x, modes.positions))
    u[:, :, -1] *= np.sign(np.linalg.det(u @ vt))[:, None]  # a rotation, not a reflection
    turns = u @ vt
    return x @ turns, turns
