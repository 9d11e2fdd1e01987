"""The rollout: window after window, from the state at its start to its frames and its end.

The state between windows is what ASE's Atoms hold, positions (Å) and momenta (ASE units), in
float64. Every prediction has the momentum of its start, in each connected component of the
neighbour graph, and for isolated systems the angular momentum. The centre of mass of a component
therefore moves ballistically, whatever the model does, and an atom without neighbours by v0 t.

A trained model is not quite a motion that could run backwards, and what it adds or takes in one
window grows without bound in thousands. Newton's equations are reversible in time: with S turning
all velocities around, S F S undoes F. Let F be the model's map over one window, B = S F S, and
X = F B, there and back. With X = 1, F would be reversible; whatever the model, X^-1/2 F is. So a
window ends half an X before the prediction:

    p = F(z0)                         the prediction
    q = F(B(p)), r = F(B(q))          once and twice there and back again
    z1 = 15/8 p - 5/4 q + 3/8 r       X^-1/2 p: the parabola through p, q and r, at -1/2

which is reversible up to the third power of the model's error. Maps that are have eigenvalues in
pairs, l and 1/l, so that vibrations neither grow nor fade, unless two of them meet
(J. A. G. Roberts, G. R. W. Quispel, Phys. Rep. 216, 63 (1992)). A frame within the window is seen
from both of its ends, (1 - t/h) F(z0, t) + (t/h) S F(S z1, h - t), and is as good as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import ase
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
# Lagrange's weights, at -1/2, of points at 0, 1 and 2.
BACK = (15 / 8, -5 / 4, 3 / 8)
# How fast reversible windows are drawn to the energy of the start (1/fs). docs/study.md: much
# faster, and errors of the potential disturb the vibrations; much slower, and single runs heat up.
ENERGY_RATE = 0.004
# The energy to keep is the mean over this time (fs) from the start, in which nothing draws: that of
# the first frame alone would be off by the potential's error there.
SETTLING_FS = 200.0
# The part of its mean kinetic energy by which the energy of a molecule may seem off from frame to
# frame, because the potential has errors.
_UNCERTAIN = 0.2


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
    reversible: bool = True,
    energy_rate: float = ENERGY_RATE,
    target: EnergyTarget | None = None,
) -> Iterator[Frames]:
    """Predict one or many systems, window by window, as long as asked for (or for ever).

    system, momenta: state at the start of window number `start`; momenta [atoms, 3], ASE units
        (they, not system.velocities, are the state).
    dt: spacing of the frames (fs); they lie at its multiples, counted from window 0.
    window: stride (fs); None for the model's own. The end of a window does not depend on dt, to the
        bit: see :meth:`MDtrajNet.displacements`.
    duration: time of the last frame at most (fs, counted from window 0); None for no end.
    reversible: windows as above, of five predictions and one more for frames within; False for the
        model's plain map.
    energy_rate: how fast the energy of a model with a potential returns to its target (1/fs), while
        it is near: the pull of a window is energy_rate times its length
        (:func:`~mdtrajnet_fast.conservation.conserve_energy`). The plain map goes all the way.
    target: the energies to keep, of a model with a potential, which learns of the first windows;
        None for that of a rollout that begins here.

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
    masses = system.masses
    system = replace(system, velocities=velocities_from_momenta(momenta, masses))
    flow = _Flow(model, system)
    if target is None and model.potential is not None:
        target = EnergyTarget.begin(model, system, float(stride), reversible)
    pull = check_rate(energy_rate) * float(stride) if reversible else np.inf
    window_of = _reversible if reversible else _plain

    while limit is None or start * step < limit:
        begin, end = start * step, (start + 1) * step
        frames = range((begin // gap + 1) * gap, end + 1, gap)
        # the end comes last, and is predicted whether it is a frame or not
        times = np.array([t / ticks for t in (*(k - begin for k in frames if k < end), step)])
        try:
            path = window_of(flow, system, times, target, pull)
        except _Broke as why:
            raise RolloutError(
                f"the trajectory broke before {end / ticks:g} fs: {why}",
                why.system,
                start,
                system.positions,
                momenta,
            ) from why
        if target is not None and path.energies is not None:
            target.add(path.energies)
        positions = system.positions + path.moved
        p = momenta_from_velocities(path.velocities, masses)
        count = sum(limit is None or t <= limit for t in frames)
        yield Frames(
            times=np.array([t / ticks for t in frames[:count]]),
            positions=positions[:count],
            momenta=p[:count],
        )
        momenta = p[-1]
        system = replace(
            system, positions=positions[-1], velocities=velocities_from_momenta(momenta, masses)
        )
        start += 1


def one_window(model: MDtrajNet, system: System) -> System:
    """The state one window later, of systems that are known to stay geometries."""
    stride = np.array([model.stride()])
    return _reversible(_Flow(model, system), system, stride, None, 0.0).end(system)


def check_rate(rate: float) -> float:
    """The rate (1/fs); ValueError for one that is negative or not finite."""
    if not 0 <= rate < np.inf:
        raise ValueError(f"energy_rate must be a number of 1/fs, 0 or more, got {rate}")
    return float(rate)


@dataclass
class EnergyTarget:
    """The total energies that a rollout keeps: a mean over its first windows.

    sums: [2, systems] eV, of the total energies seen and of the kinetic energies relative to the
    centre of mass. seen: how many. needed: how many there have to be.
    """

    sums: np.ndarray
    seen: int
    needed: int

    @classmethod
    def begin(
        cls, model: MDtrajNet, start: System, stride: float, reversible: bool
    ) -> EnergyTarget:
        """Of a rollout that begins with this state. The plain map keeps the energy of the start."""
        needed = 1 + math.ceil(SETTLING_FS / stride) if reversible else 1
        first = np.stack([total_energy(model, start), start.relative_kinetic_energy()])
        return cls(first, 1, needed)

    @property
    def known(self) -> bool:
        """Whether the mean is complete."""
        return self.seen >= self.needed

    @property
    def mean(self) -> np.ndarray:
        """[2, systems] eV."""
        return self.sums / self.seen

    def add(self, energies: np.ndarray) -> None:
        """Take in those at the end of a window [2, systems] (eV)."""
        self.sums = self.sums + energies
        self.seen += 1

    def without(self, system: int) -> EnergyTarget:
        """The target of the other systems."""
        return replace(self, sums=np.delete(self.sums, system, axis=1))


class _Broke(Exception):
    """What is wrong with a state or a prediction, and of which system."""

    def __init__(self, reason: str, system: int):
        super().__init__(reason)
        self.system = system


class _Flow:
    """The model as a flow of states, forward and backward in time, that keeps the momenta."""

    def __init__(self, model: MDtrajNet, system: System):
        self.model = model
        self.blocks = model.snapshot()
        self.atomic = None if model.potential is None else model.potential_snapshot()
        self.neighbors = NeighborList(model.config.radial_cutoff, SKIN)
        self.isolated = _isolated(system)

    def forward(self, start: System, times: np.ndarray) -> _Path:
        """Where the systems are `times` (fs) after the start. Raises _Broke."""
        model = self.model
        graph = model.graph(start, self._edges(start))
        moved, velocities = model.displacements(graph, times, self.blocks)
        if (atom := _runaway(model, start, times, moved, velocities)) is not None:
            owner = int(start.system_index[atom])
            raise _Broke(
                f"atom {atom - start.ptr[owner]} leaves its course by more than "
                f"{model.config.radial_cutoff:g} Å in one window, or its velocity is not finite. "
                "The model left the chemistry it was trained on; start from a lower temperature "
                "or a relaxed geometry",
                owner,
            )
        return self.conserve(start, times, _Path(moved, velocities, graph.component.cpu().numpy()))

    def backward(self, end: System, times: np.ndarray) -> _Path:
        """Where they were `times` before: :meth:`forward`, of the film in reverse."""
        path = self.forward(replace(end, velocities=-end.velocities), times)
        return path._replace(velocities=-path.velocities)

    def conserve(self, start: System, times: np.ndarray, path: _Path) -> _Path:
        """The path with the momenta of the start."""
        moved, velocities = conserve(start, times, *path[:3], self.isolated)
        return _Path(moved, velocities, path.component)

    def conserve_energy(
        self, start: System, times: np.ndarray, path: _Path, target: EnergyTarget, pull: float
    ) -> _Path:
        """The path, its end drawn to the target; until that is known, with the energies there."""
        positions = start.positions + path.moved
        there = path.end(start)
        with torch.no_grad():
            energy = self.model.potential_energy(there, self._edges(there), self.atomic)
        potential = energy.cpu().numpy()
        if not target.known:
            total = potential + there.kinetic_energy()
            return path._replace(energies=np.stack([total, there.relative_kinetic_energy()]))
        total, kinetic = target.mean
        velocities = conserve_energy(
            start,
            total - potential,
            times,
            positions,
            path.velocities,
            path.component,
            self.isolated,
            pull,
            _UNCERTAIN * kinetic,
        )
        return path._replace(velocities=velocities)

    def _edges(self, there: System) -> Edges:
        try:
            return self.neighbors.update(there.positions, there.cell, there.pbc, there.ptr)
        except ValueError as error:
            cutoff = self.model.config.radial_cutoff
            raise _Broke(str(error), _coinciding(there, cutoff)) from error


class _Path(NamedTuple):
    """The way of systems from a start."""

    moved: np.ndarray  # [times, atoms, 3] Å
    velocities: np.ndarray  # [times, atoms, 3] Å/fs
    component: np.ndarray  # [atoms], labels of the connected components at the start
    energies: np.ndarray | None = None  # [2, systems] eV, for a target that is not known yet

    def end(self, start: System) -> System:
        """The state at the last time."""
        positions = start.positions + self.moved[-1]
        return replace(start, positions=positions, velocities=self.velocities[-1])


def _plain(
    flow: _Flow, start: System, times: np.ndarray, target: EnergyTarget | None, pull: float
) -> _Path:
    """A window as the model predicts it; the last of the times is its end."""
    path = flow.forward(start, times)
    return path if target is None else flow.conserve_energy(start, times, path, target, pull)


def _reversible(
    flow: _Flow, start: System, times: np.ndarray, target: EnergyTarget | None, pull: float
) -> _Path:
    """A window that could run backwards; the last of the times is its end."""
    inner, stride = times[:-1], times[-1:]
    path = flow.forward(start, times)
    there = path.end(start)
    moved, velocities = BACK[0] * path.moved[-1:], BACK[0] * path.velocities[-1:]
    for weight in BACK[1:]:
        back = flow.backward(there, stride).end(there)
        there = flow.forward(back, stride).end(back)
        moved = moved + weight * (there.positions - start.positions)
        velocities = velocities + weight * there.velocities
    end = flow.conserve(start, stride, path._replace(moved=moved, velocities=velocities))
    if target is not None:
        end = flow.conserve_energy(start, stride, end, target, pull)
    if not len(inner):
        return end
    last = end.end(start)
    seen = flow.backward(last, stride - inner)
    late = (inner / stride)[:, None, None]
    within = flow.conserve(
        start,
        inner,
        path._replace(
            moved=path.moved[:-1]
            + late * (last.positions - start.positions + seen.moved - path.moved[:-1]),
            velocities=path.velocities[:-1] + late * (seen.velocities - path.velocities[:-1]),
        ),
    )
    return end._replace(
        moved=np.concatenate([within.moved, end.moved]),
        velocities=np.concatenate([within.velocities, end.velocities]),
    )


@torch.no_grad()
def total_energy(model: MDtrajNet, system: System) -> np.ndarray:
    """Kinetic and potential energies [systems] (eV) as the model has them."""
    return system.kinetic_energy() + model.potential_energy(system).cpu().numpy()


@torch.no_grad()
def potential_energies(model: MDtrajNet, atoms: ase.Atoms, positions: np.ndarray) -> np.ndarray:
    """Potential energies [frames] (eV) of frames [frames, atoms, 3] (Å) of a system."""
    frames, count = len(positions), len(atoms)
    system = System(
        numbers=np.tile(atoms.numbers, frames),
        positions=positions.reshape(-1, 3),
        velocities=np.zeros((frames * count, 3)),
        masses=np.tile(atoms.get_masses(), frames),
        cell=np.repeat(atoms.cell[None], frames, 0),
        pbc=np.repeat(atoms.pbc[None], frames, 0),
        ptr=count * np.arange(frames + 1),
    )
    return model.potential_energy(system).cpu().numpy()


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
