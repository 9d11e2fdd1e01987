"""The neighbour search of the GPU, on the CPU: equal to the CPU's own search in every entry.

The inputs, ``calls`` and ``refusals`` of neighbor_cases.py, are also those of the GPU's own tests.
"""

from __future__ import annotations

import ctypes

import ase
import numpy as np
import pytest
from cuda_emulation import (
    CSkinList,
    CSystems,
    call,
    load,
    needs_compiler,
    pointer,
    run_sanitized,
    thread_order,
)
from emulated_gpu import NEIGHBORS
from neighbor_cases import SYSTEMS, assert_equal, batched, calls, fluid, refusals

from mdtrajnet_fast.neighbors.host import Edges, NeighborList, neighbor_list

pytestmark = needs_compiler

GUARD = 64  # bytes before and behind every array that a kernel may write
UNLIMITED = np.iinfo(np.int64).max
# The launchers' structures beside those of cuda_emulation.py.
STATUS = np.dtype([("refused", np.int32), ("overflow", np.int32), ("edges", np.int64)])
SKIN_STATE = np.dtype(
    [("rebuild", np.int32), ("unused", np.int32), ("builds", np.int64), ("status", STATUS)]
)


class Guarded:
    """An array of 0xFF bytes, between others that must stay so."""

    def __init__(self, shape: int | tuple[int, ...], dtype: np.typing.DTypeLike) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._bytes = np.full(size + 2 * GUARD, 0xFF, np.uint8)
        self.array = self._bytes[GUARD : GUARD + size].view(dtype).reshape(shape)

    def checked(self) -> np.ndarray:
        assert (self._bytes[:GUARD] == 0xFF).all() and (self._bytes[-GUARD:] == 0xFF).all()
        return self.array


class Input:
    """The arguments of neighbor_list as the launchers take them."""

    def __init__(self, positions, cell=None, pbc=None, ptr=None) -> None:
        self.positions = np.ascontiguousarray(positions, float)
        atoms = len(self.positions)
        self.ptr = np.array([0, atoms] if ptr is None else ptr, np.int64)
        count = len(self.ptr) - 1
        self.cell = self.pbc = None
        if cell is not None:
            self.cell = np.array(cell, float).reshape(count, 3, 3)
            self.pbc = np.broadcast_to(pbc, (count, 3)).astype(np.uint8)
        self.atoms, self.count = atoms, count
        self.systems = CSystems(
            *(pointer(self.positions), atoms, pointer(self.ptr), count),
            *(pointer(self.cell), pointer(self.pbc)),
        )


class Search:
    """The GPU's search, emulated."""

    def __init__(self) -> None:
        self.library = load(*NEIGHBORS)
        for name in ("workspace", "skin"):
            function = getattr(self.library, f"emulated_{name}_bytes")
            function.restype = ctypes.c_size_t
            function.argtypes = [ctypes.c_int64, ctypes.c_int64]

    def launch(self, name: str, *arguments) -> None:
        call(getattr(self.library, f"emulated_{name}"), *arguments)

    def workspace(self, given: Input) -> Guarded:
        return Guarded(self.library.emulated_workspace_bytes(given.atoms, given.count), np.uint8)

    def list(self, given: Input, count, fill, capacity: int | None) -> tuple[Edges, np.void]:
        """count(capacity, workspace, row_ptr, status), then fill(...) for as many edges."""
        workspace, row_ptr = self.workspace(given), Guarded(given.atoms + 1, np.int64)
        status = Guarded(1, STATUS)
        limit = UNLIMITED if capacity is None else capacity
        count(limit, workspace.array, row_ptr.array, status.array)
        room = int(row_ptr.array[-1]) if capacity is None else capacity
        neighbor, shift = Guarded(room, np.int32), Guarded((room, 3), np.int32)
        fill(workspace.array, row_ptr.array, neighbor.array, shift.array, status.array)
        for each in (workspace, row_ptr, status):
            each.checked()
        return Edges(row_ptr.array, neighbor.checked(), shift.checked()), status.array[0]

    def neighbors(self, cutoff: float, capacity: int | None = None, **arguments):
        given = Input(**arguments)
        cutoff = float(cutoff)
        return self.list(
            given,
            lambda limit, workspace, row_ptr, status: self.launch(
                "count_neighbors", given.systems, cutoff, limit, workspace, row_ptr, status
            ),
            lambda workspace, row_ptr, neighbor, shift, status: self.launch(
                *("fill_neighbors", given.systems, cutoff, workspace),
                *(row_ptr, neighbor, shift, status),
            ),
            capacity,
        )

    def edge_vectors(self, edges: Edges, velocities: np.ndarray, **arguments):
        given = Input(**arguments)
        r, w = (Guarded((len(edges.neighbor), 3), np.float32) for _ in "rw")
        self.launch(
            *("edge_vectors", given.systems, velocities),
            *(edges.row_ptr, edges.neighbor, edges.shift, r.array, w.array),
        )
        return r.checked(), w.checked()


