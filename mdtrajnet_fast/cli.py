"""The command line `mdtrajnet`.

Its commands: simulate, train, finetune, generate, evaluate, convert, export, info, spectrum,
analyze, trjconv, report, campaign.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from . import _C, __version__
from .analysis.conformations import angle_map, backbone, dihedral_angles
from .analysis.matter import (
    diffusion,
    kinetic_energies,
    mean_square_displacement,
    radial_distribution,
    unwrapped,
)
from .analysis.observables import peaks
from .analysis.spectra import Spectra
from .campaigns import command as campaign_command
from .data.generate import TEMPERATURES_K, generate
from .data.generate import THERMOSTATS as GENERATE_THERMOSTATS
from .data.pairs import Pairs
from .data.records import Record, as_trajectory, load_records
from .io.lock import Lock
from .io.run_folder import run_json
from .io.trajectory import Trajectory, last_time
from .md.domains import Processes
from .md.export import export_model
from .md.rollout import RolloutError
from .md.simulation import method_begun
from .md.thermostats import CSVR, THERMOSTATS, Langevin
from .md.window import ENERGY_RATES, METHODS, method_of, stride_of
from .model.checkpoint import bundled_models, load_model, provenance, save_model, training_logs
from .model.mlatom import load_mlatom
from .model.network import MDtrajNet
from .plots import (
    group_label,
    plot_errors,
    plot_groups,
    plot_training,
    write_angle_maps,
    write_curves,
    write_tables,
)
from .report import command as report_command
from .runs import (
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
    title,
    versions,
    write_spectra,
)
from .train.compare_runs import compare_runs, predicted_runs, reference_runs
from .train.config import TrainConfig
from .train.evaluate import (
    atom_errors,
    error_table,
    fraction,
    grouped_tables,
    rms_dipole_errors,
    rms_energy_errors,
    rms_window_errors,
)
from .train.finetune import finetune
from .train.fit import fit

# What `simulate` takes where nothing is said. --resume takes the settings of its folder instead, so
# the parser has to know what was said.
SIMULATE: dict[str, Any] = DEFAULTS | {"output": None}
MASSES = "of the elements in place of isotopes', which are refused otherwise"
# What `evaluate` takes only without --rollout, with its defaults, and only with it.
EVALUATE: dict[str, Any] = {"pairs": 5000, "times": None, "seed": 0}
EVALUATE_ROLLOUT = ("method", "window", "energy_rate", "duration", "spacing")

INTERRUPTED = 130  # the exit status of what Ctrl-C ended, as shells have it

# Errors whose message says it all; others are faults of this package, and come with a traceback.
_SAID = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    RolloutError,
    FloatingPointError,
    MemoryError,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # encodings without Å print something else
            stream.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options.run(options)
    except _SAID as error:
        said = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            said = f"out of memory ({said})"
        print(f"mdtrajnet {options.command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mdtrajnet {options.command}: interrupted; what is written stays", file=sys.stderr)
        return INTERRUPTED
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        print(f"mdtrajnet {options.command}: out of memory ({error})", file=sys.stderr)  # of torch
        return 2
    return 0


def _femtoseconds(text: str) -> float:
    """A time on the command line."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of femtoseconds; for 10 ps give 10000"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mdtrajnet", description="Predict molecular dynamics trajectories directly."
    )
    parser.add_argument("--version", action="version", version=f"mdtrajnet_fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    def add_model(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--model", default="molecules-nve", help="bundled name, folder or .pt file"
        )
        sub.add_argument("--dtype", default="float32", choices=["float32", "float64"])
        sub.add_argument("--device", default="cpu", help="torch device")

    def said(name: str) -> str:
        return f"(default: {SIMULATE[name]})"

    sub = command(
        "simulate",
        _simulate,
        "Predict a trajectory; writes a new folder with trajectory, spectrum, report and run.json.",
    )
    sub.add_argument(
        "structure", nargs="?", help="structure file, common name, ASE g2 name or SMILES"
    )
    sub.set_defaults(**dict.fromkeys(SIMULATE))
    add = functools.partial(sub.add_argument, default=argparse.SUPPRESS)
    add("--model", help=f"bundled name, folder or .pt file {said('model')}")
    add("--dtype", choices=["float32", "float64"], help=said("dtype"))
    add("--device", help=f"torch device {said('device')}")
    add("--dt", type=_femtoseconds, help=f"spacing of the frames, fs {said('dt')}")
    add("--duration", type=_femtoseconds, help=f"length, fs {said('duration')}")
    add(
        "--temperature",
        type=float,
        help="kinetic temperature to draw velocities at, K (default: the structure's own "
        f"velocities, or {DEFAULT_TEMPERATURE_K:g} K for one at rest)",
    )
    add("--seed", type=int, help=f"of the velocities {said('seed')}")
    add("--window", type=_femtoseconds, help="stride, fs (default: the model's own)")
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
        type=_femtoseconds,
        help=f"of csvr, fs (default: {CSVR.time_constant_fs:g})",
    )
    add(
        "--equilibration",
        type=_femtoseconds,
        help="time before the first frame, fs, with a thermostat, which brings the vibrations to "
        f"the temperature (default: {EQUILIBRATION_FS:g} where velocities are drawn, else 0; 0 "
        "turns it off)",
    )
    add("--masses", choices=["standard"], help=MASSES)
    add("--output", type=Path, help="new folder (default: named after the structure)")
    add("--format", choices=FORMATS, help=said("format"))
    sub.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="continue the run in this folder with its own settings, up to its own --duration or "
        "the one given",
    )
    sub.add_argument("--no-report", action="store_true", help="no page report.html of the run")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = command("train", _train, "Train a model, or go on with an interrupted training.")
    sub.add_argument("config", type=Path, help="TOML file, see mdtrajnet_fast.TrainConfig")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = command(
        "finetune",
        _finetune,
        "Fine-tune a model on trajectories, or go on with that; prints errors before and after.",
    )
    sub.add_argument("model", help="name or path, as for simulate")
    sub.add_argument("data", nargs="+", help="trajectory files, as of generate or an ASE run")
    sub.add_argument("--output", required=True, type=Path, help="folder of the training")
    sub.add_argument(
        "--held-out",
        nargs="+",
        help="trajectories to judge by, or files (default: every fifth name, or the last)",
    )
    sub.add_argument(
        "--replay", nargs="+", default=(), help="other trajectories to train on, to keep them known"
    )
    sub.add_argument("--steps", type=int, default=1500)
    sub.add_argument("--batch-size", type=int, default=32)
    sub.add_argument("--learning-rate", type=float, default=1e-3)
    sub.add_argument(
        "--frame", type=_femtoseconds, help="spacing of the frames, fs, if files lack it"
    )
    sub.add_argument("--masses", choices=["standard"], help=MASSES)
    sub.add_argument("--processes", type=int, default=1)
    sub.add_argument("--device", default="cpu", help="torch device")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = command("generate", _generate, "Make reference trajectories with an ASE calculator.")
    sub.add_argument("systems", nargs="+", help="SMILES, structure files or names")
    sub.add_argument("--output", required=True, type=Path, help="HDF5 file, new or to continue")
    sub.add_argument(
        "--calculator",
        default="gfn2-xtb",
        help="gfn2-xtb, gfn1-xtb, module:Class, or a name that ASE knows",
    )
    sub.add_argument("--calculator-kwargs", type=json.loads, default={}, help="JSON object")
    sub.add_argument("--trajectories", type=int, default=10, help="per system")
    sub.add_argument(
        "--temperatures",
        type=float,
        nargs="+",
        default=list(TEMPERATURES_K),
        help="targets of the trajectories in turn, K",
    )
    sub.add_argument("--conformers", type=int, default=3, help="at most, per SMILES")
    sub.add_argument("--step", type=_femtoseconds, default=0.25, help="MD time step, fs")
    sub.add_argument("--frame", type=_femtoseconds, default=1.0, help="time between frames, fs")
    sub.add_argument("--duration", type=_femtoseconds, default=500.0, help="fs")
    sub.add_argument("--equilibration", type=_femtoseconds, default=200.0, help="fs")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--processes", type=int, default=1)
    sub.add_argument("--max-energy-std", type=float, default=0.02, help="eV")
    sub.add_argument("--split", default="train", help="attribute of the groups")
    sub.add_argument(
        "--thermostat",
        choices=list(GENERATE_THERMOSTATS),
        help="at the targets, from the equilibration on (default: constant energy)",
    )
    sub.add_argument(
        "--friction", type=float, help=f"of langevin, 1/fs (default: {Langevin.friction_per_fs:g})"
    )
    sub.add_argument(
        "--time-constant",
        type=_femtoseconds,
        help=f"of nose-hoover and csvr, fs (default: {CSVR.time_constant_fs:g})",
    )

    sub = command(
        "evaluate",
        _evaluate,
        "Errors of a model on trajectories: against time, and at the longest time by element, "
        "temperature and molecule; or, with --rollout, of whole runs.",
    )
    sub.set_defaults(**dict.fromkeys((*EVALUATE, *EVALUATE_ROLLOUT)))
    sub.add_argument("data", nargs="+", type=Path, help="trajectory files (.h5, .traj, .extxyz)")
    add_model(sub)
    sub.add_argument("--trajectories", nargs="+", help="only those of these names")
    sub.add_argument("--molecules", nargs="+", help="only groups of these names")
    sub.add_argument(
        "--frame", type=_femtoseconds, help="spacing of frames, fs, where a file lacks it"
    )
    sub.add_argument("--masses", choices=["standard"], help=MASSES)
    add = functools.partial(sub.add_argument, default=argparse.SUPPRESS)
    add(
        "--pairs",
        type=int,
        help=f"random pairs of frames for each time (default: {EVALUATE['pairs']})",
    )
    add("--times", type=_femtoseconds, nargs="+", help="fs (default: 1 fs to the window)")
    add("--seed", type=int, help=f"of the pairs (default: {EVALUATE['seed']})")
    sub.add_argument("--output", type=Path, help="new folder for the tables and plots")
    sub.add_argument(
        "--rollout",
        action="store_true",
        help="instead, runs from the first frames of the trajectories, beside these: spectra, "
        "temperatures of elements and normal modes, energies, bonds",
    )
    of_rollouts = sub.add_argument_group("with --rollout")
    add = functools.partial(of_rollouts.add_argument, default=argparse.SUPPRESS)
    add("--method", choices=METHODS, help="as for simulate")
    add("--window", type=_femtoseconds, help="stride, fs (default: the model's own)")
    add("--energy-rate", type=float, help="as for simulate")
    add("--duration", type=_femtoseconds, help="of the runs, fs (default: the trajectories')")
    add("--spacing", type=_femtoseconds, help="of frames, fs (default: the trajectories')")

    sub = command("convert", _convert, "Convert checkpoints of the published implementation.")
    sub.add_argument("files", nargs="+", type=Path, help="one .pt file, or those of a collection")
    sub.add_argument(
        "--output", type=Path, help="new folder (default: the file's name without .pt)"
    )

    sub = command(
        "export", _export, "Write a model to one file, for programs without Python (mdtrajnet.h)."
    )
    sub.add_argument("model", help="bundled name, folder or .pt file")
    sub.add_argument("file", type=Path, help="new file")
    sub.add_argument("--dtype", default="float32", choices=["float32", "float64"])

    sub = command("info", _info, "What is installed and built, or what a model is.")
    sub.add_argument("model", nargs="?", help="bundled name, folder or .pt file")

    sub = command(
        "spectrum",
        _spectrum,
        "Vibrational density of states of a trajectory, or its infrared spectrum against it.",
    )
    sub.add_argument(
        "trajectory",
        type=Path,
        help="folder of a run; .traj, .extxyz or .h5 of this package, or what ASE reads",
    )
    sub.add_argument(
        "--ir",
        action="store_true",
        help="infrared absorption as well, from the dipoles of a model, with the harmonic quantum "
        "correction",
    )
    sub.add_argument(
        "--model", help="of the dipoles: bundled name or folder (default: that of the run)"
    )
    sub.add_argument(
        "--frame", type=_femtoseconds, help="spacing of frames, fs, where the file lacks it"
    )
    sub.add_argument("--output", type=Path, help="prefix of the .csv and .png (default: beside)")
    sub.add_argument("--resolution", type=float, help="cm^-1 (default: 20, or what the run allows)")
    sub.add_argument(
        "--max-wavenumber",
        type=float,
        help="cm^-1 (default: 4500, or what the frames allow down to 4000; 2500 without hydrogen)",
    )
    sub.add_argument(
        "--skip", type=_femtoseconds, default=0.0, help="leave out the first so many fs"
    )

    sub = command(
        "analyze",
        _analyze,
        "Structure, diffusion, vibrations and kinetic energies of a trajectory: tables and plots.",
    )
    sub.add_argument(
        "trajectory", type=Path, help="folder of a run, .traj, .extxyz, .h5, or what ASE reads"
    )
    sub.add_argument(
        "--frame", type=_femtoseconds, help="spacing of frames, fs, where the file lacks it"
    )
    sub.add_argument("--output", type=Path, help="new folder (default: beside)")
    sub.add_argument(
        "--skip", type=_femtoseconds, default=0.0, help="leave out the first so many fs"
    )
    sub.add_argument("--rdf", action="store_true", help="radial distribution functions, by pairs")
    sub.add_argument("--farthest", type=float, help="Å, of these (default: half of the cell)")
    sub.add_argument("--msd", action="store_true", help="mean-square displacements and diffusion")
    sub.add_argument("--vdos", action="store_true", help="vibrational (phonon) density of states")
    sub.add_argument(
        "--kinetic", action="store_true", help="kinetic energies beside canonical ones"
    )
    sub.add_argument(
        "--ramachandran", action="store_true", help="map of the angles phi and psi of a peptide"
    )

    sub = command(
        "trjconv",
        _trjconv,
        "Write a trajectory in another format, chosen by the suffix: .traj, .extxyz or .h5 (H5MD) "
        "hold all of it; .dcd, .xtc, .trr (with a .pdb) and .xyz are for other programs.",
    )
    sub.add_argument("trajectory", type=Path, help="folder of a run, or a trajectory file")
    sub.add_argument("output", type=Path, help="new file")
    sub.add_argument(
        "--frame", type=_femtoseconds, help="spacing of frames, fs, where the file lacks it"
    )
    sub.add_argument(
        "--skip", type=_femtoseconds, default=0.0, help="leave out the first so many fs"
    )
    sub.add_argument("--every", type=int, default=1, help="one frame in so many")

    sub = command(
        "report",
        report_command.run,
        "One HTML page of a run: 3D view, trust, spectra, energies, temperatures, settings.",
    )
    report_command.add_arguments(sub)

    sub = command(
        "campaign",
        campaign_command.run,
        "Many runs, of structures, temperatures, models and seeds, on many workers; or go on with "
        "what is left of them.",
    )
    campaign_command.add_arguments(sub)
    return parser


