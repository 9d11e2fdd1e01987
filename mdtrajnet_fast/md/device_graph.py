"""Graphs made on a device, of fixed sizes where nothing may wait for the host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..model.network import MDtrajNet
from ..neighbors.device import Cells, DeviceEdges, device_neighbor_list, edge_vectors
from ..ops import Graph
from ..ops.graph import Padded
from ..system import System

# Rounds of the search for components at first; doubled when a system needs more.
ROUNDS = 8


@dataclass(frozen=True)
class FixedSizeGraph(Graph):
    """A graph with room for more edges than row_ptr counts, and for `slots` neighbours of an atom.

    Edges beyond the last row end in some atom but belong to none.
    """

    slots: int

    @cached_property
    def centre(self) -> Tensor:
        """As for every graph; the number of atoms for edges beyond the last row."""
        edge = torch.arange(len(self.neighbor), device=self.row_ptr.device)
        return torch.searchsorted(self.row_ptr[1:], edge, right=True)

    @cached_property
    def padded(self) -> Padded:
        """The neighbours as rows of `slots`; those beyond are left out."""
        edge, mask = _rows(self.row_ptr, len(self.neighbor), self.slots)
        own = torch.arange(self.atoms, device=mask.device)[:, None]
        away = torch.eye(1, 3, dtype=self.r.dtype, device=mask.device)
        real = mask[..., None]
        return Padded(
            torch.where(mask, self.neighbor[edge], own),
            mask,
            torch.where(real, self.r[edge], away),
            torch.where(real, self.w[edge], 0.0),
        )

    def repeat(self, times: int) -> FixedSizeGraph:
        """The same graph `times` times over: the copies' edges one after another, then the room."""
        if times == 1:
            return self
        edges, copies = self.row_ptr[-1], torch.arange(times, device=self.row_ptr.device)
        slot = torch.arange(times * len(self.neighbor), device=edges.device)
        copy = (slot // edges.clamp(min=1)).clamp(max=times - 1)
        edge = slot % edges.clamp(min=1)
        row_ptr = (self.row_ptr[:-1] + edges * copies[:, None]).reshape(-1)
        return FixedSizeGraph(
            species=self.species.repeat(times),
            masses=self.masses.repeat(times),
            velocities=self.velocities.repeat(times, 1),
            component=(self.component + self.components * copies[:, None]).reshape(-1),
            components=self.components * times,
            row_ptr=torch.cat([row_ptr, (edges * times)[None]]),
            neighbor=self.neighbor[edge] + self.atoms * copy,
            r=self.r[edge],
            w=self.w[edge],
            slots=self.slots,
        )


def _rows(row_ptr: Tensor, room: int, slots: int) -> tuple[Tensor, Tensor]:
    """Edges of each atom, [atoms, slots], and which of them there are."""
    slot = torch.arange(slots, device=row_ptr.device)
    mask = slot < row_ptr.diff()[:, None]
    return (row_ptr[:-1, None] + slot).clamp(max=room - 1), mask


def components(edges: DeviceEdges, slots: int, rounds: int) -> tuple[Tensor, Tensor]:
    """The first atom of each atom's connected component [atoms], and whether the search is over.

    Every atom points at an atom of its component with a lower index, or at itself. In a round, who
    sees a lower index among the targets of its neighbours' targets takes it over, for itself and
    for its own target (FastSV: Zhang, Azad, Hu, SIAM PP 2020): 5 rounds for a crystal of 64,000
    atoms, 18 for a chain of 100,000. Rows of more than `slots` neighbours are cut.
    """
    edge, mask = _rows(edges.row_ptr, len(edges.neighbor), slots)
    own = torch.arange(len(mask), device=mask.device)
    neighbor = torch.where(mask, edges.neighbor[edge].long(), own[:, None])
    label = own
    for _ in range(rounds):
        target = label[label]
        least = target[neighbor].amin(1).minimum(target)
        lower = least < target
        label = label.scatter_reduce(
            0, torch.where(lower, label, own), torch.where(lower, least, label), "amin"
        ).minimum(least)
    over = (label[neighbor] == label[:, None]).all() & (label[label] == label).all()
    return label, over


def device_graph(model: MDtrajNet, system: System) -> Graph:
    """The graph of a system as :meth:`MDtrajNet.graph` makes it, made on the model's device.

    Sizes are exact, and the host waits for them. Raises ValueError for unknown elements and what
    the neighbour list refuses.
    """
    device = model.device
    species = torch.from_numpy(model.species_index(system.numbers)).to(device)
    cells = Cells.of(system, device)
    x, v = (torch.from_numpy(y).to(device) for y in (system.positions, system.velocities))
    edges = device_neighbor_list(x, model.config.radial_cutoff, cells)
    slots, rounds = int(edges.row_ptr.diff().max()), ROUNDS
    if slots:
        label, over = components(edges, slots, rounds)
        while not over:
            rounds *= 2
            label, over = components(edges, slots, rounds)
    else:
        label = torch.arange(len(x), device=device)
    number = (label == torch.arange(len(x), device=device)).cumsum(0) - 1
    r, w = edge_vectors(x, v, edges, cells, model.dtype)
    return Graph(
        species=species,
        masses=torch.from_numpy(system.masses).to(device, model.dtype),
        velocities=v.to(model.dtype),
        component=number[label],
        components=int(number[-1]) + 1,
        row_ptr=edges.row_ptr,
        neighbor=edges.neighbor.long(),
        r=r,
        w=w,
    )
