"""The attention block and a stack of them, on the backend that the tensors' device asks for.

Backends: "cpu", native kernels for CPU tensors; for CUDA tensors in float32 "cuda", native kernels
for predictions and Triton's for gradients, and "triton", the latter for both; and "reference",
plain torch on any device. The default is "cpu" and "cuda" on their devices, and plain torch where
there are no kernels: float64 on CUDA devices, and devices of other kinds. (That native kernels
predict faster than Triton's is reasoned from counted instructions, not measured.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import cpu, cuda, reference
from . import register as register  # defines torch.ops.mdtrajnet_fast
from .graph import Graph
from .reference import FoldedWeights

BACKENDS = ("cpu", "cuda", "triton", "reference")
_DEVICE = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}  # where a backend's tensors have to be

Increments = tuple[Tensor, Tensor, Tensor]


def choose_backend(backend: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The backend asked for, or the default for device and dtype.

    Raises ValueError for one that there is not, or that cannot serve them.
    """
    if backend is None:
        if device.type == "cuda":
            return "cuda" if dtype == torch.float32 else "reference"
        return "cpu" if device.type == "cpu" else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    needed = _DEVICE.get(backend, device.type)
    single = backend in ("cuda", "triton")  # kernels in float32 only
    if device.type != needed or (single and dtype != torch.float32):
        what = "float32 tensors on a CUDA device" if single else "tensors on the CPU"
        raise ValueError(
            f'backend "{backend}" needs {what}, but got {dtype} on {device}; move the model, or '
            'choose backend="reference"'
        )
    return backend


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
    if chosen != "cpu":  # whose kernels take several times of one graph
        graph = graph.repeat(scalars.shape[0] // max(1, graph.atoms))
    if chosen == "reference":
        return reference.edge_attention(*state, graph, folded, **options)
    if chosen == "cuda" and not _differentiated((*state, graph.r, graph.w, *folded.tensors())):
        both = [forward_ad.unpack_dual(x) for x in state]
        return cuda.increments(cuda.Block(folded, **options), both, graph.csr)
    return torch.ops.mdtrajnet_fast.edge_attention(
        *state, *graph.csr, folded.tensors(), len(folded.key_layers), *options.values()
    )


def _differentiated(tensors: Iterable[Tensor]) -> bool:
    """Whether autograd (or a compiler) has to see the single blocks."""
    if torch.compiler.is_compiling():
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
    backend: str

    def __call__(self, scalars: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        """Displacement (Å) and velocity change (Å/fs), [times x atoms, 3], of the last state.

        scalars: [times x atoms, S], those of the first state, which is otherwise at rest at 0.
        """
        if self.backend in ("cpu", "cuda") and not self._differentiated(scalars, graph):
            return self._native_stack(scalars, graph)
        if self.backend != "cpu":
            graph = graph.repeat(scalars.shape[0] // max(1, graph.atoms))
        start = scalars
        dx = dv = scalars.new_zeros(scalars.shape[0], 3)
        for folded in self.folded:
            increment = edge_attention(
                scalars, dx, dv, graph, folded, **self._options, backend=self.backend
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

    @property
    def _library(self) -> Any:
        return cpu if self.backend == "cpu" else cuda

    @cached_property
    def native(self) -> list[Any]:
        """The blocks as the kernels of the backend "cpu" or "cuda" read them."""
        return [self._library.Block(folded, **self._options) for folded in self.folded]

    def _native_stack(self, scalars: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        """All blocks in one native call, with the time tangent where scalars carry one."""
        value, tangent = forward_ad.unpack_dual(scalars)
        both = (value,) if tangent is None else (value, tangent)
        dx, dv = self._library.stack(self.native, self.running, both, graph.csr)
        if tangent is None:
            return dx[0], dv[0]
        return forward_ad.make_dual(*dx), forward_ad.make_dual(*dv)
