"""Attention blocks and window potentials on CUDA devices: native kernels (csrc/cuda), called with
pointers of tensors.

Of blocks values and time tangents, of potentials energies and slopes, in float32, without gradients
of weights. Work is enqueued on torch's current stream; nothing waits for it, so a call can be
captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _C
from .graph import CSR
from .reference import FoldedWeights
from .window_slopes import Sizes


def _pointers(tensors: Sequence[Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]


def _graph(graph: CSR) -> tuple[int, int, int, int, int, int]:
    row_ptr, neighbor, r, w = _pointers(graph)
    return graph.row_ptr.shape[0] - 1, row_ptr, neighbor, r, w, graph.neighbor.shape[0]


def _stream(device: torch.device) -> int:
    """The handle of torch's current stream; the function exists in CUDA builds of torch only."""
    return torch._C._cuda_getCurrentRawStream(device.index)


def _check(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors as the kernels read them: float32 on one CUDA device, row after row."""
    for x in tensors:
        if x.dtype != torch.float32 or x.device != device or device.type != "cuda":
            raise ValueError(
                f'backend "cuda" needs float32 tensors on one CUDA device, but got {x.dtype} on '
                f'{x.device}; move the model, or choose backend="reference"'
            )
    return [x.contiguous() for x in tensors]


def _check_graph(graph: CSR, device: torch.device) -> CSR:
    row_ptr, neighbor = (x.contiguous() for x in graph[:2])
    return CSR(row_ptr, neighbor, *_check(graph[2:], device))


class Block:
    """The folded weights of one block in the layout of the kernels: a copy on their device.

    Raises ValueError for sizes that the kernels have not: several hidden layers in a radial
    network, or more than 112 distance Gaussians.
    """

    def __init__(
        self,
        folded: FoldedWeights,
        *,
        radial_cutoff: float,
        distance_centres: int,
        time_channels: int,
        envelope: bool,
    ):
        heads, device = folded.heads, folded.query.device
        tensors = _check(folded.tensors(), device)
        self.native = _C.CudaAttentionBlock(
            scalars=folded.query.shape[0],
            time_channels=time_channels,
            centres=distance_centres,
            heads=heads,
            key_channels=folded.query.shape[1] // heads,
            value_channels=folded.scalar_edge.shape[2],
            key_hidden=[weight.shape[0] for weight, _ in folded.key_layers],
            value_hidden=[weight.shape[0] for weight, _ in folded.value_layers],
            cutoff=radial_cutoff,
            envelope=envelope,
        )
        self.device = device
        # the native block keeps its address
        self.packed = torch.empty(self.native.packed_bytes, dtype=torch.uint8, device=device)
        with torch.cuda.device(device):
            self.native.pack(_pointers(tensors), self.packed.data_ptr(), _stream(device))

    def forward(
        self, state: Sequence[Tensor], tangent: Sequence[Tensor], graph: CSR
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Increments of (scalars, displacement, velocity change) and their tangents.

        state, tangent: [times x atoms, .]; tangent may be empty.
        """
        state, tangent = _check(state, self.device), _check(tangent, self.device)
        graph = _check_graph(graph, self.device)
        out = [torch.empty_like(x) for x in state]
        out_tangent = [torch.empty_like(x) for x in tangent]
        times = graph.times(state[0])
        workspace = _workspace([self], graph, times, tangent=bool(tangent), stack=False)
        with torch.cuda.device(self.device):
            self.native.forward(
                _graph(graph),
                times,
                _pointers(state),
                _pointers(tangent),
                _pointers(out),
                _pointers(out_tangent),
                workspace.data_ptr(),
                _stream(self.device),
            )
        return out, out_tangent


def _workspace(
    blocks: Sequence[Block], graph: CSR, times: int, *, tangent: bool, stack: bool
) -> Tensor:
    needed = (
        block.native.workspace_bytes(_graph(graph), times, tangent, stack) for block in blocks
    )
    return torch.empty(max(needed), dtype=torch.uint8, device=blocks[0].device)


def stack(
    blocks: Sequence[Block], running: bool, scalars: Sequence[Tensor], graph: CSR
) -> tuple[list[Tensor], list[Tensor]]:
    """All blocks one after another: displacement and velocity change of the last state.

    scalars: one tensor [times x atoms, S], or it and its tangent; the results match.
    """
    device = blocks[0].device
    scalars, graph = _check(scalars, device), _check_graph(graph, device)
    times = graph.times(scalars[0])
    displacement = [x.new_empty(x.shape[0], 3) for x in scalars]
    velocity = [x.new_empty(x.shape[0], 3) for x in scalars]
    workspace = _workspace(blocks, graph, times, tangent=len(scalars) > 1, stack=True)
    with torch.cuda.device(device):
        _C.cuda_attention_stack(
            [block.native for block in blocks],
            running,
            _graph(graph),
            times,
            _pointers(scalars),
            [[0, *_pointers(pair)] for pair in zip(displacement, velocity, strict=True)],
            workspace.data_ptr(),
            _stream(device),
        )
    return displacement, velocity


class AtomicScalars:
    """A density network's scalars of atoms, energies or charges, and the slopes of their sum.

    sizes, weights: as :func:`mdtrajnet_fast.model.packed_weights.density_weights` has them; copies
    on the device. Raises ValueError for sizes that do not fit into a multiprocessor's memory.
    """

    def __init__(self, sizes: Sizes, weights: Sequence[Tensor], device: torch.device):
        # the native functions take their addresses
        self._weights = _check([x.to(device) for x in weights], device)
        self._network = (*sizes, _pointers(self._weights))
        self._device = device
        _C.cuda_window_bytes(self._network, 0, True)

    def values(self, graph: CSR, species: Tensor, role: int) -> Tensor:
        """The scalars [atoms] alone, all atoms in one role."""
        return self._run(graph, species, role, None)

    def slopes(self, graph: CSR, species: Tensor, role: int) -> tuple[Tensor, Tensor]:
        """The scalars [atoms] (eV), and the slopes of their sum, float64 [atoms, 3] (eV/Å).

        graph: its edges are there from both ends.
        """
        slopes = graph.r.new_empty(len(species), 3, dtype=torch.float64)
        return self._run(graph, species, role, slopes), slopes

    def _run(self, graph: CSR, species: Tensor, role: int, slopes: Tensor | None) -> Tensor:
        graph, species = _check_graph(graph, self._device), species.contiguous()
        found = graph.r.new_empty(len(species))
        needed = _C.cuda_window_bytes(self._network, len(species), slopes is not None)
        workspace = torch.empty(needed, dtype=torch.uint8, device=self._device)
        with torch.cuda.device(self._device):
            _C.cuda_window_potential(
                self._network,
                _graph(graph)[:5],
                species.data_ptr(),
                role,
                found.data_ptr(),
                0 if slopes is None else slopes.data_ptr(),
                workspace.data_ptr(),
                _stream(self._device),
            )
        return found
