"""The rollout: window after window, from the state at its start to its frames and its end.

The state between windows is what ASE's Atoms hold, positions (Å) and momenta (ASE units), in
float64. A window adds the model's displacement to it, then restores what the dynamics conserves:
the momentum of every connected component of the neighbour graph and, for isolated systems, its
angular momentum. The centre of mass of a component therefore moves ballistically, whatever the
model does, and an atom without neighbours moves by v0 t.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .conservation import conserve
from .model import MDtrajNet
from .neighbors import NeighborList
from .system import System
from .trajectory import momenta_from_velocities, velocities_from_momenta

# Extra reach of the neighbour list (Å): it is built anew once an atom has moved half of this.
SKIN = 0.6


class RolloutError(RuntimeError):
    """A trajectory that cannot go on; the frames before it are as good as any."""


@dataclass(frozen=True)
class Frames:
    """What one window yields.

    times: [frames] fs, counted from window 0. positions: [frames, atoms, 3] Å.
    momenta: [frames, atoms, 3], ASE units.
    """

    times: np.ndarray
    positions: np.ndarray
    momenta: np.ndarray


def exact(fs: float) -> Fraction:
    """A time as the simple number that was meant: 0.1 is one tenth, 1 / 3 is one third."""
    return Fraction(float(fs)).limit_denominator(1_000_000)


def rollout(
    model: MDtrajNet,
    system: System,
    momenta: np.ndarray,
    *,
    dt: float,
    window: float | None = None,
    duration: float | None = None,
    start: int = 0,
) -> Iterator[Frames]:
    """Predict one or many systems, window by window, as long as asked for (or for ever).

    system, momenta: state at the start of window number `start`; momenta [atoms, 3], ASE units
        (they, not system.velocities, are the state).
    dt: spacing of the frames (fs); they lie at its multiples, counted from window 0.
    window: stride (fs); None for the model's own. The end of a window is predicted by itself, so
        that it does not depend on dt.
    duration: time of the last frame at most (fs, counted from window 0); None for no end.

    Yields :class:`Frames`. Raises ValueError for times that are not positive or a window beyond the
    model's, and :class:`RolloutError` when a state is no longer a geometry: it has a coordinate
    that is not finite, an atom that
    leaves its free flight by more than the model's cutoff within one window, or atoms that
    coincide.
    """
    stride, spacing = exact(model.stride(window)), exact(_positive(dt, "dt"))
    last = None if duration is None else exact(_positive(duration, "duration"))
    neighbors = NeighborList(model.config.radial_cutoff, SKIN)
    isolated = np.logical_not(system.pbc).all(axis=1)[system.system_index]
    while last is None or start * stride < last:
        begin, end = start * stride, (start + 1) * stride
        frames = [k * spacing for k in range(begin // spacing + 1, end // spacing + 1)]
        inner = np.array([float(t - begin) for t in frames if t < end])
        system = dataclasses.replace(
            system, velocities=velocities_from_momenta(momenta, system.masses)
        )
        try:
            edges = neighbors.update(system.positions, system.cell, system.pbc, system.ptr)
        except ValueError as error:
            raise RolloutError(f"the trajectory broke at {float(begin):g} fs: {error}") from error
        graph = model.graph(system, edges)
        times = np.array([float(stride)])
        moved, velocity = model.displacements(graph, times)
        if len(inner):  # the end comes last, but is computed by itself: see above
            moved_inner, velocity_inner = model.displacements(graph, inner)
            times = np.concatenate([inner, times])
            moved = np.concatenate([moved_inner, moved])
            velocity = np.concatenate([velocity_inner, velocity])
        _check(model, system, times, moved, velocity, float(end))
        component = graph.component.cpu().numpy()
        moved, velocity = conserve(system, times, moved, velocity, component, isolated)
        positions = system.positions + moved
        p = momenta_from_velocities(velocity, system.masses)
        count = sum(last is None or t <= last for t in frames)
        yield Frames(
            times=np.array([float(t) for t in frames[:count]]),
            positions=positions[:count],
            momenta=p[:count],
        )
        system, momenta = dataclasses.replace(system, positions=positions[-1]), p[-1]
        start += 1


def _positive(value: float, name: str) -> float:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number of fs, got {value}")
    return float(value)


def _check(
    model: MDtrajNet,
    system: System,
    times: np.ndarray,
    moved: np.ndarray,
    velocity: np.ndarray,
    end: float,
) -> None:
    limit = model.config.radial_cutoff
    forced = moved - system.velocities * times[:, None, None]
    if model.config.head == "published":  # which leaves the drift to the rollout
        forced = moved
    fine = (abs(forced) < limit) & np.isfinite(velocity)
    if not fine.all():
        atom = int(np.argmin(fine.all(axis=(0, 2))))
        owner = int(system.system_index[atom])
        raise RolloutError(
            f"the trajectory broke before {end:g} fs: atom {atom - system.ptr[owner]} of system "
            f"{owner} leaves its course by more than {limit:g} Å in one window, or its velocity is "
            "not finite. The model left the chemistry it was trained on; start from a lower "
            "temperature or a relaxed geometry"
        )
