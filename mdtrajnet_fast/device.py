"""The rollout with its state on the model's device: what :mod:`.rollout` does, without its waits.

A prediction is neighbour update, edge vectors, network and conservation; a window five of them,
or six (see :mod:`.rollout`), and the new state: a fixed
sequence of operations on arrays of fixed size, in which nothing waits for the host. On a CUDA
device it is captured once for each number of frames and replayed; the host takes the frames of a
window while the next one runs. What cannot be known beforehand has room to spare (edges,
neighbours of an atom, rounds of the search for components). A window that finds no room, or that
breaks, says so in its status and leaves the state as it was; the host reads the status with the
frames, makes room, and does the window again.

On the CPU the same code runs without capture, which is how it was tested; not yet run on a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from ase.units import fs
from torch import Tensor
from torch.linalg import cross

from .conservation import _STEPS
from .model import _ROWS, MDtrajNet
from .neighbors_cuda import (
    Cells,
    DeviceEdges,
    SkinNeighbors,
    device_neighbor_list,
    edge_vectors,
)
from .ops import Graph
from .ops.graph import Padded
from .rollout import BACK, SKIN, Frames, _positive, exact, rollout
from .system import System

# Rounds of the search for components at first; doubled when a system needs more.
_ROUNDS = 8


# ---- Graphs of fixed shapes.


@dataclass(frozen=True)
class RoomyGraph(Graph):
    """A graph with room for more edges than row_ptr counts, and for `slots` neighbours of an atom.

    Edges beyond the last row end in some atom but belong to none.
    """

    slots: int

    @cached_property
    def padded(self) -> Padded:
        """The neighbours as rows of `slots`; those beyond are left out."""
        edge, mask = _rows(self.row_ptr, len(self.neighbor), self.slots)
        own = torch.arange(self.atoms, device=mask.device)[:, None]
        away = torch.eye(1, 3, dtype=self.r.dtype, device=mask.device)
        real = mask[..., None]
        return Padded(
            torch.where(mask, self.neighbor[edge], own),
            mask,
            torch.where(real, self.r[edge], away),
            torch.where(real, self.w[edge], 0.0),
        )

    def repeat(self, times: int) -> RoomyGraph:
        """The same graph `times` times over: the copies' edges one after another, then the room."""
        if times == 1:
            return self
        edges, copies = self.row_ptr[-1], torch.arange(times, device=self.row_ptr.device)
        slot = torch.arange(times * len(self.neighbor), device=edges.device)
        copy = (slot // edges.clamp(min=1)).clamp(max=times - 1)
        edge = slot % edges.clamp(min=1)
        row_ptr = (self.row_ptr[:-1] + edges * copies[:, None]).reshape(-1)
        return RoomyGraph(
            species=self.species.repeat(times),
            masses=self.masses.repeat(times),
            velocities=self.velocities.repeat(times, 1),
            component=(self.component + self.components * copies[:, None]).reshape(-1),
            components=self.components * times,
            row_ptr=torch.cat([row_ptr, (edges * times)[None]]),
            neighbor=self.neighbor[edge] + self.atoms * copy,
            r=self.r[edge],
            w=self.w[edge],
            slots=self.slots,
        )


def _rows(row_ptr: Tensor, room: int, slots: int) -> tuple[Tensor, Tensor]:
    """Edges of each atom, [atoms, slots], and which of them there are."""
    slot = torch.arange(slots, device=row_ptr.device)
    mask = slot < row_ptr.diff()[:, None]
    return (row_ptr[:-1, None] + slot).clamp(max=room - 1), mask


def components(edges: DeviceEdges, slots: int, rounds: int) -> tuple[Tensor, Tensor]:
    """The first atom of each atom's connected component [atoms], and whether the search is over.

    Every atom points at an atom of its component with a lower index, or at itself. In a round, who
    sees a lower index among the targets of its neighbours' targets takes it over, for itself and
    for its own target (FastSV: Zhang, Azad, Hu, SIAM PP 2020): 5 rounds for a crystal of 64,000
    atoms, 18 for a chain of 100,000. Rows of more than `slots` neighbours are cut.
    """
    edge, mask = _rows(edges.row_ptr, len(edges.neighbor), slots)
    own = torch.arange(len(mask), device=mask.device)
    neighbor = torch.where(mask, edges.neighbor[edge].long(), own[:, None])
    label = own
    for _ in range(rounds):
        target = label[label]
        least = target[neighbor].amin(1).minimum(target)
        lower = least < target
        label = label.scatter_reduce(
            0, torch.where(lower, label, own), torch.where(lower, least, label), "amin"
        ).minimum(least)
    over = (label[neighbor] == label[:, None]).all() & (label[label] == label).all()
    return label, over


def device_graph(model: MDtrajNet, system: System) -> Graph:
    """The graph of a system as :meth:`MDtrajNet.graph` makes it, made on the model's device.

    Sizes are exact, and the host waits for them. Raises ValueError for unknown elements and what
    the neighbour list refuses.
    """
    device = model.device
    species = torch.from_numpy(model.species_index(system.numbers)).to(device)
    cells = Cells.of(system, device)
    x, v = (torch.from_numpy(y).to(device) for y in (system.positions, system.velocities))
    edges = device_neighbor_list(x, model.config.radial_cutoff, cells)
    slots, rounds = int(edges.row_ptr.diff().max()), _ROUNDS
    if slots:
        label, over = components(edges, slots, rounds)
        while not over:
            rounds *= 2
            label, over = components(edges, slots, rounds)
    else:
        label = torch.arange(len(x), device=device)
    number = (label == torch.arange(len(x), device=device)).cumsum(0) - 1
    r, w = edge_vectors(x, v, edges, cells, model.dtype)
    return Graph(
        species=species,
        masses=torch.from_numpy(system.masses).to(device, model.dtype),
        velocities=v.to(model.dtype),
        component=number[label],
        components=int(number[-1]) + 1,
        row_ptr=edges.row_ptr,
        neighbor=edges.neighbor.long(),
        r=r,
        w=w,
    )


# ---- Conservation.


def conserve(
    positions: Tensor,  # [atoms, 3] Å, at the start
    velocities: Tensor,  # [atoms, 3] Å/fs, at the start
    masses: Tensor,  # [atoms] amu
    t: Tensor,  # [times] fs
    moved: Tensor,  # [times, atoms, 3] Å
    velocity: Tensor,  # [times, atoms, 3] Å/fs
    component: Tensor,  # int64 [atoms], the first atom of each atom's component
    isolated: Tensor | None,  # bool [atoms], None where no atom is
) -> tuple[Tensor, Tensor]:
    """:func:`mdtrajnet_fast.conservation.conserve` in torch, which see; all in float64."""
    total = _totals(component)
    mass = masses[:, None]
    total_mass = total(mass)

    def mean(x: Tensor) -> Tensor:
        return (total(mass * x) / total_mass)[..., component, :]

    v0 = velocities
    moved = moved - mean(moved - v0 * t[:, None, None])
    velocity = velocity - mean(velocity - v0)
    if isolated is None:
        return moved, velocity
    turns = (isolated & (total(torch.ones_like(mass))[component, 0] > 1))[:, None]
    x = positions + moved
    centre, drift = mean(x), mean(v0)
    wanted = cross(positions - mean(positions), v0)
    r, v = _turn(
        torch.where(turns, x - centre, 0.0),
        torch.where(turns, velocity - drift, 0.0),
        mass,
        total(mass * torch.where(turns, wanted, 0.0)),
        t,
        component,
    )
    moved = torch.where(turns, r + (centre - positions), moved)
    return moved, torch.where(turns, v + drift, velocity)


def _totals(label: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that sums [.., atoms, k] over the atoms of each label: [.., atoms, k].

    There is room for as many labels as atoms; sums over none are 0.
    """
    return lambda x: torch.zeros_like(x).index_add(-2, label, x)


def _turn(
    r: Tensor,  # [times, atoms, 3] Å, from the centre of mass; 0 for atoms that do not turn
    v: Tensor,  # [times, atoms, 3] Å/fs, relative to it; likewise
    mass: Tensor,  # [atoms, 1] amu
    wanted: Tensor,  # [labels, 3] amu Å^2/fs, angular momenta
    t: Tensor,  # [times] fs
    label: Tensor,  # int64 [atoms]
) -> tuple[Tensor, Tensor]:
    """Positions and velocities, turned until the angular momenta are those wanted."""
    total, eye = _totals(label), torch.eye(3, dtype=r.dtype, device=r.device)

    def tensor(x: Tensor) -> Tensor:  # of inertia, [times, labels, 3, 3]
        outer = (x * x).sum(-1)[..., None, None] * eye - x[..., :, None] * x[..., None, :]
        return total((mass[..., None] * outer).flatten(-2)).unflatten(-1, (3, 3))

    cross_l = cross(eye.expand(len(wanted), 3, 3), wanted[:, None]).mT  # theta -> theta x L
    t2 = (t * t)[:, None, None, None]
    for _ in range(_STEPS):
        lost = wanted - total(mass * cross(r, v))
        inertia = tensor(r)
        by_angle = t2 * _inverse(inertia + t2 * tensor(v)) @ cross_l.mT
        omega = _inverse(inertia + cross_l @ by_angle) @ lost[..., None]
        theta = (by_angle @ omega)[..., 0][:, label]
        r, v = _rotate(theta, r), _rotate(theta, v)
        v = v + cross(omega[..., 0][:, label], r)
    return r, v


def _rotate(theta: Tensor, x: Tensor) -> Tensor:
    """x turned about theta by |theta|: x + sin a / a theta x x + (1 - cos a) / a^2 theta x (..)."""
    half = theta.square().sum(-1, keepdim=True).sqrt() / (2 * torch.pi)
    once = cross(theta, x)
    return x + torch.sinc(2 * half) * once + 0.5 * torch.sinc(half) ** 2 * cross(theta, once)


def _inverse(a: Tensor) -> Tensor:
    """Pseudo-inverse of tensors of inertia [.., 3, 3], whose rank is 3, 2 (linear molecules) or 0.

    Their two larger eigenvalues are alike in size, so that the smallest is det / tr(cofactors)
    where it is small. One below 1e-10 of the largest is taken for 0, as by the pinv of
    :mod:`mdtrajnet_fast.conservation`, and its direction, n n^T = cofactors / their trace, is left
    out. (Eigenvalue solvers check their success on the host.)
    """

    def cofactors(m: Tensor) -> tuple[Tensor, Tensor]:
        x, y, z = m.unbind(-2)
        rows = torch.stack([cross(y, z), cross(z, x), cross(x, y)], -2)
        return rows, (x * rows[..., 0, :]).sum(-1)[..., None, None]

    def trace(m: Tensor) -> Tensor:
        return m.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]

    c, det = cofactors(a)
    size, area = trace(a) / 2, trace(c)
    flat = ~(det > 1e-10 * size * area)
    axis = torch.where(flat & (area > 0), c / area, 0.0)
    c, det = cofactors(a + size * axis)
    return torch.where(det > 0, c / det - axis / size, 0.0)


# ---- The rollout.


class _Room(NamedTuple):
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
    room: Tensor  # int64 [7]: _Room


class _Path(NamedTuple):
    """The way from a start, and what it needed."""

    moved: Tensor  # float64 [times, atoms, 3] Å
    velocity: Tensor  # float64 [times, atoms, 3] Å/fs
    component: Tensor  # int64 [atoms]
    needs: Tensor  # int64 [7]: _Room


class _Window:
    """The state on the device, and one window's work on it."""

    def __init__(
        self, model: MDtrajNet, system: System, momenta: np.ndarray, reversible: bool = True
    ):
        def real(array: np.ndarray) -> Tensor:
            return torch.tensor(array, dtype=torch.float64, device=model.device)

        self.model, self.blocks, self.reversible = model, model.prepare(), reversible
        self.positions, self.momenta, self.masses = map(
            real, (system.positions, momenta, system.masses)
        )
        self.species = torch.from_numpy(model.species_index(system.numbers)).to(model.device)
        isolated = np.logical_not(system.pbc).all(axis=1)[system.system_index]
        self.isolated = torch.from_numpy(isolated).to(model.device) if isolated.any() else None
        self.cells = Cells.of(system, model.device)
        cutoff = model.config.radial_cutoff
        self.neighbors = SkinNeighbors(self.positions, cutoff, SKIN, self.cells)
        widest = int(self.neighbors.update(self.positions).row_ptr.diff().max())
        self.slots, self.rounds = 1, _ROUNDS
        self._widen(widest)

    def _widen(self, widest: int) -> None:
        if widest > self.slots:
            self.slots = widest + widest // 4 + 2

    def set_state(self, positions: np.ndarray, momenta: np.ndarray) -> None:
        """Begin the next window here."""
        self.positions.copy_(torch.from_numpy(positions))
        self.momenta.copy_(torch.from_numpy(momenta))

    def grow(self, room: _Room) -> None:
        """Make room for what a window needed; windows under way finish first."""
        self.finish()
        self.neighbors.grow(room.edges, room.reach)
        self._widen(room.slots)
        if room.unsettled:
            self.rounds *= 2

    def finish(self) -> None:
        """Wait for the windows under way."""
        if self.positions.is_cuda:
            torch.cuda.synchronize(self.positions.device)

    def lacked(self, room: _Room) -> bool:
        """Whether a window found too little room."""
        return bool(room.overflow or room.unsettled or room.slots > self.slots)

    @torch.no_grad()
    def predict(self, t: Tensor) -> _Result:
        """The frames at times t [frames] (fs) after the state's; the last, the window's end, alone.

        See :mod:`mdtrajnet_fast.rollout`.
        """
        x, v = self.positions, self.momenta / self.masses[:, None] * fs
        path = self._forward(x, v, t)
        needs = [path.needs]
        moved, velocity = path.moved, path.velocity
        if self.reversible:
            inner, stride = t[:-1], t[-1:]

            def back(x: Tensor, v: Tensor, t: Tensor) -> _Path:
                path = self._forward(x, -v, t)
                return path._replace(velocity=-path.velocity)

            there, velocity_there = x + moved[-1], velocity[-1]
            end, end_velocity = BACK[0] * moved[-1:], BACK[0] * velocity[-1:]
            for weight in BACK[1:]:
                earlier = back(there, velocity_there, stride)
                here = there + earlier.moved[0]
                again = self._forward(here, earlier.velocity[0], stride)
                there, velocity_there = here + again.moved[0], again.velocity[0]
                end = end + weight * (there - x)
                end_velocity = end_velocity + weight * velocity_there
                needs += [earlier.needs, again.needs]
            end, end_velocity = self._conserve(x, v, stride, end, end_velocity, path.component)
            parts = [(end, end_velocity)]
            if len(inner):
                seen = back(x + end[0], end_velocity[0], stride - inner)
                needs.append(seen.needs)
                late = (inner / stride)[:, None, None]
                dx = moved[:-1] + late * (end + seen.moved - moved[:-1])
                dv = velocity[:-1] + late * (seen.velocity - velocity[:-1])
                parts.insert(0, self._conserve(x, v, inner, dx, dv, path.component))
            moved, velocity = (torch.cat(y) for y in zip(*parts, strict=True))
        room = torch.stack(needs).amax(0)
        return _Result(x + moved, velocity / fs * self.masses[:, None], room)

    def _forward(self, x: Tensor, v: Tensor, t: Tensor) -> _Path:
        """Where the atoms are t [times] (fs) after x, v [atoms, 3], with the momenta of these."""
        model = self.model
        edges = self.neighbors.update(x)
        component, over = components(edges, self.slots, self.rounds)
        r, w = edge_vectors(x, v, edges, self.cells, model.dtype)
        graph = RoomyGraph(
            species=self.species,
            masses=self.masses.to(model.dtype),
            velocities=v.to(model.dtype),
            component=component,
            components=len(x),
            row_ptr=edges.row_ptr,
            neighbor=edges.neighbor.long(),
            r=r,
            w=w,
            slots=self.slots,
        )
        step = max(1, _ROWS // len(x))
        parts = [t[:-1][k : k + step] for k in range(0, len(t) - 1, step)]
        motions = [self._motion(graph, part) for part in (*parts, t[-1:])]
        moved, velocity = (torch.cat(y) for y in zip(*motions, strict=True))
        free = v * t[:, None, None] if model.config.head == "conserving" else 0.0
        fine = ((moved - free).abs() < model.config.radial_cutoff) & velocity.isfinite()
        needs = torch.cat(
            [
                self.neighbors.status,
                edges.row_ptr.diff().max()[None],
                torch.stack([~over, ~fine.all()]).long(),
            ]
        )
        return _Path(*self._conserve(x, v, t, moved, velocity, component), component, needs)

    def _conserve(
        self, x: Tensor, v: Tensor, t: Tensor, moved: Tensor, velocity: Tensor, component: Tensor
    ) -> tuple[Tensor, Tensor]:
        return conserve(x, v, self.masses, t, moved, velocity, component, self.isolated)

    def _motion(self, graph: Graph, t: Tensor) -> tuple[Tensor, Tensor]:
        every = t.to(graph.r.dtype)[:, None].expand(-1, graph.atoms).contiguous().view(-1)
        dx, v = self.model.motion(graph, every, self.blocks)
        return dx.double().view(len(t), -1, 3), v.double().view(len(t), -1, 3)

    def advance(self, result: _Result) -> None:
        """Go to the window's end, if the window stands."""
        said = dict(zip(_Room._fields, result.room.unbind(), strict=True))
        bad = said["refused"] + said["overflow"] + said["unsettled"] + said["runaway"]
        stands = (bad == 0) & (said["slots"] <= self.slots)
        for state, end in zip((self.positions, self.momenta), result[:2], strict=True):
            state.copy_(torch.where(stands, end[-1], state))


class _Launched(NamedTuple):
    """A window under way: `result` is on the host once `done` says so."""

    result: _Result
    done: torch.cuda.Event | None

    def wait(self) -> tuple[np.ndarray, np.ndarray, _Room]:
        if self.done is not None:
            self.done.synchronize()
        positions, momenta, room = self.result
        return positions.numpy().copy(), momenta.numpy().copy(), _Room(*room.tolist())


class _Captured:
    """A window of some number of frames as a CUDA graph, with room for two results on the host."""

    def __init__(self, window: _Window, times: np.ndarray):
        device = window.positions.device
        self.t = torch.tensor(times, device=device)
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # compiles, packs weights, loads modules
            for _ in range(2):
                window.predict(self.t)
        torch.cuda.current_stream(device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = window.predict(self.t)
            window.advance(self.result)
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


class _Launcher:
    """Starts windows: replayed on a CUDA device, computed at once elsewhere."""

    def __init__(self, window: _Window):
        self.window = window
        self.captured: dict[int, _Captured] = {}

    def __call__(self, times: np.ndarray) -> _Launched:
        device = self.window.positions.device
        if device.type != "cuda":
            result = self.window.predict(torch.from_numpy(times).to(device))
            self.window.advance(result)
            return _Launched(_Result(*(x.cpu() for x in result)), None)
        with torch.cuda.device(device):
            if len(times) not in self.captured:
                self.captured[len(times)] = _Captured(self.window, times)
            return self.captured[len(times)].launch(times)


def _frames(number: int, stride: Fraction, spacing: Fraction) -> list[Fraction]:
    """Times of the frames of a window (fs), counted from window 0."""
    begin, end = number * stride, (number + 1) * stride
    return [k * spacing for k in range(begin // spacing + 1, end // spacing + 1)]


def device_rollout(
    model: MDtrajNet,
    system: System,
    momenta: np.ndarray,
    *,
    dt: float,
    window: float | None = None,
    duration: float | None = None,
    start: int = 0,
    reversible: bool = True,
) -> Iterator[Frames]:
    """:func:`mdtrajnet_fast.rollout.rollout`, which see, with the state on the model's device.

    One window runs ahead of the frames that are yielded. On a GPU the sums over the atoms of a
    component are in no fixed order: results repeat to rounding, not to the bit.
    """
    stride, spacing = exact(model.stride(window)), exact(_positive(dt, "dt"))
    last = None if duration is None else exact(_positive(duration, "duration"))
    state = system.positions, momenta  # at the start of window `start`

    def with_waits() -> Iterator[Frames]:  # which knows what to say of a trajectory that breaks
        begun = replace(system, positions=state[0])
        return rollout(
            model,
            begun,
            state[1],
            dt=dt,
            window=window,
            duration=duration,
            start=start,
            reversible=reversible,
        )

    try:
        work = _Window(model, system, momenta, reversible)
    except ValueError:
        yield from with_waits()
        return
    launch = _Launcher(work)
    ahead: deque[_Launched] = deque()
    try:
        while last is None or start * stride < last:
            number = start + len(ahead)
            while len(ahead) < 2 and (last is None or number * stride < last):
                begin, frames = number * stride, _frames(number, stride, spacing)
                inner = [float(t - begin) for t in frames if t < begin + stride]
                ahead.append(launch(np.array([*inner, float(stride)])))
                number += 1
            positions, momenta, room = ahead.popleft().wait()
            if work.lacked(room):
                ahead.clear()
                work.grow(room)
                launch = _Launcher(work)
                work.set_state(*state)
                continue
            if room.refused or room.runaway:
                yield from with_waits()
                return
            frames = _frames(start, stride, spacing)
            count = sum(last is None or t <= last for t in frames)
            yield Frames(
                times=np.array([float(t) for t in frames[:count]]),
                positions=positions[:count],
                momenta=momenta[:count],
            )
            state = positions[-1], momenta[-1]
            start += 1
    finally:  # no window runs on after what it works on is gone
        work.finish()
