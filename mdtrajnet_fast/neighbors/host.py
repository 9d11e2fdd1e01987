"""Neighbour lists: which atoms lie within a cutoff of each other, through periodic images too.

The search is a cell list in C++ (``csrc/cpu/neighbors.cpp``): its cost grows linearly with the
number of atoms, and its result does not depend on the number of threads.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csgraph, csr_matrix

from mdtrajnet_fast import _C


@dataclass(frozen=True)
class Edges:
    """A full neighbour list (both i -> j and j -> i) in compressed rows, sorted by centre.

    The edges of atom i are ``row_ptr[i]`` to ``row_ptr[i + 1] - 1``, in order of (neighbor, shift).
    For edge e of atom i, ``r = positions[neighbor[e]] + shift[e] @ cell - positions[i]``, with the
    positions as they were given, inside the cell or not.
    """

    row_ptr: NDArray[np.int64]  # [atoms + 1]
    neighbor: NDArray[np.int32]  # [edges], counted over all systems
    shift: NDArray[np.int32]  # [edges, 3], in lattice vectors


def _default_threads() -> int | None:
    # torch's setting where torch is in use; importing it only to ask would be slow.
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else None


def neighbor_list(
    positions: ArrayLike,
    cutoff: float,
    cell: ArrayLike | None = None,
    pbc: ArrayLike | None = None,
    ptr: ArrayLike | None = None,
    threads: int | None = None,
) -> Edges:
    """All pairs with 0 < |r| <= cutoff, decided in double precision.

    Args:
        positions: [atoms, 3], Å, float32 or float64; atoms may lie outside the cell.
        cutoff: Å; may exceed the cell, whose atoms then see several images of each other and of
            themselves.
        cell: [3, 3], lattice vectors as rows, Å; those along which pbc is False are ignored and may
            be zero.  For many systems [systems, 3, 3].  None: no system is periodic.
        pbc: a bool, or [3]; for many systems [systems, 3].  Needed with a cell.
        ptr: int64 [systems + 1]; system s is made of the atoms ``ptr[s]`` to ``ptr[s + 1] - 1``.
            None: all atoms form one system.
        threads: None takes ``torch.get_num_threads()`` if torch is loaded, else OpenMP's default.
            Fewer than 2,000 atoms always run on one.

    Raises:
        ValueError: shapes or types are wrong; the cutoff is not positive and finite; a position is
            not finite; two atoms are less than 1e-6 Å apart; a cell is not finite, or its periodic
            vectors are linearly dependent.
    """
    if threads is None:
        threads = _default_threads()
    return Edges(*_C.neighbor_list(positions, cutoff, cell, pbc, ptr, threads))


class NeighborList:
    """A neighbour list for moving atoms: searches with a skin, then filters what it found.

    ``update`` returns exactly the arrays of a fresh :func:`neighbor_list`.  It searches anew when,
    since the last search, an atom has moved more than skin / 2 relative to the mean motion of its
    system, or when cell, pbc, ptr or the number of atoms has changed.

    Args:
        cutoff: Å.
        skin: Å, 0 or more; 0 searches at every update.
        threads: as in :func:`neighbor_list`.

    Raises:
        ValueError: the cutoff is not positive or the skin negative, or one is not finite.
    """

    def __init__(self, cutoff: float, skin: float, threads: int | None = None) -> None:
        self._list = _C.VerletList(cutoff, skin)
        self.cutoff = cutoff
        self.skin = skin
        self.threads = threads

    @property
    def builds(self) -> int:
        """How many times the list was searched anew."""
        return self._list.builds

    def update(
        self,
        positions: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: ArrayLike | None = None,
        ptr: ArrayLike | None = None,
    ) -> Edges:
        """The edges at these positions; arguments and errors as in :func:`neighbor_list`."""
        threads = _default_threads() if self.threads is None else self.threads
        return Edges(*self._list.update(positions, cell, pbc, ptr, threads))


def edge_vectors(
    edges: Edges,
    positions: NDArray[np.float64],
    velocities: NDArray[np.float64],
    cell: ArrayLike,
    pbc: ArrayLike,
    ptr: ArrayLike,
    *,
    float64: bool,
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """r and w [edges, 3]: where (Å) and how fast (Å/fs) the neighbours move, seen from the centres.

    positions, cell, pbc and ptr as in :func:`neighbor_list` of many systems; velocities [atoms, 3].
    The differences are taken in float64; float64=False rounds them to float32 afterwards.

    Raises ValueError for shapes that do not match, or edges that are no compressed rows.
    """
    return _C.edge_vectors(
        positions,
        velocities,
        cell,
        pbc,
        ptr,
        edges.row_ptr,
        edges.neighbor,
        edges.shift,
        float64,
    )


def connected_components(edges: Edges) -> NDArray[np.int64]:
    """Labels [atoms] of the connected components, numbered 0.. in the order of their first atoms.

    Raises:
        ValueError: the edges are not well-formed compressed rows.
    """
    return _C.connected_components(edges.row_ptr, edges.neighbor)


def is_endless(edges: Edges) -> bool:
    """Whether a way along edges leads from an atom to an image of itself, as in any crystal.

    False of molecules in a cell that their images are out of reach in, across its faces or not.
    """
    if not edges.shift.any():
        return False
    atoms = len(edges.row_ptr) - 1
    centre = np.repeat(np.arange(atoms), np.diff(edges.row_ptr))
    pairs = centre * atoms + edges.neighbor
    order = np.argsort(pairs)
    if (np.diff(pairs[order]) == 0).any():  # two images of one atom within reach of another
        return True
    # Along a tree that reaches all atoms (a node beside them leads to each component) every atom
    # gets the image that is joined to the first one's; the other edges agree with it, or not.
    _, first = np.unique(connected_components(edges), return_index=True)
    rows, columns = np.append(centre, np.full(len(first), atoms)), np.append(edges.neighbor, first)
    graph = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(atoms + 1, atoms + 1))
    way, before = csgraph.breadth_first_order(graph, atoms)
    joined = way[1:][before[way[1:]] != atoms]
    steps = edges.shift[order[np.searchsorted(pairs[order], before[joined] * atoms + joined)]]
    image = np.zeros((atoms, 3), np.int64)
    for atom, step in zip(joined.tolist(), steps, strict=True):
        image[atom] = image[before[atom]] + step
    return bool((image[centre] + edges.shift != image[edges.neighbor]).any())
