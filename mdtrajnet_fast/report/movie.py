"""The frames that the viewer of a report shows, small enough for a page."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from ..analysis.observables import bonds
from ..io.trajectory import Trajectory
from ..mechanics import centre_of_mass

_PLACES = 100_000  # atoms times frames, at most: 0.8 MB of the page
_STEPS = 65535  # of a coordinate: 0.001 Å where atoms are spread over 65 Å


def movie(trajectory: Trajectory) -> dict[str, Any]:
    """Evenly chosen frames, for JSON, with the bonds of the first.

    Molecules stand with their centre of mass at the origin; atoms of a periodic system begin within
    the cell and are not wrapped again. A coordinate is ``origin + step * n`` (Å), n being 16 bits
    of ``positions``: base64 of unsigned little-endian integers [frames, atoms, 3].
    """
    every = -(-len(trajectory) * len(trajectory.atoms) // _PLACES)
    some = trajectory[::every]
    atoms, x = some.atoms, some.positions
    if atoms.pbc.any():
        first = atoms.copy()
        first.positions = x[0]
        first.wrap()
        x = x + (first.positions - x[0])
        cell, pbc = atoms.cell[:], atoms.pbc
    else:
        x = x - centre_of_mass(x, atoms.get_masses())[:, None]
        cell = pbc = None
    pairs, shifts = bonds(atoms.numbers, x[0], cell, pbc)
    low = float(x.min())
    step = max(float(x.max()) - low, 1e-3) / _STEPS
    return {
        "elements": atoms.get_chemical_symbols(),
        "bonds": pairs[~shifts.any(axis=1)].tolist(),
        "cell": atoms.cell[:].tolist() if atoms.pbc.any() else None,
        "times": [float(f"{t:.9g}") for t in some.times],
        "origin": low,
        "step": step,
        "positions": base64.b64encode(np.rint((x - low) / step).astype("<u2").tobytes()).decode(),
        "every": every,
    }
