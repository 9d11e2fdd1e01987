"""Windows in torch, with their state on the model's device.

A prediction is neighbour update, edge vectors, network and conservation, a kick the same with the
slopes of a window potential; a window is some of them, the energy, and the new state: a fixed
sequence of operations on arrays of fixed size, in which nothing waits for the host. On a CUDA
device it is captured once for each :class:`_Kind` of window and replayed; the host takes the frames
of a window while the next one runs. What cannot be known beforehand has room to spare (edges,
neighbours of an atom, rounds of the search for components). A window that finds no room, or that
breaks, says so in its status and leaves the state as it was; the host reads the status with the
frames, makes room, and does the window again.

On the CPU the same code runs without capture: the reference of csrc/cpu/engine.cpp. On a GPU the
sums over the atoms of a component are in no fixed order: results repeat to rounding there, not to
the bit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.units import fs
from torch import Tensor

from ..model.network import MDtrajNet
from ..model.predictor import TorchPredictor
from ..model.window_potentials import ENDS, ENERGY, MIDDLE
from ..neighbors.device import Cells, DeviceEdges, SkinNeighbors, edge_vectors
from ..ops import Graph
from ..ops.graph import FixedSizeGraph
from ..system import System
from .conservation import SystemSums, conserve, draw_energy, internal_velocities
from .device_graph import ROUNDS, components
from .window import (
    BACK,
    MOST_SCALED,
    NEWTON_STEPS,
    NO_ENERGY,
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
    runaway: int  # 1: an atom left its course, or a velocity or an energy is not finite


class _Kind(NamedTuple):
    """What a window needs to compute, beside what it is given.

    frames: their number. measured: whether energies, of its end and of the frames, are wanted.
    known: which accelerations at its start are known, those of ENDS and of ENERGY: from the end of
    the window before, of symplectic windows.
    """

    frames: int
    measured: bool
    known: tuple[bool, bool] = (False, False)


class _Look(NamedTuple):
    """A place where atoms were on the way, for the host to look at: x [atoms, 3] Å, which of them
    are fine, and what else there is to say than that they left their course."""

    x: Tensor
    fine: Tensor
    why: str | None = None


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

    def then(self, end: _Path) -> _Path:
        """With another one after it."""
        moved, velocity = (torch.cat(y) for y in list(zip(self, end, strict=True))[:2])
        return _Path(moved, velocity, end.component)


class _State:
    """The state on the device, and one window's work on it."""

    def __init__(self, model: MDtrajNet, predictor: TorchPredictor, system: System, method: Method):
        def real(array: np.ndarray) -> Tensor:
            return torch.tensor(array, dtype=torch.float64, device=model.device)

        self.model, self.predictor, self.method = model, predictor, method.name
        self.positions = real(system.positions)
        self.momenta = torch.zeros_like(self.positions)
        self.masses = real(system.masses)
        self.total, self.near = real(np.zeros(len(system))), real(np.ones(len(system)))
        self.pull = real(np.array(0.0))
        self.accelerations = {role: torch.zeros_like(self.positions) for role in (ENDS, ENERGY)}
        self._reached: dict[int, Tensor] = {}  # those at the end of the window
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
        self.trace: list[_Look] | None = None

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
    def predict(self, t: Tensor, kind: _Kind) -> _Result:
        """The frames at times t [frames] (fs) after the state's; the last is the window's end."""
        self._needs.clear()
        self._reached.clear()
        x, v = self.positions, self.momenta / self.masses[:, None] * fs
        window = {"symplectic": self._kicked, "reversible": self._reversible, "plain": self._plain}
        path, *known = window[self.method](x, v, t, kind)
        if kind.measured:
            energies, last = known
            potential = torch.stack([*map(self._potential, x + path.moved[:-1]), last])
        else:
            energies, potential = (x.new_zeros(n, len(self.total)) for n in (2, len(t)))
        needs = torch.stack(self._needs).amax(0)
        momenta = path.velocity / fs * self.masses[:, None]
        return _Result(x + path.moved, momenta, potential, energies, needs)

    # -- Windows: the path and, if they are measured, the energies of Kept before the end is drawn
    # and the potential ones at the end.

    def _plain(self, x: Tensor, v: Tensor, t: Tensor, kind: _Kind) -> tuple[Any, ...]:
        path = self._forward(x, v, t)
        return self._keep_energy(x, t, path) if kind.measured else (path,)

    def _reversible(self, x: Tensor, v: Tensor, t: Tensor, kind: _Kind) -> tuple[Any, ...]:
        path = self._forward(x, v, t)
        inner, stride = t[:-1], t[-1:]
        end = self._there_and_back(x, v, stride, path)
        energies: list[Tensor] = []
        if kind.measured:
            end, *energies = self._keep_energy(x, stride, end)
        if not len(inner):
            return end, *energies
        seen = self._backward(x + end.moved[0], end.velocity[0], stride - inner)
        late = (inner / stride)[:, None, None]
        dx = path.moved[:-1] + late * (end.moved + seen.moved - path.moved[:-1])
        dv = path.velocity[:-1] + late * (seen.velocity - path.velocity[:-1])
        within = self._conserve(x, v, inner, _Path(dx, dv, path.component))
        return within.then(end), *energies

    def _kicked(self, x: Tensor, v: Tensor, t: Tensor, kind: _Kind) -> tuple[Any, ...]:
        h, inner = t[-1], t[:-1]
        roles = (ENDS, ENERGY) if len(inner) else (ENDS,)
        known = dict(zip((ENDS, ENERGY), kind.known, strict=True))
        at_start = {role: self.accelerations[role] for role in roles if known[role]}
        if len(at_start) < len(roles):
            graph = self._surroundings(x)
            for role in roles:
                if not known[role]:
                    at_start[role] = self._acceleration(role, x, graph)
        kicked = v + h / 6 * at_start[ENDS]
        middle = x + h / 2 * kicked
        self._check(middle, self._on_course(middle, x + h / 2 * v))
        kicked = kicked + 2 * h / 3 * self._acceleration(MIDDLE, middle, self._surroundings(middle))
        end = middle + h / 2 * kicked
        self._check(end, self._on_course(end, x + h * v))
        graph = self._surroundings(end)
        at_end = {role: self._acceleration(role, end, graph) for role in roles}
        self._reached |= at_end
        velocity = kicked + h / 6 * at_end[ENDS]
        self._check(end, velocity.isfinite().all(-1))
        component = graph.component
        path = _Path((end - x)[None], velocity[None], component)
        if len(inner):
            a, b = at_start[ENERGY], at_end[ENERGY]
            within = _Path(*_between(inner, h, v, a, end - x, velocity, b), component)
        energies: list[Tensor] = []
        if kind.measured:
            path, *energies = self._keep_energy(x, t[-1:], path)
        return within.then(path) if len(inner) else path, *energies

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
        self._look(x, fine.all(-1).all(0))
        self._note(edges, over, fine)
        return self._conserve(x, v, t, _Path(moved, velocity, component))

    def _backward(self, x: Tensor, v: Tensor, t: Tensor) -> _Path:
        """Where they were t before: the film in reverse."""
        path = self._forward(x, -v, t)
        return path._replace(velocity=-path.velocity)

    def _surroundings(self, x: Tensor) -> Graph:
        """The graph of atoms at rest at x, with its components, until the next one is made."""
        edges = self.neighbors.update(x)
        component, over = components(edges, self.slots, self.rounds)
        fine = torch.ones_like(self.species, dtype=torch.bool)
        self._look(x, fine)
        self._note(edges, over, fine)
        return self._graph(x, torch.zeros_like(x), edges, component)

    def _acceleration(self, role: int, x: Tensor, graph: Graph) -> Tensor:
        """That of a window potential at x, [atoms, 3] Å/fs^2, without what would move or turn a
        component as a whole: the potential has none of it, but its rounding has."""
        slopes = self.predictor.slopes(graph, role)[1]
        a = -(fs**2) * slopes / self.masses[:, None]
        return internal_velocities(x, a, self.masses, graph.component, self.isolated)

    def _on_course(self, x: Tensor, free: Tensor) -> Tensor:
        """Which atoms are near free flight; nobody should look for the neighbours of others."""
        return (x - free).square().sum(-1) < self.model.config.radial_cutoff**2

    def _check(self, x: Tensor, fine: Tensor) -> None:
        """Remember whether all atoms, which are at x, are fine."""
        self._look(x, fine)
        needs = torch.zeros(len(_Needs._fields), dtype=torch.int64, device=x.device)
        needs[-1] = ~fine.all()
        self._needs.append(needs)

    def _look(self, x: Tensor, fine: Tensor, why: str | None = None) -> None:
        if self.trace is not None:
            self.trace.append(_Look(x, fine, why))

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

    def _note(self, edges: DeviceEdges, settled: Tensor, fine: Tensor) -> None:
        """Remember what a graph needed, and whether all of it was settled and fine."""
        widest = edges.row_ptr.diff().max()[None]
        marks = torch.stack([~settled.all(), ~fine.all()]).long()
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
        no_component = torch.zeros_like(self.species)  # which energies do not depend on
        atomic = self.predictor.energies(self._graph(x, torch.zeros_like(x), edges, no_component))
        energies = self.sums.sum(atomic.double())
        fine = energies.isfinite()
        self._look(x, fine[self.owner], NO_ENERGY)
        self._note(edges, torch.ones_like(fine), fine)
        return energies

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
        for role, reached in self._reached.items():
            known = self.accelerations[role]
            known.copy_(torch.where(stands, reached, known))


