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
