"""The rollout: window after window, from the state at its start to its frames and its end.

The state between windows is what ASE's Atoms hold, positions (Å) and momenta (ASE units), in
float64. A window adds the model's displacement to it, then restores what the dynamics conserves:
the momentum of every connected component of the neighbour graph, for isolated systems its angular
momentum and, where the model has a potential, the energy of every system. The centre of mass of a
component therefore moves ballistically, whatever the model does, and an atom without neighbours
moves by v0 t.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from . import _C
from .conservation import conserve, conserve_energy
from .model import MDtrajNet
from .neighbors import Edges, NeighborList, neighbor_list
from .system import System
from .trajectory import momenta_from_velocities, velocities_from_momenta

# Extra reach of the neighbour list (Å): it is built anew once an atom has moved half of this.
SKIN = 0.6


class RolloutError(RuntimeError):
    """A system whose trajectory cannot go on; what was predicted before stands.

    system: its index. window, positions, momenta: the last window's number, and the state of all
    systems at its start ([atoms, 3], Å and ASE units), from which the others can go on.
    """

    def __init__(
        self, reason: str, system: int, window: int, positions: np.ndarray, momenta: np.ndarray
    ):
        super().__init__(reason)
        self.system, self.window = system, window
        self.positions, self.momenta = positions, momenta


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
    energy: np.ndarray | None = None,
) -> Iterator[Frames]:
    """Predict one or many systems, window by window, as long as asked for (or for ever).

    system, momenta: state at the start of window number `start`; momenta [atoms, 3], ASE units
        (they, not system.velocities, are the state).
    dt: spacing of the frames (fs); they lie at its multiples, counted from window 0.
    window: stride (fs); None for the model's own. The end of a window does not depend on dt, to the
        bit: see :meth:`MDtrajNet.displacements`.
    duration: time of the last frame at most (fs, counted from window 0); None for no end.
    energy: [systems] eV, the total energies to keep (:func:`total_energy`), of a model with a
        potential; None for those of the state at the start of this call.

    Yields :class:`Frames`. Raises ValueError for times that are not positive or a window beyond the
    model's, and :class:`RolloutError` when a state is no longer a geometry: it has a coordinate
    that is not finite, an atom that leaves its free flight by more than the model's cutoff within
    one window, or atoms that coincide.
    """
    stride, spacing = exact(model.stride(window)), exact(_positive(dt, "dt"))
    last = None if duration is None else exact(_positive(duration, "duration"))
    # in ticks, of which each of these times has a whole number: integers are exact, too, and fast
    ticks = math.lcm(*(x.denominator for x in (stride, spacing, last) if x is not None))
    step, gap = int(stride * ticks), int(spacing * ticks)
    limit = None if last is None else int(last * ticks)
    neighbors = NeighborList(model.config.radial_cutoff, SKIN)
    blocks = model.snapshot()
    isolated = _isolated(system)
    masses = system.masses
    system = dataclasses.replace(system, velocities=velocities_from_momenta(momenta, masses))
    atomic = None if model.potential is None else model.potential_snapshot()
    if energy is None and atomic is not None:
        energy = total_energy(model, system)

    def edges_at(there: System, tick: int) -> Edges:
        try:
            return neighbors.update(there.positions, there.cell, there.pbc, there.ptr)
        except ValueError as error:
            reason = f"the trajectory broke at {tick / ticks:g} fs: {error}"
            broken = _coinciding(there, model.config.radial_cutoff)
            raise RolloutError(reason, broken, start, system.positions, momenta) from error

    while limit is None or start * step < limit:
        begin, end = start * step, (start + 1) * step
        frames = range((begin // gap + 1) * gap, end + 1, gap)
        # the end comes last, and is predicted whether it is a frame or not
        times = np.array([t / ticks for t in (*(k - begin for k in frames if k < end), step)])

        edges = edges_at(system, begin)
        graph = model.graph(system, edges)
        moved, velocity = model.displacements(graph, times, blocks)
        if (atom := _runaway(model, system, times, moved, velocity)) is not None:
            owner = int(system.system_index[atom])
            raise RolloutError(
                f"the trajectory broke before {end / ticks:g} fs: atom {atom - system.ptr[owner]} "
                f"leaves its course by more than {model.config.radial_cutoff:g} Å in one window, "
                "or its velocity is not finite. The model left the chemistry it was trained on; "
                "start from a lower temperature or a relaxed geometry",
                owner,
                start,
                system.positions,
                momenta,
            )
        component = graph.component.cpu().numpy()
        moved, velocity = conserve(system, times, moved, velocity, component, isolated)
        positions = system.positions + moved
        if energy is not None:
            there = dataclasses.replace(system, positions=positions[-1])
            with torch.no_grad():
                potential = model.potential_energy(there, edges_at(there, end), atomic)
            left = energy - potential.cpu().numpy()
            velocity = conserve_energy(
                system, left, times, positions, velocity, component, isolated
            )
        p = momenta_from_velocities(velocity, masses)
        count = sum(limit is None or t <= limit for t in frames)
        yield Frames(
            times=np.array([t / ticks for t in frames[:count]]),
            positions=positions[:count],
            momenta=p[:count],
        )
        momenta = p[-1]
        system = dataclasses.replace(
            system, positions=positions[-1], velocities=velocities_from_momenta(momenta, masses)
        )
        start += 1


def one_window(model: MDtrajNet, system: System) -> System:
    """The state one window later, of systems that are known to stay geometries."""
    graph, stride = model.graph(system), np.array([model.stride()])
    component = graph.component.cpu().numpy()
    moved, velocity = conserve(
        system, stride, *model.displacements(graph, stride), component, _isolated(system)
    )
    positions = system.positions + moved[0]
    return dataclasses.replace(system, positions=positions, velocities=velocity[0])


@torch.no_grad()
def total_energy(model: MDtrajNet, system: System) -> np.ndarray:
    """Kinetic and potential energies [systems] (eV) as the model has them."""
    return system.kinetic_energy() + model.potential_energy(system).cpu().numpy()


def _isolated(system: System) -> np.ndarray:
    """Which atoms [atoms] belong to systems that are not periodic."""
    return np.logical_not(system.pbc).all(axis=1)[system.system_index]


def _positive(value: float, name: str) -> float:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number of fs, got {value}")
    return float(value)


def _coinciding(system: System, cutoff: float) -> int:
    """The system that the neighbour list refuses."""
    for k, (a, b) in enumerate(zip(system.ptr, system.ptr[1:], strict=False)):
        try:
            neighbor_list(system.positions[a:b], cutoff, system.cell[k], system.pbc[k])
        except ValueError:
            return k
    raise AssertionError("the neighbour list refuses the systems together but none by itself")


def _runaway(
    model: MDtrajNet, system: System, times: np.ndarray, moved: np.ndarray, velocity: np.ndarray
) -> int | None:
    """The first atom that no chemistry could have moved so far, if there is one."""
    config = model.config
    flight = config.head == "conserving"  # the published head leaves free flight to the rollout
    atom = _C.runaway(system.velocities, times, moved, velocity, flight, config.radial_cutoff)
    return None if atom < 0 else atom