def _between(
    t: Tensor,  # [times] fs
    h: Tensor,  # fs, of the window
    v: Tensor,  # [atoms, 3] Å/fs, at its start
    a: Tensor,  # [atoms, 3] Å/fs^2, there
    moved: Tensor,  # [atoms, 3] Å, at its end
    velocity: Tensor,  # [atoms, 3] Å/fs, there
    acceleration: Tensor,  # [atoms, 3] Å/fs^2, there
) -> tuple[Tensor, Tensor]:
    """Displacements and velocities [times, atoms, 3] within a window with these at its ends."""
    s = (t / h)[:, None, None]
    # what a parabola from the start leaves for the powers 3 to 5 of s
    dx = moved - h * v - h * h * a / 2
    dv, da = h * (velocity - v) - h * h * a, h * h * (acceleration - a)
    c3, c4, c5 = 10 * dx - 4 * dv + da / 2, -15 * dx + 7 * dv - da, 6 * dx - 3 * dv + da / 2
    within = s * (h * v + s * (h * h * a / 2 + s * (c3 + s * (c4 + s * c5))))
    return within, v + s * (h * a + s * (3 * c3 + s * (4 * c4 + s * 5 * c5)) / h)


class _Launched(NamedTuple):
    """A window under way: `result` is on the host once `done` says so."""

    result: _Result
    done: torch.cuda.Event | None

    def wait(self) -> _Result:
        if self.done is not None:
            self.done.synchronize()
        return self.result


