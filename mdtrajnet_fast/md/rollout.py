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

from ..io.trajectory import Trajectory
from ..mechanics import momenta_from_velocities, velocities_from_momenta
from ..model.network import MDtrajNet
from ..model.predictor import NativePredictor
from ..system import System
from .device_engine import DeviceEngine
from .domains import DomainEngine, Processes
from .host_engine import HostEngine
from .thermostats import Baths
from .window import ENERGY_RATES, Broke, Engine, Kept, Method, Plan, method_of, stride_of

# Rows, frames times atoms, that one call of an engine makes: a fraction of a second of frames.
_ROWS = 4096


class RolloutError(RuntimeError):
    """A system whose trajectory cannot go on; what was predicted before stands.

    system: its index. window, positions, momenta: the last window's number, and the state of all
    systems at its start ([atoms, 3], Å and ASE units), from which the others can go on, with the
    energies to keep in `kept`. trajectories: of :func:`~mdtrajnet_fast.simulate`, whose systems
    have all broken, what there is of each, with trust summaries; else empty.
    """

    def __init__(
        self,
        reason: str,
        system: int,
        window: int,
        positions: np.ndarray,
        momenta: np.ndarray,
        kept: Kept,
    ):
        super().__init__(reason)
        self.system, self.window, self.kept = system, window, kept
        self.positions, self.momenta = positions, momenta
        self.trajectories: list[Trajectory] = []

    def __reduce__(self) -> tuple:
        # what is raised in a process of a pool reaches the parent as a pickle
        state = self.positions, self.momenta, self.kept
        arguments = (str(self), self.system, self.window, *state)
        return type(self), arguments, {"trajectories": self.trajectories}

    @classmethod
    def of(cls, why: Broke, window: int, end: float, kept: Kept) -> RolloutError:
        """What broke in a window that ends at `end` (fs)."""
        reason = f"the trajectory broke before {end:g} fs: {why}"
        return cls(reason, why.system, window, why.positions, why.momenta, kept)


