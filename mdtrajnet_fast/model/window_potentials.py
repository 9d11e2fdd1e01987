"""Potentials whose kicks make a window: motion that is symplectic whatever the weights.

A window of h fs starts and ends with a kick of one potential, and has a kick of another one in
its middle; atoms fly freely between them (:mod:`..md.window`). Each kick is the slope of a function
of the positions alone. All three potentials share their layers:

    ENERGY  the potential energy itself, up to a constant for each molecule
    ENDS    of the kicks at both ends: h/6 of its slope
    MIDDLE  of the kick in the middle: 2h/3 of its slope

For h -> 0 they are the same; with terms of h^2 in MIDDLE the window is the fourth-order integrator
4A of S. A. Chin (Phys. Lett. A 226, 344 (1997)). For the window that they are trained for they take
in all that functions of the positions can: a vibration of frequency w is exact if its w^2 is, with
x = w h, 6 w^2 (2 - x cot(x / 2)) / x^2 in ENDS and 6 w^2 (1 - sin(x) / x) / x^2 in MIDDLE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..ops import Graph
from ..ops.window_slopes import window_slopes
from .config import WindowPotentialsConfig
from .density_network import DensityNetwork
from .packed_weights import density_weights

ENERGY, ENDS, MIDDLE = ROLES = range(3)
# Atoms whose features are computed at a time: a crystal's would take some 20 kB an atom.
_AT_ONCE = 4096


class WindowPotentials(DensityNetwork):
    """Sums of atomic energies (eV), the scalars of a :class:`.DensityNetwork` in three roles.

    config: sizes. species: number of elements. cutoff: Å.
    """

    def __init__(self, config: WindowPotentialsConfig, species: int, cutoff: float):
        super().__init__(config, species, cutoff, len(ROLES))
        self.rigidity: Tensor
        if config.usual_uncertainty is not None:
            width = config.layers * config.hidden
            self.register_buffer("rigidity", torch.zeros(width, width))

    def features(self, graph: Graph) -> Tensor:
        """What the layers know of each atom, without gradients: [atoms, layers x hidden]."""
        with torch.no_grad():
            return self.known(graph, torch.full_like(graph.species, ENERGY), _AT_ONCE).flatten(1)

    def uncertainties(self, graph: Graph) -> Tensor:
        """How far forces are expected to be off: [atoms] eV/Å, root mean square of a component.

        By the local prediction rigidity of the last layer: sqrt(f . A f) of what the layers know
        of an atom, f, where A is the inverse of its mean f f^T in the training data, times a factor
        that is set by true errors on validation data (Bigi, Chong, Ceriotti, Grasselli, Mach.
        Learn.: Sci. Technol. 2024, 5, 045018; :mod:`..train.calibrate`). The buffer `rigidity` is
        a square root of that. Only where the configuration has `usual_uncertainty`.
        """
        parts = self.features(graph).split(_AT_ONCE)
        return torch.cat([(part @ self.rigidity).square().sum(1).sqrt() for part in parts])

    def slopes(
        self, graph: Graph, role: Tensor, *, learning: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Atomic energies [atoms] (eV), and the slopes of their sum [atoms, 3] (eV/Å).

        learning: whether gradients of the slopes will be asked for.
        """
        energy, along = self._along_edges(graph, role, learning)
        slopes = along.new_zeros(graph.atoms + 1, 3)  # the last is for edges that no atom has
        slopes = slopes.index_add(0, graph.neighbor, along).index_add(0, graph.centre, -along)[:-1]
        return energy if learning else energy.detach(), slopes

    def native_slopes(self) -> Callable[[Graph, Tensor], tuple[Tensor, Tensor]]:
        """As :meth:`slopes`, by the kernels for CPUs; gradients are of the weights alone.

        These are packed here, once for all calls.
        """
        sizes, weights = density_weights(self)

        def slopes(graph: Graph, role: Tensor) -> tuple[Tensor, Tensor]:
            return window_slopes(sizes, weights, graph.csr, graph.species, role)

        return slopes

    def virial(self, graph: Graph, role: Tensor) -> Tensor:
        """How the sum of the atomic energies changes with a strain of all edges, [3, 3] (eV)."""
        _, along = self._along_edges(graph, role, learning=False)
        found = graph.r.detach().double().T @ along.double()
        return (found + found.T) / 2

    def _along_edges(self, graph: Graph, role: Tensor, learning: bool) -> tuple[Tensor, Tensor]:
        """Atomic energies, and the slopes of their sum with the edges' vectors [edges, 3]."""
        with torch.enable_grad():
            graph = replace(graph, r=graph.r.detach().requires_grad_(True))
            energy = self(graph, role)
            (along,) = torch.autograd.grad(energy.sum(), graph.r, create_graph=learning)
        return energy, along