def _simulate(options: argparse.Namespace) -> None:
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
        run.folder = _made(run.folder, numbered=options.output is None)
        stack.enter_context(Lock(run.folder / "run.json"))
        _new_folder(run.folder)  # still, now that no other process can begin in it
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
    print(f"No spectrum: {found}") if isinstance(found, str) else _print_spectra(found)
    _print_written(run.folder)


def _new_run(options: argparse.Namespace, follows: bool) -> Run:
    """What is to run; follows: another process makes the folder."""
    if options.structure is None:
        raise ValueError("give a structure (file, name or SMILES), or --resume FOLDER")
    chosen = {name: getattr(options, name) for name in DEFAULTS}
    said, atoms = describe_run(options.structure, chosen, ["mdtrajnet", *options.arguments])
    wanted = options.output or Path(folder_name(said))
    return Run(wanted if follows else _new_folder(wanted, options.output is None), said, atoms)


def _continued(options: argparse.Namespace) -> Run:
    given = [f"--{name}" for name in SIMULATE if getattr(options, name) is not None]
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


def _run_of(folder: Path) -> dict[str, Any]:
    """What the run.json in the folder of a run says."""
    return json.loads(run_json(folder).read_text())


def _train(options: argparse.Namespace) -> None:
    config = TrainConfig.read(options.config)
    fit(config, progress=not options.quiet)
    _print_trained(config.output)


