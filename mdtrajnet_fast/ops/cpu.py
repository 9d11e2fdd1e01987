"""The attention block on the CPU: native kernels (csrc/cpu), called with pointers of tensors.

The kernels come for AVX-512, AVX2 and the baseline; the best that the processor has is taken, or
the one that the environment variable MDTRAJNET_INSTRUCTION_SET names (avx512, avx2, base).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .. import _C
from .graph import CSR
from .reference import FoldedWeights

# A forked process has none of the threads that OpenMP believes to have, and would wait for them.
os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    """Where tensors lie in memory; 0 for None."""
    return [0 if x is None else x.data_ptr() for x in tensors]


def ready(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors as the kernels read them: row after row."""
    return [x.contiguous() for x in tensors]


def graph_addresses(graph: CSR) -> tuple[int, int, int, int, int]:
    """A graph as the native functions take it: atoms, and where its arrays lie."""
    row_ptr, neighbor, r, w = addresses(graph)
    return graph.row_ptr.shape[0] - 1, row_ptr, neighbor, r, w


def threads_for(graph: CSR, times: int) -> int:
    """How many of torch's threads are worth waking for so many times of a graph."""
    rows = times * (graph.neighbor.shape[0] + graph.row_ptr.shape[0])
    return _C.useful_threads(torch.get_num_threads(), rows)


def check_tensors(dtype: torch.dtype, tensors: Sequence[Tensor]) -> None:
    """Refuse what kernels of a precision would misread: they see addresses alone."""
    for x in tensors:
        if not x.is_cpu or x.dtype not in (dtype, torch.int64):
            raise ValueError(
                f"the CPU kernels of a {dtype} model take {dtype} tensors on the CPU, but got "
                f"{x.dtype} on {x.device}; convert one or the other"
            )


class Block:
    """The folded weights of one block in the layout of the kernels: a copy, made once."""

    def __init__(
        self,
        folded: FoldedWeights,
        *,
        radial_cutoff: float,
        distance_centres: int,
        time_channels: int,
        envelope: bool,
        gradients: bool = False,
    ):
        heads = folded.heads
        tensors = ready(folded.tensors())
        self.shapes = [x.shape for x in tensors]
        self.dtype = folded.query.dtype
        self.native = _C.AttentionBlock(
            float64=self.dtype == torch.float64,
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
            weights=addresses(tensors),
            gradients=gradients,
        )

    def forward(
        self, state: Sequence[Tensor], tangent: Sequence[Tensor], graph: CSR
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Increments of (scalars, displacement, velocity change) and their tangents.

        state, tangent: [times x atoms, .]; tangent may be empty.
        """
        state, tangent, graph = ready(state), ready(tangent), CSR(*ready(graph))
        check_tensors(self.dtype, (*state, *tangent, *graph))
        out = [torch.empty_like(x) for x in state]
        out_tangent = [torch.empty_like(x) for x in tangent]
        times = graph.times(state[0])
        self.native.forward(
            graph_addresses(graph),
            times,
            addresses(state),
            addresses(tangent),
            addresses(out),
            addresses(out_tangent),
            threads_for(graph, times),
        )
        return out, out_tangent

    def backward(
        self, state: Sequence[Tensor], graph: CSR, gradients: Sequence[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Gradients of the state, of the graph's r and w, and of the folded tensors.

        gradients: those of the increments; None for scalars stands for zero.
        """
        state, graph = ready(state), CSR(*ready(graph))
        gradients = [None if x is None else x.contiguous() for x in gradients]
        check_tensors(self.dtype, (*state, *(x for x in gradients if x is not None), *graph))
        of_state = [torch.empty_like(x) for x in state]
        of_edges = [torch.empty_like(graph.r), torch.empty_like(graph.w)]
        of_weights = [torch.empty(shape, dtype=self.dtype) for shape in self.shapes]
        times = graph.times(state[0])
        self.native.backward(
            graph_addresses(graph),
            times,
            addresses(state),
            addresses(gradients),
            addresses(of_state),
            addresses(of_weights),
            addresses(of_edges),
            threads_for(graph, times),
        )
        return of_state, of_edges, of_weights


def stack(
    blocks: Sequence[Block], running: bool, scalars: Sequence[Tensor], graph: CSR
) -> tuple[list[Tensor], list[Tensor]]:
    """All blocks one after another: displacement and velocity change of the last state.

    scalars: one tensor [times x atoms, S], or it and its tangent; the results match.
    """
    scalars, graph = ready(scalars), CSR(*ready(graph))
    check_tensors(blocks[0].dtype, (*scalars, *graph))
    times = graph.times(scalars[0])
    displacement = [x.new_empty(x.shape[0], 3) for x in scalars]
    velocity = [x.new_empty(x.shape[0], 3) for x in scalars]
    _C.attention_stack(
        [block.native for block in blocks],
        running,
        graph_addresses(graph),
        times,
        addresses(scalars),
        addresses(displacement),
        addresses(velocity),
        threads_for(graph, times),
    )
    return displacement, velocity
