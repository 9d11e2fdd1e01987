"""A model folded for a backend: from a graph to the motion and the energies of its atoms.

What :meth:`.MDtrajNet.predictor` returns: the weights as they were then, without gradients. It
knows nothing of rollouts.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import _C
from ..ops import Graph
from ..ops.cpu import addresses, check_tensors, graph_addresses, ready, threads_for
from ..ops.graph import CSR
from .potential import Potential
from .window_potentials import WindowPotentials

if TYPE_CHECKING:
    from .network import MDtrajNet

# Rows (times x atoms) of one pass: bounds memory for long lists of times. (csrc/cpu/predictor.cpp
# has its own.)
_ROWS = 1 << 17


_Sizes = tuple[int, int, int, int, float]


class NativePredictor:
    """The kernels for CPUs: whole networks in one call (csrc/cpu/predictor.hpp).

    native: the object that engines of rollouts take.
    """

    def __init__(self, model: MDtrajNet, backend: str):
        self.dtype = model.dtype
        config, members = model.config, model.prepare(backend)
        # the native object keeps their addresses
        self._embeddings = [
            member.species_embedding.detach().clone()  # type: ignore[operator]
            for member in model.members
        ]
        potential = None
        if model.potential is not None:
            sizes, self._potential = potential_weights(model.potential)
            potential = (*sizes, addresses(self._potential))
        window_potentials = None
        if model.window_potentials is not None:
            of_windows, self._windows = window_potential_weights(model.window_potentials)
            window_potentials = (*of_windows, addresses(self._windows))
        self.native = _C.Predictor(
            members=[[block.native for block in blocks.native] for blocks in members],
            embeddings=addresses(self._embeddings),
            species=len(config.species),
            running=config.residual == "running",
            conserving=config.head == "conserving",
            readout=config.velocity_readout,
            time_cutoff=config.time_cutoff,
            potential=potential,
            window_potentials=window_potentials,
        )

    def motion(self, graph: Graph, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Displacements (Å) and velocities (Å/fs), float64 [times, atoms, 3], at times (fs).

        Each time's are the same bits whatever the others.
        """
        csr = CSR(*ready(graph.csr))
        atoms = ready((graph.species, graph.masses, graph.velocities, graph.component))
        check_tensors(self.dtype, (*csr, *atoms))
        of_atoms = (*addresses(atoms), graph.components)
        threads = threads_for(csr, len(times))
        return self.native.motion(graph_addresses(csr), of_atoms, times, threads)

    def energies(self, graph: Graph) -> Tensor:
        """Atomic energies [atoms] (eV), of a model with a potential."""
        csr, species = CSR(*ready(graph.csr)), graph.species.contiguous()
        check_tensors(self.dtype, (*csr, species))
        energy = torch.empty(graph.atoms, dtype=self.dtype)
        self.native.energies(
            graph_addresses(csr), species.data_ptr(), energy.data_ptr(), threads_for(csr, 1)
        )
        return energy

    def slopes(self, graph: Graph, role: int) -> tuple[Tensor, Tensor]:
        """Of a window potential in a role: atomic energies [atoms] (eV), and the slopes of their
        sum, float64 [atoms, 3] (eV/Å)."""
        csr, species = CSR(*ready(graph.csr)), graph.species.contiguous()
        check_tensors(self.dtype, (*csr, species))
        energy = torch.empty(graph.atoms, dtype=self.dtype)
        slope = torch.empty(graph.atoms, 3, dtype=torch.float64)
        places = (species.data_ptr(), role, energy.data_ptr(), slope.data_ptr())
        self.native.slopes(graph_addresses(csr), *places, threads_for(csr, 1))
        return energy, slope


