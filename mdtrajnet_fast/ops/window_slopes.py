"""Energies and slopes of window potentials on the CPU, with gradients of their weights: native
kernels (csrc/cpu/window_potentials.hpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C
from .cpu import addresses, check_tensors, graph_addresses, ready, threads_for
from .graph import CSR

# Of the 13 weights, those that are not the transpose of another one.
_LEARNED = (0, 1, 2, 4, 6, 7, 9, 11, 12)

Sizes = tuple[int, int, int, int, int, int, int, float]


class _WindowSlopes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sizes: Sizes, csr: CSR, species: Tensor, role: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        dtype = weights[0].dtype
        csr, weights = CSR(*ready(csr)), tuple(ready(weights))
        species, role = ready((species, role))
        check_tensors(dtype, (*csr, species, role, *weights))
        energy = torch.empty(len(species), dtype=dtype)
        slopes = torch.empty(len(species), 3, dtype=torch.float64)
        _C.window_slopes(
            dtype == torch.float64,
            (*sizes, addresses(weights)),
            graph_addresses(csr),
            species.data_ptr(),
            role.data_ptr(),
            energy.data_ptr(),
            slopes.data_ptr(),
            threads_for(csr, 1),
        )
        ctx.sizes = sizes
        ctx.save_for_backward(*csr, species, role, *weights)
        return energy, slopes.to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_energy: Tensor, of_slopes: Tensor) -> tuple[Tensor | None, ...]:
        csr, (species, role), weights = (
            CSR(*ctx.saved_tensors[:4]),
            ctx.saved_tensors[4:6],
            ctx.saved_tensors[6:],
        )
        of_energy, of_slopes = ready((of_energy, of_slopes))
        found = {k: torch.empty_like(weights[k]) for k in _LEARNED}
        _C.window_gradients(
            weights[0].dtype == torch.float64,
            (*ctx.sizes, addresses(weights)),
            graph_addresses(csr),
            species.data_ptr(),
            role.data_ptr(),
            of_energy.data_ptr(),
            of_slopes.data_ptr(),
            addresses(list(found.values())),
            threads_for(csr, 1),
        )
        return None, None, None, None, *(found.get(k) for k in range(len(weights)))


def window_slopes(
    sizes: Sizes, weights: list[Tensor], csr: CSR, species: Tensor, role: Tensor
) -> tuple[Tensor, Tensor]:
    """Atomic energies [atoms] (eV), and the slopes of their sum [atoms, 3] (eV/Å).

    Differentiable with respect to the weights alone, once. sizes, weights: as
    :func:`mdtrajnet_fast.model.packed_weights.density_weights` has them. csr: its edges (Å) are
    there from both ends. species, role: of the atoms [atoms].
    """
    found: tuple[Tensor, Tensor] = _WindowSlopes.apply(sizes, csr, species, role, *weights)
    return found
