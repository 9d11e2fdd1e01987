"""Reference trajectories: MD with GFN2-xTB or any ASE calculator, written to HDF5.

At constant energy, or with a thermostat, at constant temperature.

Every system is relaxed (several conformers where it is given as SMILES), given random velocities,
equilibrated and sampled. Everything random comes from (seed, system, number of the trajectory), so
the data depend neither on the number of processes nor on interruptions: running again with the
same settings adds what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from types import ModuleType
from typing import Any

import ase.units
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes, get_calculator_class
from ase.optimize import LBFGS
from numpy.typing import ArrayLike
from tqdm import tqdm

from ..analysis.observables import bond_changes
from ..io.interruptions import deaf_children
from ..io.lock import Lock
from ..io.structures import conformers as rdkit_conformers
from ..io.structures import read_structure
from ..io.trajectory import Trajectory
from ..md.thermostats import CSVR, Baths, Langevin
from ..mechanics import (
    degrees_of_freedom,
    momenta_from_velocities,
    thermal_velocities,
    velocities_from_momenta,
)
from .nose_hoover import NoseHoover, NoseHooverChain
from .records import Writer, check_name

TEMPERATURES_K = (300.0, 300.0, 150.0, 300.0, 450.0, 300.0, 600.0, 300.0, 450.0, 600.0)

THERMOSTATS: dict[str, type[NoseHoover] | type[Langevin] | type[CSVR]] = {
    "nose-hoover": NoseHoover,
    "langevin": Langevin,
    "csvr": CSVR,
}

POS_SCALE, VEL_SCALE = 2e-4, 1e-5  # Å and Å/fs of one int16 count: up to 6.55 Å and 0.327 Å/fs
_ROOM = 2.5  # Å that an atom of an isolated molecule may move away from the relaxed geometry
_FORCE, _RELAX_STEPS = 0.01, 1000  # eV/Å and steps of the relaxation
_SAME_CONFORMER = 2e-3  # eV


@dataclass
class Summary:
    """What a call of `generate` did."""

    written: int = 0  # trajectories added to the file
    present: int = 0  # trajectories that were complete in the file already
    redrawn: int = 0  # draws of velocities that were thrown away
    failed: dict[str, str] = field(default_factory=dict)  # "group/trajectory" -> why

    def __str__(self) -> str:
        lines = [
            f"{self.written} trajectories written, {self.present} there already, "
            f"{self.redrawn} draws thrown away, {len(self.failed)} failed"
        ]
        return "\n".join(lines + [f"  {name}: {why}" for name, why in self.failed.items()])


@dataclass(frozen=True)
class _Settings:
    calculator: str
    calculator_kwargs: str  # JSON
    conformers: int
    step_fs: float
    steps_equilibration: int
    steps_per_frame: int
    frames: int
    seed: int
    max_energy_std_eV: float
    draws: int
    thermostat: str | None = None
    constant: float | None = None  # of the thermostat: 1/fs or fs; None for its default

    def bath(self, temperature_K: float) -> NoseHoover | Langevin | CSVR | None:
        """The thermostat of a trajectory, if there is one."""
        if self.thermostat is None:
            return None
        constants = [] if self.constant is None else [self.constant]
        return THERMOSTATS[self.thermostat](temperature_K, *constants)


@dataclass(frozen=True, eq=False)
class _System:
    name: str  # of its group
    atoms: Atoms  # as given; for SMILES one of its conformers
    smiles: str | None

    def entropy(self) -> int:
        return int(hashlib.sha1(self.name.encode()).hexdigest()[:16], 16)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What became of one trajectory: arrays, or why there are none."""

    thrown_away: int
    failure: str | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # arguments of Writer.append
    attributes: dict[str, Any] = field(default_factory=dict)
    rounded: bool = False  # small enough for int16


