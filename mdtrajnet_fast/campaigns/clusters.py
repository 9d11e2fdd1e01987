"""Dask's workers: on this machine, of a scheduler that is there, or as jobs of a queue."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..io.interruptions import deaf_children
from .config import CampaignConfig

if TYPE_CHECKING:
    from distributed import Client

# The queues that dask-jobqueue knows, by their key in its YAML: its class, and what submits a job.
QUEUES = {
    "slurm": ("SLURMCluster", "sbatch"),
    "pbs": ("PBSCluster", "qsub"),
    "sge": ("SGECluster", "qsub"),
    "lsf": ("LSFCluster", "bsub"),
    "oar": ("OARCluster", "oarsub"),
    "moab": ("MoabCluster", "msub"),
    "htcondor": ("HTCondorCluster", "condor_submit"),
}
CONNECT_S = 30  # how long to wait for a scheduler


@contextmanager
def workers(config: CampaignConfig) -> Iterator[tuple[Client, int]]:
    """A client of the workers that a campaign names, and how many they are or will be.

    Those that are started here end with the block. Raises ImportError without Dask (or
    dask-jobqueue), ConnectionError where no scheduler answers, and FileNotFoundError and ValueError
    for a queue that is not there and a YAML file that does not describe one.
    """
    distributed = _module("distributed", "dask[distributed]")
    if config.address is not None:
        given = "scheduler_file" if Path(config.address).is_file() else "address"
        try:
            client = distributed.Client(**{given: config.address}, timeout=CONNECT_S)
        except (OSError, ValueError, TypeError) as error:  # also of what is no address
            raise ConnectionError(
                f"no Dask scheduler answers at {config.address} ({error}): start one with "
                "`dask scheduler`, or leave address out for workers on this machine"
            ) from error
        with client:
            yield client, len(client.scheduler_info(n_workers=-1)["workers"])
        return
    if config.jobqueue is not None:
        with _queue(Path(config.jobqueue)) as (cluster, each):
            with distributed.Client(cluster) as client:
                cluster.scale(jobs=config.jobs)
                yield client, config.jobs * each
        return
    count = config.workers or len(os.sched_getaffinity(0))
    with deaf_children():  # Ctrl-C is heard here
        cluster = distributed.LocalCluster(n_workers=count, threads_per_worker=1)
    with cluster, distributed.Client(cluster) as client:
        yield client, count


@contextmanager
def _queue(file: Path) -> Iterator[tuple[Any, int]]:
    """The cluster that a YAML file of dask-jobqueue describes, and how many workers a job has."""
    dask = _module("dask", "dask[distributed]")
    dask_jobqueue = _module("dask_jobqueue", "dask-jobqueue")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file} of dask-jobqueue's settings")
    said = dask.config.merge(*dask.config.collect_yaml([str(file)]))
    kinds = list(said.get("jobqueue") or {})
    if len(kinds) != 1 or kinds[0] not in QUEUES:
        raise ValueError(
            f"{file} must name one queue below `jobqueue:`, of {', '.join(QUEUES)}; got "
            f"{', '.join(kinds) or 'none'}"
        )
    name, submits = QUEUES[kinds[0]]
    if shutil.which(submits) is None:
        raise FileNotFoundError(
            f"{file} is for {kinds[0]}, but there is no {submits} here: start the campaign where "
            "jobs are submitted from"
        )
    with dask.config.set(dask.config.merge(dask.config.config, said)):  # above its defaults
        try:
            cluster = getattr(dask_jobqueue, name)()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} does not describe a job: {error}") from error
        with cluster:
            yield cluster, int(said["jobqueue"][kinds[0]].get("processes", 1))


def _module(name: str, package: str) -> ModuleType:
    heard = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = "campaign" if package.startswith("dask[") else "queue"
        raise ImportError(
            f"this campaign needs {package}, which is not installed: "
            f'pip install "mdtrajnet_fast[{extra}]"'
        ) from error
    finally:  # dask_jobqueue makes Ctrl-C the end of the process as it is imported
        if heard is not None and signal.getsignal(signal.SIGINT) is not heard:
            signal.signal(signal.SIGINT, heard)
