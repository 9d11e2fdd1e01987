"""The rollout: window after window, from a state to its frames for as long as asked for.

What a window is and how it is computed, :mod:`.window` says.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import ase
import numpy as np

from ..mechanics import momenta_from_velocities, velocities_from_momenta
from ..model.network import MDtrajNet
from ..model.predictor import NativePredictor
from ..system import System
from .device_engine import DeviceEngine
from .host_engine import HostEngine
from .symplectic_engine import SymplecticEngine
from .thermostats import Baths
from .window import Broke, Engine, Method, Target, method_of, stride_of

# How fast reversible windows are drawn to the energy of the start (1/fs). docs/study.md: much
# faster, and errors of the potential disturb the vibrations; much slower, and single runs heat up.
ENERGY_RATE = 0.004
# The energy to keep is the mean over this time (fs) from the start, in which nothing draws: that of
# the first frame alone would be off by the potential's error there.
SETTLING_FS = 200.0
# The part of its mean kinetic energy by which the energy of a molecule may seem off from frame to
# frame, because the potential has errors.
UNCERTAIN = 0.2


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

    def __reduce__(self) -> tuple:
        # what is raised in a process of a pool reaches the parent as a pickle
        args = (str(self), self.system, self.window, self.positions, self.momenta)
        return type(self), args

    @classmethod
    def of(cls, why: Broke, window: int, end: float) -> RolloutError:
        """What broke in a window that ends at `end` (fs)."""
        reason = f"the trajectory broke before {end:g} fs: {why}"
        return cls(reason, why.system, window, why.positions, why.momenta)


@dataclass(frozen=True)
class Frames:
    """What one window yields, or several in which no other frame lies.

    times: [frames] fs, counted from window 0. positions: [frames, atoms, 3] Å.
    momenta: [frames, atoms, 3], ASE units. end: of the last window, fs. heat: [frames, systems] eV,
    what the thermostats of a rollout have put in by then (:attr:`.thermostats.Baths.heat`).
    """

    times: np.ndarray
    positions: np.ndarray
    momenta: np.ndarray
    end: float
    heat: np.ndarray | None = None


class Schedule:
    """When windows end and where frames lie, in exact arithmetic.

    dt: spacing of the frames (fs). window: stride (fs). duration: of the last frame at most (fs);
    None for no end. All are counted from window 0.
    """

    def __init__(self, dt: float, window: float, duration: float | None):
        stride, spacing = exact(window), exact(_positive(dt, "dt"))
        last = None if duration is None else exact(_positive(duration, "duration"))
        # in ticks, of which each of these times has a whole number: integers are fast, too
        self._ticks = math.lcm(*(x.denominator for x in (stride, spacing, last) if x is not None))
        self._step, self._gap = int(stride * self._ticks), int(spacing * self._ticks)
        self._last = None if last is None else int(last * self._ticks)

    def goes_on(self, window: int) -> bool:
        """Whether there is something to predict from this window on."""
        return self._last is None or window * self._step < self._last

    def end(self, window: int) -> float:
        """When a window ends (fs)."""
        return (window + 1) * self._step / self._ticks

    def without_frames(self, window: int) -> int:
        """How many windows from this one on there are before the next one with a frame before its
        end, that one not counted."""
        frame = (window * self._step // self._gap + 1) * self._gap
        count = frame // self._step - window
        if self._last is not None:
            count = min(count, -(-self._last // self._step) - window)
        return count

    def times(self, window: int) -> np.ndarray:
        """Times (fs) within a window to predict: its frames and, always, its end."""
        begin, end = window * self._step, (window + 1) * self._step
        frames = range((begin // self._gap + 1) * self._gap, end, self._gap)
        return np.array([t / self._ticks for t in (*(k - begin for k in frames), self._step)])

    def frames(self, window: int) -> np.ndarray:
        """Times (fs) of the frames of a window, the first of what is predicted of it."""
        begin, end = window * self._step, (window + 1) * self._step
        if self._last is not None:
            end = min(end, self._last)
        frames = range((begin // self._gap + 1) * self._gap, end + 1, self._gap)
        return np.array([t / self._ticks for t in frames])


def exact(fs: float) -> Fraction:
    """A time as the simple number that was meant: 0.1 is one tenth, 1 / 3 is one third.

    Raises ValueError for one that is not 0 and below a millionth of a fs.
    """
    time = Fraction(float(fs)).limit_denominator(1_000_000)
    if time == 0 and fs != 0:
        raise ValueError(f"a time of {fs:g} fs is below the shortest, 1e-06 fs; times are in fs")
    return time


def engine_for(model: MDtrajNet, system: System, method: Method) -> Engine:
    """What computes windows of a model's backend for systems."""
    predictor = model.predictor()
    if isinstance(predictor, NativePredictor):
        return HostEngine(model, predictor, system, method)
    if method.name == "symplectic":
        return SymplecticEngine(model, predictor, system, method)
    return DeviceEngine(model, predictor, system, method)