def generate(
    systems: Sequence[str],
    out: str | os.PathLike[str],
    *,
    calculator: str = "gfn2-xtb",
    calculator_kwargs: Mapping[str, Any] | None = None,
    trajectories: int = 10,
    temperatures_K: Sequence[float] = TEMPERATURES_K,
    conformers: int = 3,
    step_fs: float = 0.25,
    frame_fs: float = 1.0,
    duration_fs: float = 500.0,
    equilibration_fs: float = 200.0,
    seed: int = 0,
    processes: int = 1,
    max_energy_std_eV: float = 0.02,
    draws: int = 5,
    split: str = "train",
    thermostat: str | None = None,
    friction_per_fs: float | None = None,
    time_constant_fs: float | None = None,
) -> Summary:
    """Runs MD of all systems and writes or continues the HDF5 file `out` (format: see `data.py`).

    systems: SMILES, structure files or names, anything `read_structure` takes. The group of a
        SMILES is named by the first ten hex digits of the SHA-1 of its canonical form; that of a
        file by its stem, that of a name by itself, with underscores for spaces.
    calculator: "gfn2-xtb" or "gfn1-xtb" (tblite, accuracy 0.1), "module:Class" (the module may lie
        in the current folder), or a name that ASE knows ("emt"). calculator_kwargs go to its
        constructor and must be JSON values.
    trajectories: per system. The k-th has target temperatures_K[k % len(temperatures_K)] and
        conformer k % (number of conformers).
    conformers: at most so many per SMILES; those that relax to the same energy count once.
    step_fs, frame_fs, duration_fs, equilibration_fs: the MD step, the time between frames, the
        length of what is recorded and of what runs before; whole multiples of one another.
    max_energy_std_eV: velocities are drawn again if the total energy (with a thermostat, less the
        heat that it has put in) varies by more.
    draws: of velocities, after which a trajectory counts as failed (see Summary.failed).
    split: attribute of the groups.
    thermostat: "nose-hoover" (a chain of three), "langevin" or "csvr", which acts around every
        step, from the first one of the equilibration on; None for constant energy.
    friction_per_fs, time_constant_fs: of "langevin" (1/fs, default 0.01) and of the others (fs,
        default 100).

    With a thermostat frames are canonical, at target temperatures over the internal degrees of
    freedom, and what is from frame to frame is the motion of the system with the thermostat: a
    Nosé-Hoover chain's positions and velocities follow the equations of the extended system, and
    Langevin's have random kicks. A model that is trained on them learns windows of that, which are
    those of Newton's equations but for what a thermostat does in the time of a window: with a
    friction of 0.01 per fs noise of a quarter of the thermal velocity in 3 fs. So for training take
    "nose-hoover", which has no noise and scales all velocities alike. Potentials cannot be trained
    on them (target = "potential"): what the kinetic energy gains is not what the potential energy
    loses.

    Velocities are Maxwell-Boltzmann, without net momentum and for isolated molecules without net
    rotation, scaled to the kinetic energy of twice the target: half of it goes into potential
    energy. At constant energy that is twice the target over 3N degrees of freedom, with a
    thermostat over the internal ones. An isolated molecule has its centre of mass at the origin,
    and a trajectory in which its bonds change (see `analysis.bond_changes`) is drawn again;
    periodic systems are not checked for bonds. Molecules of up to some 4 Å radius are stored as
    int16, anything else as float32.

    A group has the attributes smiles (or structure, a hash of the geometry given), split, method,
    dt_fs, frame_fs, pos_scale and vel_scale (where int16), seed, thermostat with its
    friction_per_fs or time_constant_fs (where there is one), and the other settings that continuing
    the file compares. `trajectories`, `processes` and `draws` may differ then.

    Processes are started with the spawn method, one thread each, so a script that calls this needs
    `if __name__ == "__main__":`. Ctrl-C or an exception leaves a valid file of complete
    trajectories. Raises ValueError for settings that make no sense, systems that cannot be read or
    share a name, an unknown calculator, and an existing file with other settings; BlockingIOError
    where another process writes the file; OSError where it cannot be written (a full disk), with
    the trajectories before that in it.
    """
    _positive(trajectories=trajectories, conformers=conformers, processes=processes, draws=draws)
    _positive(step_fs=step_fs, frame_fs=frame_fs, duration_fs=duration_fs)
    _positive(max_energy_std_eV=max_energy_std_eV)
    if seed < 0 or equilibration_fs < 0:
        raise ValueError(
            f"seed {seed} and equilibration_fs {equilibration_fs} must not be negative"
        )
    if len(temperatures_K) == 0 or min(temperatures_K) <= 0:
        raise ValueError(
            f"temperatures_K is {tuple(temperatures_K)}, expected positive values in K"
        )
    arguments = _as_json({} if calculator_kwargs is None else calculator_kwargs)
    bath = _thermostat(
        thermostat, friction_per_fs=friction_per_fs, time_constant_fs=time_constant_fs
    )
    settings = _Settings(
        calculator=calculator,
        calculator_kwargs=arguments,
        conformers=conformers,
        step_fs=step_fs,
        steps_equilibration=_multiple("equilibration_fs", equilibration_fs, "step_fs", step_fs),
        steps_per_frame=_multiple("frame_fs", frame_fs, "step_fs", step_fs),
        frames=1 + _multiple("duration_fs", duration_fs, "frame_fs", frame_fs),
        seed=seed,
        max_energy_std_eV=max_energy_std_eV,
        draws=draws,
        thermostat=thermostat,
        constant=next((x for x in bath.values() if isinstance(x, float)), None),
    )
    make_calculator(calculator, arguments)  # fails here rather than in every process
    found = _read_systems(systems)
    common: dict[str, Any] = {
        "split": split,
        "method": _METHODS[calculator][1] if calculator in _METHODS else calculator,
        "dt_fs": float(step_fs),
        "frame_fs": float(frame_fs),
        "seed": seed,
        "calculator_kwargs": arguments,
        "temperatures_K": np.asarray(temperatures_K, float),
        "conformers": conformers,
        "duration_fs": float(duration_fs),
        "equilibration_fs": float(equilibration_fs),
        "max_energy_std_eV": float(max_energy_std_eV),
        **bath,
    }

    writer = Writer(out)
    with Lock(writer.path):
        return _complete(writer, settings, found, common, temperatures_K, trajectories, processes)