def _print_trained(folder: str | Path) -> None:
    print(f"Written: {folder}/ (model/, log.csv, curves.png, checkpoint.pt)")


def _finetune(options: argparse.Namespace) -> None:
    done = finetune(
        options.model,
        options.data,
        options.output,
        held_out=options.held_out,
        replay=options.replay,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        frame_fs=options.frame,
        masses=options.masses,
        processes=options.processes,
        device=options.device,
        seed=options.seed,
        progress=not options.quiet,
    )
    print(
        f"Errors after {done.before.window:g} fs on trajectories held out "
        f"({', '.join(done.held_out)}):\n"
    )
    print(f"{'':12}{'before':>12}{'after':>12}")
    units = {"position": "Å", "velocity": "%", "acceleration": "%", "energy": "eV"}
    for name, unit in units.items():
        pair = getattr(done.before, name), getattr(done.after, name)
        if None not in pair:
            shown = [f"{100 * x:.1f} %" if unit == "%" else f"{x:.4f} {unit}" for x in pair]
            print(f"{name:12}{shown[0]:>12}{shown[1]:>12}")
    print()
    _print_trained(options.output)


def _generate(options: argparse.Namespace) -> None:
    summary = generate(
        options.systems,
        options.output,
        calculator=options.calculator,
        calculator_kwargs=options.calculator_kwargs,
        trajectories=options.trajectories,
        temperatures_K=options.temperatures,
        conformers=options.conformers,
        step_fs=options.step,
        frame_fs=options.frame,
        duration_fs=options.duration,
        equilibration_fs=options.equilibration,
        seed=options.seed,
        processes=options.processes,
        max_energy_std_eV=options.max_energy_std,
        split=options.split,
        thermostat=options.thermostat,
        friction_per_fs=options.friction,
        time_constant_fs=options.time_constant,
    )
    print(summary)
    if summary.failed:
        raise ValueError(f"{len(summary.failed)} trajectories could not be made, see above")


