"""simulate: from ASE atoms to trajectories, with files, restart, progress and a trust summary."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import secrets
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.units import kB
from tqdm import tqdm

from .. import __version__
from ..analysis.observables import FRAME_ROWS
from ..analysis.trust import TrustMonitor, Unsure
from ..io.trajectory import Trajectory, count_frames, open_writer
from ..mechanics import (
    InternalMotion,
    degrees_of_freedom,
    set_standard_masses,
    set_velocities,
    thermal_velocities,
)
from ..model.checkpoint import load_model
from ..model.network import MDtrajNet
from ..system import System, check_velocities_named
from .domains import Processes
from .rollout import (
    Frames,
    RolloutError,
    check_rate,
    energies_kept,
    exact,
    force_uncertainties,
    potential_energies,
    rollout,
)
from .thermostats import CSVR, Baths, Langevin, Thermostat, describe, thermostat_of
from .window import ENERGY_RATES, beyond_training, method_of, stride_of, too_close

LONGEST = 1e12  # fs, a millisecond, which takes years: more is a mistake in a unit


def simulate(
    atoms: ase.Atoms | Iterable[ase.Atoms],
    dt: float = 1.0,
    *,
    duration: float = 1000.0,
    model: str | Path | MDtrajNet = "molecules-nve",
    window: float | None = None,
    velocities: np.ndarray | Sequence[np.ndarray] | None = None,
    temperature_K: float | Sequence[float] | None = None,
    seed: int | Sequence[int] | None = 0,
    trajectory: str | Path | Sequence[str | Path] | None = None,
    resume: bool = False,
    method: str | None = None,
    energy_rate: float | None = None,
    thermostat: str | Thermostat | Sequence[str | Thermostat] | None = None,
    equilibration: float = 0.0,
    masses: str | None = None,
    keep: bool = True,
    decompose: bool = False,
    progress: bool = False,
) -> Trajectory | list[Trajectory]:
    """Predict the molecular dynamics of one system, or of many at once.

    atoms: one ase.Atoms, or a list of them, all predicted in the same batches. Velocities are read
        from their momenta. The atoms themselves are not changed.
    dt: spacing of the frames (fs); of the output only, the rollout does not depend on it.
    duration: length of the trajectory (fs), counted from its frame 0.
    model: a name or path for :func:`~mdtrajnet_fast.load_model`, or a loaded model.
    window: stride of the rollout (fs); None for the model's own.
    velocities: [atoms, 3] Å/fs (a list of such arrays for a list), in place of those of atoms.
    temperature_K, seed: draw velocities at exactly this kinetic temperature over the free degrees
        of freedom (:func:`~mdtrajnet_fast.mechanics.thermal_velocities`); system k of a list draws
        with seed + k, or with the k-th of as many seeds. None: a seed that nobody knows. For a
        list, one temperature for all or one for each system, which its thermostat is at, too. Half
        of the kinetic energy of a system that starts at a minimum becomes potential energy: for a
        run at this temperature, give equilibration or a thermostat as well.
    trajectory: file to stream the frames to (.traj, .extxyz or .h5), or one for each system.
        Written after every window; never overwritten. (All frames are kept in memory, too.)
    resume: continue the file (or files) up to `duration`, or begin where there is none. The start
        comes from the file; atoms only has to be the same system. With the same settings, machine
        and number of threads the result is, bit for bit, that of a run without the stop. The
        rollout goes on from the last frame that is the end of a window; where dt and window have
        no common multiple, from the start.
    method: how windows are computed (:mod:`.window`). "symplectic": by kicks of a model's window
        potentials; its errors cannot make vibrations grow or fade. "reversible": by five
        predictions of the network, and one more for frames within, so that they nearly cannot.
        "plain": the network's own map, with all of the energy put right after every window, if the
        model knows it. None: plain where the model keeps a temperature by itself, symplectic where
        it has the potentials for it, else reversible, or, of a run that is continued, as it was
        begun.
    energy_rate: how fast windows return to the total energy of the first 200 fs (1/fs), with a
        model that knows energies. None: 0.001 for symplectic windows, 0.004 for reversible ones,
        or as begun.
    thermostat: "langevin" or "csvr", at temperature_K, or, with constants of its own,
        Langevin(temperature_K, friction_per_fs) or CSVR(temperature_K, time_constant_fs) of
        :mod:`mdtrajnet_fast`; one for each system of a list, or one for all. It acts on the
        internal motion, before and after each window. None: constant energy. The random numbers are
        those of the seed.
    equilibration: time (fs) before frame 0, with the thermostat (of a run at constant energy:
        :class:`.thermostats.Langevin` at temperature_K), that is not kept. If the model has
        energies, a run at constant energy then starts with the thermostat's mean energy, the
        potential part of which is taken from its last three quarters. With 0 the run starts from
        the atoms as they are, at half of temperature_K in the mean if they are at a minimum; 1000
        to 2000 fs bring a small molecule to the temperature, as the command line does by default.
    masses: "standard": those of the elements, in place of the atoms' own, whose velocities stay.
        None: the atoms' own; isotopes are refused, of which models know nothing.
    keep: whether all frames stay in memory and are returned; False: the last one alone, for large
        systems and long runs, whose frames are in their files. (A run that is continued is read
        from its file as a whole.)
    decompose: share one periodic system out over the processes that torchrun has started
        (:mod:`.domains`), on CPUs. All of them call this with the same arguments and return the
        same; the first writes the files. The trajectory is that of one process but for rounding,
        which the number of processes and a stop have a part in.
    progress: show a progress bar.

    Returns a :class:`~mdtrajnet_fast.Trajectory` (a list of them for a list) with frames at 0, dt,
    2 dt, ... up to duration, their potential energies if the model has energies, the heat that a
    thermostat has put in since frame 0 (a file that was begun without these goes on without), and
    its `trust` summary. Momentum and angular momentum of
    isolated molecules are those of the start; with symplectic windows, or with a model that has a
    potential, the total energy stays near it. Positions are unwrapped.

    Warns, here and in the trust summary, of atoms closer than any bond.

    Raises TypeError and ValueError for what is not an ase.Atoms that can be simulated
    (:func:`~mdtrajnet_fast.system.check_atoms`), elements that the model does not know, isotopes,
    atoms that coincide, atoms at rest without a temperature, settings out of range, and processes
    that share a system but do not say the same;
    FileExistsError for a trajectory file that is there already without resume;
    :class:`~mdtrajnet_fast.md.rollout.RolloutError` when the trajectory breaks (of a list: all of
    them), the frames until then being in the file and in its `trajectories`. In a list the others
    go on; the trajectory that broke ends there, with a RuntimeWarning and a warning in its trust
    summary.
    """
    single = isinstance(atoms, ase.Atoms)
    many = [atoms] if isinstance(atoms, ase.Atoms) else list(atoms)
    system = System.from_atoms(many)
    many = [one.copy() for one in many]
    if masses not in (None, "standard"):
        raise ValueError(f'masses must be "standard", or None for those of atoms, got {masses!r}')
    if masses == "standard":
        for one in many:
            set_standard_masses(one)
        system = System.from_atoms(many)
    seeds = _seeds(seed, single, len(many))
    paths = _each(trajectory, single, len(many), "trajectory files")
    given = _each(velocities, single, len(many), "arrays of velocities")
    network = model if isinstance(model, MDtrajNet) else load_model(model)
    _check_paths(paths, resume)
    if not keep and None in paths:
        raise ValueError("keep=False returns the last frame alone: give trajectory files for all")
    method, settings = _method(network, method, energy_rate, paths if resume else [])
    check_run(network, system, dt, duration, window, method, equilibration)
    processes = Processes() if decompose else None
    first = processes is None or processes.rank == 0
    if processes is not None:
        seeds = processes.each(seeds)[0] if seed is None else seeds
        processes.agree(
            version=__version__,
            model=model_hash(network),
            system=_fingerprint(system, *(v for v in given if v is not None)),
            settings=str((seeds, dt, duration, window, method, settings, temperature_K)),
            thermostat=str((thermostat, equilibration)),
            files=str((paths, resume, keep)),
        )
    for wrong in (too_close(system), network.outgrown(system)):
        if first and wrong is not None:
            warnings.warn(wrong, RuntimeWarning, stacklevel=2)
    stride = stride_of(network, method, window)
    metadata = {
        "model": network.name,
        "model_hash": model_hash(network),
        "dtype": str(network.dtype).removeprefix("torch."),
        "dt_fs": float(dt),
        "window_fs": stride,
        **settings,
    }
    rate = metadata.get("energy_rate_per_fs", 0.0)
    kelvins = _temperatures(temperature_K, single, len(many))
    thermostats = _thermostats(thermostat, kelvins)
    said = [metadata] * len(many)
    if thermostats:
        pairs = zip(thermostats, seeds, strict=True)
        said = [metadata | describe(one) | {"thermostat_seed": own} for one, own in pairs]
    begun: list[Trajectory | None] = [None] * len(many)
    if resume:
        begun = [_held(*one, first) for one in zip(paths, many, said, strict=True)]
    if processes is not None:
        if not first:  # who has read what there is, now that all have
            paths = [None] * len(paths)
        processes.agree(begun=str([None if one is None else len(one) for one in begun]))
    fresh = [k for k, held in enumerate(begun) if held is None]
    for k in fresh:
        kelvin = kelvins[k]
        if thermostats and given[k] is None and not many[k].get_momenta().any():
            kelvin = thermostats[k].temperature_K
        _set_start(many[k], given[k], kelvin, seeds[k], k)
    if equilibration and fresh:
        warm = thermostats or _thermostats("langevin", kelvins)
        _equilibrate(
            network,
            [many[k] for k in fresh],
            [warm[k] for k in fresh],
            [seeds[k] for k in fresh],
            equilibration,
            window=window,
            method=method,
            keep_energy=not thermostats,
            processes=processes,
        )
    started = iter(_starts(network, [many[k] for k in fresh], [said[k] for k in fresh]))
    parts = [held or next(started) for held in begun]
    for one, part in zip(many, parts, strict=True):
        one.positions = part.positions[0]  # where thermostats count degrees of freedom
    # The end of a window is a state to go on from. Frames beyond the last such one that all
    # systems have are predicted once more, to the same bits.
    shortest = min(len(part) for part in parts)
    boundary = max(k for k in range(shortest) if k * exact(dt) % exact(stride) == 0)
    start = int(boundary * exact(dt) / exact(stride))
    positions = np.concatenate([part.positions[boundary] for part in parts])
    momenta = np.concatenate([part.momenta[boundary] for part in parts])
    kept = None
    if network.has_energies and start and not thermostats:
        at_first = dataclasses.replace(
            system, positions=np.concatenate([part.positions[0] for part in parts])
        )
        p = np.concatenate([part.momenta[0] for part in parts])
        # not in the files: the windows that tell it are predicted again
        kept = energies_kept(
            network, at_first, p, window=stride, method=method, windows=start, processes=processes
        )
    going = list(range(len(many)))
    # of a file without heat nothing is known, and nothing is written: its sum may begin anywhere
    heat = np.array([0.0 if part.heat is None else part.heat[boundary] for part in parts])
    kept_warm: Sequence[Thermostat | None] = thermostats or [None] * len(many)
    with ExitStack() as stack:
        recorders = [
            _Recorder(one, part, path, _monitor(network, one, stride, method, bath), stack, keep)
            for one, part, path, bath in zip(many, parts, paths, kept_warm, strict=True)
        ]
        bar = stack.enter_context(
            tqdm(
                total=duration, initial=start * stride, unit="fs", disable=not (progress and first)
            )
        )
        while going:
            system = System.from_atoms([many[k] for k in going])
            system = dataclasses.replace(system, positions=positions)
            baths = None
            if thermostats:
                baths = Baths(
                    [thermostats[k] for k in going],
                    [many[k] for k in going],
                    [seeds[k] for k in going],
                    heat=heat,
                )
            windows = rollout(
                network,
                system,
                momenta,
                dt=dt,
                window=window,
                duration=duration,
                start=start,
                method=method,
                energy_rate=rate,
                kept=kept,
                baths=baths,
                processes=processes,
            )
            try:
                for frames in windows:
                    for column, k in enumerate(going):
                        own_atoms = slice(*system.ptr[column : column + 2])
                        recorders[k].add(frames, column, own_atoms)
                    bar.update(min(frames.end, duration) - bar.n)
                break
            except RolloutError as error:  # the others go on without it
                broken = going.pop(error.system)
                kept = error.kept.without(error.system)
                recorders[broken].broke(str(error))
                if not going:
                    error.trajectories = [one.trajectory(duration) for one in recorders]
                    raise
                warnings.warn(f"system {broken}: {error}", RuntimeWarning, stacklevel=2)
                others = system.system_index != error.system
                positions, momenta = error.positions[others], error.momenta[others]
                start = error.window
                if baths is not None:
                    heat = np.delete(baths.heat, error.system)
    done = [recorder.trajectory(duration) for recorder in recorders]
    return done[0] if single else done


def _starts(
    model: MDtrajNet, many: list[ase.Atoms], metadata: list[dict[str, Any]]
) -> list[Trajectory]:
    """Frame 0 of runs."""
    energies: list[list[float] | None] = [None] * len(many)
    if many and model.has_energies:
        found = model.potential_energy(System.from_atoms(many)).detach().cpu()
        energies = [[energy] for energy in found.tolist()]
    starts = []
    for atoms, said, energy in zip(many, metadata, energies, strict=True):
        x, p = atoms.positions[None], atoms.get_momenta()[None]
        heat = [0.0] if "thermostat" in said else None
        starts.append(Trajectory(atoms, [0.0], x, p, said, energy, heat))
    return starts


def _seeds(given: int | Sequence[int] | None, single: bool, count: int) -> list[int]:
    """The seed of each system."""
    if given is None:
        given = secrets.randbits(31)
    if not isinstance(given, Sequence | np.ndarray):
        return [given + k for k in range(count)]
    if single or len(given) != count:
        raise ValueError(f"{count} systems need {count} seeds, or one for all, got {given!r}")
    return [int(seed) for seed in given]


def _temperatures(
    given: float | Sequence[float | None] | None, single: bool, count: int
) -> list[float | None]:
    """The temperature of each system (K)."""
    if not isinstance(given, Sequence | np.ndarray):
        return [given] * count
    if single:
        raise ValueError(f"one system has one temperature_K, got {given!r}")
    each = [None if kelvin is None else float(kelvin) for kelvin in given]
    if len(each) != count:
        raise ValueError(
            f"{count} systems need {count} temperatures, or one for all, got {given!r}"
        )
    return each


def _thermostats(
    given: str | Thermostat | Sequence[str | Thermostat] | None, kelvins: Sequence[float | None]
) -> list[Thermostat]:
    """One for each system, at its temperature (K); none for constant energy."""
    if given is None:
        return []
    count = len(kelvins)
    each = [given] * count if isinstance(given, str | Langevin | CSVR) else list(given)
    if len(each) != count:
        raise ValueError(f"{count} systems need {count} thermostats, or one for all, got {given!r}")
    return [thermostat_of(one, kelvin) for one, kelvin in zip(each, kelvins, strict=True)]


def _equilibrate(
    model: MDtrajNet,
    many: list[ase.Atoms],
    thermostats: list[Thermostat],
    seeds: list[int],
    duration: float,
    *,
    window: float | None,
    method: str,
    keep_energy: bool,
    processes: Processes | None,
) -> None:
    """Move systems to where they are after some time with thermostats, in place.

    keep_energy: they go on at constant energy, which is the thermostat's mean: of the potential
    energy that of the last three quarters, of the kinetic energy, which needs no run to be known,
    kB T / 2 for each degree of freedom. They do so from the last state with less potential energy
    than that, its internal motion scaled.
    """
    system = System.from_atoms(many)
    momenta = np.concatenate([one.get_momenta() for one in many])
    stride = stride_of(model, method, window)
    windows = rollout(
        model,
        system,
        momenta,
        dt=stride,
        window=window,
        duration=math.ceil(exact(duration) / exact(stride)) * stride,
        method=method,
        baths=Baths(thermostats, many, seeds, stage=1),
        processes=processes,
    )
    ends = [(frames.positions[-1], frames.momenta[-1]) for frames in windows]
    late = ends[len(ends) // 4 :]
    positions, momenta = (np.stack(x) for x in zip(*late, strict=True))
    for one, bath, a, b in zip(many, thermostats, system.ptr, system.ptr[1:], strict=False):
        x, p = positions[:, a:b], momenta[:, a:b]
        if not (keep_energy and model.has_energies):
            one.positions = x[-1]
            one.set_momenta(p[-1])
            continue
        potential = potential_energies(model, one, x)
        mean = potential.mean() + 0.5 * degrees_of_freedom(one) * kB * bath.temperature_K
        last = np.flatnonzero(potential < mean)[-1]  # a small molecule may have more at the end
        one.positions = x[last]
        motion = InternalMotion(one)
        internal = motion.of(p[last])
        kinetic = motion.kinetic(internal)[0]
        factor = np.sqrt((mean - potential[last]) / kinetic) if kinetic > 0 else 1.0
        one.set_momenta(p[last] + (factor - 1) * internal)


def _monitor(
    model: MDtrajNet, atoms: ase.Atoms, stride: float, method: str, thermostat: Thermostat | None
) -> TrustMonitor:
    kelvin = model.config.temperature_K if thermostat is None else thermostat.temperature_K
    unsure: Unsure | None = None
    if model.usual_uncertainty is not None:
        unsure = Unsure(partial(force_uncertainties, model, atoms), model.usual_uncertainty)
    monitor = TrustMonitor(atoms, model.config.radial_cutoff, stride, kelvin, unsure)
    if (wrong := beyond_training(model, method, stride)) is not None:
        monitor.doubt(0.0, f"windows of {wrong}")
    if (wrong := too_close(System.from_atoms(atoms))) is not None:
        monitor.doubt(0.0, wrong)
    return monitor


def _method(
    model: MDtrajNet,
    method: str | None,
    energy_rate: float | None,
    paths: Sequence[str | Path | None],
) -> tuple[str, dict[str, Any]]:
    """The method of a run, and what its metadata say of it: those of the files to continue, or of
    what is new.

    Runs with the plain map, as all were once, say nothing.
    """
    files = [p for p in paths if p is not None and Path(p).exists() and count_frames(p)]
    begun = Trajectory.read(files[0], slice(0, 1)).metadata if files else {}
    if files and method is None:
        method = method_begun(begun)
    method = method_of(model, method)
    if method == "plain":
        if energy_rate is not None:
            raise ValueError(
                f"energy_rate = {energy_rate} is not for the plain map, which puts all of the "
                "energy right after every window"
            )
        return method, {}
    said: dict[str, Any] = {"reversible": True} if method == "reversible" else {"method": method}
    if energy_rate is None:
        # symplectic runs were once drawn to nothing, and said so by saying nothing
        usual = 0.0 if files and method == "symplectic" else ENERGY_RATES[method]
        energy_rate = begun.get("energy_rate_per_fs", usual)
    if files and "energy_rate_per_fs" not in begun:
        return method, said
    return method, said | {"energy_rate_per_fs": check_rate(energy_rate)}


def method_begun(metadata: dict[str, Any]) -> str:
    """The method that a run's metadata, or settings, name."""
    if metadata.get("reversible"):
        return "reversible"
    return metadata.get("method") or "plain"


