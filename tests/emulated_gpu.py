"""What the package takes of a GPU, out of the emulation: stand-ins for parts of `_C`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
from cuda_emulation import CSRC, CSkinList, CSystems, call, load

ATTENTION = [
    CSRC / "testing" / "attention_launchers.cpp",
    *sorted((CSRC / "cuda").glob("attention*.cu")),
]
NEIGHBORS = [
    CSRC / "testing" / "neighbors_launchers.cpp",
    *sorted((CSRC / "cuda").glob("neighbors*.cu")),
]
WINDOWS = [
    CSRC / "testing" / "window_potentials_launchers.cpp",
    CSRC / "cuda" / "window_potentials.cu",
]
CONSERVATION = [
    CSRC / "testing" / "conservation_launchers.cpp",
    CSRC / "cuda" / "conservation.cu",
]


class CSizes(ctypes.Structure):
    """AttentionSizes of csrc/cpu/attention.hpp."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("scalars", "time_channels", "centres", "heads")),
        *((name, ctypes.c_long) for name in ("key_channels", "value_channels")),
        ("layers", ctypes.c_int * 2),
        ("hidden", ctypes.c_long * 8 * 2),
        ("cutoff", ctypes.c_double),
        ("envelope", ctypes.c_bool),
    ]


class CWeights(ctypes.Structure):
    """AttentionWeights: the first hidden layers, then the other folded tensors."""

    _fields_ = [
        ("layer_weight", ctypes.c_void_p * 8 * 2),
        ("layer_bias", ctypes.c_void_p * 8 * 2),
        ("folded", ctypes.c_void_p * 8),
    ]


class CState(ctypes.Structure):
    """AttentionState: scalars, displacement, velocity."""

    _fields_ = [("arrays", ctypes.c_void_p * 3)]


class CRows(ctypes.Structure):
    """AttentionRows of csrc/cuda/attention.hpp."""

    _fields_ = [
        ("atoms", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("row_ptr", "neighbor", "r", "w")),
        ("edges", ctypes.c_int64),
        ("times", ctypes.c_int64),
    ]