def _evaluate(options: argparse.Namespace) -> None:
    of_others = EVALUATE if options.rollout else EVALUATE_ROLLOUT
    given = [name for name in of_others if getattr(options, name) is not None]
    if given:
        raise ValueError(
            f"--{given[0].replace('_', '-')} is of evaluate "
            f"{'without' if options.rollout else 'with'} --rollout"
        )
    model = load_model(options.model, dtype=options.dtype, device=options.device)
    records = load_records(
        options.data,
        molecules=options.molecules,
        trajectories=options.trajectories,
        frame_fs=options.frame,
        masses=options.masses,
    )
    folder = options.output and _new_folder(options.output)
    if options.rollout:
        _evaluate_rollout(options, model, records, folder)
        return
    count, seed = (
        EVALUATE[name] if getattr(options, name) is None else getattr(options, name)
        for name in ("pairs", "seed")
    )
    times = options.times or np.arange(1.0, model.stride() + 0.5).tolist()
    model.check_times(times)
    print(
        f"{model.name} on {len(records)} trajectories of "
        f"{len({r.molecule for r in records})} molecules: root mean square errors per component"
    )
    pairs = Pairs(records)
    with tqdm(times, unit="lag") as lags:
        found = {lag: atom_errors(model, pairs, count, lag_fs=lag, seed=seed) for lag in lags}
    table, longest = error_table("lag_fs", found), max(times)
    groups = grouped_tables(found[longest], records)
    _print_errors(table, "time (fs)")
    print(f"\nThe same pairs after {longest:g} fs by element, target temperature and molecule:")
    _print_errors(groups["elements"], "element")
    _print_errors(groups["temperatures"], "target (K)")
    _print_errors(groups["molecules"], "molecule", at_most=10)
    if model.potential is not None:
        print("\n" + _said_of_energies(model, pairs, count, longest, seed))
    if model.config.window_potentials is not None:
        print("\n" + _said_of_windows(model, pairs, count, seed))
    if model.dipole is not None and all(r.dipole is not None for r in records):
        dipole = rms_dipole_errors(model, pairs, count, seed=seed)
        print(
            f"\nDipole moments are wrong by {dipole['dipole']:.4f} e Å a component (root mean "
            f"square; they themselves {dipole['zero']:.4f} e Å)"
        )
    if folder:
        write_tables(folder, {"errors": table, **groups})
        plot_errors(table, model.name, folder / "errors.png")
        plot_groups(groups, model.name, folder / "groups.png")
        for log in training_logs(options.model):
            plot_training(log, folder / f"learning{log.stem.removeprefix('log')}.png")
        _print_written(folder)