class Skin:
    """A list with a skin on the emulated GPU."""

    def __init__(self, search: Search, cutoff: float, skin: float, given: Input, capacity: int):
        self.search, self.cutoff, self.skin = search, cutoff, skin
        size = search.library.emulated_skin_bytes(given.atoms, given.count)
        self._state = Guarded(size, np.uint8)
        self._state.array[:] = 0
        self._row_ptr = Guarded(given.atoms + 1, np.int64)
        self.grow(capacity)

    def grow(self, capacity: int) -> None:
        self._neighbor = Guarded(capacity, np.int32)
        self._shift = Guarded((capacity, 3), np.int32)
        self.list = CSkinList(
            *(pointer(self._state.array), pointer(self._row_ptr.array)),
            *(pointer(self._neighbor.array), pointer(self._shift.array), capacity),
        )

    @property
    def state(self) -> np.void:
        return self._state.checked()[: SKIN_STATE.itemsize].view(SKIN_STATE)[0]

    def update(self, capacity: int | None = None, **arguments) -> tuple[Edges, np.void]:
        given, launch = Input(**arguments), self.search.launch
        workspace = self.search.workspace(given)
        launch("update_skin", given.systems, self.cutoff, self.skin, self.list, workspace.array)
        for each in (workspace, self._row_ptr, self._neighbor, self._shift):
            each.checked()
        return self.search.list(
            given,
            lambda limit, workspace, row_ptr, status: launch(
                *("count_within", given.systems, self.cutoff, self.list),
                *(limit, workspace, row_ptr, status),
            ),
            lambda workspace, row_ptr, neighbor, shift, status: launch(
                *("fill_within", given.systems, self.cutoff, self.list),
                *(row_ptr, neighbor, shift, status),
            ),
            capacity,
        )


@pytest.fixture(scope="module")
def search() -> Search:
    return Search()


CASES, REFUSALS = dict(calls()), dict(refusals())


def assert_equals_cpu(search: Search, arguments: dict) -> Edges | None:
    """The list, or None where both refuse."""
    edges, status = search.neighbors(**arguments)
    try:
        expected = neighbor_list(**arguments)
    except ValueError as error:
        assert "coincide" in str(error) and status["refused"] == 1
        return None
    assert status.item() == (0, 0, expected.row_ptr[-1])
    assert_equal(edges, expected)
    return edges


@pytest.mark.parametrize("name", CASES)
def test_equals_the_cpu(search, name):
    assert_equals_cpu(search, CASES[name])


def test_most_fluids_have_a_list_and_pairs_at_the_cutoff_inside_and_outside():
    listed = inside = outside = 0
    for seed in range(120):
        arguments = fluid(seed)
        cutoff = arguments.pop("cutoff")
        try:
            edges = neighbor_list(cutoff=cutoff, **arguments)
        except ValueError:
            continue
        listed += 1
        more = len(neighbor_list(cutoff=cutoff * (1 + 1e-12), **arguments).neighbor)
        fewer = len(neighbor_list(cutoff=cutoff * (1 - 1e-12), **arguments).neighbor)
        inside += len(edges.neighbor) > fewer
        outside += len(edges.neighbor) < more
    assert listed > 90 and inside > 30 and outside > 10


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_what_the_cpu_refuses(search, name):
    with pytest.raises(ValueError):
        neighbor_list(**REFUSALS[name])
    edges, status = search.neighbors(**REFUSALS[name])
    assert status.item() == (1, 0, 0)
    assert not edges.row_ptr.any() and not len(edges.neighbor)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_threads_changes_nothing(search, seed):
    with thread_order(search.library, seed):
        for name in ("batch", "triclinic, 6.1 Å", "outside, 3.3 Å", "a long row"):
            assert_equals_cpu(search, CASES[name])


