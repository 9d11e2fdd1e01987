"""The attention block and a stack of them, on the backend that is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from . import register as register  # defines torch.ops.mdtrajnet_fast
from .backends import Backend, choose_backend
from .graph import CSR, Graph
from .reference import FoldedWeights

Increments = tuple[Tensor, Tensor, Tensor]


def edge_attention(
    scalars: Tensor,  # [times x atoms, S]: species channels, then time channels
    displacement: Tensor,  # [times x atoms, 3] Å, from the input geometry
    velocity_change: Tensor,  # [times x atoms, 3] Å/fs, from the input velocities
    graph: Graph,
    folded: FoldedWeights,
    *,
    radial_cutoff: float,
    distance_centres: int,
    time_channels: int,
    envelope: bool = False,
    backend: str | None = None,
) -> Increments:
    """One attention block: increments of scalars, positions (Å) and velocities (Å/fs).

    Several times of one graph may be given at once, one after another. See
    :func:`mdtrajnet_fast.ops.reference.edge_attention` for the equations. Raises ValueError for a
    backend that cannot serve the tensors, and NotImplementedError where kernels are asked for what
    they have not: the gradient of a time tangent, on CUDA devices several hidden layers.
    """
    options: dict[str, Any] = {
        "radial_cutoff": radial_cutoff,
        "distance_centres": distance_centres,
        "time_channels": time_channels,
        "envelope": envelope,
    }
    state = scalars, displacement, velocity_change
    chosen = choose_backend(backend, scalars.device, scalars.dtype)
    if not chosen.times:
        graph = graph.repeat(scalars.shape[0] // max(1, graph.atoms))
    if chosen.plain:
        return reference.edge_attention(*state, graph, folded, **options)
    constant = (graph.r, graph.w, *folded.tensors())
    if chosen.native is not None and not _differentiated((*state, *constant), constant):
        both = [forward_ad.unpack_dual(x) for x in state]
        return _increments(chosen.native.Block(folded, **options), both, graph.csr)
    return torch.ops.mdtrajnet_fast.edge_attention(
        *state, *graph.csr, folded.tensors(), len(folded.key_layers), *options.values()
    )


def _increments(
    block: Any, state: Sequence[tuple[Tensor, Tensor | None]], graph: CSR
) -> Increments:
    """A block's increments of a state whose parts may have tangents; then the increments have."""
    values = [value for value, _ in state]
    if all(tangent is None for _, tangent in state):
        s, x, v = block.forward(values, [], graph)[0]
        return s, x, v
    changes = [torch.zeros_like(value) if change is None else change for value, change in state]
    both = zip(*block.forward(values, changes, graph), strict=True)
    s, x, v = (forward_ad.make_dual(*pair) for pair in both)
    return s, x, v


def _differentiated(tensors: Iterable[Tensor], constant: Iterable[Tensor] = ()) -> bool:
    """Whether autograd (or a compiler) has to see the single blocks.

    constant: what native kernels carry no tangents of.
    """
    if torch.compiler.is_compiling():
        return True
    if any(forward_ad.unpack_dual(x).tangent is not None for x in constant):
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


@dataclass(frozen=True)
class Blocks:
    """The attention blocks of a network with their folded weights: a snapshot.

    running: whether increments add up ("running") or each is added to the first state ("input").
    """

    folded: list[FoldedWeights]
    running: bool
    radial_cutoff: float
    distance_centres: int
    time_channels: int
    envelope: bool
    backend: Backend

    def __call__(self, scalars: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        """Displacement (Å) and velocity change (Å/fs), [times x atoms, 3], of the last state.

        scalars: [times x atoms, S], those of the first state, which is otherwise at rest at 0.
        """
        if self.backend.native is not None and not self._differentiated(scalars, graph):
            return self._native_stack(scalars, graph)
        if not self.backend.times:
            graph = graph.repeat(scalars.shape[0] // max(1, graph.atoms))
        start = scalars
        dx = dv = scalars.new_zeros(scalars.shape[0], 3)
        for folded in self.folded:
            increment = edge_attention(
                scalars, dx, dv, graph, folded, **self._options, backend=self.backend.name
            )
            if self.running:
                scalars, dx, dv = (a + b for a, b in zip((scalars, dx, dv), increment, strict=True))
            else:
                scalars, dx, dv = start + increment[0], increment[1], increment[2]
        return dx, dv

    @property
    def _options(self) -> dict[str, Any]:
        names = ("radial_cutoff", "distance_centres", "time_channels", "envelope")
        return {name: getattr(self, name) for name in names}

    def _differentiated(self, scalars: Tensor, graph: Graph) -> bool:
        weights = (x for folded in self.folded for x in folded.tensors())
        return _differentiated((scalars, graph.r, graph.w, *weights))

    @cached_property
    def native(self) -> list[Any]:
        """The blocks as the backend's native kernels read them."""
        assert self.backend.native is not None
        return [self.backend.native.Block(folded, **self._options) for folded in self.folded]

    def _native_stack(self, scalars: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        """All blocks in one native call, with the time tangent where scalars carry one."""
        value, tangent = forward_ad.unpack_dual(scalars)
        both = (value,) if tangent is None else (value, tangent)
        assert self.backend.native is not None
        dx, dv = self.backend.native.stack(self.native, self.running, both, graph.csr)
        if tangent is None:
            return dx[0], dv[0]
        return forward_ad.make_dual(*dx), forward_ad.make_dual(*dv)
