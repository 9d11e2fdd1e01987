"""The attention block on CUDA devices: native kernels (csrc/cuda), called with pointers of tensors.

Values and time tangents in float32, without gradients. Work is enqueued on torch's current stream;
nothing waits for it, so a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _C
from .graph import CSR
from .reference import FoldedWeights


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