@pytest.mark.parametrize("name", ["batch", "thin, 6.1 Å", "a long row", "cluster of 129"])
def test_room_for_a_given_number_of_edges(search, name):
    arguments = CASES[name]
    expected = neighbor_list(**arguments)
    edges = len(expected.neighbor)
    for capacity in (edges, edges + 37):
        found, status = search.neighbors(capacity=capacity, **arguments)
        assert status.item() == (0, 0, edges)
        rest = found.neighbor[edges:], found.shift[edges:]
        assert all((part == -1).all() for part in rest)  # 0xFF: never written
        assert_equal(Edges(found.row_ptr, found.neighbor[:edges], found.shift[:edges]), expected)
    for capacity in (edges - 1, 0):
        found, status = search.neighbors(capacity=capacity, **arguments)
        assert status.item() == (0, 1, edges)
        assert not found.row_ptr.any()
        assert (found.neighbor == -1).all() and (found.shift == -1).all()


def test_the_scan_of_many_tiles(search):
    rng = np.random.default_rng(0)
    for items in (0, 1, 1023, 1024, 1025, 300_001):
        count = rng.integers(0, 2**31 - 1, items, dtype=np.int32)
        tiles, status = -(-items // 1024), np.zeros(1, STATUS)
        sums, out = Guarded(tiles + 1, np.int64), Guarded(items + 1, np.int64)
        search.launch("scan", count, items, UNLIMITED, sums.array, out.array, status)
        sums.checked()
        expected = np.concatenate([[0], np.cumsum(count, dtype=np.int64)])
        np.testing.assert_array_equal(out.checked(), expected)
        assert status[0].item() == (0, 0, expected[-1])


def batch_of(systems: list[ase.Atoms]) -> dict:
    arguments = batched(systems)
    return {key: np.ascontiguousarray(value) for key, value in arguments.items()}


def test_the_skin_changes_nothing_along_a_walk(search):
    rng = np.random.default_rng(8)
    names = ("molecule", "slab", "wire", "thin", "outside")
    systems = [SYSTEMS[name].copy() for name in names] + [ase.Atoms()]
    given = Input(**batch_of(systems))
    ours, theirs = Skin(search, 3.3, 0.8, given, capacity=30_000), NeighborList(3.3, 0.8)
    for _ in range(15):
        for atoms in systems:  # each drifts its own way
            step = rng.normal(scale=0.06, size=(len(atoms), 3))
            atoms.positions += step + rng.normal(scale=0.3, size=3)
        edges, status = ours.update(**batch_of(systems))
        assert status["refused"] == status["overflow"] == 0
        assert_equal(edges, neighbor_list(cutoff=3.3, **batch_of(systems)))
        theirs.update(**batch_of(systems))
        assert ours.state["builds"] == theirs.builds
    assert 1 < ours.state["builds"] < 10


def test_when_the_skin_searches_anew(search):
    atoms = SYSTEMS["triclinic"]
    start = {
        "positions": np.concatenate([atoms.positions, atoms.positions]),
        "cell": np.stack([atoms.cell[:]] * 2),
        "pbc": np.ones((2, 3), bool),
        "ptr": np.array([0, 40, 80]),
    }
    skin = Skin(search, 3.3, 1.0, Input(**start), capacity=20_000)

    def builds(**changes) -> int:
        arguments = {**start, **changes}
        edges, _ = skin.update(**arguments)
        assert_equal(edges, neighbor_list(cutoff=3.3, **arguments))
        return int(skin.state["builds"])

    positions = start["positions"]
    assert builds() == 1 and skin.state["rebuild"] == 1
    assert builds() == 1 and skin.state["rebuild"] == 0
    positions[40:] += 5.0  # a drift of all atoms of a system moves no pair
    assert builds() == 1
    positions[43, 0] += 0.49
    assert builds() == 1
    positions[43, 0] += 0.06  # 0.55 in all, of which the mean takes a fortieth
    assert builds() == 2
    positions[45] += atoms.cell[1]  # wrapped by a lattice vector: the shifts change
    assert builds() == 3
    cell = start["cell"] * [[[1.0]], [[1.0001]]]
    assert builds(cell=cell) == 4
    assert builds(cell=cell) == 4
    pbc = np.array([[1, 1, 1], [1, 0, 1]], bool)
    assert builds(cell=cell, pbc=pbc) == 5
    assert builds(cell=cell, pbc=pbc, ptr=np.array([0, 40, 80])) == 5
    assert builds(cell=None, pbc=None) == 6
    assert builds(cell=None, pbc=None) == 6
    assert builds(cell=None, pbc=None, ptr=np.array([0, 39, 80])) == 7


def test_no_skin_searches_every_time(search):
    arguments = CASES["molecule, 3.3 Å"]
    given = {key: arguments[key] for key in ("positions", "cell", "pbc")}
    skin = Skin(search, 3.3, 0.0, Input(**given), capacity=200)
    for k in range(3):
        skin.update(**given)
        assert skin.state["builds"] == k + 1


def test_the_skin_recovers_from_what_it_refuses(search):
    positions = SYSTEMS["molecule"].positions.copy()
    skin = Skin(search, 3.3, 4.0, Input(positions), capacity=200)
    expected = neighbor_list(positions, 3.3)
    bad = positions.copy()
    bad[4] = np.nan
    for k in range(3):
        edges, status = skin.update(positions=positions)
        assert status.item() == (0, 0, len(expected.neighbor))
        assert_equal(edges, expected)
        assert skin.state["builds"] == k + 1
        if k == 0:  # within the skin, so that the filter sees it
            close = positions.copy()
            close[4] = close[2]
            _, status = skin.update(positions=close)
            assert status.item() == (1, 0, 0) and skin.state["rebuild"] == 0
            assert_equal(skin.update(positions=positions)[0], expected)
        edges, status = skin.update(positions=bad)
        assert status.item() == (1, 0, 0) and not edges.row_ptr.any()


def test_the_skin_tells_how_much_room_it_needs(search):
    positions = SYSTEMS["molecule"].positions
    wide, expected = neighbor_list(positions, 4.1), neighbor_list(positions, 3.3)
    room = len(wide.neighbor)
    assert room > len(expected.neighbor)
    skin = Skin(search, 3.3, 0.8, Input(positions), capacity=room - 1)
    for _ in range(2):
        edges, status = skin.update(positions=positions)
        assert status.item() == (0, 1, 0) and not edges.row_ptr.any()
        assert skin.state["status"].item() == (0, 1, room) and skin.state["builds"] == 0
    skin.grow(room)
    edges, status = skin.update(positions=positions)
    assert skin.state["status"].item() == (0, 0, room) and skin.state["builds"] == 1
    assert_equal(edges, expected)
    few, status = skin.update(capacity=3, positions=positions)
    assert status.item() == (0, 1, len(expected.neighbor)) and skin.state["rebuild"] == 0
    assert not few.row_ptr.any() and (few.neighbor == -1).all()


@pytest.mark.parametrize("name", ["batch", "batch without cells", "outside, 3.3 Å", "no atoms"])
def test_edge_vectors(search, name):
    arguments = {key: value for key, value in CASES[name].items() if key != "cutoff"}
    edges = neighbor_list(cutoff=3.3, **arguments)
    given = Input(**arguments)
    x, v = given.positions, np.random.default_rng(3).normal(size=given.positions.shape) + 1e3
    i = np.repeat(np.arange(given.atoms), np.diff(edges.row_ptr))
    r, w = search.edge_vectors(edges, v, **arguments)
    expected = x[edges.neighbor] - x[i]
    if given.cell is not None:
        system = np.searchsorted(given.ptr, i, side="right") - 1
        a, b, c = (edges.shift[:, [k]] * given.cell[system, k] for k in range(3))
        expected += a + b + c
    np.testing.assert_array_equal(r, expected.astype(np.float32))
    np.testing.assert_array_equal(w, (v[edges.neighbor] - v[i]).astype(np.float32))


def test_too_many_atoms_for_one_call(search):
    systems = CSystems(None, 2**29 + 1, None, 1, None, None)
    nothing = (None, None, None)
    with pytest.raises(RuntimeError, match="at most 536870912 atoms .* got 536870913"):
        search.launch("count_neighbors", systems, 1.0, UNLIMITED, *nothing)


def sanitized_cases() -> None:
    """A few lists, for run_sanitized."""
    search = Search()
    for name in ("thin, 3.3 Å", "wire, 3.3 Å", "cluster of 129", "fluid 3", "no atoms"):
        assert_equals_cpu(search, CASES[name])
    search.neighbors(**REFUSALS["last system"])
    arguments = batch_of([SYSTEMS["molecule"], SYSTEMS["thin"], ase.Atoms()])
    skin = Skin(search, 2.0, 0.5, Input(**arguments), capacity=3000)
    for _ in range(2):
        edges, _ = skin.update(**arguments)
    assert_equal(edges, neighbor_list(cutoff=2.0, **arguments))
    search.edge_vectors(edges, np.zeros_like(arguments["positions"]), **arguments)


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers():
    result = run_sanitized("test_cuda_neighbors", "sanitized_cases()")
    assert result.returncode == 0, result.stderr
