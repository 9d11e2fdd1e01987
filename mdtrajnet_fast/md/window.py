"""What a window of a rollout is: from the state at its start to its frames and its end.

The state is what ASE's Atoms hold, positions (Å) and momenta (ASE units), in float64. Every
prediction has the momentum of its start, in each connected component of the neighbour graph, and
for isolated systems the angular momentum. The centre of mass of a component therefore moves
ballistically, whatever the model does, and an atom without neighbours by v0 t.

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

The end of a window of a model that knows energies is then drawn to the one that the rollout keeps,
the mean over its first 200 fs, in which nothing draws: that of the first frame alone would be off
by the potential's error there. The internal velocities, those without the motion of each component
as a rigid body, are scaled, which leaves momentum and angular momentum as they are. Of the way they
go the share 1 - exp(-pull (1 + (difference / near)^4)): weakly where the difference may be an error
of the potential, strongly beyond it, by at most 30 %.

These maps are as good as the training of the network. A symplectic window has its structure
whatever the weights: free flight between kicks that are slopes of functions of the positions
(:mod:`..model.window_potentials`),

    v += h/6 a(x), x += h/2 v, v += 2h/3 b(x), x += h/2 v, v += h/6 a(x)

with the accelerations a and b of two potentials. It keeps volume in phase space and runs backwards
exactly, so that an energy is conserved that differs from the true one by what the potentials do not
say (E. Hairer, C. Lubich, G. Wanner, Geometric Numerical Integration, 2nd ed. (2006), chapter IX).
Where three vibrations, or one three times, turn once in a window, it is conserved for some time
only: a third of a turn in 3 fs is 3,706 cm^-1, a stretch of O-H. So these ends are drawn, too, but
at every tenth window or so and weakly. Frames within lie on the quintic polynomial with the
positions, velocities and accelerations of both ends.

Engines compute windows: :mod:`.host_engine` on the CPU, in one native call each, and with any other
backend, in torch, :mod:`.device_engine`.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple, Protocol

import numpy as np
from ase.data import chemical_symbols

from ..model.network import MDtrajNet
from ..neighbors.host import edge_vectors, neighbor_list
from ..system import System

# Å, below any bond: the shortest, of H2, has 0.74 and seldom 0.6.
CLOSEST = 0.5

METHODS = ("symplectic", "reversible", "plain")
# Extra reach of the neighbour list (Å): it is built anew once an atom has moved half of this.
SKIN = 0.6
# Lagrange's weights, at -1/2, of points at 0, 1 and 2.
BACK = (15 / 8, -5 / 4, 3 / 8)
# Newton steps on the angular momentum: each squares its relative error, which starts well below 1.
NEWTON_STEPS = 6
# The most by which the internal velocities of a system are scaled in one window: an energy that
# is farther off is an error, which must not become a kick.
MOST_SCALED = 0.3


# How fast windows are drawn to the energy to keep (1/fs). docs/study.md: reversible ones much
# faster, and errors of the potential disturb the vibrations; much slower, and single runs heat up.
ENERGY_RATES = {"reversible": 0.004, "symplectic": 0.001}
# Symplectic windows are drawn, and their energies measured for the mean, about so often (fs).
SYMPLECTIC_ENERGY_EVERY_FS = 30.0
# The energy to keep is the mean over this time (fs) from the start.
SETTLING_FS = 200.0
# The part of its mean kinetic energy by which the energy of a molecule may seem off from frame to
# frame, because the potential has errors.
UNCERTAIN = 0.2


class Method(NamedTuple):
    """How the windows of a rollout are computed.

    name: "symplectic", of two kicks; "reversible", of five predictions and one more for frames
        within; "plain", the model's own map. pull: of the energy at the end of every so many
        windows; infinite for all of the way. every: how many. needed: how many energies the mean to
        keep is of, that of the start and then of those ends; 0: none is kept.
    """

    name: str = "reversible"
    pull: float = 0.0
    every: int = 1
    needed: int = 0

    @classmethod
    def keeping(cls, name: str, window: float, rate: float) -> Method:
        """One that keeps the energy, in windows (fs), at a rate (1/fs); a plain one at once."""
        if name == "plain":
            return cls(name, np.inf, 1, 1)
        every = max(1, round(SYMPLECTIC_ENERGY_EVERY_FS / window)) if name == "symplectic" else 1
        return cls(name, rate * every * window, every, 1 + ceil(SETTLING_FS / (every * window)))

    def due(self, number: int) -> bool:
        """Whether something is to do about the energy at the end of window `number`."""
        return self.needed > 0 and (number + 1) % self.every == 0


class Kept(NamedTuple):
    """What is known of the energies to keep.

    sums: [2, systems] eV, of total energies and of kinetic ones relative to the centre of mass.
    seen: how many of each.
    """

    sums: np.ndarray
    seen: int

    @classmethod
    def nothing(cls, systems: int) -> Kept:
        """Before the first window."""
        return cls(np.zeros((2, systems)), 0)

    @property
    def goal(self) -> tuple[np.ndarray, np.ndarray]:
        """The energies to keep, and the differences up to which the pull is weak, [systems] eV."""
        total, kinetic = self.sums / self.seen
        return total, UNCERTAIN * kinetic

    def and_these(self, energies: np.ndarray) -> Kept:
        """With those of another state [2, systems] (eV)."""
        return Kept(self.sums + energies, self.seen + 1)

    def without(self, system: int) -> Kept:
        """Of the other systems."""
        return Kept(np.delete(self.sums, system, axis=1), self.seen)


class Plan(NamedTuple):
    """Windows to compute.

    number: of the first, counted from the start of the rollout. times: of each window, fs after its
    start; the last is its end. wanted: which of these are frames.
    """

    number: int
    times: list[list[float]]
    wanted: list[list[bool]]

    @property
    def only(self) -> tuple[np.ndarray, np.ndarray]:
        """Times and wanted of a plan of one window."""
        ((times,), (wanted,)) = self.times, self.wanted
        return np.array(times), np.array(wanted)


class Windows(NamedTuple):
    """What an engine computed of a plan.

    positions, momenta: of the frames [frames, atoms, 3], Å and ASE units. energies: potential
    energies [frames, systems] eV; None of a model without energies. done: how many
    windows; if these are not all, the next :meth:`Engine.end` says what broke.
    """

    positions: np.ndarray
    momenta: np.ndarray
    energies: np.ndarray | None
    done: int


class Broke(Exception):
    """What is wrong with a state or a prediction, and of which system.

    system: its index. positions, momenta: [atoms, 3], the state of all systems before the window.
    """

    def __init__(self, reason: str, system: int, positions: np.ndarray, momenta: np.ndarray):
        super().__init__(reason)
        self.system, self.positions, self.momenta = system, positions, momenta

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.system, self.positions, self.momenta)


class Engine(Protocol):
    """Computes windows of some systems one after another, and holds the state between them.

    ahead: how many plans may be begun before the first result is asked for. at_once: how many
    windows a plan may have. kept: the energies to keep; may be set before the first window.
    """

    @property
    def ahead(self) -> int: ...

    at_once: int
    kept: Kept

    def set_state(self, positions: np.ndarray, momenta: np.ndarray) -> None:
        """Where the next window starts, [atoms, 3], Å and ASE units."""

    def begin(self, plan: Plan) -> None:
        """Begin the next windows."""

    def end(self) -> Windows:
        """What the first plan that was begun led to. Raises :class:`Broke`."""

    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions and momenta at the end of the last window that was ended."""

    def energies(self) -> np.ndarray:
        """Of the state: [2, systems] eV, as in :class:`Kept`. Raises :class:`Broke`."""

    def close(self) -> None:
        """Wait for what was begun; the results are lost."""