def check_run(
    model: MDtrajNet,
    system: System,
    dt: float,
    duration: float,
    window: float | None = None,
    method: str | None = None,
    equilibration: float = 0.0,
) -> None:
    """Refuse, before anything is written, a run that cannot start.

    Raises ValueError for isotopes, elements that the model does not know, systems that it is not
    for (:meth:`.MDtrajNet.check_systems`), a method that it has not, times out of range (fs) and
    atoms that coincide.
    """
    model.check_systems(system)
    model.species_index(system.numbers)
    system.check_masses()
    stride_of(model, method_of(model, method), window)
    if not 0 < dt <= duration < np.inf:
        raise ValueError(f"expected 0 < dt <= duration (fs), got dt {dt} and duration {duration}")
    if not 0 <= equilibration < np.inf:
        raise ValueError(f"equilibration must be a number of fs, 0 or more, got {equilibration}")
    if max(duration, equilibration) > LONGEST:
        raise ValueError(f"a duration of {duration:g} fs is beyond {LONGEST:g} fs; times are in fs")
    model.graph(system)


class _Recorder:
    """Keeps, writes and watches the frames of one system.

    With their potential energies and heat, unless those held, of an older file, have none. keep:
    whether frames that were written and watched stay in memory.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        held: Trajectory,
        path: Path | None,
        monitor: TrustMonitor,
        stack: ExitStack,
        keep: bool,
    ):
        self._held, self._keep = held, keep
        self._writer = None
        if path is not None:
            self._writer = stack.enter_context(
                open_writer(path, atoms, append=True, metadata=held.metadata)
            )
            if self._writer.frames == 0:
                self._writer.write(held.times, held.positions, held.momenta, **held.scalars)
        self._times, self._positions, self._momenta = [held.times], [held.positions], [held.momenta]
        self._scalars = {name: [values] for name, values in held.scalars.items()}
        self._monitor = monitor
        self._watched = 0  # parts
        self._watch()

    def add(self, frames: Frames, system: int, own: slice) -> None:
        """Take in this system's share of a window, less the frames that are there already.

        system: its index in the rollout. own: its atoms there.
        """
        first = int(np.searchsorted(frames.times, self._times[-1][-1], side="right"))
        if first == len(frames.times):
            return
        times = frames.times[first:]
        positions, momenta = frames.positions[first:, own], frames.momenta[first:, own]
        self._times.append(times)
        self._positions.append(positions)
        self._momenta.append(momenta)
        scalars = {name: getattr(frames, name)[first:, system] for name in self._scalars}
        for name, values in scalars.items():
            self._scalars[name].append(values)
        self._waiting += momenta.size // 3
        if self._waiting >= FRAME_ROWS:
            self._watch()
        if self._writer is not None:
            self._writer.write(times, positions, momenta, **scalars)

    def broke(self, why: str) -> None:
        """Say of the run that it ended here."""
        self._monitor.doubt(float(self._times[-1][-1]), why)

    def _watch(self) -> None:
        """Show the monitor what it has not seen yet."""
        new = slice(self._watched, None)
        if self._times[new]:
            parts = (self._times, self._positions, self._momenta)
            times, positions, momenta = (np.concatenate(part[new]) for part in parts)
            scalars = {name: np.concatenate(each[new]) for name, each in self._scalars.items()}
            self._monitor.update(times, positions, momenta, **scalars)
        if not self._keep:  # but for the last part, which ends with the last frame
            for part in (self._times, self._positions, self._momenta, *self._scalars.values()):
                del part[:-1]
        self._watched, self._waiting = len(self._times), 0

    def trajectory(self, duration: float) -> Trajectory:
        """The frames kept up to `duration`, with the trust summary of all that there were."""
        times, positions, momenta = map(
            np.concatenate, (self._times, self._positions, self._momenta)
        )
        wanted = times <= float(exact(duration))  # 3 * 0.3 is meant to be 0.9
        scalars = {name: np.concatenate(each)[wanted] for name, each in self._scalars.items()}
        trajectory = Trajectory(
            self._held.atoms,
            times[wanted],
            positions[wanted],
            momenta[wanted],
            self._held.metadata,
            **scalars,
        )
        self._watch()
        if not self._keep:
            trajectory = trajectory[-1:]
        trajectory.trust = self._monitor.summary()
        return trajectory


def _each(given: Any, single: bool, count: int, what: str) -> list[Any]:
    """One entry for each system, from what a caller gave for one or for many."""
    if given is None:
        return [None] * count
    many = [given] if single or isinstance(given, str | Path) else list(given)
    if len(many) != count:
        raise ValueError(f"a list of {count} systems needs a list of {count} {what}, got {given!r}")
    return many


def _check_paths(paths: list[str | Path | None], resume: bool) -> None:
    named = [Path(path).resolve() for path in paths if path is not None]
    if resume and not named:
        raise ValueError("resume needs the trajectory file to continue")
    if len(set(named)) < len(named):
        raise ValueError(f"every system needs a trajectory file of its own, got {paths}")
    for path in named:
        if path.exists() and not resume:
            raise FileExistsError(
                f"{path} exists and is never overwritten: choose another name, remove it, or "
                "continue it with resume=True"
            )
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}")


def _held(
    path: str | Path, atoms: ase.Atoms, metadata: dict[str, Any], first: bool
) -> Trajectory | None:
    """What a file holds of this run; None without a complete frame.

    first: whether this process is the one that writes, of those that share a system.
    """
    if not Path(path).exists() or count_frames(path) == 0:
        return None
    if first:
        with open_writer(path, atoms, append=True, metadata=metadata):  # refuses another run's file
            pass
    return Trajectory.read(path)


def _set_start(
    atoms: ase.Atoms,
    velocities: np.ndarray | None,
    temperature_K: float | None,
    seed: int,
    index: int,
) -> None:
    if velocities is not None and temperature_K is not None:
        raise ValueError("give either velocities or temperature_K, not both")
    if temperature_K is not None:
        thermal_velocities(atoms, temperature_K, seed)
    elif velocities is not None:
        set_velocities(atoms, velocities)
    elif not atoms.get_momenta().any():
        check_velocities_named(atoms, f"system {index}")
        raise ValueError(
            f"system {index} ({atoms.get_chemical_formula()}) is at rest: give temperature_K to "
            "draw velocities, velocities (Å/fs), or atoms with momenta"
        )


def _fingerprint(system: System, *others: np.ndarray) -> str:
    """The same for the same system in the same state, and the same other arrays."""
    digest = hashlib.sha256()
    for array in (*dataclasses.astuple(system), *others):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def model_hash(model: MDtrajNet) -> str:
    """First 16 hex digits of the SHA-256 of a model's configuration and weights.

    Tells which function made a trajectory, in which a dipole has no part, nor what it is meant for.
    """
    return model.kept("hash", lambda: _hash(model))


def _hash(model: MDtrajNet) -> str:
    apart = ("dipole", "systems", "temperature_K", "largest")
    config = {k: v for k, v in model.config.to_dict().items() if k not in apart}
    digest = hashlib.sha256(json.dumps(config).encode())
    for name, value in sorted(model.state_dict().items()):
        if name.startswith("dipole."):
            continue
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
