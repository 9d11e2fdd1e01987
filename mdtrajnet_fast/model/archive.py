"""Weights from files that may be damaged or hostile: checked before they are used or made room for.

No code of a file is run, and a model is built only where the file has the numbers that it needs.
And files that are there whole or not at all (:func:`write_whole`).
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import ModelConfig
from .network import MDtrajNet


def load_archive(
    path: str | Path, device: str | torch.device = "cpu", safe: list[Any] | None = None
) -> Any:
    """What torch.save wrote: tensors and plain Python; safe: other things that may be made of it.

    Raises FileNotFoundError, and ValueError, with the file, for what is damaged (each record of the
    ZIP archive has a checksum) or cannot be read without running code.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    raise ValueError("it is compressed, as torch.save never does")
                if (broken := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {broken} is wrong")
        with torch.serialization.safe_globals(safe or []):
            return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged pickles raise anything
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch advises to run the file's code
            said = "torch.save did not write it, or it holds more than tensors and plain Python"
        raise ValueError(f"{path} is damaged, or cannot be read safely: {said}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or replace one, at once: a kill or a full disk leaves what was there.

    Raises OSError, with the file, where it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def build(config: ModelConfig, members: int, name: str, weights: Mapping[str, Tensor]) -> MDtrajNet:
    """An untrained model of these sizes, for weights that are at hand.

    Raises ValueError, before memory is taken, where the sizes ask for more than there is.
    """
    parts: dict[str, Any] = {}
    if config.window_potentials is None or members != 0:  # these can be all of a model
        parts |= {"members": members, "num_attn_blocks": config.num_attn_blocks}
    if config.window_potentials is not None:
        parts["layers of the window potentials"] = config.window_potentials.layers
    if config.dipole is not None:
        parts["layers of the dipole"] = config.dipole.layers
    for what, count in parts.items():
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(weights):
            raise ValueError(
                f"{what} must be a whole number that suits the {len(weights)} tensors of the "
                f"weights, got {count!r}"
            )
    with torch.device("meta"):  # shapes without memory
        needed = sum(x.numel() for x in MDtrajNet(config, members=members).parameters())
    there = sum(x.numel() for x in weights.values())
    if needed > there:
        raise ValueError(
            f"the weights do not fit: {needed:,} numbers for these sizes, {there:,} there"
        )
    return MDtrajNet(config, members=members, name=name)


def checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, x in sorted(weights.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
