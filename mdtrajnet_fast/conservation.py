"""Restore what the dynamics conserves: momentum, and angular momentum of isolated systems."""

from __future__ import annotations

import numpy as np

from . import _C
from .system import System

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
