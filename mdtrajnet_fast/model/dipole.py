"""Dipole moments of neutral molecules, from charges of their atoms.

    mu = sum_i (q_i - q) r_i,    q: the mean of q_i in each connected component

is that of a neutral component whatever the q_i, turns with it and does not depend on where it is.
The charges depend on the surroundings of the atoms, so that mu moves with what a vibration does to
the electrons (O. T. Unke, M. Meuwly, J. Chem. Theory Comput. 15, 3678 (2019), who spread the excess
charge over the atoms alike). They are made to give the dipoles and are no population analysis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import Graph
from ..system import System
from .density_network import DensityNetwork


class Dipole(DensityNetwork):
    """Charges (e) of atoms, up to a constant of each component: a :class:`.DensityNetwork`."""

    def charges(self, graph: Graph) -> Tensor:
        """[atoms] e."""
        return self(graph, torch.zeros_like(graph.species))


def dipole_moments(charges: Tensor, graph: Graph, system: System) -> Tensor:
    """Of the systems of a graph, float64 [systems, 3] e Å, from charges [atoms] (e).

    Places count from the middle of each component, which takes out the mean of its charges.
    """
    charges = charges.double()
    places = torch.from_numpy(system.positions).to(charges)
    own = graph.component
    middle = places.new_zeros(graph.components, 3).index_add(0, own, places)
    places = places - (middle / torch.bincount(own)[:, None])[own]
    owner = torch.from_numpy(system.system_index).to(own)
    return places.new_zeros(len(system), 3).index_add(0, owner, charges[:, None] * places)
