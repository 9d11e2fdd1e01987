"""The operations a model is made of. Nothing here knows of models or files."""

from .graph import Graph
from .reference import BlockWeights, cutoff_envelope, edge_attention, gaussian_basis

__all__ = ["BlockWeights", "Graph", "cutoff_envelope", "edge_attention", "gaussian_basis"]
