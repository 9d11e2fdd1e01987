"""The run.json in the folder of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def run_json(folder: Path) -> Path:
    """The run.json of a folder. Raises FileNotFoundError where there is none."""
    file = folder / "run.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no run.json: it is not the folder of a run")
    return file


@contextmanager
def describing(file: Path) -> Iterator[None]:
    """What goes wrong in the block, which takes the content of a run.json apart, is its fault.

    Raises ValueError, with the file.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{file} does not describe a run ({type(error).__name__}: {error}); restore it from a "
            "copy"
        ) from error


def trajectory_name(said: dict[str, Any]) -> str:
    """Of the trajectory of a run; ValueError for one that is not in its folder."""
    name = str(said["trajectory"])
    if name != Path(name).name or name.startswith("."):
        raise ValueError(f"expected a trajectory in the folder itself, got {name!r}")
    return name
