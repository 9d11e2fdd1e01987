"""MDtrajNet-1: molecular dynamics trajectories predicted directly, without forces or integrator."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis import vibrational_density_of_states
    from .checkpoint import bundled_models, load_model, save_model
    from .config import ModelConfig
    from .dynamics import MDtrajNetDynamics
    from .mechanics import thermal_velocities
    from .model import MDtrajNet
    from .neighbors import NeighborList, neighbor_list
    from .rollout import RolloutError
    from .simulation import simulate
    from .structures import read_structure
    from .train import TrainConfig, fit
    from .trajectory import Trajectory
    from .trust import TrustSummary

__version__ = "0.1.0"

# The public names and where they live. They are loaded at first use: torch takes seconds, which
# neither `mdtrajnet --help` nor a process that only makes data should pay for.
_HOME = {
    "MDtrajNet": "model",
    "MDtrajNetDynamics": "dynamics",
    "ModelConfig": "config",
    "NeighborList": "neighbors",
    "RolloutError": "rollout",
    "TrainConfig": "train",
    "Trajectory": "trajectory",
    "TrustSummary": "trust",
    "bundled_models": "checkpoint",
    "fit": "train",
    "load_model": "checkpoint",
    "neighbor_list": "neighbors",
    "read_structure": "structures",
    "save_model": "checkpoint",
    "simulate": "simulation",
    "thermal_velocities": "mechanics",
    "vibrational_density_of_states": "analysis",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