@dataclass(frozen=True)
class Frames:
    """What some windows yield.

    times: [frames] fs, counted from window 0. positions: [frames, atoms, 3] Å.
    momenta: [frames, atoms, 3], ASE units. end: of the last window, fs. potential_energies:
    [frames, systems] eV; None of a model without energies. heat: [frames, systems] eV, what the
    thermostats of a rollout have put in by then (:attr:`.thermostats.Baths.heat`).
    """

    times: np.ndarray
    positions: np.ndarray
    momenta: np.ndarray
    end: float
    potential_energies: np.ndarray | None = None
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

    def windows(self, number: int, atoms: int, most: int) -> int:
        """How many windows from this one on to compute with one call, at most so many."""
        frames = max(1, _ROWS // atoms)
        count = max(1, min(most, frames * self._gap // self._step))
        if self._last is not None:
            count = min(count, -(-self._last // self._step) - number)
        return count

    def plan(self, number: int, count: int) -> tuple[Plan, np.ndarray]:
        """So many windows from this one on, with their frames, and the times of these (fs)."""
        begin, end = number * self._step, (number + count) * self._step
        stop = end if self._last is None else min(end, self._last)
        frames = range((begin // self._gap + 1) * self._gap, stop + 1, self._gap)
        ends = range(begin + self._step, end + 1, self._step)
        times: list[list[float]] = [[] for _ in ends]
        wanted: list[list[bool]] = [[] for _ in ends]
        for tick in sorted({*frames, *ends}):
            window = (tick - begin - 1) // self._step
            times[window].append((tick - begin - window * self._step) / self._ticks)
            wanted[window].append(tick % self._gap == 0 and tick <= stop)
        return Plan(number, times, wanted), np.array([tick / self._ticks for tick in frames])


def exact(fs: float) -> Fraction:
    """A time as the simple number that was meant: 0.1 is one tenth, 1 / 3 is one third.

    Raises ValueError for one that is not 0 and below a millionth of a fs.
    """
    time = Fraction(float(fs)).limit_denominator(1_000_000)
    if time == 0 and fs != 0:
        raise ValueError(f"a time of {fs:g} fs is below the shortest, 1e-06 fs; times are in fs")
    return time


def engine_for(
    model: MDtrajNet, system: System, method: Method, processes: Processes | None = None
) -> Engine:
    """What computes windows of a model's backend for systems, or for one that processes share."""
    predictor = model.predictor()
    if processes is not None:
        if not isinstance(predictor, NativePredictor):
            raise ValueError(
                f"processes share a cell on CPUs, got a model on {model.device} with the backend "
                f"{model.backend or 'of its device'}: load it with device='cpu'"
            )
        return DomainEngine(model, predictor, system, method, processes)
    if isinstance(predictor, NativePredictor):
        return HostEngine(model, predictor, system, method)
    return DeviceEngine(model, predictor, system, method)


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
    energy_rate: float | None = None,
    kept: Kept | None = None,
    baths: Baths | None = None,
    at_once: int | None = None,
    processes: Processes | None = None,
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
    energy_rate: how fast the energy of a model that knows energies returns to the one to keep
        (1/fs), while it is near; None for the method's own (:data:`.window.ENERGY_RATES`). The
        plain map goes all the way.
    kept: what is known of the energies to keep (:func:`energies_kept`); None for a rollout that
        begins here.
    baths: thermostats, with which no energy is kept.
    at_once: how many windows to compute at most before the first is yielded; None for what is fast.
    processes: that share the one system (:mod:`.domains`) and all call this; None: this one alone.

    Yields :class:`Frames`. Raises ValueError for times that are not positive or a window beyond the
    model's, and :class:`RolloutError` when a state is no longer a geometry: it has a coordinate
    that is not finite, an atom that leaves its free flight by more than the model's cutoff within
    one window, or atoms that coincide.
    """
    name = method_of(model, method)
    stride = stride_of(model, name, window)
    schedule = Schedule(dt, stride, duration)
    how = Method(name)
    if model.has_energies and baths is None:
        rate = ENERGY_RATES.get(name, 0.0) if energy_rate is None else check_rate(energy_rate)
        how = Method.keeping(name, stride, rate)
    engine = engine_for(model, system, how, processes)
    most = engine.at_once if at_once is None else min(at_once, engine.at_once)
    begun: deque[tuple[Plan, np.ndarray]] = deque()
    try:
        engine.set_state(system.positions, momenta)
        if kept is not None:
            engine.kept = kept
        if baths is not None:
            yield from _thermostatted(engine, baths, schedule, system, momenta, start)
            return
        number = start  # of the window to begin next
        while begun or schedule.goes_on(number):
            while schedule.goes_on(number) and len(begun) < engine.ahead:
                count = schedule.windows(number, len(system.numbers), most)
                begun.append(schedule.plan(number, count))
                engine.begin(begun[-1][0])
                number += count
            plan, times = begun.popleft()
            windows = engine.end()
            start = plan.number + windows.done
            yield Frames(
                times=times[: len(windows.positions)],
                positions=windows.positions,
                momenta=windows.momenta,
                end=schedule.end(start - 1),
                potential_energies=windows.energies,
            )
            if windows.done < len(plan.times):
                engine.end()  # says what broke
    except Broke as why:
        raise RolloutError.of(why, start, schedule.end(start), engine.kept) from why
    finally:  # no window runs on after what it works on is gone
        engine.close()


def one_window(model: MDtrajNet, system: System) -> System:
    """The state one window later, of systems that are known to stay geometries."""
    engine = engine_for(model, system, Method())
    engine.set_state(system.positions, momenta_from_velocities(system.velocities, system.masses))
    engine.begin(Plan(0, [[model.stride()]], [[False]]))
    engine.end()
    positions, momenta = engine.state()
    velocities = velocities_from_momenta(momenta, system.masses)
    return replace(system, positions=positions, velocities=velocities)


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
        (plan, frames), given = schedule.plan(number, 1), baths.heat
        h, end_wanted = plan.times[0][-1], plan.wanted[0][-1]
        engine.set_state(x, baths.before(number, h, x, p))
        engine.begin(plan)
        try:
            windows = engine.end()
        except Broke as why:  # the others can go on from before what the thermostats did
            baths.heat = given
            broke = Broke(str(why), why.system, x, p)
            raise RolloutError.of(broke, number, schedule.end(number), engine.kept) from why
        (x, p), within = engine.state(), baths.heat
        p = baths.after(number, h, x, p)
        heat = np.repeat(within[None], len(frames), 0)
        if end_wanted:
            windows.momenta[-1], heat[-1] = p, baths.heat
        yield Frames(frames, *windows[:2], schedule.end(number), windows.energies, heat)
        number += 1


def energies_kept(
    model: MDtrajNet,
    system: System,
    momenta: np.ndarray,
    *,
    window: float,
    method: str,
    windows: int,
    processes: Processes | None = None,
) -> Kept:
    """What a rollout from this state [atoms, 3] knows of its energies after so many windows (fs).

    Those that tell are predicted for that. Raises :class:`RolloutError` as :func:`rollout` does.
    """
    how = Method.keeping(method, window, 0.0)
    engine = engine_for(model, system, how, processes)
    number = 0
    try:
        engine.set_state(system.positions, momenta)
        while number < windows and engine.kept.seen < how.needed:
            engine.begin(Plan(number, [[window]], [[False]]))
            engine.end()
            number += 1
    except Broke as why:
        raise RolloutError.of(why, number, (number + 1) * window, engine.kept) from why
    return engine.kept


def potential_energies(model: MDtrajNet, atoms: ase.Atoms, positions: np.ndarray) -> np.ndarray:
    """Potential energies [frames] (eV) of frames [frames, atoms, 3] (Å) of a system."""
    return model.potential_energy(_frames_of(atoms, positions)).detach().cpu().numpy()


def force_uncertainties(model: MDtrajNet, atoms: ase.Atoms, positions: np.ndarray) -> np.ndarray:
    """Expected errors of the forces [frames, atoms] (eV/Å) in frames [frames, atoms, 3] (Å)."""
    found = model.force_uncertainties(_frames_of(atoms, positions))
    return found.double().cpu().numpy().reshape(len(positions), -1)


def _frames_of(atoms: ase.Atoms, positions: np.ndarray) -> System:
    """Frames [frames, atoms, 3] (Å) of a system, as systems at rest."""
    system = System.from_atoms(atoms)
    still = replace(system, velocities=np.zeros_like(system.velocities))
    return still.copies(positions)


def _positive(value: float, name: str) -> float:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number of fs, got {value}")
    return float(value)