def keeps_energy(model: MDtrajNet, method: str) -> bool:
    """Whether windows are drawn to an energy."""
    return model.potential is not None and method != "symplectic"


def rollout(
    model: MDtrajNet,
    system: System,
    momenta: np.ndarray,
    *,
    dt: float,
    window: float | None = None,
    duration: float | None = None,
    start: int = 0,
    method: str | None = None,
    energy_rate: float = ENERGY_RATE,
    target: EnergyTarget | None = None,
    baths: Baths | None = None,
) -> Iterator[Frames]:
    """Predict one or many systems, window by window, as long as asked for (or for ever).

    system, momenta: state at the start of window number `start`; momenta [atoms, 3], ASE units
        (they, not system.velocities, are the state).
    dt: spacing of the frames (fs); they lie at its multiples, counted from window 0.
    window: stride (fs); None for the model's own. The end of a window does not depend on dt, to the
        bit.
    duration: time of the last frame at most (fs, counted from window 0); None for no end.
    method: "symplectic", "reversible" or "plain" (:mod:`.window`); None for symplectic windows of a
        model with potentials for them, else reversible ones.
    energy_rate: how fast the energy of a model with a potential returns to its target (1/fs) in
        reversible windows, while it is near: the pull of a window is energy_rate times its length.
        The plain map goes all the way; symplectic windows need none.
    target: the energies to keep, of a model with a potential, which learns of the first windows;
        None for that of a rollout that begins here.
    baths: thermostats, with which no energy is kept.

    Yields :class:`Frames`. Raises ValueError for times that are not positive or a window beyond the
    model's, and :class:`RolloutError` when a state is no longer a geometry: it has a coordinate
    that is not finite, an atom that leaves its free flight by more than the model's cutoff within
    one window, or atoms that coincide.
    """
    name = method_of(model, method)
    stride = stride_of(model, name, window)
    schedule = Schedule(dt, stride, duration)
    pull = np.inf if name == "plain" else check_rate(energy_rate) * stride
    engine = engine_for(model, system, Method(name, pull))
    begun: deque[tuple[int, int]] = deque()  # first windows, and how many
    try:
        engine.set_state(system.positions, momenta)
        if baths is not None:
            yield from _thermostatted(engine, baths, schedule, system, momenta, start)
            return
        if target is None and keeps_energy(model, name):
            target = EnergyTarget.begin(engine, stride, name)
        number = start  # of the window to begin next
        while begun or schedule.goes_on(number):
            while schedule.goes_on(number) and len(begun) < engine.ahead:
                settling = target is not None and not target.known
                if settling and begun:  # what the windows under way will say decides of the next
                    break
                count = 1 if settling else max(1, schedule.without_frames(number))
                count = min(count, engine.at_once)
                goal = None if target is None or settling else target.goal
                times = schedule.times(number + count - 1)
                engine.begin(times, goal, windows=count, measure=settling)
                begun.append((number, count))
                number += count
            first, count = begun.popleft()
            windows = engine.end()
            if target is not None and windows.energies is not None:
                target.add(windows.energies)
            frames = schedule.frames(first + count - 1)
            yield Frames(
                times=frames,
                positions=windows.positions[: len(frames)],
                momenta=windows.momenta[: len(frames)],
                end=schedule.end(first + count - 1),
            )
            start = first + count
    except Broke as why:
        broken = start + why.windows
        raise RolloutError.of(why, broken, schedule.end(broken)) from why
    finally:  # no window runs on after what it works on is gone
        engine.close()


def one_window(model: MDtrajNet, system: System) -> System:
    """The state one window later, of systems that are known to stay geometries."""
    engine = engine_for(model, system, Method())
    engine.set_state(system.positions, momenta_from_velocities(system.velocities, system.masses))
    engine.begin(np.array([model.stride()]), None)
    positions, momenta, _ = engine.end()
    velocities = velocities_from_momenta(momenta[-1], system.masses)
    return replace(system, positions=positions[-1], velocities=velocities)


def check_rate(rate: float) -> float:
    """The rate (1/fs); ValueError for one that is negative or not finite."""
    if not 0 <= rate < np.inf:
        raise ValueError(f"energy_rate must be a number of 1/fs, 0 or more, got {rate}")
    return float(rate)


