"""Settings from TOML files, whose unknown names are refused."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any


def read_settings(path: Path, kind: type, needed: set[str]) -> dict[str, Any]:
    """The values of a TOML file for a dataclass `kind`, of which those `needed` have to be there.

    Raises ValueError, with the file, for what is no TOML, unknown and missing names, and an
    `output` that is no folder; OSError for a file that cannot be read.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{path}: unknown settings {unknown}; known are {sorted(known)}")
    if missing := sorted(needed - set(values)):
        raise ValueError(f"{path}: missing settings {missing}")
    if not isinstance(values["output"], str):
        raise ValueError(f"{path}: output must be a folder, got {values['output']!r}")
    return values


def is_number(value: Any, whole: bool = False) -> bool:
    """Whether a value is a finite number, or a whole one; true and false are none."""
    kinds = (int,) if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
