"""New folders for what commands write."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path

# What a run that was killed before it began leaves in its folder.
_LEFT = {".run.json.lock", "run.json.part"}


def new_folder(wanted: Path, numbered: bool = False) -> Path:
    """The path of a new folder. Raises FileExistsError where it is in use, unless numbered."""
    if numbered or not wanted.exists():
        return wanted
    if not wanted.is_dir() or {p.name for p in wanted.iterdir()} - _LEFT:
        raise FileExistsError(f"{wanted} exists and is never overwritten: choose another name")
    return wanted


def make_folder(folder: Path, numbered: bool) -> Path:
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
