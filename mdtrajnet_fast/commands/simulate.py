"""The command `mdtrajnet simulate`."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ase
import numpy as np

from ..io.lock import Lock
from ..io.run_folder import run_json
from ..io.structures import read_structure
from ..io.trajectory import last_time
from ..md.domains import Processes
from ..md.simulation import method_begun
from ..md.thermostats import CSVR, THERMOSTATS, Langevin
from ..md.window import ENERGY_RATES, METHODS, stride_of
from ..model.checkpoint import load_model
from ..runs import (
    DEFAULT_TEMPERATURE_K,
    DEFAULTS,
    EQUILIBRATION_FS,
    FORMATS,
    Run,
    check,
    describe_run,
    finish,
    folder_name,
    heating,
    predict,
    read_run,
)
from .folders import make_folder, new_folder
from .inputs import MASSES, femtoseconds
from .printing import print_spectra, print_written

HELP = "Predict a trajectory; writes a new folder with trajectory, spectrum, report and run.json."
# What it takes where nothing is said. --resume takes the settings of its folder instead, so the
# parser has to know what was said.
_SETTINGS: dict[str, Any] = DEFAULTS | {"output": None, "repeat": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument(
        "structure", nargs="?", help="structure file, common name, ASE g2 name or SMILES"
    )
    parser.set_defaults(**dict.fromkeys(_SETTINGS))

    def said(name: str) -> str:
        return f"(default: {_SETTINGS[name]})"

    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    add("--model", help=f"bundled name, folder or .pt file {said('model')}")
    add("--dtype", choices=["float32", "float64"], help=said("dtype"))
    add("--device", help=f"torch device {said('device')}")
    add("--dt", type=femtoseconds, help=f"spacing of the frames, fs {said('dt')}")
    add("--duration", type=femtoseconds, help=f"length, fs {said('duration')}")
    add(
        "--temperature",
        type=float,
        help="kinetic temperature to draw velocities at, K (default: the structure's own "
        f"velocities, or {DEFAULT_TEMPERATURE_K:g} K for one at rest)",
    )
    add("--seed", type=int, help=f"of the velocities {said('seed')}")
    add("--window", type=femtoseconds, help="stride, fs (default: the model's own)")
    add(
        "--method",
        choices=METHODS,
        help="how windows are computed: by kicks of window potentials, by predictions of the "
        "network there and back, or by single ones (default: symplectic, where the model has the "
        "potentials; else reversible)",
    )
    add(
        "--energy-rate",
        type=float,
        help="how fast windows return to the energy of the first 200 fs, 1/fs (default: "
        + ", ".join(f"{rate} of {name} ones" for name, rate in ENERGY_RATES.items())
        + ")",
    )
    add(
        "--thermostat",
        choices=list(THERMOSTATS),
        help="at --temperature: Langevin dynamics or stochastic velocity rescaling "
        "(default: none, constant energy)",
    )
    add("--friction", type=float, help=f"of langevin, 1/fs (default: {Langevin.friction_per_fs:g})")
    add(
        "--time-constant",
        type=femtoseconds,
        help=f"of csvr, fs (default: {CSVR.time_constant_fs:g})",
    )
    add(
        "--equilibration",
        type=femtoseconds,
        help="time before the first frame, fs, with a thermostat, which brings the vibrations to "
        f"the temperature (default: {EQUILIBRATION_FS:g} where velocities are drawn, else 0; 0 "
        "turns it off)",
    )
    add("--masses", choices=["standard"], help=MASSES)
    add(
        "--repeat",
        type=int,
        nargs="+",
        metavar="N",
        help="take the cell of a crystal so many times along each edge: one number, or three",
    )
    add("--output", type=Path, help="new folder (default: named after the structure)")
    add("--format", choices=FORMATS, help=said("format"))
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="continue the run in this folder with its own settings, up to its own --duration or "
        "the one given",
    )
    parser.add_argument("--no-report", action="store_true", help="no page report.html of the run")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    """Predict the trajectory and write its folder."""
    processes = Processes.if_several()
    follows = processes is not None and processes.rank > 0
    with ExitStack() as stack:
        if processes is not None:
            stack.callback(processes.close)
        if options.resume:
            if not follows:
                stack.enter_context(Lock(run_json(options.resume)))
            run = _continued(options)
            with _named(run.folder):
                _run(options, run, stack, processes)
        else:
            _run(options, _new_run(options, follows), stack, processes)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """What is wrong with the settings of a run comes with its folder."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if str(error).startswith((f"{folder}:", f"{folder}/", f"{folder} ")):
            raise
        raise ValueError(f"{folder}: {error}") from error