def _complete(
    writer: Writer,
    settings: _Settings,
    found: list[_System],
    common: dict[str, Any],
    temperatures_K: Sequence[float],
    trajectories: int,
    processes: int,
) -> Summary:
    """Make the trajectories that a file lacks."""
    contents = writer.contents()
    summary = Summary()
    tasks: list[tuple[int, int]] = []
    for index, system in enumerate(found):
        if system.name in contents:
            writer.check(system.name, system.atoms.numbers, **common, **_attributes(system))
        missing = [k for k in range(trajectories) if _label(k) not in contents.get(system.name, ())]
        summary.present += trajectories - len(missing)
        tasks += [(index, k) for k in missing]

    def store(index: int, k: int, outcome: _Outcome) -> None:
        system, where = found[index], f"{found[index].name}/{_label(k)}"
        summary.redrawn += outcome.thrown_away
        failure = outcome.failure
        if failure is None:
            if system.name not in contents:
                scales = {"pos_scale": POS_SCALE, "vel_scale": VEL_SCALE} if outcome.rounded else {}
                writer.add_group(
                    system.name,
                    system.atoms.numbers,
                    masses=system.atoms.get_masses(),
                    cell=np.array(system.atoms.cell),
                    pbc=system.atoms.pbc,
                    **scales,
                    **{key: value for key, value in common.items() if value is not None},
                    **_attributes(system),
                )
                contents[system.name] = set()
            try:
                writer.append(system.name, _label(k), **outcome.arrays, **outcome.attributes)
                summary.written += 1
            except ValueError as error:  # does not fit int16
                failure = str(error)
        if failure is not None:
            summary.failed[where] = failure

    temperatures = [float(t) for t in temperatures_K]
    with _pool(processes, settings, found) as pool, tqdm(total=len(tasks), disable=None) as bar:
        queue = iter(tasks)
        running: dict[Future[_Outcome], tuple[int, int]] = {}
        while True:
            # A short queue: results wait in memory until they are written.
            for index, k in islice(queue, 2 * processes - len(running)):
                temperature = temperatures[k % len(temperatures)]
                with deaf_children():  # a process may be started for it
                    future = pool.submit(_simulate, index, k, temperature)
                running[future] = (index, k)
            if not running:
                return summary
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                store(*running.pop(future), future.result())
                bar.update()


_METHODS = {
    "gfn2-xtb": ("GFN2-xTB", "GFN2-xTB (tblite)"),
    "gfn1-xtb": ("GFN1-xTB", "GFN1-xTB (tblite)"),
}


