"""Pairs of frames in the memory of the model's device: batches made where they are used.

The host draws which pairs (:meth:`Pairs.choose`), a few numbers each; the device makes the flat
graph of the batch without waiting. For molecules: all pairs of atoms of a molecule are tried. What
a batch's sizes depend on, the edges and components of every frame, is counted once at the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model.network import MDtrajNet
from ..ops import Graph
from ..ops.graph import FixedSizeGraph
from .pairs import SLOPE, Batch, Choice, Pairs
from .records import Record

# Pairs of atoms looked at in one go when frames are counted: bounds memory.
_PAIRS = 1 << 22
# As the neighbour list: closer atoms (Å) coincide.
_COINCIDENT = 1e-6


class TensorBatch(NamedTuple):
    """A :class:`~mdtrajnet_fast.data.pairs.Batch` in tensors on a model's device."""

    graph: Graph
    t: Tensor  # [atoms] fs
    displacement: Tensor  # [atoms, 3] Å
    velocity: Tensor  # [atoms, 3] Å/fs


def tensor_batch(model: MDtrajNet, batch: Batch) -> TensorBatch:
    """A batch as a model takes it."""
    graph = model.graph(batch.system)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(graph.r)

    return TensorBatch(graph, tensor(batch.t), tensor(batch.displacement), tensor(batch.velocity))


class WindowBatch(NamedTuple):
    """Pairs that are one window long, in tensors on a model's device."""

    # of copies of the atoms at these positions, float64 [copies, atoms, 3] Å
    graph: Callable[[Tensor], Graph]
    masses: Tensor  # [atoms] amu
    positions: Tensor  # float64 [atoms, 3] Å, at the start
    velocities: Tensor  # [atoms, 3] Å/fs, there
    accelerations: Tensor  # [atoms, 3] Å/fs^2, there
    displacement: Tensor  # [atoms, 3] Å, at the end
    end_velocities: Tensor  # [atoms, 3] Å/fs, there


