"""Weights of potentials and charges in the layout of the kernels for CPUs (csrc/cpu/attention.hpp).

Differentiable, where gradients are wanted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops import cutoff_envelope, gaussian_basis
from .density_network import DensityNetwork
from .potential import Potential

# Of radial functions: pieces of the distance between neighbouring Gaussians.
_INTERVALS_OF_GAUSSIAN = {torch.float32: 8, torch.float64: 64}

_Sizes = tuple[int, int, int, int, float]
DensitySizes = tuple[int, int, int, int, int, int, int, float]


def _padded(x: Tensor, dim: int = -1) -> Tensor:
    """With zeros in a dimension up to whole vectors of any instruction set, 64 bytes."""
    rows = x.transpose(dim, -1)
    whole = 64 // x.element_size()
    return torch.nn.functional.pad(rows, (0, -rows.shape[-1] % whole)).transpose(dim, -1)


def potential_weights(of: Potential) -> tuple[_Sizes, list[Tensor]]:
    """Sizes of a potential, and its weights as PotentialWeights of csrc/cpu/attention.hpp."""
    scale, left, last = of.scale, of.left, of.last.weight[0]
    weights = [
        torch.cat([_padded(left), _padded(of.right)], 2),
        scale.clone(),
        _padded(of.first.weight.T),
        _padded(of.first.bias + of.element),
        _padded(of.second.weight.T),
        _padded(of.second.bias),
        _padded(last),
    ]
    sizes = (len(scale), of.radial, left.shape[2], len(last), of.cutoff)
    return sizes, [x.contiguous() for x in weights]


def density_weights(of: DensityNetwork) -> tuple[DensitySizes, list[Tensor]]:
    """Roles; sizes and weights as WindowPotentialSizes and -Weights of csrc/cpu/attention.hpp."""
    config, (layers, species, _) = of.config, of.neighbor_element.shape
    c, p, h = config.channels, config.products, config.hidden

    def parts(x: Tensor, sizes: tuple[int, ...], dim: int = -1) -> Tensor:
        return torch.cat([_padded(part, dim) for part in x.split(sizes, dim)], dim)

    features, entry = (c, p, p, p, p), (c, h)
    # layers first, then what is multiplied, then what comes of it
    seen = of.neighbor_element.expand(of.roles, -1, -1, -1)
    bias = of.element + of.role.transpose(0, 1)[:, :, None]
    onward = torch.cat([of.neighbor, of.before], 2).transpose(0, 1)
    maps = of.maps.transpose(0, 1)[:, :, [0, 1, 2, 3, 6, 4, 5]].flatten(2)
    first, second = of.first.transpose(0, 1), of.second.transpose(0, 1)
    weights = [
        _padded(radial_polynomials(of)),
        parts(torch.cat([seen, bias], 3), entry),
        parts(onward, entry),
        parts(_padded(onward.transpose(1, 2)), entry, 1),
        parts(maps, (p,) * 7),
        parts(_padded(maps.transpose(1, 2)), (p,) * 7, 1),
        parts(of.scale, features),
        parts(_padded(first), features, 1),
        parts(first.transpose(1, 2), features),
        _padded(second),
        _padded(second.transpose(1, 2)),
        _padded(of.second_bias),
        _padded(of.last.transpose(0, 1)),
    ]
    sizes = (layers, weights[0].shape[1], c, p, h, of.cutoff)
    return (of.roles, species, *sizes), [x.contiguous() for x in weights]


def radial_polynomials(of: DensityNetwork) -> Tensor:
    """The radial functions as polynomials [layers, intervals, 6 powers, channels].

    Of s in [0, 1], the place in an interval of the distance, through the functions' values at six
    Chebyshev-Lobatto nodes, the first and the last of which are its ends. Forces are their slopes,
    so that they belong to the energies whatever the intervals; these are so small that the type
    rounds more.
    """
    config, dtype = of.config, of.radial.dtype
    count = _INTERVALS_OF_GAUSSIAN[dtype] * (config.radial - 1)
    nodes = (1 - torch.arange(0, 6, dtype=torch.float64).mul(math.pi / 5).cos()) / 2
    d = (torch.arange(count)[:, None] + nodes).flatten() * (of.cutoff / count)
    basis = gaussian_basis(d, of.cutoff, config.radial)
    basis = basis * cutoff_envelope(d, of.cutoff)[:, None]
    values = (basis @ of.radial.double().flatten(1)).view(count, len(nodes), -1)
    powers = torch.linalg.solve(torch.linalg.vander(nodes), values)
    return powers.view(*powers.shape[:2], *of.radial.shape[1:]).permute(2, 0, 1, 3).to(dtype)
