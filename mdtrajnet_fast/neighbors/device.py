"""Neighbour lists of positions that are tensors, on the device where they are.

On a CUDA device the search is csrc/cuda/neighbors.cu, on the current stream; on the CPU it is that
of :mod:`mdtrajnet_fast.neighbors.host` behind the same interface, so that what is built on it runs
without a GPU. The lists are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _C
from ..system import System
from .host import Edges, NeighborList, neighbor_list

_UNLIMITED = 2**63 - 1


class DeviceEdges(NamedTuple):
    """A full neighbour list, as :class:`~mdtrajnet_fast.neighbors.host.Edges`, in tensors.

    There may be room for more edges than there are, row_ptr[-1]; the rest of `neighbor` and `shift`
    means nothing, but every neighbour is the index of an atom.
    """

    row_ptr: Tensor  # int64 [atoms + 1]
    neighbor: Tensor  # int32 [room]
    shift: Tensor  # int32 [room, 3]

    def centres(self) -> Tensor:
        """The atom in whose row each edge is, int64 [room]; the last atom beyond the last row."""
        edge = torch.arange(len(self.neighbor), device=self.row_ptr.device)
        centre = torch.searchsorted(self.row_ptr[1:], edge, right=True)
        return centre.clamp(max=max(0, len(self.row_ptr) - 2))


@dataclass(frozen=True)
class Cells:
    """Which atoms form a system, and how it is periodic, on one device."""

    ptr: Tensor  # int64 [systems + 1]
    cell: Tensor | None  # float64 [systems, 3, 3] Å; None where no system is periodic
    pbc: Tensor | None  # uint8 [systems, 3]

    @classmethod
    def of(cls, system: System, device: torch.device) -> Cells:
        """Those of a system."""
        ptr = torch.from_numpy(system.ptr).to(device)
        if not system.pbc.any():
            return cls(ptr, None, None)
        cell = torch.from_numpy(system.cell.copy()).to(device)
        return cls(ptr, cell, torch.from_numpy(system.pbc.astype("uint8")).to(device))

    @cached_property
    def system(self) -> Tensor:
        """int64 [atoms], the system each atom belongs to."""
        index = torch.arange(len(self.ptr) - 1, device=self.ptr.device)
        return index.repeat_interleave(self.ptr.diff())

    def arguments(self) -> dict:
        """What :func:`~mdtrajnet_fast.neighbors.host.neighbor_list` takes beside positions."""
        if self.cell is None or self.pbc is None:
            return {"ptr": self.ptr.cpu().numpy()}
        cell, pbc = self.cell.cpu().numpy(), self.pbc.cpu().numpy().astype(bool)
        return {"cell": cell, "pbc": pbc, "ptr": self.ptr.cpu().numpy()}


def _on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream


def _systems(positions: Tensor, cells: Cells) -> _C.CudaSystems:
    return _C.CudaSystems(
        positions.data_ptr(),
        len(positions),
        cells.ptr.data_ptr(),
        len(cells.ptr) - 1,
        0 if cells.cell is None else cells.cell.data_ptr(),
        0 if cells.pbc is None else cells.pbc.data_ptr(),
    )


def _check(positions: Tensor) -> None:
    if positions.dtype != torch.float64 or not positions.is_contiguous():
        raise ValueError(
            f"positions must be float64 and contiguous, got {positions.dtype} with strides "
            f"{positions.stride()}; use positions.double().contiguous()"
        )


class _Search:
    """Room for the search of a given number of atoms and systems."""

    def __init__(self, positions: Tensor, cells: Cells):
        _check(positions)
        self.cells = cells
        size, self.skin_size = _C.cuda_neighbor_bytes(len(positions), len(cells.ptr) - 1)
        self.workspace = positions.new_empty(size, dtype=torch.uint8)
        self.row_ptr = cells.ptr.new_zeros(len(positions) + 1)
        self.status = cells.ptr.new_zeros(2)  # refused and overflow as int32, edges

    def count(self, positions: Tensor, cutoff: float) -> int:
        """How many edges there are, read back from the device; row_ptr is written.

        Raises ValueError for what :func:`~mdtrajnet_fast.neighbors.host.neighbor_list` refuses.
        """
        with torch.cuda.device_of(positions):
            _C.cuda_count_neighbors(
                _systems(positions, self.cells),
                cutoff,
                _UNLIMITED,
                self.workspace.data_ptr(),
                self.row_ptr.data_ptr(),
                self.status.data_ptr(),
                _stream(positions),
            )
        state, edges = self.status.tolist()
        if state:
            neighbor_list(positions.cpu().numpy(), cutoff, **self.cells.arguments())
            raise AssertionError("the GPU refuses positions that the CPU takes")
        return edges


def device_neighbor_list(positions: Tensor, cutoff: float, cells: Cells) -> DeviceEdges:
    """All pairs with 0 < |r| <= cutoff, in arrays of their exact size, which the host waits for.

    positions: float64 [atoms, 3], Å. Raises ValueError for what
    :func:`~mdtrajnet_fast.neighbors.host.neighbor_list` refuses, and for another dtype.
    """
    if not _on_gpu(positions):
        _check(positions)
        return _tensors(neighbor_list(positions.numpy(), cutoff, **cells.arguments()))
    search = _Search(positions, cells)
    room = search.count(positions, cutoff)
    neighbor = positions.new_empty(room, dtype=torch.int32)
    shift = positions.new_empty((room, 3), dtype=torch.int32)
    with torch.cuda.device_of(positions):
        _C.cuda_fill_neighbors(
            _systems(positions, cells),
            cutoff,
            search.workspace.data_ptr(),
            search.row_ptr.data_ptr(),
            neighbor.data_ptr(),
            shift.data_ptr(),
            search.status.data_ptr(),
            _stream(positions),
        )
    return DeviceEdges(search.row_ptr, neighbor, shift)


def _tensors(edges: Edges) -> DeviceEdges:
    return DeviceEdges(*map(torch.from_numpy, (edges.row_ptr, edges.neighbor, edges.shift)))


class Status(NamedTuple):
    """What became of an update of a :class:`SkinNeighbors`."""

    refused: int  # 1: positions are not finite, or atoms coincide
    overflow: int  # 1: there is no room for the edges, and the list is empty
    edges: int  # within the cutoff; 0 where not even the skin's list has room
    reach: int  # within cutoff + skin


class SkinNeighbors:
    """The neighbour list of moving atoms, in arrays of fixed size: nothing waits for the host.

    Equal to a fresh list at every update. A list within cutoff + skin is searched anew once an atom
    has moved more than skin / 2 since (less its system's drift), which the device decides. `update`
    can be captured in a CUDA graph, with positions that stay where they are in memory.

    positions: float64 [atoms, 3], Å, for which there will be room, and a fifth more.
    status: int64 [4], the numbers of :class:`Status`, on the device.

    Raises as :func:`device_neighbor_list` does; `update` does not, it leaves a status.
    """

    def __init__(self, positions: Tensor, cutoff: float, skin: float, cells: Cells):
        self.cutoff, self.skin, self.cells = cutoff, skin, cells
        self.status = cells.ptr.new_zeros(len(Status._fields))
        if _on_gpu(positions):
            self._search = _Search(positions, cells)
            self._state = positions.new_zeros(self._search.skin_size // 8 + 1, dtype=torch.int64)
            self._skin_row_ptr = torch.zeros_like(self._search.row_ptr)
            reach, edges = (self._search.count(positions, x) for x in (cutoff + skin, cutoff))
        else:
            self._list = NeighborList(cutoff, skin)
            self._arguments = cells.arguments()
            fresh = device_neighbor_list(positions, cutoff, cells)
            self._row_ptr = torch.zeros_like(fresh.row_ptr)
            reach = edges = len(fresh.neighbor)
        self._skin_room = self.room = -1
        self.grow(edges, reach)

    def grow(self, edges: int, reach: int) -> None:
        """Make room for so many edges within cutoff and skin, and a fifth more; keep what there is.

        What :attr:`status` says after an overflow.
        """
        new = self.cells.ptr.new_zeros
        if edges > self.room:
            self.room = edges + edges // 5 + 64
            self._neighbor = new(self.room, dtype=torch.int32)
            self._shift = new((self.room, 3), dtype=torch.int32)
        if reach > self._skin_room:
            self._skin_room = reach + reach // 5 + 64
            self._skin_neighbor = new(self._skin_room, dtype=torch.int32)
            self._skin_shift = new((self._skin_room, 3), dtype=torch.int32)
            if _on_gpu(self.status):
                self._state.zero_()  # the next update searches anew

    def update(self, positions: Tensor) -> DeviceEdges:
        """The edges at these positions [atoms, 3], in the same arrays every time."""
        if not _on_gpu(positions):
            return self._update_on_host(positions)
        search, stream = self._search, _stream(positions)
        systems = _systems(positions, self.cells)
        skin = _C.CudaSkinList(
            self._state.data_ptr(),
            self._skin_row_ptr.data_ptr(),
            self._skin_neighbor.data_ptr(),
            self._skin_shift.data_ptr(),
            self._skin_room,
        )
        workspace, row_ptr = search.workspace.data_ptr(), search.row_ptr.data_ptr()
        status = search.status.data_ptr()
        neighbor, shift = self._neighbor.data_ptr(), self._shift.data_ptr()
        with torch.cuda.device_of(positions):
            _C.cuda_update_skin(systems, self.cutoff, self.skin, skin, workspace, stream)
            _C.cuda_count_within(
                systems, self.cutoff, skin, self.room, workspace, row_ptr, status, stream
            )
            _C.cuda_fill_within(
                systems, self.cutoff, skin, row_ptr, neighbor, shift, status, stream
            )
        self.status[:2] = search.status.view(torch.int32)[:2]
        self.status[2] = search.status[1]
        self.status[3] = self._state[3]  # csrc/cuda/neighbors.hpp: SkinState
        return DeviceEdges(search.row_ptr, self._neighbor, self._shift)

    def _update_on_host(self, positions: Tensor) -> DeviceEdges:
        held = DeviceEdges(self._row_ptr, self._neighbor, self._shift)
        held.row_ptr.zero_()
        self.status.zero_()
        try:
            found = self._list.update(positions.numpy(), **self._arguments)
        except ValueError:
            self.status[0] = 1
            return held
        edges = len(found.neighbor)
        self.status[2:] = edges
        if edges > self.room:
            self.status[1] = 1
            return held
        for array, new in zip(held, _tensors(found), strict=True):
            array[: len(new)] = new
        return held


def native_components(edges: DeviceEdges, rounds: int) -> tuple[Tensor, Tensor] | None:
    """As :func:`mdtrajnet_fast.md.device_graph.components`, by kernels; None on the CPU."""
    if not _on_gpu(edges.row_ptr):
        return None
    label = edges.row_ptr.new_empty(len(edges.row_ptr) - 1)
    settled = edges.row_ptr.new_empty((), dtype=torch.bool)
    with torch.cuda.device_of(label):
        _C.cuda_connected_components(
            len(label),
            edges.row_ptr.data_ptr(),
            edges.neighbor.data_ptr(),
            rounds,
            label.data_ptr(),
            settled.data_ptr(),
            _stream(label),
        )
    return label, settled


def edge_vectors(
    positions: Tensor,  # float64 [atoms, 3] Å
    velocities: Tensor,  # float64 [atoms, 3] Å/fs
    edges: DeviceEdges,
    cells: Cells,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """r [room, 3] (Å), from centre to neighbour, and w [room, 3] (Å/fs), their relative velocities.

    Taken in float64 and rounded once to `dtype`; beyond the last row they mean nothing.
    """
    if _on_gpu(positions) and dtype == torch.float32:
        velocities = velocities.contiguous()
        r, w = (positions.new_zeros((len(edges.neighbor), 3), dtype=dtype) for _ in "rw")
        with torch.cuda.device_of(positions):
            _C.cuda_edge_vectors(
                _systems(positions, cells),
                velocities.data_ptr(),
                edges.row_ptr.data_ptr(),
                edges.neighbor.data_ptr(),
                edges.shift.data_ptr(),
                r.data_ptr(),
                w.data_ptr(),
                _stream(positions),
            )
        return r, w
    i, j = edges.centres(), edges.neighbor.long()
    r = positions[j] - positions[i]
    if cells.cell is not None:
        r = r + (edges.shift[:, :, None] * cells.cell[cells.system[i]]).sum(1)
    return r.to(dtype), (velocities[j] - velocities[i]).to(dtype)