def window_batch(model: MDtrajNet, pairs: Pairs, choice: Choice) -> WindowBatch:
    """Pairs that were chosen, of one window each, as a model takes them."""
    batch = pairs.batch(choice)
    system = batch.system

    def real(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(model.device, model.dtype)

    return WindowBatch(
        lambda x: model.graph(system.copies(x.cpu().numpy())),
        real(system.masses),
        torch.from_numpy(system.positions).to(model.device),
        real(system.velocities),
        real(pairs.accelerations(choice)),
        real(batch.displacement),
        real(batch.velocity),
    )


class ResidentPairs:
    """The frames of `pairs` on the device of `model`, to draw batches from.

    Takes 26 bytes an atom and frame of the device's memory. Raises ValueError for periodic systems,
    elements that the model does not know and frames in which atoms coincide.
    """

    def __init__(self, pairs: Pairs, model: MDtrajNet):
        self.pairs, self.device, self.dtype = pairs, model.device, model.dtype
        self._cutoff2 = model.config.radial_cutoff**2
        records = pairs.records
        for record in records:
            if record.pbc.any():
                raise ValueError(
                    f"{record.molecule}/{record.trajectory} is periodic, but pairs on the device "
                    "are of molecules; draw from Pairs itself"
                )

        def resident(arrays: list[np.ndarray], dtype: torch.dtype | None = None) -> Tensor:
            whole = torch.cat([torch.from_numpy(np.ascontiguousarray(x)) for x in arrays])
            return whole.to(self.device, dtype)

        self._positions = resident([r.positions.reshape(-1, 3) for r in records])
        self._velocities = resident([r.velocities.reshape(-1, 3) for r in records])
        self._masses = resident([r.masses for r in records], self.dtype)
        self._species = resident([model.species_index(r.numbers) for r in records])
        self._atoms = np.array([len(r.numbers) for r in records])
        self._frame_fs = np.array([r.frame_fs for r in records])
        frames = np.array([len(r.positions) for r in records])
        self._row = np.concatenate([[0], np.cumsum(self._atoms * frames)])
        self._frame = np.concatenate([[0], np.cumsum(frames)])
        self._kind = np.concatenate([[0], np.cumsum(self._atoms)])

        counted = [self._count(r, x) for r, x in zip(records, self._frames(), strict=True)]
        labels, edges, components = zip(*counted, strict=True)
        self._label = torch.cat(labels)  # first atom of each atom's component, in its molecule
        self._edges = torch.cat(edges).cpu().numpy()  # of each frame
        self._components = torch.cat(components).cpu().numpy()

    def _frames(self) -> list[Tensor]:
        sizes = np.diff(self._row).tolist()
        parts = self._positions.split(sizes)
        return [x.view(-1, n, 3) for x, n in zip(parts, self._atoms.tolist(), strict=True)]

    def _near(self, d: Tensor) -> Tensor:
        """Which of the vectors [.., 3] are within the cutoff: in float64, as neighbour lists do."""
        x, y, z = d.unbind(-1)
        return x * x + y * y + z * z <= self._cutoff2

    def _count(self, record: Record, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Labels [frames x atoms] int16 of components; edges and components [frames]."""
        n = frames.shape[1]
        own = torch.eye(n, dtype=torch.bool, device=self.device)
        labels, edges, components = [], [], []
        for x in frames.split(max(1, _PAIRS // n**2)):
            x = x.double()
            d = x[:, None] - x[:, :, None]
            if (d.abs().amax(-1) < _COINCIDENT).logical_and(~own).any():
                raise ValueError(
                    f"{record.molecule}/{record.trajectory} has frames in which atoms coincide; "
                    "leave the trajectory out with exclude_trajectories"
                )
            near = self._near(d)
            edges.append(near.sum((1, 2)) - n)
            for _ in range(max(1, n - 1).bit_length()):  # ways of 1, 2, 4, ... steps
                near = near.to(self.dtype).matmul(near.to(self.dtype)) > 0
            label = near.to(torch.uint8).argmax(-1)
            components.append((label == torch.arange(n, device=self.device)).sum(1))
            labels.append(label.to(torch.int16).view(-1))
        return torch.cat(labels), torch.cat(edges), torch.cat(components)

    def batch(self, choice: Choice) -> TensorBatch:
        """The batch that `pairs.batch` gives, as tensors."""
        record, first, last, t, sign = choice
        sizes = self._atoms[record]
        total, squares = int(sizes.sum()), int((sizes**2).sum())
        frame = self._frame[record] + first
        edges, components = int(self._edges[frame].sum()), int(self._components[frame].sum())
        row = self._row[record]
        whole = np.stack([sizes, row + first * sizes, row + last * sizes, self._kind[record]])
        n, first_row, last_row, kind = self._send(whole)
        lag, turned = self._send(np.stack([t, sign]))

        # atoms
        system, within, ptr = self._expand(n, total)
        a, b = first_row[system] + within, last_row[system] + within
        flip = turned[system, None]
        x, v = self._positions[a].double(), self._velocities[a].double() * flip
        head = ptr[system] + self._label[a]  # first atom of the component
        number = (head == torch.arange(total, device=self.device)).cumsum(0) - 1

        # edges: the pairs of atoms in order, of which those within the cutoff move up
        of_pair, k, pair_ptr = self._expand(n * n, squares)
        size = n[of_pair]
        i, j = ptr[of_pair] + k // size, ptr[of_pair] + k % size
        near = self._near(x[j] - x[i]) & (i != j)
        so_far = near.cumsum(0)
        ends = pair_ptr[system] + (within + 1) * n[system] - 1
        slot = torch.where(near, so_far - 1, edges)
        kept = slot.new_zeros(edges + 1)
        kept = kept.scatter_(0, slot, torch.arange(squares, device=self.device))[:edges]
        i, j = i[kept], j[kept]

        def real(y: Tensor) -> Tensor:
            return y.to(self.dtype)

        number_of = kind[system] + within
        graph = Graph(
            species=self._species[number_of],
            masses=self._masses[number_of],
            velocities=real(v),
            component=number[head],
            components=components,
            row_ptr=torch.cat([ends.new_zeros(1), so_far[ends]]),
            neighbor=j,
            r=real(x[j] - x[i]),
            w=real(v[j] - v[i]),
        )
        return TensorBatch(
            graph,
            real(lag[system]),
            real(self._positions[b].double() - x),
            real(self._velocities[b].double() * flip),
        )

    def windows(self, choice: Choice) -> WindowBatch:
        """The batch of :func:`window_batch`, but that all atoms of a molecule are neighbours: of
        those beyond the cutoff nothing is seen."""
        record, first, last, _, sign = choice
        sizes = self._atoms[record]
        total, edges = int(sizes.sum()), int((sizes * (sizes - 1)).sum())
        row = self._row[record]
        whole = np.stack([sizes, row + first * sizes, row + last * sizes, self._kind[record]])
        n, first_row, last_row, kind = self._send(whole)
        turned, frame_fs = self._send(np.stack([sign, self._frame_fs[record]]))
        system, within, ptr = self._expand(n, total)
        a, b = first_row[system] + within, last_row[system] + within
        flip, size = turned[system, None], n[system]

        def velocities(row: Tensor) -> Tensor:
            return self._velocities[row].double()

        slope = torch.zeros_like(self._positions[a], dtype=torch.float64)
        for k, weight in enumerate(SLOPE, start=1):
            slope += weight * (velocities(a + k * size) - velocities(a - k * size))
        centre, other, _ = self._expand(size - 1, edges)
        neighbor = ptr[system[centre]] + other + (other >= within[centre])

        def real(y: Tensor) -> Tensor:
            return y.to(self.dtype)

        number_of = kind[system] + within
        species, masses = self._species[number_of], self._masses[number_of]
        x, v = self._positions[a].double(), real(velocities(a) * flip)

        def graph(x: Tensor) -> Graph:
            copies = len(x)
            of_copy = total * torch.arange(copies, device=self.device)[:, None]
            r = real(x[:, neighbor] - x[:, centre]).flatten(0, 1)
            degree = (size - 1).repeat(copies)
            return FixedSizeGraph(
                species=species.repeat(copies),
                masses=masses.repeat(copies),
                velocities=v.repeat(copies, 1),
                component=(system + len(record) * (of_copy // total)).flatten(),
                components=copies * len(record),
                row_ptr=torch.cat([degree.new_zeros(1), degree.cumsum(0)]),
                neighbor=(neighbor + of_copy).flatten(),
                r=r,
                w=torch.zeros_like(r),
                slots=max(1, int(sizes.max()) - 1),
            )

        return WindowBatch(
            graph,
            masses,
            x,
            v,
            real(slope / frame_fs[system, None]),
            real(self._positions[b].double() - x),
            real(velocities(b) * flip),
        )

    def _send(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _expand(self, sizes: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each of `total` items: its group and its place there; and the groups' first items."""
        every = torch.arange(len(sizes), device=self.device)
        group = every.repeat_interleave(sizes, output_size=total)
        ptr = sizes.cumsum(0) - sizes
        return group, torch.arange(total, device=self.device) - ptr[group], ptr