def _thermostatted(
    engine: Engine,
    baths: Baths,
    schedule: Schedule,
    system: System,
    momenta: np.ndarray,
    number: int,
) -> Iterator[Frames]:
    """Windows one by one from number `number` on, with what thermostats do around each.

    Where a window breaks, nothing of it counts: the heat is that of its start, too.
    """
    x, p = system.positions, momenta
    while schedule.goes_on(number):
        times, given = schedule.times(number), baths.heat
        engine.set_state(x, baths.before(number, times[-1], x, p))
        engine.begin(times, None)
        try:
            windows = engine.end()
        except Broke as why:  # the others can go on from before what the thermostats did
            baths.heat = given
            broke = Broke(str(why), why.system, 0, x, p)
            raise RolloutError.of(broke, number, schedule.end(number)) from why
        x, within = windows.positions[-1], baths.heat
        p = baths.after(number, times[-1], x, windows.momenta[-1])
        momenta = np.concatenate([windows.momenta[:-1], p[None]])
        heat = np.stack([within] * (len(times) - 1) + [baths.heat])
        frames = schedule.frames(number)
        part, end = slice(len(frames)), schedule.end(number)
        yield Frames(frames, windows.positions[part], momenta[part], end, heat[part])
        number += 1


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
    def begin(cls, engine: Engine, window: float, method: str) -> EnergyTarget:
        """Of a rollout that begins with the engine's state, in windows of so many fs.

        The plain map keeps the energy of its first frame. Raises :class:`.window.Broke`.
        """
        needed = 1 + math.ceil(SETTLING_FS / window) if method == "reversible" else 1
        return cls(engine.energies(), 1, needed)

    @classmethod
    def after(
        cls,
        model: MDtrajNet,
        system: System,
        momenta: np.ndarray,
        *,
        window: float,
        method: str,
        windows: int = 0,
    ) -> EnergyTarget:
        """What a rollout from this state [atoms, 3] knows of it after so many windows (fs each).

        They are predicted for that. Raises :class:`RolloutError` as :func:`rollout` does.
        """
        engine = engine_for(model, system, Method(method))
        done = 0
        try:
            engine.set_state(system.positions, momenta)
            target = cls.begin(engine, window, method)
            while done < windows and not target.known:
                engine.begin(np.array([window]), None, measure=True)
                energies = engine.end().energies
                assert energies is not None
                target.add(energies)
                done += 1
        except Broke as why:
            raise RolloutError.of(why, done, (done + 1) * window) from why
        return target

    @property
    def known(self) -> bool:
        """Whether the mean is complete."""
        return self.seen >= self.needed

    @property
    def goal(self) -> Target:
        """The mean, as an engine takes it."""
        total, kinetic = self.sums / self.seen
        return Target(total, UNCERTAIN * kinetic)

    def add(self, energies: np.ndarray) -> None:
        """Take in those at the end of a window [2, systems] (eV)."""
        self.sums = self.sums + energies
        self.seen += 1

    def without(self, system: int) -> EnergyTarget:
        """The target of the other systems."""
        return replace(self, sums=np.delete(self.sums, system, axis=1))


def potential_energies(model: MDtrajNet, atoms: ase.Atoms, positions: np.ndarray) -> np.ndarray:
    """Potential energies [frames] (eV) of frames [frames, atoms, 3] (Å) of a system."""
    return model.potential_energy(_frames_of(atoms, positions)).detach().cpu().numpy()


def force_uncertainties(model: MDtrajNet, atoms: ase.Atoms, positions: np.ndarray) -> np.ndarray:
    """Expected errors of the forces [frames, atoms] (eV/Å) in frames [frames, atoms, 3] (Å)."""
    found = model.force_uncertainties(_frames_of(atoms, positions))
    return found.double().cpu().numpy().reshape(len(positions), -1)


def _frames_of(atoms: ase.Atoms, positions: np.ndarray) -> System:
    """Frames [frames, atoms, 3] (Å) of a system, as systems at rest."""
    frames, count = len(positions), len(atoms)
    return System(
        numbers=np.tile(atoms.numbers, frames),
        positions=positions.reshape(-1, 3),
        velocities=np.zeros((frames * count, 3)),
        masses=np.tile(atoms.get_masses(), frames),
        cell=np.repeat(atoms.cell[None], frames, 0),
        pbc=np.repeat(atoms.pbc[None], frames, 0),
        ptr=count * np.arange(frames + 1),
    )


def _positive(value: float, name: str) -> float:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number of fs, got {value}")
    return float(value)
