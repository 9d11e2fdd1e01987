"""Blocks and systems that the tests of all kernels share."""

from __future__ import annotations

import dataclasses

import ase
import cases
import numpy as np
import torch

from mdtrajnet_fast.model.config import ModelConfig
from mdtrajnet_fast.model.network import MDtrajNet
from mdtrajnet_fast.ops import Graph, fold
from mdtrajnet_fast.ops.reference import FoldedWeights

SIZES = {
    "small": cases.SMALL,  # nothing is a whole vector, several hidden layers
    "published": {"species": ("C", "H", "N", "O"), "num_attn_blocks": 2},
    "three heads": {
        "species": ("C", "H", "N", "O"),
        "num_attn_blocks": 1,
        "num_heads": 3,
        "irreps_key": "12x0e + 2x1o",
        "irreps_value": "17x0e + 1x1o",
        "key_weight_hidden_neurons": (33,),
        "value_weight_hidden_neurons": (20, 40),
        "d_embed_dim": 37,
        "t_embed_dim": 2,
    },
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative norm


def crowd() -> ase.Atoms:
    """More neighbours than one group of edges holds, and a molecule far away from them."""
    rng = np.random.default_rng(3)
    atoms = ase.Atoms("CHNO" * 23, positions=rng.uniform(0, 5.0, (92, 3)))
    atoms += ase.Atoms("OHH", positions=[[40, 0, 0], [40.9, 0, 0], [40, 0.9, 0]])
    atoms.set_momenta(rng.normal(size=(95, 3)))
    return atoms


SYSTEMS = {"mixture": cases.mixture, "crowd": crowd, "alone": lambda: ase.Atoms("O")}


def model_of(sizes: dict, dtype=torch.float64, **options) -> MDtrajNet:
    torch.manual_seed(1)
    model = MDtrajNet(ModelConfig.from_dict(sizes | options))
    return model.to(dtype).requires_grad_(False)


def options_of(model: MDtrajNet) -> dict:
    config = model.config
    return {
        "radial_cutoff": config.radial_cutoff,
        "distance_centres": config.d_embed_dim,
        "time_channels": config.t_embed_dim,
        "envelope": config.envelope,
    }


def folded_of(model: MDtrajNet) -> FoldedWeights:
    folded = fold(model.members[0].blocks[0].weights())
    return FoldedWeights.from_tensors(
        [x.contiguous() for x in folded.tensors()], len(folded.key_layers)
    )


def like(x: torch.Tensor, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x)


def double(graph: Graph) -> Graph:
    return dataclasses.replace(graph, r=graph.r.double(), w=graph.w.double())


def close(found, expected, dtype):
    for k, (x, y) in enumerate(zip(found, expected, strict=True)):
        error, size = (x.double() - y).norm(), y.norm()
        assert error <= TOLERANCE[dtype] * size, (k, float(error / size))
