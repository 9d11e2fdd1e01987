"""The command `mdtrajnet spectrum`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..model.checkpoint import load_model
from ..runs import write_spectra
from .inputs import add_frames, any_trajectory, run_of, skipped, trajectory_file
from .printing import print_spectra

HELP = "Vibrational density of states of a trajectory, or its infrared spectrum against it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument(
        "trajectory",
        type=Path,
        help="folder of a run; .traj, .extxyz or .h5 of this package, or what ASE reads",
    )
    parser.add_argument(
        "--ir",
        action="store_true",
        help="infrared absorption as well, from the dipoles of a model, with the harmonic quantum "
        "correction",
    )
    parser.add_argument(
        "--model", help="of the dipoles: bundled name or folder (default: that of the run)"
    )
    add_frames(parser)
    parser.add_argument("--output", type=Path, help="prefix of the .csv and .png (default: beside)")
    parser.add_argument(
        "--resolution", type=float, help="cm^-1 (default: 20, or what the run allows)"
    )
    parser.add_argument(
        "--max-wavenumber",
        type=float,
        help="cm^-1 (default: 4500, or what the frames allow down to 4000; 2500 without hydrogen)",
    )


def run(options: argparse.Namespace) -> None:
    """Write table and plot, and print the peaks."""
    if options.model is not None and not options.ir:
        raise ValueError("--model is of the dipoles that --ir asks for: give --ir, or leave it out")
    path = trajectory_file(options.trajectory)
    trajectory = skipped(any_trajectory(path, options.frame), options.skip)
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
        name = options.model or run_of(path.parent)["settings"]["model"]
        dipoles = load_model(name).dipoles(trajectory)
    limits = options.resolution, options.max_wavenumber
    print_spectra(*write_spectra(trajectory, prefix, *limits, dipoles))
