"""What a worker of a campaign does: it takes some runs to their end, each in its folder."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections import defaultdict
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import __version__
from ..io.lock import Lock
from ..io.run_folder import run_json
from ..io.trajectory import Trajectory, last_time
from ..md.rollout import RolloutError
from ..model.checkpoint import load_model
from ..model.network import MDtrajNet
from ..runs import Run, check, finish, predict, read_run

# How long to wait for runs that another worker has (s): one whose scheduler is gone, or thinks it
# is, ends within half a minute.
PATIENCE_S = 60.0
_ALONE = threading.Lock()  # torch's threads, files and warnings are those of the process


def advance(
    folders: list[str], version: str, reports: bool, patience: float = PATIENCE_S
) -> list[tuple[dict[str, Any], str | None]]:
    """Take the runs in some folders to their end, all together; those that have ended are left.

    Arguments
        folders: of runs of the same model and settings, by paths that all workers have.
        version: of the package that plans the campaign.
        reports: whether the runs get their pages and plots.
        patience: how long to wait for folders that another process writes (s).

    Returns, of each, the content of its run.json and what went wrong, if anything did: a run that
    cannot be predicted does not stop the others. Raises ValueError for another version than the
    worker's, FileNotFoundError for folders that it does not see, and BlockingIOError for those that
    another process writes.
    """
    here = socket.gethostname()
    if version != __version__:
        raise ValueError(
            f"the worker on {here} has mdtrajnet_fast {__version__}, the campaign {version}: "
            "install the same on all machines"
        )
    paths = [Path(folder) for folder in folders]
    if missing := [path for path in paths if not path.is_dir()]:
        raise FileNotFoundError(
            f"the worker on {here} does not see {missing[0]}: output must be on a disk that all "
            "workers share"
        )
    with _ALONE, ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of broken runs, which the table names
        deadline = time.monotonic() + patience
        for path in paths:
            stack.enter_context(_lock(path, deadline))
        runs = [read_run(path) for path in paths]
        # What is predicted together goes on from where the shortest ends. Runs of a batch whose
        # worker was killed differ by one write: those that hold as much go on together.
        going: dict[float, list[Run]] = defaultdict(list)
        for run in runs:
            if "outcome" not in run.said:
                going[last_time(run.trajectory)].append(run)
        errors: dict[Path, str] = {}
        for some in going.values():
            errors |= _predicted(some, reports)
        return [(run.said, errors.get(run.folder)) for run in runs]


def _predicted(runs: list[Run], reports: bool) -> dict[Path, str]:
    """Predict runs to their end. Returns what went wrong, by their folders."""
    settings = runs[0].settings
    try:
        model = _model(settings["model"], settings["dtype"], settings["device"])
        for run in runs:
            check(run, model)
        try:
            predict(runs, model, resume=True, keep=False)
        except RolloutError as error:
            if not error.trajectories:  # one broke before its frame 0
                raise
        for run in runs:
            finish(run, Trajectory.read(run.trajectory), model if reports else None, draw=reports)
    except Exception as error:  # of one of them, whichever
        if len(runs) == 1:
            return {runs[0].folder: f"{type(error).__name__}: {error}"}
        half = len(runs) // 2
        return _predicted(runs[:half], reports) | _predicted(runs[half:], reports)
    return {}


@lru_cache(maxsize=2)
def _model(name: str, dtype: str, device: str) -> MDtrajNet:
    return load_model(name, dtype=dtype, device=device)


def _lock(folder: Path, deadline: float) -> Lock:
    while True:
        try:
            return Lock(run_json(folder))
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
