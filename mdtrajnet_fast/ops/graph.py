"""What the attention blocks need to know of a geometry, as tensors on one device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..neighbors.host import Edges, connected_components, edge_vectors
from ..system import System


class Padded(NamedTuple):
    """Neighbours with one row per atom, padded to the longest row.

    A padding slot points at its own atom, a unit vector away, so that it stays finite everywhere.
    """

    neighbor: Tensor  # [atoms, slots] int64
    mask: Tensor  # [atoms, slots] bool, True for a real neighbour
    r: Tensor  # [atoms, slots, 3] Å
    w: Tensor  # [atoms, slots, 3] Å/fs


class CSR(NamedTuple):
    """Edges sorted by centre, as the kernels see them."""

    row_ptr: Tensor  # [atoms + 1] int64
    neighbor: Tensor  # [edges] int64
    r: Tensor  # [edges, 3] Å, from centre to neighbour
    w: Tensor  # [edges, 3] Å/fs

    def times(self, state: Tensor) -> int:
        """How many copies of the atoms a state [times x atoms, .] holds."""
        atoms = self.row_ptr.shape[0] - 1
        times, rest = divmod(state.shape[0], max(1, atoms))
        if rest:
            raise ValueError(
                f"the state has {state.shape[0]} rows, but must have one for each of the graph's "
                f"{atoms} atoms, or a multiple of that (several times)"
            )
        return times


@dataclass(frozen=True)
class Graph:
    """Neighbours and relative motion at the input geometry, sorted by centre (CSR).

    Only differences enter, taken in float64 before they are cast: the distance from the origin and
    the centre-of-mass velocity cost no precision.
    """

    species: Tensor  # [atoms] int64, index into the model's species
    masses: Tensor  # [atoms] amu
    velocities: Tensor  # [atoms, 3] Å/fs
    component: Tensor  # [atoms] int64, connected component of the neighbour graph
    components: int
    row_ptr: Tensor  # [atoms + 1] int64
    neighbor: Tensor  # [edges] int64
    r: Tensor  # [edges, 3] Å, from centre to neighbour
    w: Tensor  # [edges, 3] Å/fs, velocity of the neighbour less that of the centre

    @classmethod
    def build(
        cls,
        system: System,
        species: np.ndarray,
        edges: Edges,
        *,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> Graph:
        """The graph of a system with its neighbour list; species: [atoms] indices."""
        r, w = edge_vectors(
            edges,
            system.positions,
            system.velocities,
            system.cell,
            system.pbc,
            system.ptr,
            float64=dtype == torch.float64,
        )
        component = connected_components(edges)
        on_cpu = device is None or torch.device(device).type == "cpu"
        precision = np.float64 if dtype == torch.float64 else np.float32

        def tensor(array: np.ndarray, kind: type) -> Tensor:
            x = torch.from_numpy(np.ascontiguousarray(array, kind))
            return x if on_cpu else x.to(device)

        return cls(
            species=tensor(species, np.int64),
            masses=tensor(system.masses, precision),
            velocities=tensor(system.velocities, precision),
            component=tensor(component, np.int64),
            components=int(component.max()) + 1,
            row_ptr=tensor(edges.row_ptr, np.int64),
            neighbor=tensor(edges.neighbor, np.int64),
            r=tensor(r, precision),
            w=tensor(w, precision),
        )

    @property
    def atoms(self) -> int:
        """Number of atoms."""
        return self.species.shape[0]

    @cached_property
    def centre(self) -> Tensor:
        """The atom in whose row each edge is, int64 [edges]."""
        degree = self.row_ptr.diff()
        return torch.repeat_interleave(torch.arange(self.atoms, device=degree.device), degree)

    @property
    def csr(self) -> CSR:
        """The edges alone."""
        return CSR(self.row_ptr, self.neighbor, self.r, self.w)

    def repeat(self, times: int) -> Graph:
        """The same graph `times` times over, as independent systems."""
        if times == 1:
            return self
        offset = torch.arange(times, device=self.species.device)
        edges = self.neighbor.shape[0]
        row_ptr = (self.row_ptr[:-1] + edges * offset[:, None]).reshape(-1)
        return Graph(
            species=self.species.repeat(times),
            masses=self.masses.repeat(times),
            velocities=self.velocities.repeat(times, 1),
            component=(self.component + self.components * offset[:, None]).reshape(-1),
            components=self.components * times,
            row_ptr=torch.cat([row_ptr, row_ptr.new_tensor([edges * times])]),
            neighbor=(self.neighbor + self.atoms * offset[:, None]).reshape(-1),
            r=self.r.repeat(times, 1),
            w=self.w.repeat(times, 1),
        )

    @cached_property
    def padded(self) -> Padded:
        """The neighbours as rows of equal length."""
        degree = self.row_ptr[1:] - self.row_ptr[:-1]
        slots = int(degree.max()) if self.atoms else 0
        slot = torch.arange(slots, device=degree.device)
        mask = slot < degree[:, None]  # [atoms, slots]
        rows = torch.arange(self.atoms, device=degree.device)[:, None].expand(-1, slots)
        neighbor = torch.where(mask, 0, rows)
        neighbor[mask] = self.neighbor
        r = self.r.new_zeros(self.atoms, slots, 3)
        r[..., 0] = 1.0
        r[mask] = self.r
        w = self.w.new_zeros(self.atoms, slots, 3)
        w[mask] = self.w
        return Padded(neighbor, mask, r, w)

    def component_mean(self, x: Tensor) -> Tensor:
        """Mass-weighted mean of x [times x atoms, 3] over each connected component, per atom."""
        mass = self.masses.new_zeros(self.components).index_add(0, self.component, self.masses)
        weighted = self.masses[:, None] * x.view(-1, self.atoms, 3)
        total = x.new_zeros(weighted.shape[0], self.components, 3).index_add(
            1, self.component, weighted
        )
        return (total / mass[:, None])[:, self.component].view_as(x)


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
        edge, mask = rows(self.row_ptr, len(self.neighbor), self.slots)
        own = torch.arange(self.atoms, device=mask.device)[:, None]
        away = torch.eye(1, 3, dtype=self.r.dtype, device=mask.device)
        real = mask[..., None]
        return Padded(
            torch.where(mask, self.neighbor[edge], own),
            mask,
            torch.where(real, self.r.index_select(0, edge.flatten()).view(*edge.shape, 3), away),
            torch.where(real, self.w.index_select(0, edge.flatten()).view(*edge.shape, 3), 0.0),
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


def rows(row_ptr: Tensor, room: int, slots: int) -> tuple[Tensor, Tensor]:
    """Edges of each atom, [atoms, slots], and which of them there are."""
    slot = torch.arange(slots, device=row_ptr.device)
    mask = slot < row_ptr.diff()[:, None]
    return (row_ptr[:-1, None] + slot).clamp(max=room - 1), mask