def _run(
    options: argparse.Namespace, run: Run, stack: ExitStack, processes: Processes | None
) -> None:
    """Predict the trajectory that run.json says, in a folder that is locked in the meantime.

    processes: that share the system, all of which come here; the first writes and prints.
    """
    settings = run.settings
    model = load_model(settings["model"], dtype=settings["dtype"], device=settings["device"])
    check(run, model)
    if processes is not None and processes.rank:
        run.folder = Path(processes.each(None)[0])
        predict([run], model, resume=bool(options.resume), processes=processes)
        return
    if not options.resume:
        run.folder = make_folder(run.folder, numbered=options.output is None)
        stack.enter_context(Lock(run.folder / "run.json"))
        new_folder(run.folder)  # still, now that no other process can begin in it
    run.write()
    method = method_begun(settings)
    print(
        f"{run.atoms.get_chemical_formula()} ({run.said['structure']['name']}), "
        f"{settings['duration']:g} fs with {model.name}, {method} windows of "
        f"{stride_of(model, method, settings['window']):g} fs; {heating(settings)}",
        flush=True,
    )
    if processes is not None:
        processes.each(str(run.folder))
    (trajectory,) = predict(
        [run],
        model,
        resume=bool(options.resume),
        processes=processes,
        progress=not options.quiet,
    )
    print(trajectory.trust)
    print(f"{len(trajectory)} frames in {run.said['seconds']:.1f} s")
    found = finish(run, trajectory, None if options.no_report else model)
    print(f"No spectrum: {found}") if isinstance(found, str) else print_spectra(found)
    print_written(run.folder)


def _new_run(options: argparse.Namespace, follows: bool) -> Run:
    """What is to run; follows: another process makes the folder."""
    if options.structure is None:
        raise ValueError("give a structure (file, name or SMILES), or --resume FOLDER")
    chosen = {name: getattr(options, name) for name in DEFAULTS}
    atoms = read_structure(options.structure)
    if options.repeat is not None:
        atoms = _repeated(atoms, options.repeat)
    command = ["mdtrajnet", *options.arguments]
    said, atoms = describe_run(options.structure, chosen, command, atoms)
    wanted = options.output or Path(folder_name(said))
    return Run(wanted if follows else new_folder(wanted, options.output is None), said, atoms)


def _repeated(atoms: ase.Atoms, times: list[int]) -> ase.Atoms:
    """A larger piece of a crystal, named so. The images would move alike: it is at rest."""
    if len(times) not in (1, 3) or min(times) < 1:
        raise ValueError(f"--repeat takes one number or three, 1 or more, got {times}")
    if not atoms.pbc.all():
        raise ValueError(
            f"--repeat is for cells that are periodic in three directions, and {atoms.info['name']}"
            f" has pbc = {atoms.pbc.tolist()}"
        )
    times = times * 3 if len(times) == 1 else times
    atoms = atoms.repeat(times)
    atoms.set_momenta(np.zeros((len(atoms), 3)))
    atoms.info["name"] += "-" + "x".join(map(str, times))
    return atoms


def _continued(options: argparse.Namespace) -> Run:
    given = [f"--{name}" for name in _SETTINGS if getattr(options, name) is not None]
    given = [name for name in given if name != "--duration"]
    if options.structure is not None or given:
        raise ValueError(
            "--resume takes the structure and all settings but --duration from its folder, got "
            + ", ".join(given or [options.structure])
        )
    run = read_run(options.resume, options.duration)
    held = last_time(run.trajectory)
    if options.duration is not None and options.duration < held:
        raise ValueError(
            f"{options.resume} holds frames up to {held:g} fs already, got --duration "
            f"{options.duration:g}; nothing is cut: give a longer one"
        )
    return run
