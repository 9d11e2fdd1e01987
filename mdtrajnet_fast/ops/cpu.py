"""The attention block on the CPU: native kernels (csrc/cpu), called with pointers of tensors.

The kernels come for AVX-512, AVX2 and the baseline; the best that the processor has is taken, or
the one that the environment variable MDTRAJNET_INSTRUCTION_SET names (avx512, avx2, base).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import _C
from .graph import CSR, Graph
from .reference import FoldedWeights

# Atoms times neighbours of one thread: below, waking another takes longer than it saves.
_ROWS_PER_THREAD = 1024


def _pointers(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if x is None else x.data_ptr() for x in tensors]


def _ready(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors as the kernels read them: row after row."""
    return [x.contiguous() for x in tensors]


def _graph(graph: CSR) -> tuple[int, int, int, int, int]:
    row_ptr, neighbor, r, w = _pointers(graph)
    return graph.row_ptr.shape[0] - 1, row_ptr, neighbor, r, w


def _threads(graph: CSR, times: int) -> int:
    rows = times * (graph.neighbor.shape[0] + graph.row_ptr.shape[0])
    return max(1, min(torch.get_num_threads(), rows // _ROWS_PER_THREAD))


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
        tensors = _ready(folded.tensors())
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
            weights=_pointers(tensors),
            gradients=gradients,
        )

    def _check(self, tensors: Sequence[Tensor]) -> None:
        """Refuse what the kernels would misread: they see addresses alone."""
        dtypes = (self.dtype, torch.int64)
        for x in tensors:
            if not x.is_cpu or x.dtype not in dtypes:
                raise ValueError(
                    f"the CPU kernels of a {self.dtype} model take {self.dtype} tensors on the "
                    f"CPU, but got {x.dtype} on {x.device}; convert one or the other"
                )

    def forward(
        self, state: Sequence[Tensor], tangent: Sequence[Tensor], graph: CSR
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Increments of (scalars, displacement, velocity change) and their tangents.

        state, tangent: [times x atoms, .]; tangent may be empty.
        """
        state, tangent, graph = _ready(state), _ready(tangent), CSR(*_ready(graph))
        self._check((*state, *tangent, *graph))
        out = [torch.empty_like(x) for x in state]
        out_tangent = [torch.empty_like(x) for x in tangent]
        times = graph.times(state[0])
        self.native.forward(
            _graph(graph),
            times,
            _pointers(state),
            _pointers(tangent),
            _pointers(out),
            _pointers(out_tangent),
            _threads(graph, times),
        )
        return out, out_tangent

    def backward(
        self, state: Sequence[Tensor], graph: CSR, gradients: Sequence[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Gradients of the state, of the graph's r and w, and of the folded tensors.

        gradients: those of the increments; None for scalars stands for zero.
        """
        state, graph = _ready(state), CSR(*_ready(graph))
        gradients = [None if x is None else x.contiguous() for x in gradients]
        self._check((*state, *(x for x in gradients if x is not None), *graph))
        of_state = [torch.empty_like(x) for x in state]
        of_edges = [torch.empty_like(graph.r), torch.empty_like(graph.w)]
        of_weights = [torch.empty(shape, dtype=self.dtype) for shape in self.shapes]
        times = graph.times(state[0])
        self.native.backward(
            _graph(graph),
            times,
            _pointers(state),
            _pointers(gradients),
            _pointers(of_state),
            _pointers(of_weights),
            _pointers(of_edges),
            _threads(graph, times),
        )
        return of_state, of_edges, of_weights


def stack(
    blocks: Sequence[Block], running: bool, scalars: Sequence[Tensor], graph: CSR
) -> tuple[list[Tensor], list[Tensor]]:
    """All blocks one after another: displacement and velocity change of the last state.

    scalars: one tensor [times x atoms, S], or it and its tangent; the results match.
    """
    scalars, graph = _ready(scalars), CSR(*_ready(graph))
    blocks[0]._check((*scalars, *graph))
    times = graph.times(scalars[0])
    displacement = [x.new_empty(x.shape[0], 3) for x in scalars]
    velocity = [x.new_empty(x.shape[0], 3) for x in scalars]
    _C.attention_stack(
        [block.native for block in blocks],
        running,
        _graph(graph),
        times,
        _pointers(scalars),
        _pointers(displacement),
        _pointers(velocity),
        _threads(graph, times),
    )
    return displacement, velocity


class Potential:
    """The weights of a :class:`~mdtrajnet_fast.potential.Potential` as the kernels read them.

    radial, products, hidden, cutoff: sizes, and Å. left, right: [3, species radial, products];
    scale: [species, features]; first: [features, hidden], its bias [species, hidden]; second:
    [hidden, hidden], its bias [hidden]; last: [hidden]. A copy, made once.
    """

    def __init__(
        self,
        radial: int,
        cutoff: float,
        *,
        left: Tensor,
        right: Tensor,
        scale: Tensor,
        first: tuple[Tensor, Tensor],
        second: tuple[Tensor, Tensor],
        last: Tensor,
    ):
        self.dtype = scale.dtype
        self.sizes = len(scale), radial, left.shape[2], len(last), cutoff
        whole = 64 // scale.element_size()

        def padded(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x.detach(), (0, -x.shape[-1] % whole)).contiguous()

        self.weights = [
            torch.cat([padded(left), padded(right)], 2).contiguous(),
            scale.detach().clone(),
            *map(padded, (*first, *second, last)),
        ]

    def __call__(self, graph: Graph) -> Tensor:
        """Atomic energies [atoms] (eV)."""
        csr, species = CSR(*_ready(graph.csr)), graph.species.contiguous()
        for x in (csr.r, species):
            if not x.is_cpu or x.dtype not in (self.dtype, torch.int64):
                raise ValueError(
                    f"the CPU kernels of a {self.dtype} model take {self.dtype} tensors on the "
                    f"CPU, but got {x.dtype} on {x.device}; convert one or the other"
                )
        energy = torch.empty(graph.atoms, dtype=self.dtype)
        _C.potential(
            self.dtype == torch.float64,
            *self.sizes,
            _pointers(self.weights),
            _graph(csr),
            species.data_ptr(),
            energy.data_ptr(),
            _threads(csr, 1),
        )
        return energy


def predict(
    members: Sequence[Sequence[Block]],
    embeddings: Sequence[Tensor],
    running: bool,
    graph: Graph,
    times: np.ndarray,
    *,
    time_cutoff: float,
    conserving: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean motion of whole networks: displacements (Å) and velocities (Å/fs).

    embeddings: [species, channels] each. times: [times] fs; the results are float64 [times, atoms,
    3], and each time's the same bits whatever the others. See :meth:`.Network.forward`, with
    velocity_readout.
    """
    csr = CSR(*_ready(graph.csr))
    atoms = _ready((graph.species, graph.masses, graph.velocities, graph.component))
    embeddings = _ready(embeddings)
    members[0][0]._check((*csr, *atoms, *embeddings))
    species, masses, velocities, component = _pointers(atoms)
    return _C.predict(
        [[block.native for block in member] for member in members],
        _pointers(embeddings),
        embeddings[0].shape[0],
        running,
        conserving,
        time_cutoff,
        _graph(csr),
        (species, masses, velocities, component, graph.components),
        times,
        _threads(csr, len(times)),
    )
