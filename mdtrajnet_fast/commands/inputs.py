"""What several commands take."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..data.records import as_trajectory, load_records
from ..io.run_folder import run_json
from ..io.trajectory import Trajectory

MASSES = "of the elements in place of isotopes', which are refused otherwise"


def femtoseconds(text: str) -> float:
    """A time on the command line."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of femtoseconds; for 10 ps give 10000"
        ) from None


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model of a command and what computes it."""
    parser.add_argument("--model", default="molecules-nve", help="bundled name, folder or .pt file")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--device", default="cpu", help="torch device")


def add_frames(parser: argparse.ArgumentParser) -> None:
    """Which frames of a trajectory a command looks at."""
    parser.add_argument(
        "--frame", type=femtoseconds, help="spacing of frames, fs, where the file lacks it"
    )
    parser.add_argument(
        "--skip", type=femtoseconds, default=0.0, help="leave out the first so many fs"
    )


def skipped(trajectory: Trajectory, fs: float) -> Trajectory:
    """Without the frames before that time."""
    return trajectory[int(np.searchsorted(trajectory.times, fs)) :]


def trajectory_file(path: Path) -> Path:
    """The file itself, or that of the run in a folder."""
    return path / run_of(path)["trajectory"] if path.is_dir() else path


def any_trajectory(path: Path, frame_fs: float | None, velocities: bool = True) -> Trajectory:
    """A trajectory of this package, or what :func:`load_records` reads as one."""
    try:
        return Trajectory.read(path)
    except ValueError as own:
        try:
            return one_record(path, frame_fs, velocities)
        except ValueError as error:
            raise error from own


def one_record(path: Path, frame_fs: float | None = None, velocities: bool = True) -> Trajectory:
    """What :func:`load_records` reads, if it is one trajectory."""
    records = load_records(path, frame_fs=frame_fs, velocities=velocities)
    if len(records) != 1:
        raise ValueError(f"{path} holds {len(records)} trajectories, expected one")
    return as_trajectory(records[0])


def run_of(folder: Path) -> dict[str, Any]:
    """What the run.json in the folder of a run says."""
    return json.loads(run_json(folder).read_text())
