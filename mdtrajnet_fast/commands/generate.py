"""The command `mdtrajnet generate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..data.generate import TEMPERATURES_K, THERMOSTATS, generate
from ..md.thermostats import CSVR, Langevin
from .inputs import femtoseconds

HELP = "Make reference trajectories with an ASE calculator."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("systems", nargs="+", help="SMILES, structure files or names")
    parser.add_argument("--output", required=True, type=Path, help="HDF5 file, new or to continue")
    parser.add_argument(
        "--calculator",
        default="gfn2-xtb",
        help="gfn2-xtb, gfn1-xtb, module:Class, or a name that ASE knows",
    )
    parser.add_argument("--calculator-kwargs", type=json.loads, default={}, help="JSON object")
    parser.add_argument("--trajectories", type=int, default=10, help="per system")
    parser.add_argument(
        "--temperatures",
        type=float,
        nargs="+",
        default=list(TEMPERATURES_K),
        help="targets of the trajectories in turn, K",
    )
    parser.add_argument("--conformers", type=int, default=3, help="at most, per SMILES")
    parser.add_argument("--step", type=femtoseconds, default=0.25, help="MD time step, fs")
    parser.add_argument("--frame", type=femtoseconds, default=1.0, help="time between frames, fs")
    parser.add_argument("--duration", type=femtoseconds, default=500.0, help="fs")
    parser.add_argument("--equilibration", type=femtoseconds, default=200.0, help="fs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--max-energy-std", type=float, default=0.02, help="eV")
    parser.add_argument("--split", default="train", help="attribute of the groups")
    parser.add_argument(
        "--thermostat",
        choices=list(THERMOSTATS),
        help="at the targets, from the equilibration on (default: constant energy)",
    )
    parser.add_argument(
        "--friction", type=float, help=f"of langevin, 1/fs (default: {Langevin.friction_per_fs:g})"
    )
    parser.add_argument(
        "--time-constant",
        type=femtoseconds,
        help=f"of nose-hoover and csvr, fs (default: {CSVR.time_constant_fs:g})",
    )


def run(options: argparse.Namespace) -> None:
    """Make the trajectories. Raises ValueError where some could not be made."""
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