class TorchPredictor:
    """Any other backend: its attention blocks, with plain torch around them."""

    def __init__(self, model: MDtrajNet, backend: str):
        self._model = copy.deepcopy(model).requires_grad_(False)
        self._members = self._model.prepare(backend)

    def motion(self, graph: Graph, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`NativePredictor.motion`; of the bits this is true of the last time's."""
        t = torch.from_numpy(times).to(graph.r)
        moved, velocity = (x.cpu().numpy() for x in self.tensors(graph, t))
        return moved, velocity

    @torch.no_grad()
    def tensors(self, graph: Graph, t: Tensor) -> tuple[Tensor, Tensor]:
        """The motion at times t [times] (fs), float64 on the model's device, without waiting."""
        step = max(1, _ROWS // graph.atoms)
        # torch may round products of other shapes anew: the last time goes alone
        parts = [*t[:-1].split(step), t[-1:]] if len(t) > 1 else [t]
        found = [self._part(graph, part) for part in parts]
        moved, velocity = (torch.cat(x) for x in zip(*found, strict=True))
        return moved, velocity

    def _part(self, graph: Graph, t: Tensor) -> tuple[Tensor, Tensor]:
        every = t.to(graph.r.dtype)[:, None].expand(-1, graph.atoms).contiguous().view(-1)
        moved, velocity = self._model.motion(graph, every, self._members)
        shape = (len(t), graph.atoms, 3)
        return moved.double().view(shape), velocity.double().view(shape)

    @torch.no_grad()
    def energies(self, graph: Graph) -> Tensor:
        """As :meth:`NativePredictor.energies`."""
        assert self._model.potential is not None
        return self._model.potential(graph)

    def slopes(self, graph: Graph, role: int) -> tuple[Tensor, Tensor]:
        """As :meth:`NativePredictor.slopes`."""
        assert self._model.window_potentials is not None
        of_atoms = graph.species.new_full((graph.atoms,), role)
        energy, slope = self._model.window_potentials.slopes(graph, of_atoms)
        return energy, slope.double()


Predictor = NativePredictor | TorchPredictor


def padded(x: Tensor) -> Tensor:
    """With rows in whole vectors of any instruction set, 64 bytes."""
    whole = 64 // x.element_size()
    return torch.nn.functional.pad(x.detach(), (0, -x.shape[-1] % whole)).contiguous()


def window_potential_weights(of: WindowPotentials) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Sizes of window potentials, and their weights, those of WindowPotentialLayer of
    csrc/cpu/attention.hpp layer by layer."""
    sizes, species = of.config, of.neighbor_element.shape[1]
    weights: list[Tensor] = []

    def features(x: Tensor) -> Tensor:
        """The last dimension, of features, with each kind of them padded."""
        kinds = x.split([sizes.channels, *[sizes.products] * 4], -1)
        return torch.cat([padded(kind) for kind in kinds], -1).contiguous()

    def back(x: Tensor) -> Tensor:
        return padded(x.T)

    nothing = of.last.new_zeros(0)
    for k in range(sizes.layers):
        maps = of.maps.detach()[:, k].transpose(0, 1)
        of_l = [[padded(maps[n]) for n in some] for some in ((0, 1), (2, 3, 6), (4, 5))]
        side_by_side = [torch.cat(some, 1).contiguous() for some in of_l]
        first = of.first.detach()[:, k].T
        bias = of.element[k] + of.role[k][:, None]
        joined = [nothing] * 4
        if k:
            neighbor, before = of.neighbor[:, k - 1], of.before[:, k - 1]
            joined = [padded(neighbor), back(neighbor), padded(before), back(before)]
        weights += [
            padded(of.radial[:, k]),
            padded(of.neighbor_element[k]),
            *joined[:2],
            *side_by_side,
            *(back(x) for x in side_by_side),
            features(of.scale.detach()[k]),
            padded(features(first).T),
            features(first),
            padded(bias),
            *joined[2:],
            padded(of.second[:, k]),
            back(of.second[:, k]),
            padded(of.second_bias[k]),
            padded(of.last[k]),
        ]
    numbers = (sizes.layers, sizes.radial, sizes.channels, sizes.products, sizes.hidden)
    return (species, *numbers, of.cutoff), weights


def potential_weights(of: Potential) -> tuple[_Sizes, list[Tensor]]:
    """Sizes of a potential, and its weights as PotentialWeights of csrc/cpu/attention.hpp."""
    scale, left, last = of.scale.detach(), of.left.detach(), of.last.weight[0]
    weights = [
        torch.cat([padded(left), padded(of.right)], 2).contiguous(),
        scale.clone(),
        padded(of.first.weight.T),
        padded(of.first.bias + of.element),
        padded(of.second.weight.T),
        padded(of.second.bias),
        padded(last),
    ]
    return (len(scale), of.radial, left.shape[2], len(last), of.cutoff), weights