def make_calculator(name: str, arguments: str = "{}") -> Calculator:
    """A new ASE calculator by its name, as in `generate`; arguments: its constructor's, as JSON.

    Raises ValueError where there is none of that name or it refuses the arguments.
    """
    kwargs = json.loads(arguments)
    try:
        if name in _METHODS:
            from tblite.ase import TBLite

            return TBLite(
                **{"method": _METHODS[name][0], "accuracy": 0.1, "verbosity": 0, **kwargs}
            )
        module, colon, attribute = name.partition(":")
        kind = getattr(_module(module), attribute) if colon else get_calculator_class(name)
        made = kind(**kwargs)
    except Exception as error:  # constructors of calculators raise anything
        raise ValueError(
            f"calculator {name!r} cannot be made with {arguments} "
            f"({type(error).__name__}: {error}); expected {', '.join(_METHODS)} "
            '(pip install "mdtrajnet_fast[data]"), module:Class, or a name that ASE knows'
        ) from error
    if not isinstance(made, Calculator):
        raise ValueError(f"{name!r} makes a {type(made).__name__}, expected an ASE Calculator")
    return made


def teacher(method: str | None) -> Calculator:
    """The calculator that data name as their method (:attr:`.records.Record.method`).

    Only those that this package knows by name: a file must not say what code to run. Raises
    ValueError where the data name none or another one, and as :func:`make_calculator`.
    """
    known = {said: name for name, (_, said) in _METHODS.items()}
    if method not in known:
        raise ValueError(
            f"the data name {method or 'no method'} as what made them, expected one of "
            f"{', '.join(known)}"
        )
    return make_calculator(known[method])


def _module(name: str) -> ModuleType:
    """A module by its name, installed or else in the current folder.

    Only what is named comes from there: a folder that was downloaded may have modules of any name.
    """
    if importlib.util.find_spec(name.partition(".")[0]) is not None:
        return importlib.import_module(name)
    sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(os.getcwd())


def _as_json(arguments: Mapping[str, Any]) -> str:
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"calculator_kwargs is {arguments!r}, expected a mapping of names to values, such as "
            '{"accuracy": 0.01}'
        )
    try:
        return json.dumps(dict(arguments), sort_keys=True)
    except TypeError as error:
        raise ValueError(f"calculator_kwargs must be JSON values, but: {error}") from error


def _thermostat(name: str | None, **constants: float | None) -> dict[str, Any]:
    """What the attributes of a file say of a thermostat: its name and its constant, or None."""
    said: dict[str, Any] = {"thermostat": name, **dict.fromkeys(constants)}
    own = None
    if name is not None:
        if name not in THERMOSTATS:
            raise ValueError(
                f"thermostat must be one of {', '.join(THERMOSTATS)}, or none, got {name!r}"
            )
        (own,) = (f for f in dataclasses.fields(THERMOSTATS[name]) if f.name in constants)
        given = constants[own.name]
        said[own.name] = own.default if given is None else float(given)
        THERMOSTATS[name](300.0, said[own.name])  # refuses what is not positive
    for constant, value in constants.items():
        if value is not None and (own is None or constant != own.name):
            raise ValueError(f"{constant} = {value} is not of thermostat {name}: leave it out")
    return said


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}, expected a positive number")


def _multiple(name: str, value: float, unit_name: str, unit: float) -> int:
    count = round(value / unit)
    if abs(count * unit - value) > 1e-6 * unit:
        raise ValueError(f"{name} is {value}, expected a whole multiple of {unit_name} = {unit}")
    return count


def _label(trajectory: int) -> str:
    return f"traj{trajectory:02d}"


def _read_systems(texts: Sequence[str]) -> list[_System]:
    systems: dict[str, _System] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        atoms = read_structure(text)
        atoms.set_constraint()
        if len(atoms) < 2:
            raise ValueError(f"{text!r} has {len(atoms)} atoms, expected at least 2")
        smiles = atoms.info.get("smiles") if atoms.info["source"] == "SMILES" else None
        name = (
            atoms.info["name"].replace(" ", "_")
            if smiles is None
            else hashlib.sha1(smiles.encode()).hexdigest()[:10]
        )
        check_name(name)
        if name in systems:
            raise ValueError(f"{text!r} would be written to group {name}, like a system before it")
        systems[name] = _System(name, atoms, smiles)
    if not systems:
        raise ValueError("no systems given")
    return list(systems.values())


def _attributes(system: _System) -> dict[str, Any]:
    """What identifies a system in the file."""
    if system.smiles is not None:
        return {"smiles": system.smiles}
    atoms = system.atoms
    given = np.concatenate([atoms.positions, atoms.cell]).round(6) + 0.0  # no negative zeros
    digest = hashlib.sha1(given.tobytes())
    if atoms.has("masses"):  # isotopes, maybe
        digest.update(atoms.get_masses().tobytes())
    return {"structure": digest.hexdigest()[:10]}


