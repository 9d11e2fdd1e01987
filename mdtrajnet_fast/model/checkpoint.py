"""Models on disk: a folder with config.json and weights.safetensors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .archive import build, checksum, write_whole
from .config import LATER, ModelConfig
from .mlatom import load_mlatom
from .network import MDtrajNet

FORMAT = "mdtrajnet"
VERSION = 1
BUNDLED = Path(__file__).parents[1] / "pretrained"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))


def save_model(
    model: MDtrajNet,
    path: str | Path,
    *,
    overwrite: bool = False,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Write a model to the folder `path`: config.json and weights.safetensors, with checksums.

    provenance: anything JSON-able about where the weights come from, kept in config.json.
    Raises FileExistsError if the folder holds a model and overwrite is False, and OSError where it
    cannot be written.
    """
    folder = Path(path)
    if (folder / "config.json").exists() and not overwrite:
        raise FileExistsError(f"{folder} already holds a model; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "name": model.name,
        "members": len(model.members),
        "config": model.config.to_dict(),
        "provenance": provenance or {},
    }
    description["sha256"] = _checksum(description)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    said = {"sha256": checksum(state)}
    write_whole(folder / "weights.safetensors", save(state, metadata=said))
    write_whole(folder / "config.json", (json.dumps(description, indent=2) + "\n").encode())
    return folder


def load_model(
    name_or_path: str | Path, dtype: str = "float32", device: str | torch.device | None = None
) -> MDtrajNet:
    """A model by the name of a bundled one, or from disk.

    name_or_path: a bundled name ("molecules-nve"), a folder written by :func:`save_model`, the
        folder of a training run, a checkpoint of the published implementation (.pt), or a folder
        of such checkpoints (the members of a collection, in the order of their names).
    dtype: "float32" or "float64".
    device: torch device; None for the CPU.

    Raises FileNotFoundError for a name that is none of these, and ValueError for a file that
    cannot be read or a device that is not there.
    """
    precision = _DTYPES.get(str(dtype).removeprefix("torch."))
    if precision is None:
        raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}')
    path, folder = Path(name_or_path), _folder(name_or_path)
    if folder is not None:
        model = _load_folder(folder)
    elif path.is_file():
        model = load_mlatom(path)
    elif path.is_dir() and (members := sorted(path.glob("*.pt"))):
        model = load_mlatom(members, name=path.name)
    else:
        raise FileNotFoundError(
            f"no model {str(name_or_path)!r}: expected one of the bundled models "
            f"({', '.join(bundled_models())}), a folder with config.json and weights.safetensors, "
            "or a published checkpoint (.pt) or a folder of them"
        )
    try:
        model = model.to(dtype=precision, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {error}") from error
    return model.eval().requires_grad_(False)


def _folder(name_or_path: str | Path) -> Path | None:
    """Where the model of that name or path is saved; None if it is not one of ours."""
    path = Path(name_or_path)
    places = [path, path / "model"]  # the latter in the folder of a training run
    if str(name_or_path) in bundled_models():
        places = [BUNDLED / str(name_or_path)]
    return next((place for place in places if (place / "config.json").is_file()), None)


def _load_folder(folder: Path) -> MDtrajNet:
    try:
        description = json.loads((folder / "config.json").read_text())
        if description.get("format") != FORMAT:
            raise ValueError(f'expected "format": "{FORMAT}", got {description.get("format")!r}')
        if description["version"] > VERSION:
            raise ValueError(
                f"format version {description['version']} is newer than this package knows "
                f"({VERSION}): update mdtrajnet_fast"
            )
        if "sha256" in description and description["sha256"] != _checksum(description):
            raise ValueError(
                "config.json is not as it was written, its checksum is wrong; restore it from a "
                'copy or, if it was changed on purpose, take its "sha256" out'
            )
        if missing := sorted(_SAID - description["config"].keys()):  # defaults name other functions
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        config = ModelConfig.from_dict(description["config"])
        weights = _weights(folder / "weights.safetensors")
        name = description["name"]
        if not isinstance(name, str):
            raise ValueError(f"its name is {name!r}, expected a text")
        model = build(config, description["members"], name, weights)
        # in the precision they were saved in: a model of float64 is not rounded
        model = model.to(next(iter(weights.values())).dtype)
        model.load_state_dict(weights)
    except _UNREADABLE as error:
        raise ValueError(f"{folder} cannot be read as a model: {error}") from error
    return model


_UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    OSError,
    ArithmeticError,
    SafetensorError,
)
# The sizes and options that config.json always has; others came later, or may be None.
_SAID = {f.name for f in dataclasses.fields(ModelConfig)} - {*LATER, "potential", "window"}


def _checksum(description: dict[str, Any]) -> str:
    """SHA-256 of what config.json says, however it is laid out."""
    said = {name: value for name, value in description.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _weights(path: Path) -> dict[str, Tensor]:
    """Tensors of one kind of float from a file. Raises ValueError where its checksum is wrong."""
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}
        said = (file.metadata() or {}).get("sha256")
    kinds = {x.dtype for x in weights.values()}
    if len(kinds) != 1 or not kinds <= set(_DTYPES.values()):
        raise ValueError(
            f"{path.name} has tensors of {', '.join(sorted(map(str, kinds))) or 'no kind'}; "
            "expected all of float32 or all of float64"
        )
    if said is not None and said != checksum(weights):
        raise ValueError(f"{path.name} is damaged: its checksum is wrong; restore it from a copy")
    return weights


def provenance(name_or_path: str | Path) -> dict[str, Any]:
    """What a saved model's config.json says about its origin; empty for other models."""
    folder = _folder(name_or_path)
    if folder is None:
        return {}
    return json.loads((folder / "config.json").read_text()).get("provenance", {})


def model_card(name_or_path: str | Path) -> str | None:
    """The README.md beside the weights of a saved model, Markdown; None where there is none."""
    folder = _folder(name_or_path)
    card = None if folder is None else folder / "README.md"
    return card.read_text(encoding="utf-8") if card is not None and card.is_file() else None


def training_logs(name_or_path: str | Path) -> list[Path]:
    """The logs (log*.csv) in the folder of a saved model or of a training run, in order."""
    folder, path = _folder(name_or_path), Path(name_or_path)
    if folder is None:
        return []
    return sorted((path if folder == path / "model" else folder).glob("log*.csv"))
