"""The operations a model is made of. Nothing here knows of models or files."""

from . import cpu
from .backends import BACKENDS, Backend, choose_backend
from .blocks import Blocks, edge_attention
from .fold import fold
from .graph import Graph
from .reference import BlockWeights, FoldedWeights, cutoff_envelope, gaussian_basis

__all__ = [
    "BACKENDS",
    "Backend",
    "BlockWeights",
    "Blocks",
    "FoldedWeights",
    "Graph",
    "choose_backend",
    "cpu",
    "cutoff_envelope",
    "edge_attention",
    "fold",
    "gaussian_basis",
]