# Processes


@contextmanager
def _pool(processes: int, settings: _Settings, systems: list[_System]) -> Iterator[Any]:
    """Processes of one thread each that know settings and systems; none outlives the context."""
    threads = {k: "1" for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    before = {k: os.environ.get(k) for k in threads}
    others = set(multiprocessing.active_children())
    # Spawn, not fork: a forked process can hang in OpenMP. Libraries read the variables when they
    # are loaded, which is before anything of ours runs in the new process.
    os.environ.update(threads)
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _initialize, (settings, systems)
    )
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()  # or they would finish what they are at
        raise
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


_job: tuple[_Settings, list[_System]]  # set in every process by _initialize


def _initialize(settings: _Settings, systems: list[_System]) -> None:
    global _job
    _job = settings, systems
    parent = multiprocessing.parent_process()
    if parent is not None:  # if it is killed, nobody ends this process

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


@lru_cache(maxsize=4)  # tasks come system by system
def _relaxed(index: int) -> list[Atoms] | str:
    """Relaxed conformers of a system, or why there are none."""
    settings, systems = _job
    system = systems[index]
    starts = [system.atoms]
    try:
        if system.smiles is not None:
            seed = np.random.SeedSequence([settings.seed, system.entropy()]).generate_state(1)
            starts = rdkit_conformers(system.smiles, settings.conformers, int(seed[0]))
        found: list[Atoms] = []
        energies: list[float] = []
        why = ""
        for start in starts:
            atoms = start.copy()
            atoms.calc = make_calculator(settings.calculator, settings.calculator_kwargs)
            if not LBFGS(atoms, logfile=os.devnull).run(fmax=_FORCE, steps=_RELAX_STEPS):
                why = f"not relaxed to {_FORCE} eV/Å in {_RELAX_STEPS} steps"
            elif change := _bond_change(atoms, [0, 1], [start.positions, atoms.positions]):
                why = f"relaxation changes the molecule: {change}"
            else:
                energy = atoms.get_potential_energy()
                if all(abs(energy - e) > _SAME_CONFORMER for e in energies):
                    energies.append(energy)
                    atoms.calc = None
                    if not atoms.pbc.any():
                        atoms.positions -= atoms.get_center_of_mass()
                    found.append(atoms)
    except Exception as error:  # calculators raise anything
        return f"relaxation failed ({type(error).__name__}: {error})"
    return found or why


def _simulate(index: int, k: int, temperature_K: float) -> _Outcome:
    """Trajectory k of a system."""
    settings, systems = _job
    relaxed = _relaxed(index)
    if isinstance(relaxed, str):
        return _Outcome(0, relaxed)
    conformer = k % len(relaxed)
    isolated = not relaxed[0].pbc.any()
    largest = max(np.abs(atoms.positions).max() for atoms in relaxed)
    failure = ""
    for draw in range(settings.draws):
        seeds = np.random.SeedSequence([settings.seed, systems[index].entropy(), k, draw])
        rng = np.random.default_rng(seeds)
        atoms = relaxed[conformer].copy()
        try:
            bath = settings.bath(temperature_K)
            # Twice the target over 3N degrees of freedom, whatever there is without rotation; with
            # a thermostat, over those that there are.
            share = 1.0 if bath is not None else 3 * len(atoms) / degrees_of_freedom(atoms)
            thermal_velocities(atoms, 2 * temperature_K * share, rng)
            heat_bath: Baths | NoseHooverChain | None = None
            if isinstance(bath, NoseHoover):
                heat_bath = NoseHooverChain(bath, atoms)
            elif bath is not None:
                heat_bath = Baths([bath], [atoms.copy()], [int(rng.integers(2**63))])
            arrays, spread = _integrate(atoms, settings, heat_bath)
        except _Rejected as reason:
            failure = str(reason)
            continue
        except Exception as error:  # calculators raise anything
            failure = f"{type(error).__name__}: {error}"
            continue
        attributes = {
            "temperature_K": temperature_K,
            "conformer": conformer,
            "energy_std_eV": spread,
        }
        rounded = isolated and largest + _ROOM < 32767 * POS_SCALE
        return _Outcome(draw, None, arrays, attributes, bool(rounded))
    return _Outcome(settings.draws, f"{settings.draws} draws, the last: {failure}")