def _evaluate_rollout(
    options: argparse.Namespace, model: MDtrajNet, records: list[Record], folder: Path
) -> None:
    method = method_of(model, options.method)
    stride = stride_of(model, method, options.window)
    references = reference_runs(model, records, duration=options.duration, spacing=options.spacing)
    predicted = predicted_runs(
        model,
        references,
        method=method,
        window=options.window,
        energy_rate=options.energy_rate,
        progress=True,
    )
    title = f"{model.name}, {method} windows of {stride:g} fs"
    comparison = compare_runs(model, records, references, predicted, title, progress=True)
    print(comparison)
    if options.output:
        comparison.write(folder)
        _print_written(folder)


def _print_written(folder: Path) -> None:
    print(f"Written: {folder}/ ({', '.join(sorted(p.name for p in folder.glob('[!.]*')))})")


def _said_of_energies(model: MDtrajNet, pairs: Pairs, count: int, lag: float, seed: int) -> str:
    try:
        wrong = rms_energy_errors(model, pairs, count, lag, seed=seed)
    except ValueError as error:  # data with a thermostat
        return f"Potential energy: not looked at, {error}"
    return (
        f"Potential energy: changes within {lag:g} fs are wrong by {wrong['energy']:.3f} eV (root "
        f"mean square; the changes themselves {wrong['unchanged']:.3f} eV)"
    )


