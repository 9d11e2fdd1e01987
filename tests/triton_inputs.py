"""Random inputs of the attention operation, for the processes that test the Triton kernels."""

from __future__ import annotations

import cases
import numpy as np
import torch
from torch import Tensor

from mdtrajnet_fast.model.config import ModelConfig
from mdtrajnet_fast.ops import Graph
from mdtrajnet_fast.ops.reference import FoldedWeights

CUTOFF = 4.0


def sizes_of(config: ModelConfig) -> tuple[int, ...]:
    """Sizes of a model of one hidden layer for each network, in the order of the next."""
    *sizes, (key,), (value,) = cases.block_sizes(config).values()
    return (*sizes, key, value)


# Scalars, time channels, Gaussians, heads, c0, v0, hidden units of key and value.
SMALL = (8, 3, 6, 2, 3, 2, 8, 9)  # all different, as in cases.SMALL
ODD = (11, 2, 17, 3, 5, 3, 35, 40)  # nothing a power of two; two chunks of hidden units
PUBLISHED = sizes_of(cases.PUBLISHED)
BUNDLED = {name: sizes_of(ModelConfig.from_dict(sizes)) for name, sizes in cases.BUNDLED.items()}


def inputs(
    sizes: tuple[int, ...],
    degrees: tuple[int, ...],
    seed: int = 0,
    nearest: float = 0.9,
    farthest: float = 3.9,
):
    """State, graph and folded weights in float64, exact in float32.

    nearest, farthest: between them lie the distances (Å).
    """
    s, time, basis, h, c0, v0, key, value = sizes
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        x = rng.standard_normal(shape).astype(np.float32)
        return torch.from_numpy(np.float32(scale) * x).double()

    n, m, atoms = key + 1, value + 1, len(degrees)

    def layer(width: int) -> list[tuple[Tensor, Tensor]]:
        return [(draw(width, basis + time, scale=0.5), draw(width, scale=0.5))]

    k, v = n**-0.5, m**-0.5
    folded = FoldedWeights(
        key_layers=layer(key),
        value_layers=layer(value),
        query=draw(s, c0 * h, scale=s**-0.5),
        key_atom=draw(s, n, c0 * h + 2 * h, scale=0.2 * k),
        key_edge=draw(n, 2 * c0 * h + 4 * h, scale=0.2 * k),
        value_atom=draw(s, m, 2 * h, scale=v),
        value_edge=draw(m, 6 * h, scale=v),
        scalar_atom=draw(h, m, s * v0, scale=v),
        scalar_edge=draw(h, 2 * m, v0, scale=v),
        out=draw(h * v0, s, scale=s**-0.5),
    )
    edges = sum(degrees)
    r = draw(edges, 3)
    r *= (torch.from_numpy(rng.uniform(nearest, farthest, edges)) / r.norm(dim=1))[:, None]
    row_ptr = torch.tensor([0, *np.cumsum(degrees)])
    graph = Graph(
        species=torch.zeros(atoms, dtype=torch.int64),
        masses=torch.ones(atoms).double(),
        velocities=torch.zeros(atoms, 3).double(),
        component=torch.zeros(atoms, dtype=torch.int64),
        components=1,
        row_ptr=row_ptr,
        neighbor=torch.from_numpy(rng.integers(0, atoms, edges)),
        r=r.float().double(),
        w=draw(edges, 3, scale=0.5),
    )
    state = draw(atoms, s), draw(atoms, 3, scale=0.05), draw(atoms, 3, scale=0.05)
    options = {"radial_cutoff": CUTOFF, "distance_centres": basis, "time_channels": time}
    return state, graph, folded, options, draw


def single(x, device: str = "cpu"):
    """The same in float32, on a device."""
    if isinstance(x, Tensor):
        return x.to(device, torch.float32) if x.is_floating_point() else x.to(device)
    if hasattr(x, "_fields"):
        return type(x)(*(single(y, device) for y in x))
    return type(x)(single(y, device) for y in x) if isinstance(x, (list, tuple)) else x
