"""The command `mdtrajnet trjconv`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..io.exchange import WITHOUT_VELOCITIES
from .inputs import add_frames, any_trajectory, skipped, trajectory_file

HELP = (
    "Write a trajectory in another format, chosen by the suffix: .traj, .extxyz or .h5 (H5MD) "
    "hold all of it; .dcd, .xtc, .trr (with a .pdb) and .xyz are for other programs."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("trajectory", type=Path, help="folder of a run, or a trajectory file")
    parser.add_argument("output", type=Path, help="new file")
    add_frames(parser)
    parser.add_argument("--every", type=int, default=1, help="one frame in so many")


def run(options: argparse.Namespace) -> None:
    """Write the frames that are asked for."""
    if options.every < 1:
        raise ValueError(f"--every is one frame in so many, 1 or more; got {options.every}")
    path = trajectory_file(options.trajectory)
    needed = options.output.suffix.lower() not in WITHOUT_VELOCITIES
    trajectory = any_trajectory(path, options.frame, velocities=needed)
    skipped(trajectory, options.skip)[:: options.every].write(options.output)
    print(f"Written: {options.output}")