def _said_of_windows(model: MDtrajNet, pairs: Pairs, count: int, seed: int) -> str:
    assert model.config.window_potentials is not None
    name = f"Symplectic windows of {model.config.window_potentials.window:g} fs"
    try:
        wrong = rms_window_errors(model, pairs, count, seed=seed)
    except ValueError as error:  # frames too far apart, or too few
        return f"{name}: not looked at, {error}"
    velocity = fraction(wrong["velocity"], wrong["thermal_velocity"])
    force = fraction(wrong["acceleration"], wrong["true_acceleration"])
    return (
        f"{name}: positions are wrong by {wrong['position']:.5f} Å, velocities by {velocity:.1%} "
        f"and accelerations by {force:.1%} of the true ones"
    )


def _print_errors(table: dict[str, list[Any]], heading: str, at_most: int | None = None) -> None:
    """Print the first rows of an error table, velocities also in percent of the thermal one."""
    key = next(iter(table))
    labels = [group_label(value) for value in table[key]]
    if left_out := len(labels[at_most:]) if at_most else 0:
        heading = f"{heading} (worst {at_most})"
    width = max(len(heading), *map(len, labels[:at_most]))
    print(f"\n{heading:<{width}}   position    static  ballistic   velocity  of thermal   v = v0")
    print(f"{'':<{width}}          Å         Å          Å       Å/fs           %     Å/fs")
    for k, label in enumerate(labels[:at_most]):
        row = {name: column[k] for name, column in table.items()}
        share = 100 * fraction(row["velocity"], row["thermal_velocity"])
        print(
            f"{label:<{width}} {row['position']:10.5f} {row['static']:9.5f} "
            f"{row['ballistic']:10.5f} {row['velocity']:10.6f} {share:11.1f} "
            f"{row['velocity_static']:8.5f}"
        )
    if left_out:
        print(f"and {left_out} more")


def _convert(options: argparse.Namespace) -> None:
    if options.output is None and (len(options.files) > 1 or not options.files[0].suffix):
        raise ValueError("say where to with --output: there is no one file name to take it from")
    model = load_mlatom(options.files, name=options.output.name if options.output else None)
    folder = options.output or options.files[0].with_suffix("")
    save_model(
        model,
        folder,
        provenance={"converted_from": [str(path.name) for path in options.files]},
    )
    print(f"Written: {folder}/ ({_describe(model)})")


def _export(options: argparse.Namespace) -> None:
    model = load_model(options.model, dtype=options.dtype)
    print(f"Written: {export_model(model, options.file)} ({_describe(model)})")
    if model.dipole is not None:
        print("Without its dipole.")


def _describe(model: MDtrajNet) -> str:
    count = sum(p.numel() for p in model.parameters())
    members = f"{len(model.members)} members, " if len(model.members) > 1 else ""
    return (
        f"{model.name}: {members}{count:,} parameters, elements {' '.join(model.config.species)}, "
        f"window {stride_of(model, method_of(model, None), None):g} fs, cutoff "
        f"{model.config.radial_cutoff:g} Å"
    )


def _info(options: argparse.Namespace) -> None:
    if options.model is not None:
        model = load_model(options.model)
        print(_describe(model))
        about = {"config": model.config.to_dict(), "provenance": provenance(options.model)}
        print(json.dumps(about, indent=2))
        return
    build, cuda = _C.build_info(), _C.cuda_devices()
    for name, version in versions().items():
        print(f"{name:<15} {version}")
    print(f"extension       {build['compiler']}, {', '.join(build['instruction_sets'])}")
    print(f"  OpenMP        {build['openmp'] or 'no'}, {torch.get_num_threads()} threads")
    if build["cuda"]:
        kinds = ", ".join(f"sm_{arch}" for arch in build["cuda"]["archs"])
        print(f"  CUDA part     built with nvcc {build['cuda']['nvcc']} for {kinds}")
    else:
        print("  CUDA part     not built: no nvcc was found")
    for device in cuda["devices"]:
        print(f"  GPU           {device}")
    if not cuda["devices"]:
        print(f"  GPU           none: {cuda['error']}")
    for name in ("mdtrajnet.h", "libmdtrajnet.so"):
        print(f"{name:<15} {Path(_C.__file__).parent / 'lib' / name}")
    print("bundled models")
    for name in bundled_models():
        print(f"  {_describe(load_model(name))}")


