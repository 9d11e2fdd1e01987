"""Windows on the CPU: each one native call (csrc/cpu/engine.hpp), or many of them one."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from ase.units import fs

from .. import _C
from ..model.network import MDtrajNet
from ..model.predictor import NativePredictor
from ..system import System
from .window import (
    BACK,
    MOST_SCALED,
    NEWTON_STEPS,
    SKIN,
    UNCERTAIN,
    Broke,
    Kept,
    Method,
    Plan,
    Windows,
    left_its_course,
)

# Atoms times windows without a sign of progress: a fraction of a second.
_ATOMS_AT_ONCE = 9000


def native_engine(
    model: MDtrajNet,
    predictor: NativePredictor,
    system: System,
    method: Method,
    domain: _C.Domain | None = None,
) -> _C.Engine:
    """What computes windows of systems, or of a process's share of one (csrc/cpu/engine.hpp).

    predictor and domain have to outlive it.
    """
    periodic = bool(system.pbc.any())
    return _C.Engine(
        predictor.native,
        ptr=system.ptr,
        species=model.species_index(system.numbers),
        masses=system.masses,
        cell=system.cell if periodic else None,
        pbc=system.pbc if periodic else None,
        skin=SKIN,
        fs=fs,
        back=BACK,
        most=MOST_SCALED,
        steps=NEWTON_STEPS,
        uncertain=UNCERTAIN,
        method=method.name,
        pull=method.pull,
        every=method.every,
        needed=method.needed,
        domain=domain,
    )


class HostEngine:
    """An :class:`.Engine` of a model on the CPU, whose windows are done when they are begun."""

    ahead = 1

    def __init__(
        self, model: MDtrajNet, predictor: NativePredictor, system: System, method: Method
    ):
        self._model = model
        self._done: deque[Windows | Broke] = deque()
        self.at_once = max(1, _ATOMS_AT_ONCE // len(system.numbers))
        self._predictor = predictor  # owns the weights that the native objects point to
        self._native = native_engine(model, predictor, system, method)

    @property
    def kept(self) -> Kept:
        """See :class:`.Engine`."""
        return Kept(*self._native.kept())

    @kept.setter
    def kept(self, kept: Kept) -> None:
        self._native.keep(*kept)

    def set_state(self, positions: np.ndarray, momenta: np.ndarray) -> None:
        """See :meth:`.Engine.set_state`."""
        self._positions, self._momenta = positions, momenta

    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`.Engine.state`."""
        return self._positions, self._momenta

    def begin(self, plan: Plan) -> None:
        """See :meth:`.Engine.begin`."""
        positions, momenta, energies, *state, done, broken = self._native.advance(
            self._positions,
            self._momenta,
            number=plan.number,
            t=[t for times in plan.times for t in times],
            counts=[len(times) for times in plan.times],
            wanted=[w for wanted in plan.wanted for w in wanted],
            threads=torch.get_num_threads(),
        )
        self._positions, self._momenta = state
        if done:
            self._done.append(Windows(positions, momenta, energies, done))
        if broken is not None:
            self._done.append(self._broke(broken))

    def end(self) -> Windows:
        """See :meth:`.Engine.end`."""
        done = self._done.popleft()
        if isinstance(done, Broke):
            raise done
        return done

    def close(self) -> None:
        """See :meth:`.Engine.close`."""
        self._done.clear()

    def energies(self) -> np.ndarray:
        """See :meth:`.Engine.energies`."""
        threads = torch.get_num_threads()
        energies, broken = self._native.energies(self._positions, self._momenta, threads)
        if broken is not None:
            raise self._broke(broken)
        return energies

    def _broke(self, broken: tuple[int, int, str]) -> Broke:
        system, atom, why = broken
        reason = why or left_its_course(self._model, atom)
        return Broke(reason, system, self._positions, self._momenta)
