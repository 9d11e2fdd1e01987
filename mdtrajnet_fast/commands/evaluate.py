"""The command `mdtrajnet evaluate`."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.pairs import Pairs
from ..data.records import Record, load_records
from ..md.window import METHODS, method_of, stride_of
from ..model.checkpoint import load_model, training_logs
from ..model.network import MDtrajNet
from ..plots import group_label, plot_errors, plot_groups, plot_training, write_tables
from ..train.compare_runs import compare_runs, predicted_runs, reference_runs
from ..train.evaluate import (
    atom_errors,
    error_table,
    fraction,
    grouped_tables,
    rms_dipole_errors,
    rms_energy_errors,
    rms_window_errors,
)
from .folders import new_folder
from .inputs import MASSES, add_model, femtoseconds
from .printing import print_written

HELP = (
    "Errors of a model on trajectories: against time, and at the longest time by element, "
    "temperature and molecule; or, with --rollout, of whole runs."
)
# What it takes only without --rollout, with its defaults, and only with it.
_OF_PAIRS: dict[str, Any] = {"pairs": 5000, "times": None, "seed": 0}
_OF_ROLLOUTS = ("method", "window", "energy_rate", "duration", "spacing")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.set_defaults(**dict.fromkeys((*_OF_PAIRS, *_OF_ROLLOUTS)))
    parser.add_argument("data", nargs="+", type=Path, help="trajectory files (.h5, .traj, .extxyz)")
    add_model(parser)
    parser.add_argument("--trajectories", nargs="+", help="only those of these names")
    parser.add_argument("--molecules", nargs="+", help="only groups of these names")
    parser.add_argument(
        "--frame", type=femtoseconds, help="spacing of frames, fs, where a file lacks it"
    )
    parser.add_argument("--masses", choices=["standard"], help=MASSES)
    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    add(
        "--pairs",
        type=int,
        help=f"random pairs of frames for each time (default: {_OF_PAIRS['pairs']})",
    )
    add("--times", type=femtoseconds, nargs="+", help="fs (default: 1 fs to the window)")
    add("--seed", type=int, help=f"of the pairs (default: {_OF_PAIRS['seed']})")
    parser.add_argument("--output", type=Path, help="new folder for the tables and plots")
    parser.add_argument(
        "--rollout",
        action="store_true",
        help="instead, runs from the first frames of the trajectories, beside these: spectra, "
        "temperatures of elements and normal modes, energies, bonds",
    )
    of_rollouts = parser.add_argument_group("with --rollout")
    add = functools.partial(of_rollouts.add_argument, default=argparse.SUPPRESS)
    add("--method", choices=METHODS, help="as for simulate")
    add("--window", type=femtoseconds, help="stride, fs (default: the model's own)")
    add("--energy-rate", type=float, help="as for simulate")
    add("--duration", type=femtoseconds, help="of the runs, fs (default: the trajectories')")
    add("--spacing", type=femtoseconds, help="of frames, fs (default: the trajectories')")


def run(options: argparse.Namespace) -> None:
    """Print the errors; with a folder, tables and plots of them as well."""
    of_others = _OF_PAIRS if options.rollout else _OF_ROLLOUTS
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
    folder = options.output and new_folder(options.output)
    if options.rollout:
        _evaluate_rollout(options, model, records, folder)
        return
    count, seed = (
        _OF_PAIRS[name] if getattr(options, name) is None else getattr(options, name)
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
        print_written(folder)


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
        print_written(folder)


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
