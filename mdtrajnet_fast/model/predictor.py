"""A model folded for a backend: from a graph to the motion and the energies of its atoms.

What :meth:`.MDtrajNet.predictor` returns: the weights as they were then, without gradients. It
knows nothing of rollouts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import _C
from ..ops import BACKENDS, Graph
from ..ops.cpu import addresses, check_tensors, graph_addresses, ready, threads_for
from ..ops.cuda import AtomicScalars
from ..ops.graph import CSR
from .density_network import DensityNetwork
from .packed_weights import density_weights, potential_weights
from .window_potentials import ENERGY

if TYPE_CHECKING:
    from .network import MDtrajNet

# Rows (times x atoms) of one pass: bounds memory for long lists of times. (csrc/cpu/predictor.cpp
# has its own.)
_ROWS = 1 << 17

_Csr = tuple[int, int, int, int, int]  # as graph_addresses has it


class NativePredictor:
    """The kernels for CPUs: whole networks in one call (csrc/cpu/predictor.hpp).

    native: the object that engines of rollouts take.
    """

    @torch.no_grad()
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
            of_windows, self._window = density_weights(model.window_potentials)
            window_potentials = (*of_windows, addresses(self._window))
        dipole = None
        if model.dipole is not None:
            of_charges, self._dipole = density_weights(model.dipole)
            dipole = (*of_charges, addresses(self._dipole))
        self.native = _C.Predictor(
            real=self.dtype == torch.float64,
            members=[[block.native for block in blocks.native] for blocks in members],
            embeddings=addresses(self._embeddings),
            species=len(config.species),
            species_channels=config.sp_embed_dim,
            time_channels=config.t_embed_dim,
            radial_cutoff=config.radial_cutoff,
            running=config.residual == "running",
            conserving=config.head == "conserving",
            readout=config.velocity_readout,
            time_cutoff=config.time_cutoff,
            potential=potential,
            window_potentials=window_potentials,
            dipole=dipole,
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
        """Atomic energies [atoms] (eV): of the window potentials where the model has them, else of
        its potential."""
        return self._scalars(graph, self.native.energies)

    def slopes(self, graph: Graph, role: int) -> tuple[Tensor, Tensor]:
        """Atomic energies [atoms] (eV) and the slopes of their sum, float64 [atoms, 3] (eV/Å).

        Those of a window potential, all atoms in one role. Of each molecule they are the same bits,
        whatever else is in the graph.
        """
        slopes = torch.empty(graph.atoms, 3, dtype=torch.float64)

        def kernel(csr: _Csr, species: int, energy: int, threads: int) -> None:
            self.native.slopes(csr, species, role, energy, slopes.data_ptr(), threads)

        return self._scalars(graph, kernel), slopes

    def charges(self, graph: Graph) -> Tensor:
        """Charges [atoms] (e) up to a constant of each component, of a model with a dipole."""
        return self._scalars(graph, self.native.charges)

    def _scalars(self, graph: Graph, kernel: Callable[[_Csr, int, int, int], None]) -> Tensor:
        """What a kernel writes for each atom [atoms]: it takes the addresses of the graph, of
        species and of that, and how many threads."""
        csr, species = CSR(*ready(graph.csr)), graph.species.contiguous()
        check_tensors(self.dtype, (*csr, species))
        found = torch.empty(graph.atoms, dtype=self.dtype)
        kernel(graph_addresses(csr), species.data_ptr(), found.data_ptr(), threads_for(csr, 1))
        return found


class TorchPredictor:
    """Any other backend: its attention blocks and, where it has kernels for them, window potentials
    and charges, with plain torch around them."""

    @torch.no_grad()
    def __init__(self, model: MDtrajNet, backend: str):
        self._model = copy.deepcopy(model).requires_grad_(False)
        self._members = self._model.prepare(backend)
        native = BACKENDS[backend].native

        def kernels(of: DensityNetwork | None) -> AtomicScalars | None:
            if of is None or native is None:
                return None
            # packed on the CPU, where the radial functions are tabulated
            made: AtomicScalars = native.AtomicScalars(
                *density_weights(copy.deepcopy(of).cpu()), model.device
            )
            return made

        self._window_potentials = kernels(self._model.window_potentials)
        self._charges = kernels(self._model.dipole)

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
        if self._window_potentials is not None:
            return self._window_potentials.values(graph.csr, graph.species, ENERGY)
        if (potentials := self._model.window_potentials) is not None:
            return potentials(graph, torch.full_like(graph.species, ENERGY))
        assert self._model.potential is not None
        return self._model.potential(graph)

    def slopes(self, graph: Graph, role: int) -> tuple[Tensor, Tensor]:
        """As :meth:`NativePredictor.slopes`, but for the bits."""
        if self._window_potentials is not None:
            return self._window_potentials.slopes(graph.csr, graph.species, role)
        assert self._model.window_potentials is not None
        roles = torch.full_like(graph.species, role)
        energy, slopes = self._model.window_potentials.slopes(graph, roles)
        return energy, slopes.double()

    @torch.no_grad()
    def charges(self, graph: Graph) -> Tensor:
        """As :meth:`NativePredictor.charges`."""
        if self._charges is not None:
            return self._charges.values(graph.csr, graph.species, 0)
        assert self._model.dipole is not None
        return self._model.dipole.charges(graph)


Predictor = NativePredictor | TorchPredictor
