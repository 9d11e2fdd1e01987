"""MDtrajNet-1: molecular dynamics trajectories predicted directly, without forces or integrator."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis.observables import infrared_spectrum, vibrational_density_of_states
    from .analysis.summary import TrustSummary
    from .campaigns.campaign import campaign
    from .campaigns.config import CampaignConfig
    from .io.structures import read_structure
    from .io.trajectory import Trajectory
    from .md.ase_dynamics import MDtrajNetDynamics
    from .md.calculator import MDtrajNetCalculator
    from .md.rollout import RolloutError
    from .md.simulation import simulate
    from .md.thermostats import CSVR, Langevin
    from .mechanics import thermal_velocities
    from .model.checkpoint import bundled_models, load_model, save_model
    from .model.config import ModelConfig
    from .model.network import MDtrajNet
    from .neighbors.host import NeighborList, neighbor_list
    from .train.config import TrainConfig
    from .train.finetune import finetune
    from .train.fit import fit

__version__ = "0.2.0"

# The public names and where they live. They are loaded at first use: torch takes seconds, which
# neither `mdtrajnet --help` nor a process that only makes data should pay for.
_HOME = {
    "CSVR": "md.thermostats",
    "CampaignConfig": "campaigns.config",
    "Langevin": "md.thermostats",
    "MDtrajNet": "model.network",
    "MDtrajNetCalculator": "md.calculator",
    "MDtrajNetDynamics": "md.ase_dynamics",
    "ModelConfig": "model.config",
    "NeighborList": "neighbors.host",
    "RolloutError": "md.rollout",
    "TrainConfig": "train.config",
    "Trajectory": "io.trajectory",
    "TrustSummary": "analysis.summary",
    "bundled_models": "model.checkpoint",
    "campaign": "campaigns.campaign",
    "finetune": "train.finetune",
    "fit": "train.fit",
    "infrared_spectrum": "analysis.observables",
    "load_model": "model.checkpoint",
    "neighbor_list": "neighbors.host",
    "read_structure": "io.structures",
    "save_model": "model.checkpoint",
    "simulate": "md.simulation",
    "thermal_velocities": "mechanics",
    "vibrational_density_of_states": "analysis.observables",
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
