"""Windows in torch, with their state on the model's device.

A prediction is neighbour update, edge vectors, network and conservation; a window five of them,
or six, the energy, and the new state: a fixed sequence of operations on arrays of fixed size, in
which nothing waits for the host. On a CUDA device it is captured once for each number of frames
and replayed; the host takes the frames of a window while the next one runs. What cannot be known
beforehand has room to spare (edges, neighbours of an atom, rounds of the search for components).
A window that finds no room, or that breaks, says so in its status and leaves the state as it was;
the host reads the status with the frames, makes room, and does the window again.

On the CPU the same code runs without capture: the reference of csrc/cpu/engine.cpp. Not yet run on
a GPU, on which the sums over the atoms of a component are in no fixed order: results repeat to
rounding there, not to the bit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from ase.units import fs
from torch import Tensor

from ..model.network import MDtrajNet
from ..model.predictor import TorchPredictor
from ..neighbors.device import Cells, DeviceEdges, SkinNeighbors, edge_vectors
from ..ops import Graph
from ..system import System
from .conservation import SystemSums, conserve, draw_energy, internal_velocities
from .device_graph import ROUNDS, FixedSizeGraph, components
from .window import (
    BACK,
    MOST_SCALED,
    NEWTON_STEPS,
    SKIN,
    Broke,
    Kept,
    Method,
    Plan,
    Windows,
    left_its_course,
    refused,
)


class _Needs(NamedTuple):
    """What a window needed, and whether it stands."""

    refused: int  # these four as in neighbors_cuda.Status
    overflow: int
    edges: int
    reach: int
    slots: int  # neighbours of an atom, at most
    unsettled: int  # 1: the components need more rounds
    runaway: int  # 1: an atom left its course, or a velocity is not finite


class _Result(NamedTuple):
    positions: Tensor  # float64 [frames, atoms, 3] Å
    momenta: Tensor  # float64 [frames, atoms, 3], ASE units
    potential: Tensor  # float64 [frames, systems] eV, or 0
    energies: Tensor  # float64 [2, systems] eV as in Kept, before the end is drawn, or 0
    needs: Tensor  # int64 [7]: _Needs


class _Path(NamedTuple):
    """The way from a start."""

    moved: Tensor  # float64 [times, atoms, 3] Å
    velocity: Tensor  # float64 [times, atoms, 3] Å/fs
    component: Tensor  # int64 [atoms]

    @property
    def end(self) -> _Path:
        """Of the last time alone."""
        return _Path(self.moved[-1:], self.velocity[-1:], self.component)


class _State:
    """The state on the device, and one window's work on it."""

    def __init__(self, model: MDtrajNet, predictor: TorchPredictor, system: System, method: Method):
        def real(array: np.ndarray) -> Tensor:
            return torch.tensor(array, dtype=torch.float64, device=model.device)

        self.model, self.predictor, self.reversible = model, predictor, method.name == "reversible"
        self.positions = real(system.positions)
        self.momenta = torch.zeros_like(self.positions)
        self.masses = real(system.masses)
        self.total, self.near = real(np.zeros(len(system))), real(np.ones(len(system)))
        self.pull = real(np.array(0.0))
        self.species = torch.from_numpy(model.species_index(system.numbers)).to(model.device)
        isolated = np.logical_not(system.pbc).all(axis=1)[system.system_index]
        self.isolated = torch.from_numpy(isolated).to(model.device) if isolated.any() else None
        self.cells = Cells.of(system, model.device)
        self.owner = self.cells.system
        self.sums = SystemSums(self.masses, self.owner, len(system))
        cutoff = model.config.radial_cutoff
        self.neighbors = SkinNeighbors(self.positions, cutoff, SKIN, self.cells)
        widest = int(self.neighbors.update(self.positions).row_ptr.diff().max())
        self.slots, self.rounds = 1, ROUNDS
        self._widen(widest)
        self._needs: list[Tensor] = []
        # where predictions started, and what they said before conservation; for the host to look at
        self.trace: list[tuple[Tensor, ...]] | None = None

    def _widen(self, widest: int) -> None:
        if widest > self.slots:
            self.slots = widest + widest // 4 + 2

    def grow(self, needs: _Needs) -> None:
        """Make room for what a window needed; windows under way finish first."""
        self.finish()
        self.neighbors.grow(needs.edges, needs.reach)
        self._widen(needs.slots)
        if needs.unsettled:
            self.rounds *= 2

    def finish(self) -> None:
        """Wait for the windows under way."""
        if self.positions.is_cuda:
            torch.cuda.synchronize(self.positions.device)

    def lacked(self, needs: _Needs) -> bool:
        """Whether a window found too little room."""
        return bool(needs.overflow or needs.unsettled or needs.slots > self.slots)

    @torch.no_grad()
    def predict(self, t: Tensor) -> _Result:
        """The frames at times t [frames] (fs) after the state's; the last is the window's end."""
        self._needs.clear()
        x, v = self.positions, self.momenta / self.masses[:, None] * fs
        path = self._forward(x, v, t)
        energies = torch.zeros(2, len(self.total), dtype=x.dtype, device=x.device)
        last: list[Tensor] = []  # potential energies at the end
        if self.reversible:
            inner, stride = t[:-1], t[-1:]
            end = self._there_and_back(x, v, stride, path)
            if self.model.has_energies:
                end, energies, *last = self._keep_energy(x, stride, end)
            parts = [end]
            if len(inner):
                seen = self._backward(x + end.moved[0], end.velocity[0], stride - inner)
                late = (inner / stride)[:, None, None]
                dx = path.moved[:-1] + late * (end.moved + seen.moved - path.moved[:-1])
                dv = path.velocity[:-1] + late * (seen.velocity - path.velocity[:-1])
                parts.insert(0, self._conserve(x, v, inner, _Path(dx, dv, path.component)))
            moved, velocity = (torch.cat(y) for y in list(zip(*parts, strict=True))[:2])
            path = path._replace(moved=moved, velocity=velocity)
        elif self.model.has_energies:
            path, energies, *last = self._keep_energy(x, t, path)
        potential = energies.new_zeros(len(t), len(self.total))
        if self.model.has_energies:
            potential = torch.stack([*map(self._potential, x + path.moved[:-1]), *last])
        needs = torch.stack(self._needs).amax(0)
        momenta = path.velocity / fs * self.masses[:, None]
        return _Result(x + path.moved, momenta, potential, energies, needs)

    def _there_and_back(self, x: Tensor, v: Tensor, stride: Tensor, path: _Path) -> _Path:
        """The end of a reversible window, from the prediction of it."""
        moved, velocity, _ = path.end
        there, velocity_there = x + moved[0], velocity[0]
        moved, velocity = BACK[0] * moved, BACK[0] * velocity
        for weight in BACK[1:]:
            earlier = self._backward(there, velocity_there, stride)
            there = there + earlier.moved[0]
            again = self._forward(there, earlier.velocity[0], stride)
            there, velocity_there = there + again.moved[0], again.velocity[0]
            moved = moved + weight * (there - x)
            velocity = velocity + weight * velocity_there
        return self._conserve(x, v, stride, _Path(moved, velocity, path.component))

    def _forward(self, x: Tensor, v: Tensor, t: Tensor) -> _Path:
        """Where the atoms are t [times] (fs) after x, v [atoms, 3], with the momenta of these."""
        edges = self.neighbors.update(x)
        component, over = components(edges, self.slots, self.rounds)
        graph = self._graph(x, v, edges, component)
        moved, velocity = self.predictor.tensors(graph, t)
        free = v * t[:, None, None] if self.model.config.head == "conserving" else 0.0
        fine = ((moved - free).abs() < self.model.config.radial_cutoff) & velocity.isfinite()
        if self.trace is not None:
            self.trace.append((x, fine.all(-1).all(0)))
        self._note(edges, ~over, ~fine.all())
        return self._conserve(x, v, t, _Path(moved, velocity, component))

    def _backward(self, x: Tensor, v: Tensor, t: Tensor) -> _Path:
        """Where they were t before: the film in reverse."""
        path = self._forward(x, -v, t)
        return path._replace(velocity=-path.velocity)

    def _graph(self, x: Tensor, v: Tensor, edges: DeviceEdges, component: Tensor) -> Graph:
        r, w = edge_vectors(x, v, edges, self.cells, self.model.dtype)
        return FixedSizeGraph(
            species=self.species,
            masses=self.masses.to(self.model.dtype),
            velocities=v.to(self.model.dtype),
            component=component,
            components=len(x),
            row_ptr=edges.row_ptr,
            neighbor=edges.neighbor.long(),
            r=r,
            w=w,
            slots=self.slots,
        )

    def _note(self, edges: DeviceEdges, unsettled: Tensor, runaway: Tensor) -> None:
        """Remember what a graph needed."""
        widest = edges.row_ptr.diff().max()[None]
        marks = torch.stack([unsettled, runaway]).long()
        self._needs.append(torch.cat([self.neighbors.status, widest, marks]))

    def _conserve(self, x: Tensor, v: Tensor, t: Tensor, path: _Path) -> _Path:
        moved, velocity = conserve(
            x, v, self.masses, t, *path, isolated=self.isolated, steps=NEWTON_STEPS
        )
        return path._replace(moved=moved, velocity=velocity)

    # -- Energies, float64 [systems] eV.

    def _potential(self, x: Tensor) -> Tensor:
        """Potential energies at x."""
        edges = self.neighbors.update(x)
        fine = torch.ones((), dtype=torch.bool, device=x.device)
        if self.trace is not None:
            self.trace.append((x, fine))
        self._note(edges, ~fine, ~fine)
        no_component = torch.zeros_like(self.species)  # which energies do not depend on
        atomic = self.predictor.energies(self._graph(x, torch.zeros_like(x), edges, no_component))
        return self.sums.sum(atomic.double())

    def _measure(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The potential energies, and those of Kept [2, systems]."""
        potential = self._potential(x)
        return potential, self.sums.to_keep(potential, v)

    def _keep_energy(self, x: Tensor, t: Tensor, path: _Path) -> tuple[_Path, Tensor, Tensor]:
        """The path, its end drawn to the target (not where the pull is 0); the energies before,
        and the potential ones."""
        positions, v = x + path.moved, path.velocity[-1]
        potential, energies = self._measure(positions[-1], v)
        internal = internal_velocities(
            positions, path.velocity, self.masses, path.component, self.isolated
        )
        off = self.total - potential - self.sums.kinetic(v)
        drawn = draw_energy(
            path.velocity, internal, t, off, self.sums.kinetic, self.owner, self.near, self.pull,
            MOST_SCALED,
        )  # fmt: skip
        return path._replace(velocity=drawn), energies, potential

    @torch.no_grad()
    def energies(self) -> tuple[Tensor, Tensor]:
        """Those of the state [2, systems] eV, as in Kept, and what they needed."""
        self._needs.clear()
        energies = self._measure(self.positions, self.momenta / self.masses[:, None] * fs)[1]
        return energies, self._needs[0]

    def advance(self, result: _Result) -> None:
        """Go to the window's end, if the window stands."""
        said = dict(zip(_Needs._fields, result.needs.unbind(), strict=True))
        bad = said["refused"] + said["overflow"] + said["unsettled"] + said["runaway"]
        stands = (bad == 0) & (said["slots"] <= self.slots)
        for state, end in zip((self.positions, self.momenta), result[:2], strict=True):
            state.copy_(torch.where(stands, end[-1], state))


class _Launched(NamedTuple):
    """A window under way: `result` is on the host once `done` says so."""

    result: _Result
    done: torch.cuda.Event | None

    def wait(self) -> _Result:
        if self.done is not None:
            self.done.synchronize()
        return self.result


class _Captured:
    """A window of some number of frames as a CUDA graph, with room for two results on the host."""

    def __init__(self, state: _State, times: np.ndarray):
        device = state.positions.device
        self.t = torch.tensor(times, device=device)
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # compiles, packs weights, loads modules
            for _ in range(2):
                state.predict(self.t)
        torch.cuda.current_stream(device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = state.predict(self.t)
            state.advance(self.result)
        self.host = [
            (
                torch.empty(len(times), dtype=torch.float64, pin_memory=True),
                _Result(*(torch.empty_like(x, device="cpu", pin_memory=True) for x in self.result)),
            )
            for _ in range(2)
        ]

    def launch(self, times: np.ndarray) -> _Launched:
        """Start the window; not more than two may be under way."""
        t, result = self.host[0]
        self.host.reverse()
        t.copy_(torch.from_numpy(times))
        self.t.copy_(t, non_blocking=True)
        self.graph.replay()
        for there, here in zip(result, self.result, strict=True):
            there.copy_(here, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return _Launched(result, done)


class DeviceEngine:
    """An :class:`.Engine` of any backend in torch, with its state on the model's device."""

    at_once = 1

    def __init__(self, model: MDtrajNet, predictor: TorchPredictor, system: System, method: Method):
        self._model, self._predictor = model, predictor
        self._system, self._method = system, method
        self.kept = Kept.nothing(len(system))
        self._state: _State | None = None
        self._failed: Broke | None = None
        self._captured: dict[int, _Captured] = {}
        self._begun: deque[tuple[Plan, _Launched]] = deque()

    @property
    def ahead(self) -> int:
        """See :class:`.Engine`. What a window says of the energies to keep decides of the next."""
        learning = self.kept.seen < self._method.needed
        return 2 if self._model.device.type == "cuda" and not learning else 1

    def set_state(self, positions: np.ndarray, momenta: np.ndarray) -> None:
        """See :meth:`.Engine.set_state`."""
        self.close()
        self._start = positions, momenta
        if self._state is None:
            there = replace(self._system, positions=positions)
            try:
                self._state = _State(self._model, self._predictor, there, self._method)
            except ValueError as error:
                raise self._refused(positions, momenta) from error
        self._state.positions.copy_(torch.from_numpy(positions))
        self._state.momenta.copy_(torch.from_numpy(momenta))

    def begin(self, plan: Plan) -> None:
        """See :meth:`.Engine.begin`."""
        state, method = self._there(), self._method
        try:
            if method.needed and not self.kept.seen:
                self.kept = self.kept.and_these(self.energies())
        except Broke as why:
            self._failed = why
            return
        drawing = 0 < method.needed <= self.kept.seen and method.due(plan.number)
        if drawing:
            for there, here in zip((state.total, state.near), self.kept.goal, strict=True):
                there.copy_(torch.from_numpy(here))
        state.pull.fill_(method.pull if drawing else 0.0)
        self._begun.append((plan, self._launch(plan)))

    def end(self) -> Windows:
        """See :meth:`.Engine.end`."""
        if self._failed is not None:
            raise self._failed
        state = self._there()
        while True:
            plan, launched = self._begun.popleft()
            positions, momenta, potential, energies, needs = (x.numpy() for x in launched.wait())
            said = _Needs(*needs.tolist())
            if state.lacked(said):
                again = [plan, *(begun for begun, _ in self._begun)]
                self._grow(said)
                for one in again:
                    self._begun.append((one, self._launch(one)))
                continue
            if said.refused or said.runaway:
                raise self._broke(plan)
            self._start = positions[-1].copy(), momenta[-1].copy()
            if self.kept.seen < self._method.needed and self._method.due(plan.number):
                self.kept = self.kept.and_these(energies)
            wanted = plan.only[1]
            known = potential[wanted].copy() if self._model.has_energies else None
            return Windows(positions[wanted].copy(), momenta[wanted].copy(), known, done=1)

    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`.Engine.state`."""
        return self._start

    def energies(self) -> np.ndarray:
        """See :meth:`.Engine.energies`."""
        state = self._there()
        while True:
            energies, needs = state.energies()
            said = _Needs(*needs.tolist())
            if said.refused:
                raise self._refused(*self._start)
            if not state.lacked(said):
                return energies.cpu().numpy()
            self._grow(said)

    def close(self) -> None:
        """See :meth:`.Engine.close`."""
        if self._state is not None:
            self._state.finish()
        self._begun.clear()

    def _grow(self, needs: _Needs) -> None:
        """Make room, and go back to the state that the windows under way started from."""
        self._there().grow(needs)
        self._captured.clear()
        self.set_state(*self._start)

    def _refused(self, positions: np.ndarray, momenta: np.ndarray) -> Broke:
        """Which system's positions the neighbour list refuses."""
        found = refused(self._system, positions, self._model.config.radial_cutoff)
        assert found is not None, "the neighbour list refuses the systems together but none alone"
        return Broke(found[1], found[0], positions, momenta)

    def _there(self) -> _State:
        assert self._state is not None, "set_state comes first"
        return self._state

    def _launch(self, plan: Plan) -> _Launched:
        """Start a window: replayed on a CUDA device, computed at once elsewhere."""
        state, (times, _) = self._there(), plan.only
        device = state.positions.device
        if device.type != "cuda":
            result = state.predict(torch.from_numpy(times).to(device))
            state.advance(result)
            return _Launched(_Result(*(x.cpu() for x in result)), None)
        with torch.cuda.device(device):
            if len(times) not in self._captured:
                self._captured[len(times)] = _Captured(state, times)
            return self._captured[len(times)].launch(times)

    def _broke(self, plan: Plan) -> Broke:
        """What broke in the window from the state on, which is done again, step by step."""
        state, (positions, momenta) = self._there(), self._start
        self.set_state(positions, momenta)
        state.trace = []
        state.predict(torch.from_numpy(plan.only[0]).to(state.positions.device))
        trace, state.trace = state.trace, None
        cutoff = self._model.config.radial_cutoff
        for x, fine in trace:
            there = x.cpu().numpy()
            if (found := refused(self._system, there, cutoff)) is not None:
                return Broke(found[1], found[0], positions, momenta)
            if not fine.all():
                atom = int(fine.logical_not().nonzero()[0])
                system = int(self._system.system_index[atom])
                atom -= int(self._system.ptr[system])
                why = left_its_course(self._model, atom)
                return Broke(why, system, positions, momenta)
        raise AssertionError("a window broke, but not when it was done again")
