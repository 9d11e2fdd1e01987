"""The operations a model is made of. Nothing here knows of models or files."""

from .graph import Graph
from .reference import (
    BlockWeights,
    FoldedWeights,
    cutoff_envelope,
    edge_attention,
    fold,
    gaussian_basis,
)

__all__ = [
    "BlockWeights",
    "FoldedWeights",
    "Graph",
    "cutoff_envelope",
    "edge_attention",
    "fold",
    "gaussian_basis",
]
