"""Restore what the dynamics conserves: momentum, angular momentum of isolated systems, energy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import _C
from .system import System

# The most by which the internal velocities of a system are scaled in one window.
_MOST = 0.3
# Newton steps on the angular momentum: each squares its relative error, which starts well below 1.
_STEPS = 6


def conserve(
    system: System,
    t: np.ndarray,
    moved: np.ndarray,
    velocity: np.ndarray,
    component: np.ndarray,
    isolated: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Displacements and velocities with the momenta of the start, component by component.

    system: state at the start. t: [times] fs. moved, velocity: [times, atoms, 3] Å and Å/fs.
    component: [atoms] labels. isolated: [atoms] bool, True where angular momentum is kept too.

    Each component's mean displacement becomes its centre-of-mass velocity times t and its momentum
    that of the start. Then each isolated component is turned as a rigid body until its angular
    momentum L about its centre of mass is that of the start: by an angle theta, positions and
    velocities alike, and by an angular velocity omega. To first order L changes by
    theta x L + I omega; of all solutions the one of least

        omega.I omega + theta.(I / t^2 + J) theta

    is taken, I and J being the tensors of inertia of positions and velocities, and found anew until
    L is exact. Turning the velocities alone would not do: to make up for the smallest tilt of a
    nearly linear molecule they would have to spin about its axis at any speed.
    """
    return _C.conserve(
        system.positions,
        system.velocities,
        system.masses,
        t,
        moved,
        velocity,
        component,
        isolated,
        _STEPS,
    )


def conserve_energy(
    system: System,
    kinetic: np.ndarray,
    t: np.ndarray,
    positions: np.ndarray,
    velocity: np.ndarray,
    component: np.ndarray,
    isolated: np.ndarray,
    pull: float = np.inf,
    near: np.ndarray | float = np.inf,
) -> np.ndarray:
    """Velocities [times, atoms, 3] (Å/fs) drawn to the kinetic energies wanted at the last time.

    system: says which atoms are whose, and their masses. kinetic: [systems] eV, what is left of
    the total energy. t: [times] fs. positions, velocity: [times, atoms, 3] Å and Å/fs. component,
    isolated: [atoms], as for :func:`conserve`. pull: how strongly; by default, all the way.
    near: [systems] eV, the differences up to which the pull is weak.

    The internal velocities, those without the motion of each component as a rigid body, are scaled,
    which leaves momentum and angular momentum as they are: by up to 30 % at the last time, where
    they would need more, and before it by a part that grows with the time. With a pull they go the
    share 1 - exp(-pull (1 + (difference / near)^4)) of that way: weakly where the difference may be
    an error of the potential, strongly beyond it.
    """
    internal = _C.internal_velocities(positions, velocity, system.masses, component, isolated)
    now = replace(system, velocities=velocity[-1]).kinetic_energy()
    inner = replace(system, velocities=internal[-1]).kinetic_energy()
    wanted = np.maximum(kinetic - (now - inner), 0.0)  # rigid and internal energies add up
    scale = np.sqrt(np.divide(wanted, inner, out=np.ones_like(inner), where=inner > 0))
    if pull < np.inf:
        share = -np.expm1(-pull * (1 + ((wanted - inner) / near) ** 4))
    else:
        share = np.ones_like(scale)
    more = (share * np.clip(scale - 1, -_MOST, _MOST))[system.system_index]
    return velocity + (t / t[-1])[:, None, None] * more[:, None] * internal