class _Captured:
    """Windows of a kind as a CUDA graph, with room for two results on the host."""

    def __init__(self, state: _State, times: np.ndarray, kind: _Kind):
        device = state.positions.device
        self.t = torch.tensor(times, device=device)
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # compiles, packs weights, loads modules
            for _ in range(2):
                state.predict(self.t, kind)
        torch.cuda.current_stream(device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = state.predict(self.t, kind)
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
        self._captured: dict[_Kind, _Captured] = {}
        self._known = (False, False)  # see _Kind
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
        x = torch.from_numpy(positions).to(self._state.positions)
        if not torch.equal(x, self._state.positions):
            self._known = (False, False)
        self._state.positions.copy_(x)
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
            if said.runaway:
                system = int(energies[0].isfinite().logical_not().nonzero()[0])
                raise Broke(NO_ENERGY, system, *self._start)
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
        state, times, kind = self._there(), plan.only[0], self._kind(plan)
        if self._method.name == "symplectic":
            self._known = True, len(times) > 1
        device = state.positions.device
        if device.type != "cuda":
            result = state.predict(torch.from_numpy(times).to(device), kind)
            state.advance(result)
            return _Launched(_Result(*(x.cpu() for x in result)), None)
        with torch.cuda.device(device):
            if kind not in self._captured:
                self._captured[kind] = _Captured(state, times, kind)
            return self._captured[kind].launch(times)

    def _kind(self, plan: Plan) -> _Kind:
        """Of the next window."""
        times, wanted = plan.only
        measured = self._model.has_energies and (wanted.any() or self._method.due(plan.number))
        return _Kind(len(times), bool(measured), self._known)

    def _broke(self, plan: Plan) -> Broke:
        """What broke in the window from the state on, which is done again, step by step."""
        state, (positions, momenta) = self._there(), self._start
        self.set_state(positions, momenta)
        state.trace = []
        times = torch.from_numpy(plan.only[0]).to(state.positions.device)
        state.predict(times, self._kind(plan)._replace(known=(False, False)))
        trace, state.trace = state.trace, None
        cutoff = self._model.config.radial_cutoff
        for x, fine, why in trace:
            there = x.cpu().numpy()
            if (found := refused(self._system, there, cutoff)) is not None:
                return Broke(found[1], found[0], positions, momenta)
            if not fine.all():
                atom = int(fine.logical_not().nonzero()[0])
                system = int(self._system.system_index[atom])
                atom -= int(self._system.ptr[system])
                reason = why or left_its_course(self._model, atom)
                return Broke(reason, system, positions, momenta)
        raise AssertionError("a window broke, but not when it was done again")