def method_of(model: MDtrajNet, name: str | None) -> str:
    """The name of the method of a rollout; of None: what the model is best with.

    Raises ValueError for what is no method, or none of this model.
    """
    if name is None:
        if model.config.temperature_K is not None:
            return "plain"
        return "reversible" if model.window_potentials is None else "symplectic"
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    if name != "symplectic":
        model.check_network()
    elif model.window_potentials is None:
        raise ValueError(
            f"model {model.name!r} has no window potentials, which symplectic windows are of: "
            'use method="reversible", or train them with target = "window_potentials" in a recipe'
        )
    return name


def stride_of(model: MDtrajNet, method: str, window: float | None) -> float:
    """The stride of a rollout (fs): the model's own, or `window` if the method has it."""
    if method != "symplectic":
        return model.stride(window)
    sizes = model.config.window_potentials
    assert sizes is not None
    if window not in (None, sizes.window):
        raise ValueError(
            f"window must be {sizes.window:g} fs, which the window potentials of model "
            f'{model.name!r} are for, got {window}; other windows are for method="reversible"'
        )
    return float(sizes.window)


def too_close(system: System) -> str | None:
    """What is wrong with atoms that are closer than any chemistry has them, if there are such."""
    where = system.cell, system.pbc, system.ptr
    edges = neighbor_list(system.positions, CLOSEST, *where)
    if not len(edges.neighbor):
        return None
    r, _ = edge_vectors(edges, system.positions, system.velocities, *where, float64=True)
    far = np.linalg.norm(r, axis=1)
    nearest = int(np.argmin(far))
    i, j = int(np.searchsorted(edges.row_ptr, nearest, "right")) - 1, int(edges.neighbor[nearest])
    k = int(system.system_index[i])
    names = [f"{chemical_symbols[system.numbers[n]]} {n - system.ptr[k]}" for n in (i, j)]
    return (
        f"atoms {' and '.join(names)} of system {k} are {far[nearest]:.2f} Å apart, and no bond is "
        f"shorter than {CLOSEST:g} Å: what follows is worth little"
    )


def beyond_training(model: MDtrajNet, method: str, window: float) -> str | None:
    """What is wrong with a window (fs) for which the network of a method was not trained."""
    return None if method == "symplectic" else model.extrapolates(window)


# What is wrong with a state whose potential energy is none.
NO_ENERGY = (
    "its potential energy is not finite. The model left the chemistry it was trained on; start "
    "from a lower temperature or a relaxed geometry"
)


def left_its_course(model: MDtrajNet, atom: int) -> str:
    """What to say of an atom of a system that no chemistry could have moved so far."""
    return (
        f"atom {atom} leaves its course by more than {model.config.radial_cutoff:g} Å in one "
        "window, or its velocity is not finite. The model left the chemistry it was trained on; "
        "start from a lower temperature or a relaxed geometry"
    )


def refused(system: System, positions: np.ndarray, cutoff: float) -> tuple[int, str] | None:
    """The first system whose positions a neighbour list refuses, and why; None if there is none."""
    for k, (a, b) in enumerate(zip(system.ptr, system.ptr[1:], strict=False)):
        try:
            neighbor_list(positions[a:b], cutoff, system.cell[k], system.pbc[k])
        except ValueError as error:
            return k, str(error)
    return None