def _spectrum(options: argparse.Namespace) -> None:
    if options.model is not None and not options.ir:
        raise ValueError("--model is of the dipoles that --ir asks for: give --ir, or leave it out")
    path = _trajectory_file(options.trajectory)
    trajectory = _any_trajectory(path, options.frame)
    trajectory = trajectory[int(np.searchsorted(trajectory.times, options.skip)) :]
    kind = "infrared" if options.ir else "spectrum"
    prefix = options.output or path.with_name(f"{path.stem}-{kind}")
    if prefix.suffix in (".csv", ".png"):
        prefix = prefix.with_suffix("")
    for suffix in (".csv", ".png"):
        if (taken := prefix.with_name(prefix.name + suffix)).exists():
            raise FileExistsError(f"{taken} exists and is never overwritten: choose another name")
    dipoles = None
    if options.ir:
        if options.model is None and not (path.parent / "run.json").is_file():
            raise ValueError(f"there is no run.json beside {path}: say whose dipoles with --model")
        name = options.model or _run_of(path.parent)["settings"]["model"]
        dipoles = load_model(name).dipoles(trajectory)
    _write_spectrum(trajectory, prefix, options.resolution, options.max_wavenumber, dipoles)


def _analyze(options: argparse.Namespace) -> None:
    """All that applies, or what is asked for."""
    path = _trajectory_file(options.trajectory)
    trajectory = unwrapped(_any_trajectory(path, options.frame))
    trajectory = trajectory[int(np.searchsorted(trajectory.times, options.skip)) :]
    kinds: dict[str, Callable[[Trajectory, Path], None]] = {
        "rdf": functools.partial(_write_rdf, farthest=options.farthest),
        "msd": _write_msd,
        "vdos": _write_spectrum,
        "kinetic": _write_kinetic,
        "ramachandran": _write_ramachandran,
    }
    apply = ("rdf", "msd", "vdos", "kinetic") if trajectory.atoms.pbc.all() else ("vdos", "kinetic")
    asked = [name for name in kinds if getattr(options, name)]
    place = options.trajectory
    numbered = options.output is None
    folder = _new_folder(options.output or place.with_name(f"{place.stem}-analysis"), numbered)
    folder = _made(folder, numbered)
    for name in asked or apply:
        try:
            kinds[name](trajectory, folder / name)
        except ValueError as error:  # too short, or frames too far apart, for one of many
            if asked:
                raise
            print(f"No {name}: {error}")


def _trjconv(options: argparse.Namespace) -> None:
    if options.every < 1:
        raise ValueError(f"--every is one frame in so many, 1 or more; got {options.every}")
    trajectory = _any_trajectory(_trajectory_file(options.trajectory), options.frame)
    first = int(np.searchsorted(trajectory.times, options.skip))
    trajectory[first :: options.every].write(options.output)
    print(f"Written: {options.output}")


def _write_rdf(trajectory: Trajectory, prefix: Path, farthest: float | None) -> None:
    elements = Counter(sorted(trajectory.atoms.get_chemical_symbols()))
    curves: dict[str, np.ndarray] = {}
    for a, b in itertools.combinations_with_replacement(elements, 2):
        if a != b or elements[a] > 1:
            r, g = radial_distribution(trajectory, (a, b), farthest=farthest)
            curves[f"{a}-{b}"] = g
            print(f"g(r) of {a}-{b}: highest, {g.max():.2f}, at {r[g.argmax()]:.2f} Å")
    if not curves:
        raise ValueError("a radial distribution needs two atoms")
    _say(write_curves(prefix, ("r (Å)", r), curves, "g(r)", title(trajectory)))


def _write_msd(trajectory: Trajectory, prefix: Path) -> None:
    times, squares = mean_square_displacement(trajectory)
    half = 1 + len(times) // 2  # of longer times there are few
    found = diffusion(trajectory)
    print(
        f"Diffusion coefficient {0.1 * found.coefficient:.3g} ± {0.1 * found.error:.1g} cm²/s, "
        f"{squares[half - 1]:.3g} Å² in {times[half - 1] / 1000:g} ps"
    )
    curve = {"mean-square displacement (Å²)": squares[:half]}
    lags = ("time (ps)", times[:half] / 1000)
    _say(write_curves(prefix, lags, curve, next(iter(curve)), title(trajectory)))


