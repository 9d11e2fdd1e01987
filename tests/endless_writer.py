"""A process that writes a trajectory until it is killed."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdtrajnet_fast.io.trajectory import open_writer

# Children of a fresh interpreter that has imported what takes time; a fork of the tests' own
# process might hang in OpenMP.
_FRESH = multiprocessing.get_context("forkserver")
_FRESH.set_forkserver_preload(["ase.io", "h5py", "mdtrajnet_fast.io.trajectory"])


def numbered(start: int, frames: int, atoms: int) -> tuple[np.ndarray, ...]:
    """Columns of frames that their numbers make."""
    times = np.arange(start, start + frames) / 3
    positions = np.sin(times[:, None, None] + np.arange(atoms * 3).reshape(atoms, 3))
    return times, positions, positions / 7, np.cos(times), np.sin(times)


def _write(path: Path, atoms: Atoms, metadata: Mapping[str, Any], per_call: int) -> None:
    with open_writer(path, atoms, metadata=metadata) as writer:
        for k in itertools.count():
            writer.write(*numbered(k * per_call, per_call, len(atoms)))


@contextmanager
def killed_at_the_end(*arguments: Any) -> Iterator[BaseProcess]:
    """The process, with arguments of `_write`."""
    child = _FRESH.Process(target=_write, args=arguments)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()
