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
from ..system import System
from .conservation import internal_velocities
from .window import Broke, DoneAtOnce, Method, Target, Windows, left_its_course, refused


class SymplecticEngine(DoneAtOnce):
    """An :class:`.Engine` of a model with window potentials."""

    at_once = 1

    def __init__(self, model: MDtrajNet, predictor: TorchPredictor, system: System, method: Method):
        super().__init__()
        self._model, self._predictor, self._system = model, predictor, system
        isolated = np.logical_not(system.pbc).all(axis=1)[system.system_index]
        self._isolated = torch.from_numpy(isolated)
        self._masses = torch.from_numpy(system.masses)
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def begin(
        self, times: np.ndarray, target: Target | None, *, windows: int = 1, measure: bool = False
    ) -> None:
        """See :meth:`.Engine.begin`."""
        assert target is None and not measure and windows == 1
        try:
            self._done.append(self._window(times))
        except Broke as why:
            self._done.append(why)

    def _window(self, times: np.ndarray) -> Windows:
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
        momenta = velocities / fs * masses
        self._positions, self._momenta = positions[-1], momenta[-1]
        return Windows(positions, momenta, None)

    def _check_course(self, away: np.ndarray) -> None:
        """Atoms so far (Å) from free flight must not be where nobody should look for neighbours."""
        wild = ~(np.sqrt((away**2).sum(1)) < self._model.config.radial_cutoff)
        if wild.any():
            atom = int(np.argmax(wild))
            system = int(self._system.system_index[atom])
            reason = left_its_course(self._model, atom - int(self._system.ptr[system]))
            raise self._broke(reason, system)

    def _kept_acceleration(self, role: int, x: np.ndarray) -> np.ndarray:
        """That of :meth:`_acceleration`; the end of a window is the start of the next."""
        kept = self._kept.get(role)
        if kept is None or not np.array_equal(kept[0], x):
            kept = self._kept[role] = x, self._acceleration(role, x)
        return kept[1]

    def _acceleration(self, role: int, x: np.ndarray) -> np.ndarray:
        """Å/fs^2, without what would move or turn a component as a whole: the potential has none of
        it, but its rounding has."""
        system = replace(self._system, positions=x)
        try:
            graph = self._model.graph(system)
        except ValueError:
            why = refused(system, x, self._model.config.radial_cutoff)
            if why is None:
                raise
            raise self._broke(why[1], why[0]) from None
        _, slopes = self._predictor.slopes(graph, role)
        a = -(fs**2) * slopes.double().cpu() / self._masses[:, None]
        component = graph.component.cpu()
        at = torch.from_numpy(np.ascontiguousarray(x))
        return internal_velocities(at, a, self._masses, component, self._isolated).numpy()

    def _broke(self, reason: str, system: int) -> Broke:
        return Broke(reason, system, 0, self._positions, self._momenta)

    def energies(self) -> np.ndarray:
        """See :meth:`.Engine.energies`; nobody asks for what no window is drawn to."""
        raise NotImplementedError("symplectic windows are drawn to no energy")


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
