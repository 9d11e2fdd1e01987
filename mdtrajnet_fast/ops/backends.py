"""What computes attention blocks and window potentials: each backend says what it can do, and one
place chooses.

"cpu", native kernels for CPU tensors; for CUDA tensors in float32 "cuda", native kernels for
predictions and Triton's for gradients, and "triton", the latter for both; and "reference", plain
torch on any device. Native kernels predict three to four times as fast as Triton's on an H100.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch

from . import cpu, cuda


@dataclass(frozen=True)
class Backend:
    """A way to compute attention blocks and window potentials, and what it can do.

    device: the kind of device that its tensors are on; None for any. single: float32 only.
    default: taken where its tensors are, if no other is asked for. plain: torch operations, which
    autograd sees through; else torch.ops.mdtrajnet_fast has its gradients. native: the module whose
    `Block` and `stack` predict without gradients, of which a stack is one call, and, without
    `networks`, whose `AtomicScalars` evaluates window potentials and charges; None for none.
    times: takes several times of one graph as they are; for others the graph is repeated. networks:
    has kernels for what surrounds the blocks, too: folding of weights, heads, potentials, windows.
    """

    name: str
    device: str | None
    single: bool = False
    default: bool = True
    plain: bool = False
    native: ModuleType | None = None
    times: bool = False
    networks: bool = False

    def serves(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it takes tensors of this type there."""
        there = self.device in (None, device.type)
        return there and (dtype == torch.float32 or not self.single)


_ALL = (
    Backend("cpu", "cpu", native=cpu, times=True, networks=True),
    Backend("cuda", "cuda", single=True, native=cuda),
    Backend("triton", "cuda", single=True, default=False),
    Backend("reference", None, plain=True),
)
BACKENDS = {backend.name: backend for backend in _ALL}


def choose_backend(name: str | None, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend asked for, or the first that serves device and dtype.

    Raises ValueError for one that there is not, or that cannot serve them.
    """
    if name is None:
        return next(x for x in _ALL if x.default and x.serves(device, dtype))
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    backend = BACKENDS[name]
    if not backend.serves(device, dtype):
        where = {"cpu": "the CPU", "cuda": "a CUDA device"}[str(backend.device)]
        what = f"{'float32 ' * backend.single}tensors on {where}"
        raise ValueError(
            f'backend "{name}" needs {what}, but got {dtype} on {device}; move the model, or '
            'choose backend="reference"'
        )
    return backend