def c_blocks(blocks: Sequence[tuple[CSizes, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of pointers to the blocks' sizes and to their packed weights."""
    sizes = np.array([ctypes.addressof(size) for size, _ in blocks], np.int64)
    return sizes, np.array([packed for _, packed in blocks], np.int64)


class EmulatedBlock:
    """`_C.CudaAttentionBlock` out of the emulation."""

    def __init__(self, *, key_hidden, value_hidden, **sizes):
        self.library, self.size = load(*ATTENTION), CSizes(**sizes)
        for net, hidden in enumerate((key_hidden, value_hidden)):
            self.size.layers[net] = len(hidden)
            self.size.hidden[net][: len(hidden)] = hidden

    @property
    def packed_bytes(self) -> int:
        size = np.zeros(1, np.int64)
        call(self.library.emulated_packed_bytes, self.size, size)
        return size.item()

    def pack(self, weights: list[int], packed: int, stream: int) -> None:
        made, self.packed = CWeights(), packed
        for net in range(2):
            made.layer_weight[net][0], made.layer_bias[net][0] = weights[2 * net : 2 * net + 2]
        made.folded[:] = weights[4:]
        call(self.library.emulated_pack, self.size, made, ctypes.c_void_p(packed))

    def workspace_bytes(self, graph: tuple, times: int, tangent: bool, stack: bool) -> int:
        size = np.zeros(1, np.int64)
        function = self.library.emulated_attention_bytes
        call(function, self.size, CRows(*graph, times), int(tangent), int(stack), size)
        return size.item()

    def forward(self, graph, times, state, tangent, out, out_tangent, workspace, stream) -> None:
        states = (_c_state(x) for x in (state, tangent, out, out_tangent))
        call(
            *(self.library.emulated_attention, self.size, ctypes.c_void_p(self.packed)),
            *(CRows(*graph, times), *states, ctypes.c_void_p(workspace)),
        )


def _c_state(addresses: list[int]) -> CState | None:
    return CState((ctypes.c_void_p * 3)(*addresses)) if addresses else None


def emulated_stack(blocks, running, graph, times, scalars, outs, workspace, stream) -> None:
    """`_C.cuda_attention_stack` out of the emulation."""
    sizes, packed = c_blocks([(block.size, block.packed) for block in blocks])
    pointers = [ctypes.c_void_p(x) for x in scalars]
    states = [_c_state(x) for x in outs]
    call(
        *(blocks[0].library.emulated_attention_stack, sizes, packed, len(blocks), int(running)),
        *(CRows(*graph, times), pointers[0], *(pointers[1:] or [None])),
        *(states[0], *(states[1:] or [None]), ctypes.c_void_p(workspace)),
    )


class CDensityNetwork(ctypes.Structure):
    """DensityNetwork of csrc/cpu/predictor.hpp."""

    _fields_ = [
        ("roles", ctypes.c_int),
        *((name, ctypes.c_long) for name in ("species", "layers", "intervals")),
        *((name, ctypes.c_long) for name in ("channels", "products", "hidden")),
        ("cutoff", ctypes.c_double),
        ("weights", ctypes.c_void_p * 13),
    ]


class CGraph(ctypes.Structure):
    """AttentionGraph of csrc/cpu/attention.hpp."""

    _fields_ = [
        ("atoms", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("row_ptr", "neighbor", "r", "w")),
    ]


def c_network(network: tuple) -> CDensityNetwork:
    """Sizes, then the addresses of the weights, as `_C` takes them."""
    return CDensityNetwork(*network[:8], (ctypes.c_void_p * 13)(*network[8]))


def emulated_window_bytes(network: tuple, atoms: int, slopes: bool) -> int:
    """`_C.cuda_window_bytes` out of the emulation."""
    size = np.zeros(1, np.int64)
    call(load(*WINDOWS).emulated_window_bytes, c_network(network), atoms, int(slopes), size)
    return size.item()


def emulated_window_potential(network, graph, species, role, *addresses) -> None:
    """`_C.cuda_window_potential` out of the emulation."""
    energy, slope, workspace = (ctypes.c_void_p(x) for x in addresses[:3])
    call(
        *(load(*WINDOWS).emulated_window_potential, c_network(network), CGraph(*graph)),
        *(ctypes.c_void_p(species), role, energy, slope, workspace),
    )


def emulated_internal_velocities(times: int, atoms: int, *addresses: int) -> None:
    """`_C.cuda_internal_velocities` out of the emulation."""
    pointers = [ctypes.c_void_p(x) for x in addresses[:-1]]  # without the stream
    call(load(*CONSERVATION).emulated_internal_velocities, times, atoms, *pointers)


class EmulatedNeighbors(SimpleNamespace):
    """`_C`'s functions for neighbours."""

    def __init__(self) -> None:
        library = load(*NEIGHBORS)
        sizes = (library.emulated_workspace_bytes, library.emulated_skin_bytes)
        for function in sizes:
            function.restype = ctypes.c_size_t
            function.argtypes = [ctypes.c_int64, ctypes.c_int64]

        def launcher(name: str):
            function = getattr(library, f"emulated_{name}")
            return lambda *arguments: call(function, *arguments[:-1])  # without the stream

        super().__init__(
            CudaSystems=CSystems,
            CudaSkinList=CSkinList,
            cuda_neighbor_bytes=lambda atoms, count: tuple(size(atoms, count) for size in sizes),
            cuda_count_neighbors=launcher("count_neighbors"),
            cuda_fill_neighbors=launcher("fill_neighbors"),
            cuda_update_skin=launcher("update_skin"),
            cuda_count_within=launcher("count_within"),
            cuda_fill_within=launcher("fill_within"),
            cuda_edge_vectors=launcher("edge_vectors"),
            cuda_connected_components=launcher("connected_components"),
        )
