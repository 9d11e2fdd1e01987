"""The spectra of a trajectory, as finely and as far as its frames allow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..io.trajectory import Trajectory
from ..mechanics import centre_of_mass, check_even
from .observables import WAVENUMBER, Array, infrared_spectrum, vibrational_density_of_states

# A segment of the spectrum lasts this over its resolution (fs cm^-1), see `observables`.
_SEGMENT = 1.45 * WAVENUMBER
_FINEST = 20.0  # cm^-1, by default
_COARSEST = 500.0  # cm^-1, a resolution that still tells stretches from bends
_HIGHEST = {True: (4000.0, 4500.0), False: (2500.0, 2500.0)}  # cm^-1, with and without hydrogen


class Spectra(NamedTuple):
    """wavenumber [bins] cm^-1; motion and infrared [bins] cm; resolution cm^-1."""

    wavenumber: Array
    motion: Array  # vibrational density of states
    infrared: Array | None  # absorption; None: no dipoles were given
    resolution: float


def spectra(
    trajectory: Trajectory,
    *,
    resolution: float | None = None,
    max_wavenumber: float | None = None,
    dipoles: ArrayLike | None = None,
) -> Spectra:
    """Vibrational density of states of a trajectory and, from its dipoles, infrared absorption.

    The motion is that relative to the centre of mass. Line shapes are those of
    :func:`.observables.vibrational_density_of_states` and :func:`.observables.infrared_spectrum`.

    Arguments
        resolution: cm^-1; None: 20, or what the length of the run allows.
        max_wavenumber: cm^-1; None: 4500, or what the frames allow down to 4000; without hydrogen
            2500.
        dipoles: [frames, 3] e Å; None: no infrared spectrum.

    Raises ValueError for runs that resolve no 500 cm^-1, frames that are not evenly spaced or too
    far apart, and as those functions.
    """
    if len(trajectory) < 3:
        raise ValueError(f"{len(trajectory)} frames are too few for a spectrum")
    check_even(trajectory.times, "a spectrum cannot be had", rtol=1e-6)
    dt = float(trajectory.times[1] - trajectory.times[0])
    length = dt * (len(trajectory) - 1)
    if resolution is None:
        resolution = max(_FINEST, float(np.ceil(_SEGMENT / length)))
        if resolution > _COARSEST:
            raise ValueError(
                f"{length:g} fs resolve {resolution:.0f} cm^-1 only: run at least "
                f"{_SEGMENT / _COARSEST:.0f} fs"
            )
    if max_wavenumber is None:  # nothing above may vibrate, or it would be folded below
        least, most = _HIGHEST["H" in trajectory.atoms.get_chemical_symbols()]
        max_wavenumber = max(least, min(most, WAVENUMBER / (2 * dt)))
    masses = trajectory.atoms.get_masses()
    velocities = trajectory.velocities
    velocities = velocities - centre_of_mass(velocities, masses)[:, None]
    wavenumber, motion = vibrational_density_of_states(
        velocities, masses, dt, resolution=resolution, max_wavenumber=max_wavenumber
    )
    infrared = None
    if dipoles is not None:
        _, infrared = infrared_spectrum(
            dipoles, dt, resolution=resolution, max_wavenumber=max_wavenumber
        )
    return Spectra(wavenumber, motion, infrared, resolution)
