from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Edges = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]

def build_info() -> dict[str, Any]: ...
def cuda_devices() -> dict[str, Any]: ...
def neighbor_list(
    positions: ArrayLike,
    cutoff: float,
    cell: ArrayLike | None,
    pbc: ArrayLike | None,
    ptr: ArrayLike | None,
    threads: int | None,
) -> _Edges: ...
def connected_components(
    row_ptr: NDArray[np.int64], neighbor: NDArray[np.int32]
) -> NDArray[np.int64]: ...
def edge_vectors(
    positions: ArrayLike,
    velocities: NDArray[np.float64],
    cell: ArrayLike | None,
    pbc: ArrayLike | None,
    ptr: ArrayLike | None,
    row_ptr: NDArray[np.int64],
    neighbor: NDArray[np.int32],
    shift: NDArray[np.int32],
    float64: bool,
) -> tuple[NDArray[np.floating], NDArray[np.floating]]: ...
def conserve(
    positions: NDArray[np.float64],
    velocities: NDArray[np.float64],
    masses: NDArray[np.float64],
    t: NDArray[np.float64],
    moved: NDArray[np.floating],
    velocity: NDArray[np.floating],
    component: NDArray[np.integer],
    isolated: NDArray[np.bool_],
    steps: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def same_bytes(a: NDArray[Any], b: NDArray[Any]) -> bool: ...

class VerletList:
    def __init__(self, cutoff: float, skin: float) -> None: ...
    def update(
        self,
        positions: ArrayLike,
        cell: ArrayLike | None,
        pbc: ArrayLike | None,
        ptr: ArrayLike | None,
        threads: int | None,
    ) -> _Edges: ...
    @property
    def builds(self) -> int: ...

def instruction_set() -> str: ...
def useful_threads(threads: int, rows: int) -> int: ...

class AttentionBlock:
    def __init__(
        self,
        *,
        float64: bool,
        scalars: int,
        time_channels: int,
        centres: int,
        heads: int,
        key_channels: int,
        value_channels: int,
        key_hidden: list[int],
        value_hidden: list[int],
        cutoff: float,
        envelope: bool,
        weights: list[int],
        gradients: bool,
    ) -> None: ...
    def forward(
        self,
        graph: tuple[int, int, int, int, int],
        times: int,
        state: list[int],
        tangent: list[int],
        out: list[int],
        out_tangent: list[int],
        threads: int,
        /,
    ) -> None: ...
    def backward(
        self,
        graph: tuple[int, int, int, int, int],
        times: int,
        state: list[int],
        increment_gradient: list[int],
        state_gradient: list[int],
        weight_gradient: list[int],
        edge_gradient: list[int],
        threads: int,
        /,
    ) -> None: ...

def attention_stack(
    blocks: list[AttentionBlock],
    running: bool,
    graph: tuple[int, int, int, int, int],
    times: int,
    scalars: list[int],
    displacement: list[int],
    velocity: list[int],
    threads: int,
    /,
) -> None: ...
def fold(
    float64: bool,
    scalars: int,
    heads: int,
    sizes: list[int],
    weights: list[int],
    folded: list[int],
    gradient: list[int],
    /,
) -> None: ...
def window_slopes(
    float64: bool,
    network: tuple[int, int, int, int, int, int, int, float, list[int]],
    graph: tuple[int, int, int, int, int],
    species: int,
    roles: int,
    energy: int,
    slope: int,
    threads: int,
    /,
) -> None: ...
def window_gradients(
    float64: bool,
    network: tuple[int, int, int, int, int, int, int, float, list[int]],
    graph: tuple[int, int, int, int, int],
    species: int,
    roles: int,
    energy_gradient: int,
    slope_gradient: int,
    gradient: list[int],
    threads: int,
    /,
) -> None: ...

class Predictor:
    def __init__(
        self,
        *,
        real: bool,
        members: list[list[AttentionBlock]],
        embeddings: list[int],
        species: int,
        species_channels: int,
        time_channels: int,
        radial_cutoff: float,
        running: bool,
        conserving: bool,
        readout: bool,
        time_cutoff: float,
        potential: tuple[int, int, int, int, float, list[int]] | None,
        window_potentials: tuple[int, int, int, int, int, int, int, float, list[int]] | None,
        dipole: tuple[int, int, int, int, int, int, int, float, list[int]] | None,
    ) -> None: ...
    def motion(
        self,
        graph: tuple[int, int, int, int, int],
        atoms: tuple[int, ...],
        t: NDArray[np.float64],
        threads: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
    def energies(
        self, graph: tuple[int, int, int, int, int], species: int, energy: int, threads: int
    ) -> None: ...
    def slopes(
        self,
        graph: tuple[int, int, int, int, int],
        species: int,
        role: int,
        energy: int,
        slope: int,
        threads: int,
    ) -> None: ...
    def charges(
        self, graph: tuple[int, int, int, int, int], species: int, charge: int, threads: int
    ) -> None: ...

class Domain:
    def __init__(self, group: Any, ids: NDArray[np.int64]) -> None: ...

class Engine:
    def __init__(
        self,
        predictor: Predictor,
        *,
        ptr: NDArray[np.int64],
        species: NDArray[np.int64],
        masses: NDArray[np.float64],
        cell: NDArray[np.float64] | None,
        pbc: NDArray[np.bool_] | None,
        skin: float,
        fs: float,
        back: tuple[float, ...],
        most: float,
        steps: int,
        uncertain: float,
        method: str,
        pull: float,
        every: int,
        needed: int,
        domain: Domain | None = None,
    ) -> None: ...
    def advance(
        self,
        positions: NDArray[np.float64],
        momenta: NDArray[np.float64],
        *,
        number: int,
        t: list[float],
        counts: list[int],
        wanted: list[bool],
        threads: int,
    ) -> tuple[
        NDArray[np.float64],
        NDArray[np.float64],
        NDArray[np.float64] | None,
        NDArray[np.float64],
        NDArray[np.float64],
        int,
        tuple[int, int, str] | None,
    ]: ...
    def energies(
        self, positions: NDArray[np.float64], momenta: NDArray[np.float64], threads: int
    ) -> tuple[NDArray[np.float64], tuple[int, int, str] | None]: ...
    def kept(self) -> tuple[NDArray[np.float64], int]: ...
    def keep(self, sums: NDArray[np.float64], seen: int) -> None: ...

class CudaSystems:
    def __init__(
        self, positions: int, atoms: int, ptr: int, count: int, cells: int, pbc: int
    ) -> None: ...

class CudaSkinList:
    def __init__(
        self, state: int, row_ptr: int, neighbor: int, shift: int, capacity: int
    ) -> None: ...

def cuda_neighbor_bytes(atoms: int, systems: int) -> tuple[int, int]: ...
def cuda_count_neighbors(
    systems: CudaSystems,
    cutoff: float,
    capacity: int,
    workspace: int,
    row_ptr: int,
    status: int,
    stream: int,
) -> None: ...
def cuda_fill_neighbors(
    systems: CudaSystems,
    cutoff: float,
    workspace: int,
    row_ptr: int,
    neighbor: int,
    shift: int,
    status: int,
    stream: int,
) -> None: ...
def cuda_update_skin(
    systems: CudaSystems,
    cutoff: float,
    skin: float,
    list: CudaSkinList,
    workspace: int,
    stream: int,
) -> None: ...
def cuda_count_within(
    systems: CudaSystems,
    cutoff: float,
    list: CudaSkinList,
    capacity: int,
    workspace: int,
    row_ptr: int,
    status: int,
    stream: int,
) -> None: ...
def cuda_fill_within(
    systems: CudaSystems,
    cutoff: float,
    list: CudaSkinList,
    row_ptr: int,
    neighbor: int,
    shift: int,
    status: int,
    stream: int,
) -> None: ...
def cuda_edge_vectors(
    systems: CudaSystems,
    velocities: int,
    row_ptr: int,
    neighbor: int,
    shift: int,
    r: int,
    w: int,
    stream: int,
) -> None: ...
def cuda_window_bytes(
    network: tuple[int, int, int, int, int, int, int, float, list[int]], atoms: int, slopes: bool
) -> int: ...
def cuda_window_potential(
    network: tuple[int, int, int, int, int, int, int, float, list[int]],
    graph: tuple[int, int, int, int, int],
    species: int,
    role: int,
    energy: int,
    slope: int,
    workspace: int,
    stream: int,
    /,
) -> None: ...
def cuda_connected_components(
    atoms: int, row_ptr: int, neighbor: int, rounds: int, label: int, settled: int, stream: int, /
) -> None: ...
def cuda_internal_velocities_bytes(times: int, atoms: int) -> int: ...
def cuda_internal_velocities(
    times: int,
    atoms: int,
    positions: int,
    velocities: int,
    masses: int,
    component: int,
    isolated: int,
    workspace: int,
    out: int,
    stream: int,
    /,
) -> None: ...

class CudaAttentionBlock:
    def __init__(
        self,
        *,
        scalars: int,
        time_channels: int,
        centres: int,
        heads: int,
        key_channels: int,
        value_channels: int,
        key_hidden: list[int],
        value_hidden: list[int],
        cutoff: float,
        envelope: bool,
    ) -> None: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def specialised(self) -> bool: ...
    def pack(self, weights: list[int], packed: int, stream: int, /) -> None: ...
    def workspace_bytes(
        self, graph: tuple[int, int, int, int, int, int], times: int, tangent: bool, stack: bool, /
    ) -> int: ...
    def forward(
        self,
        graph: tuple[int, int, int, int, int, int],
        times: int,
        state: list[int],
        tangent: list[int],
        out: list[int],
        out_tangent: list[int],
        workspace: int,
        stream: int,
        /,
    ) -> None: ...

def cuda_attention_stack(
    blocks: list[CudaAttentionBlock],
    running: bool,
    graph: tuple[int, int, int, int, int, int],
    times: int,
    scalars: list[int],
    outs: list[list[int]],
    workspace: int,
    stream: int,
    /,
) -> None: ...
