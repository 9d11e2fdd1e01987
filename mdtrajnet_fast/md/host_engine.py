"""Windows on the CPU: each one native call (csrc/cpu/engine.hpp), or many of them one."""

from __future__ import annotations

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
    Broke,
    DoneAtOnce,
    Method,
    Target,
    Windows,
    left_its_course,
)


class HostEngine(DoneAtOnce):
    """An :class:`.Engine` of a model on the CPU."""

    at_once = 1000  # a second or so without a sign of progress

    def __init__(
        self, model: MDtrajNet, predictor: NativePredictor, system: System, method: Method
    ):
        super().__init__()
        self._model, self._method = model, method
        self._predictor = predictor  # owns the weights that the native objects point to
        periodic = bool(system.pbc.any())
        self._native = _C.Engine(
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
        )

    def begin(
        self, times: np.ndarray, target: Target | None, *, windows: int = 1, measure: bool = False
    ) -> None:
        """See :meth:`.Engine.begin`."""
        positions, momenta, energies, done, broken = self._native.advance(
            self._positions,
            self._momenta,
            t=times,
            windows=windows,
            method=self._method.name,
            pull=self._method.pull,
            total=None if target is None else target.total,
            near=None if target is None else target.near,
            measure=measure,
            threads=torch.get_num_threads(),
        )
        self._positions, self._momenta = positions[-1], momenta[-1]
        if broken is None:
            self._done.append(Windows(positions, momenta, energies))
        else:
            self._done.append(self._broke(broken, done))

    def energies(self) -> np.ndarray:
        """See :meth:`.Engine.energies`."""
        threads = torch.get_num_threads()
        energies, broken = self._native.energies(self._positions, self._momenta, threads)
        if broken is not None:
            raise self._broke(broken, 0)
        return energies

    def _broke(self, broken: tuple[int, int, str], done: int) -> Broke:
        system, atom, why = broken
        reason = why or left_its_course(self._model, atom)
        return Broke(reason, system, done, self._positions, self._momenta)
