"""MDtrajNet-1: molecular dynamics trajectories predicted directly, without forces or integrator."""

from __future__ import annotations

import torch  # noqa: F401  before the extension, so that one OpenMP runtime serves both

from .analysis import TrustSummary, vibrational_density_of_states
from .checkpoint import bundled_models, load_model, save_model
from .config import ModelConfig
from .dynamics import MDtrajNetDynamics
from .ensembles import thermal_velocities
from .model import MDtrajNet
from .neighbors import NeighborList, neighbor_list
from .rollout import RolloutError
from .simulate import simulate
from .structures import read_structure
from .train import TrainConfig, fit
from .trajectory import Trajectory

__version__ = "0.1.0"
__all__ = [
    "MDtrajNet",
    "MDtrajNetDynamics",
    "ModelConfig",
    "NeighborList",
    "RolloutError",
    "TrainConfig",
    "Trajectory",
    "TrustSummary",
    "bundled_models",
    "fit",
    "load_model",
    "neighbor_list",
    "read_structure",
    "save_model",
    "simulate",
    "thermal_velocities",
    "vibrational_density_of_states",
]