# Dynamics


class _Rejected(Exception):
    """A trajectory that is not to be kept."""


def _bond_change(atoms: Atoms, times: ArrayLike, positions: ArrayLike) -> str | None:
    """The first bond of an isolated molecule that differs from frame 0, in words."""
    if atoms.pbc.any():
        return None
    trajectory = Trajectory(atoms, times, positions, np.zeros_like(positions))
    broken, formed = bond_changes(trajectory)
    changes = [(b.time_fs, f"broken bond {b}") for b in broken]
    changes += [(b.time_fs, f"formed bond {b}") for b in formed]
    return min(changes)[1] if changes else None


def _kinetic_energy(masses: np.ndarray, velocities: np.ndarray) -> float:
    """eV, of masses in amu and velocities in Å/fs."""
    return 0.5 * float((masses[:, None] * velocities**2).sum()) / ase.units.fs**2


def _integrate(
    atoms: Atoms, settings: _Settings, bath: Baths | NoseHooverChain | None
) -> tuple[dict[str, np.ndarray], float]:
    """Velocity Verlet from these atoms: arrays of the frames, and how their energy scatters (eV).

    bath: what acts around every step. The energy less its heat is what scatters. Raises _Rejected
    where the frames are no good.

    ase.md.VelocityVerlet does the same, but what it and Atoms.get_forces do around each evaluation
    (comparing and copying atoms) costs a third of the time with tblite.
    """
    masses, start = atoms.get_masses(), atoms.positions.copy()
    velocities = velocities_from_momenta(atoms.get_momenta(), masses)
    to_acceleration = ase.units.fs**2 / masses[:, None]  # eV/Å to Å/fs²
    calculator = make_calculator(settings.calculator, settings.calculator_kwargs)
    calculator.calculate(atoms, ["energy", "forces"], all_changes)
    step = settings.step_fs
    last = settings.steps_equilibration + settings.steps_per_frame * (settings.frames - 1)
    frames: dict[str, list] = {"positions": [], "velocities": [], "energy": []}
    heat: list[float] = []
    if "dipole" in calculator.results and not atoms.pbc.any():
        frames["dipole"] = []
    acceleration = calculator.results["forces"] * to_acceleration

    def exchange(act: Callable[..., np.ndarray], velocities: np.ndarray) -> np.ndarray:
        momenta = act(now, step, atoms.positions, momenta_from_velocities(velocities, masses))
        return velocities_from_momenta(momenta, masses)

    for now in range(last + 1):
        if now:
            if bath is not None:
                velocities = exchange(bath.before, velocities)
            velocities = velocities + 0.5 * step * acceleration
            atoms.positions += step * velocities
            calculator.calculate(atoms, ["energy", "forces"], ["positions"])
            acceleration = calculator.results["forces"] * to_acceleration
            velocities = velocities + 0.5 * step * acceleration
            if bath is not None:
                velocities = exchange(bath.after, velocities)
        since = now - settings.steps_equilibration
        if since >= 0 and since % settings.steps_per_frame == 0:
            results = calculator.results
            # Where a calculator has both, forces are the derivative of free_energy.
            potential = results.get("free_energy", results["energy"])
            frames["positions"].append(atoms.positions.copy())
            frames["velocities"].append(velocities)
            frames["energy"].append(potential + _kinetic_energy(masses, velocities))
            heat.append(0.0 if bath is None else float(bath.heat[0]))
            if "dipole" in frames:
                frames["dipole"].append(results["dipole"].copy())
            if not np.isfinite(frames["energy"][-1]):
                raise _Rejected(f"the energy is {frames['energy'][-1]} eV")
    times = settings.step_fs * settings.steps_per_frame * np.arange(settings.frames)
    change = _bond_change(atoms, [-1.0, *times], [start, *frames["positions"]])
    if change is not None:
        raise _Rejected(change)
    spread = float(np.std(np.subtract(frames["energy"], heat)))
    if spread > settings.max_energy_std_eV:
        raise _Rejected(
            f"standard deviation of the energy {spread:.3g} eV, at most "
            f"{settings.max_energy_std_eV:g} eV allowed (a shorter step_fs may help)"
        )
    return {name: np.array(values) for name, values in frames.items()}, spread