def _write_kinetic(trajectory: Trajectory, prefix: Path) -> None:
    kinetic = kinetic_energies(trajectory)
    found, edges = np.histogram(kinetic.energies, bins=40, density=True)
    middles = (edges[1:] + edges[:-1]) / 2
    canonical = f"canonical at {kinetic.temperature:.0f} K"
    curves = {"this run": found, canonical: kinetic.canonical(middles)}
    print(
        f"Kinetic temperature {kinetic.temperature:.1f} K, variance of the kinetic energy "
        f"{kinetic.variance:.2f} of the canonical one"
    )
    energies = ("kinetic energy (eV)", middles)
    _say(write_curves(prefix, energies, curves, "density (1/eV)", title(trajectory)))


def _write_ramachandran(trajectory: Trajectory, prefix: Path) -> None:
    """Of all residues together, with free energies at the temperature of the run."""
    found = backbone(trajectory[0])
    phi = dihedral_angles(trajectory.positions, found.phi)
    psi = dihedral_angles(trajectory.positions, found.psi)
    one = angle_map(phi, psi)
    share = np.mean((phi > 0) & (phi < np.deg2rad(150)))
    degrees = [f"{np.rad2deg(x):.0f}" for x in (phi[-1, 0], psi[-1, 0])]
    print(
        f"phi and psi of {len(found.phi)} residue(s): {np.mean(one.density > 0):.0%} of the map is "
        f"visited, phi is positive in {share:.1%} of the frames; the first residue ends at "
        f"({', '.join(degrees)}) degrees"
    )
    kelvin = kinetic_energies(trajectory).temperature
    _say(write_angle_maps(prefix, {"density (1/rad²)": one}, kelvin))


def _say(written: Iterable[Path]) -> None:
    print(f"Written: {', '.join(map(str, written))}")


def _trajectory_file(path: Path) -> Path:
    """The file itself, or that of the run in a folder."""
    return path / _run_of(path)["trajectory"] if path.is_dir() else path


def _any_trajectory(path: Path, frame_fs: float | None) -> Trajectory:
    """A trajectory of this package, or what :func:`load_records` reads as one."""
    try:
        return Trajectory.read(path)
    except ValueError as own:
        try:
            records = load_records(path, frame_fs=frame_fs)
        except ValueError as error:
            raise error from own
    if len(records) != 1:
        raise ValueError(f"{path} holds {len(records)} trajectories, expected one")
    return as_trajectory(records[0])


def _write_spectrum(
    trajectory: Trajectory,
    prefix: Path,
    resolution: float | None = None,
    max_wavenumber: float | None = None,
    dipoles: np.ndarray | None = None,
) -> None:
    """Of the motion, and of the dipoles [frames, 3] (e Å) where they are given."""
    found, paths = write_spectra(trajectory, prefix, resolution, max_wavenumber, dipoles)
    _print_spectra(found)
    _say(paths)


def _print_spectra(found: Spectra) -> None:
    for what, of in (
        ("Vibrational density of states", found.motion),
        ("Infrared absorption (harmonic quantum correction)", found.infrared),
    ):
        if of is not None:
            lines = ", ".join(f"{w:.0f}" for w, _ in peaks(found.wavenumber, of))
            print(f"{what}, {found.resolution:g} cm^-1 resolution; peaks at {lines} cm^-1")


# What a run that was killed before it began leaves in its folder.
_LEFT = {".run.json.lock", "run.json.part"}


def _new_folder(wanted: Path, numbered: bool = False) -> Path:
    """The path of a new folder. Raises FileExistsError where it is in use, unless numbered."""
    if numbered or not wanted.exists():
        return wanted
    if not wanted.is_dir() or {p.name for p in wanted.iterdir()} - _LEFT:
        raise FileExistsError(f"{wanted} exists and is never overwritten: choose another name")
    return wanted


def _made(folder: Path, numbered: bool) -> Path:
    """Make a new folder; numbered: with a number where others, started beside, have made it."""
    if not numbered:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    for k in itertools.count(1):
        made = folder if k == 1 else folder.with_name(f"{folder.name}-{k}")
        with suppress(FileExistsError):
            made.mkdir()  # of two processes one makes it
            return made
    raise AssertionError


if __name__ == "__main__":
    sys.exit(main())
