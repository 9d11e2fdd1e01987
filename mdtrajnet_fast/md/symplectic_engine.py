"""Symplectic windows in torch, on any device: the reference of csrc/cpu/engine.cpp.

Neighbours are looked for on the host before every kick, so that a device waits for it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from ase.units import fs

from ..model.network import MDtrajNet
from ..model.predictor import TorchPredictor
from ..model.window_potentials import ENDS, ENERGY, MIDDLE
from ..ops import Graph
from ..system import System
from .conservation import SystemSums, draw_energy, internal_velocities
from .window import (
    MOST_SCALED,
    NO_ENERGY,
    Broke,
    DoneAtOnce,
    Kept,
    Method,
    Plan,
    Windows,
    left_its_course,
    refused,
)


class SymplecticEngine(DoneAtOnce):
    """An :class:`.Engine` of a model with window potentials."""

    at_once = 1

    def __init__(self, model: MDtrajNet, predictor: TorchPredictor, system: System, method: Method):
        super().__init__()
        self._model, self._predictor, self._system = model, predictor, system
        self._method, self.kept = method, Kept.nothing(len(system))
        isolated = np.logical_not(system.pbc).all(axis=1)[system.system_index]
        self._isolated = torch.from_numpy(isolated)
        self._masses = torch.from_numpy(system.masses)
        self._owner = torch.from_numpy(system.system_index)
        self._sums = SystemSums(self._masses, self._owner, len(system))
        self._accelerations: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def begin(self, plan: Plan) -> None:
        """See :meth:`.Engine.begin`."""
        times, wanted = plan.only
        try:
            if self._method.needed and not self.kept.seen:
                self.kept = self.kept.and_these(self.energies())
            self._done.append(self._window(times, wanted, self._method.due(plan.number)))
        except Broke as why:
            self._done.append(why)

    def _window(self, times: np.ndarray, wanted: np.ndarray, due: bool) -> Windows:
        h, masses = times[-1], self._system.masses[:, None]
        x, start = self._positions, self._momenta / masses * fs
        v = start + h / 6 * self._kept_acceleration(ENDS, x)
        middle = x + h / 2 * v
        self._check_course(middle - x - h / 2 * start)
        v = v + 2 * h / 3 * self._acceleration(MIDDLE, middle)
        end = middle + h / 2 * v
        self._check_course(end - x - h * start)
        v = v + h / 6 * self._kept_acceleration(ENDS, end)
        frames = [(end, v)]
        if len(times) > 1:
            a, b = (self._kept_acceleration(ENERGY, y) for y in (x, end))
            frames = [
                *(_between(t / h, h, (x, start, a), (end, v, b)) for t in times[:-1]),
                *frames,
            ]
        positions, velocities = (np.stack(y) for y in zip(*frames, strict=True))
        self._check_atoms(~np.isfinite(positions + velocities).all(axis=(0, 2)))
        if due:
            velocities[-1] = self._keep_energy(end, v)
        momenta = velocities / fs * masses
        self._positions, self._momenta = positions[-1], momenta[-1]
        energies = [self._potential(y).numpy() for y in positions[wanted]]
        shape = (len(energies), len(self._system))
        return Windows(
            positions[wanted], momenta[wanted], np.array(energies).reshape(shape), done=1
        )

    def _keep_energy(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Velocities (Å/fs) at x drawn to the energy to keep, as they are while it is learned."""
        at, velocity = (torch.from_numpy(np.ascontiguousarray(y)) for y in (x, v))
        potential = self._potential(x)
        if self.kept.seen < self._method.needed:
            self.kept = self.kept.and_these(self._sums.to_keep(potential, velocity).numpy())
            return v
        total, near = (torch.from_numpy(y) for y in self.kept.goal)
        component = self._graph(x).component.cpu()
        internal = internal_velocities(at, velocity, self._masses, component, self._isolated)
        off = total - potential - self._sums.kinetic(velocity)
        drawn = draw_energy(
            velocity[None],
            internal[None],
            torch.ones(1, dtype=torch.float64),
            off,
            self._sums.kinetic,
            self._owner,
            near,
            torch.tensor(self._method.pull, dtype=torch.float64),
            MOST_SCALED,
        )
        return drawn[0].numpy()

    def _potential(self, x: np.ndarray) -> torch.Tensor:
        """Potential energies [systems] (eV) at x."""
        energies = self._sums.sum(self._predictor.energies(self._graph(x)).double().cpu())
        if not energies.isfinite().all():
            raise self._broke(NO_ENERGY, int(energies.isfinite().logical_not().nonzero()[0]))
        return energies

    def _check_course(self, away: np.ndarray) -> None:
        """Atoms so far (Å) from free flight must not be where nobody should look for neighbours."""
        self._check_atoms(~(np.sqrt((away**2).sum(1)) < self._model.config.radial_cutoff))

    def _check_atoms(self, wild: np.ndarray) -> None:
        if wild.any():
            atom = int(np.argmax(wild))
            system = int(self._system.system_index[atom])
            reason = left_its_course(self._model, atom - int(self._system.ptr[system]))
            raise self._broke(reason, system)

    def _kept_acceleration(self, role: int, x: np.ndarray) -> np.ndarray:
        """That of :meth:`_acceleration`; the end of a window is the start of the next."""
        kept = self._accelerations.get(role)
        if kept is None or not np.array_equal(kept[0], x):
            kept = self._accelerations[role] = x, self._acceleration(role, x)
        return kept[1]

    def _acceleration(self, role: int, x: np.ndarray) -> np.ndarray:
        """Å/fs^2, without what would move or turn a component as a whole: the potential has none of
        it, but its rounding has."""
        graph = self._graph(x)
        _, slopes = self._predictor.slopes(graph, role)
        a = -(fs**2) * slopes.double().cpu() / self._masses[:, None]
        component = graph.component.cpu()
        at = torch.from_numpy(np.ascontiguousarray(x))
        return internal_velocities(at, a, self._masses, component, self._isolated).numpy()

    def _graph(self, x: np.ndarray) -> Graph:
        system = replace(self._system, positions=x)
        try:
            return self._model.graph(system)
        except ValueError:
            why = refused(system, x, self._model.config.radial_cutoff)
            if why is None:
                raise
            raise self._broke(why[1], why[0]) from None

    def _broke(self, reason: str, system: int) -> Broke:
        return Broke(reason, system, self._positions, self._momenta)

    def energies(self) -> np.ndarray:
        """See :meth:`.Engine.energies`."""
        v = self._momenta / self._system.masses[:, None] * fs
        potential = self._potential(self._positions)
        return self._sums.to_keep(potential, torch.from_numpy(v)).numpy()


def _between(
    s: float, h: float, start: tuple[np.ndarray, ...], end: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities at the part s of a window of h (fs) with these at its ends."""
    (x, v, a), (x1, v1, a1) = start, end
    # what a parabola from the start leaves for the powers 3 to 5 of s
    dx = x1 - x - h * v - h * h * a / 2
    dv, da = h * (v1 - v) - h * h * a, h * h * (a1 - a)
    c3, c4, c5 = 10 * dx - 4 * dv + da / 2, -15 * dx + 7 * dv - da, 6 * dx - 3 * dv + da / 2
    moved = s * (h * v + s * (h * h * a / 2 + s * (c3 + s * (c4 + s * c5))))
    velocity = v + s * (h * a + s * (3 * c3 + s * (4 * c4 + s * 5 * c5)) / h)
    return x + moved, velocity
