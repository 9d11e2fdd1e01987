"""The neighbour list against ASE, vesin and brute force; its order, skin, threads and refusals."""

from __future__ import annotations

from itertools import product

import ase
import ase.build
import ase.neighborlist
import numpy as np
import pytest
import vesin
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from neighbor_cases import (
    CUTOFFS,
    SYSTEMS,
    assert_equal,
    batched,
    diamond,
    gas,
    periodicity,
)
from scipy.spatial.transform import Rotation

from mdtrajnet_fast.neighbors.host import (
    Edges,
    NeighborList,
    connected_components,
    edge_vectors,
    is_endless,
    neighbor_list,
)

each_system = pytest.mark.parametrize("name", SYSTEMS)


def listed(atoms: ase.Atoms, cutoff: float, **keywords) -> Edges:
    return neighbor_list(atoms.positions, cutoff, *periodicity(atoms), **keywords)


def rotated(atoms: ase.Atoms) -> ase.Atoms:
    turn = Rotation.random(random_state=7).as_matrix().T
    cell = atoms.cell[:] @ turn
    return ase.Atoms(atoms.numbers, atoms.positions @ turn, cell=cell, pbc=atoms.pbc)


def assert_same_pairs(edges: Edges, i, j, shift) -> None:
    """Equal to a reference list of pairs, and in the documented order."""
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], j, i))
    counts = np.bincount(np.asarray(i, dtype=np.int64), minlength=len(edges.row_ptr) - 1)
    np.testing.assert_array_equal(np.diff(edges.row_ptr), counts)
    np.testing.assert_array_equal(edges.neighbor, j[order])
    np.testing.assert_array_equal(edges.shift, shift[order])


def brute_force(positions, cutoff, cell, pbc):
    """All images that can matter, by the perpendicular heights of the (completed) cell."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    spread = np.ptp(positions @ np.linalg.inv(cell), axis=0)
    reach = np.where(pbc, np.ceil(cutoff / heights + spread), 0).astype(int)
    pairs = []
    for shift in product(*(range(-n, n + 1) for n in reach)):
        r = positions[None] + np.array(shift) @ cell - positions[:, None]
        near = np.linalg.norm(r, axis=2) <= cutoff
        if not any(shift):
            np.fill_diagonal(near, False)
        pairs += [(i, j, *shift) for i, j in np.argwhere(near)]
    found = np.array(pairs, dtype=np.int64).reshape(-1, 5)
    return found[:, 0], found[:, 1], found[:, 2:]


@each_system
@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("turn", [False, True], ids=["as is", "rotated"])
def test_equals_ase(name, cutoff, turn):
    atoms = rotated(SYSTEMS[name]) if turn else SYSTEMS[name]
    i, j, shift = ase.neighborlist.neighbor_list("ijS", atoms, cutoff)
    assert_same_pairs(listed(atoms, cutoff), i, j, shift)


@each_system
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_equals_vesin(name, cutoff):
    atoms = rotated(SYSTEMS[name])
    i, j, shift = vesin.NeighborList(cutoff=cutoff, full_list=True).compute(
        atoms.positions, ase.geometry.complete_cell(atoms.cell), atoms.pbc, "ijS"
    )
    assert_same_pairs(listed(atoms, cutoff), i.astype(np.int64), j, shift)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    cell=hnp.arrays(float, (3, 3), elements=st.floats(-4, 4, width=16)),
    positions=st.integers(1, 5).flatmap(
        lambda n: hnp.arrays(float, (n, 3), elements=st.floats(-9, 9, width=16))
    ),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    cutoff=st.floats(0.5, 4, width=16).map(lambda x: x + 1e-5 * np.pi),  # no distance on the grid
)
def test_equals_brute_force(cell, positions, pbc, cutoff):
    assume(abs(np.linalg.det(cell)) > 0.2 * np.prod(np.linalg.norm(cell, axis=1)) > 0.5)
    i, j, shift = brute_force(positions, cutoff, cell, pbc)
    distance = np.linalg.norm(positions[j] + shift @ cell - positions[i], axis=1)
    assume(not (distance < 1e-3).any())
    assert_same_pairs(neighbor_list(positions, cutoff, cell, pbc), i, j, shift)


@each_system
def test_float32_decides_in_double_precision(name):
    atoms = SYSTEMS[name]
    single = atoms.positions.astype(np.float32)
    for cutoff in CUTOFFS:
        assert_equal(
            neighbor_list(single, cutoff, *periodicity(atoms)),
            neighbor_list(single.astype(np.float64), cutoff, *periodicity(atoms)),
        )


def test_the_cutoff_belongs_to_the_list_also_through_images_and_far_from_the_cell():
    cell = np.diag([1.0, 1.0, 1.0])
    for origin in (0.0, 0.25, -3.0, 1e6 + 0.5):
        edges = neighbor_list(np.full((1, 3), origin), 1.0, cell, True)
        assert len(edges.neighbor) == 6
    assert len(neighbor_list(np.zeros((1, 3)), np.nextafter(1.0, 0), cell, True).neighbor) == 0
    pair = np.array([[0.0, 0, 0], [3.0, 4.0, 0]])
    assert neighbor_list(pair, 5.0).neighbor.tolist() == [1, 0]
    assert neighbor_list(pair, np.nextafter(5.0, 0)).neighbor.tolist() == []


def test_shifts_belong_to_the_positions_as_given():
    inside, out = SYSTEMS["triclinic"], SYSTEMS["outside"]
    for atoms in (inside, out):
        edges = listed(atoms, 3.3)
        i = np.repeat(np.arange(len(atoms)), np.diff(edges.row_ptr))
        r = atoms.positions[edges.neighbor] + edges.shift @ atoms.cell[:] - atoms.positions[i]
        assert (np.linalg.norm(r, axis=1) <= 3.3).all()
    np.testing.assert_array_equal(listed(inside, 3.3).neighbor, listed(out, 3.3).neighbor)


def test_a_row_longer_than_any_fixed_capacity():
    atoms = ase.Atoms("H", [[0, 0, 0]], cell=np.eye(3), pbc=True)
    i, j, shift = brute_force(atoms.positions, 8.03, np.eye(3), [True] * 3)
    assert len(j) > 2000
    assert_same_pairs(listed(atoms, 8.03), i, j, shift)
    crowd = np.random.default_rng(0).uniform(0, 3, (600, 3))  # every pair
    assert (np.diff(neighbor_list(crowd, 6.0).row_ptr) == 599).all()


@pytest.mark.parametrize("positions", [np.empty((0, 3)), np.empty((0, 3), np.float32)])
def test_no_atoms(positions):
    for edges in (neighbor_list(positions, 3.0), neighbor_list(positions, 3.0, np.eye(3), True)):
        assert edges.row_ptr.tolist() == [0]
        assert edges.neighbor.shape == (0,) and edges.shift.shape == (0, 3)
    assert neighbor_list(positions, 3.0, ptr=np.array([0])).row_ptr.tolist() == [0]
    assert neighbor_list(positions, 3.0, ptr=np.array([0, 0, 0])).row_ptr.tolist() == [0]


def test_a_lone_atom_has_no_neighbours():
    assert neighbor_list(np.zeros((1, 3)), 3.0).row_ptr.tolist() == [0, 0]


def joined(lists: list[Edges]) -> Edges:
    atoms = np.cumsum([0, *(len(edges.row_ptr) - 1 for edges in lists)])
    edges = np.cumsum([0, *(len(edges.neighbor) for edges in lists)])
    starts = [part.row_ptr[1:] + at for part, at in zip(lists, edges, strict=False)]
    return Edges(
        np.concatenate([[0], *starts]),
        np.concatenate([p.neighbor + np.int32(at) for p, at in zip(lists, atoms, strict=False)]),
        np.concatenate([part.shift for part in lists]),
    )


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_equals_its_systems_one_by_one(cutoff, threads):
    systems = [*SYSTEMS.values(), ase.Atoms(), diamond(7), *SYSTEMS.values()]
    assert_equal(
        neighbor_list(cutoff=cutoff, threads=threads, **batched(systems)),
        joined([listed(atoms, cutoff) for atoms in systems]),
    )


@pytest.mark.parametrize(
    "atoms", [diamond(8), gas(5000, True), gas(5000, False)], ids=["diamond", "gas", "cluster"]
)
def test_threads_do_not_change_the_list(atoms):
    one = listed(atoms, 2.9, threads=1)
    for threads in (2, 3, 7):
        assert_equal(listed(atoms, 2.9, threads=threads), one)


@pytest.mark.parametrize("name", ["molecule", "triclinic", "slab", "wire", "thin", "outside"])
def test_the_skin_changes_nothing_along_a_walk(name):
    atoms, rng = SYSTEMS[name].copy(), np.random.default_rng(8)
    skinned = NeighborList(3.3, 0.8)
    for _ in range(60):
        atoms.positions += rng.normal(scale=0.06, size=(len(atoms), 3)) + [0.2, -0.1, 0.3]  # drift
        assert_equal(skinned.update(atoms.positions, *periodicity(atoms)), listed(atoms, 3.3))
    assert 1 < skinned.builds < 40


def test_the_skin_in_a_batch_and_with_threads():
    rng = np.random.default_rng(9)
    systems = [diamond(7), SYSTEMS["molecule"].copy(), SYSTEMS["slab"].copy()]
    skinned = {threads: NeighborList(3.3, 0.6, threads) for threads in (1, 2)}
    for _ in range(12):
        for atoms in systems:
            atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
        fresh = neighbor_list(cutoff=3.3, **batched(systems))
        for each in skinned.values():
            assert_equal(each.update(**batched(systems)), fresh)
    assert all(1 < each.builds < 12 for each in skinned.values())


def test_when_the_skin_searches_anew():
    atoms = SYSTEMS["triclinic"]
    positions, cell, pbc = atoms.positions.copy(), atoms.cell[:].copy(), atoms.pbc.copy()
    skinned = NeighborList(3.3, 1.0)

    def builds(**changes) -> int:
        arguments = {"positions": positions, "cell": cell, "pbc": pbc, **changes}
        assert_equal(skinned.update(**arguments), neighbor_list(cutoff=3.3, **arguments))
        return skinned.builds

    assert builds() == 1
    assert builds() == 1
    positions += 5.0  # a drift of all atoms moves no pair
    assert builds() == 1
    positions[3, 0] += 0.49
    assert builds() == 1
    positions[3, 0] += 0.06  # 0.55 in all, of which the mean takes a fortieth
    assert builds() == 2
    positions[5] += cell[1]  # wrapped by a lattice vector: the shifts change
    assert builds() == 3
    assert builds(cell=cell * 1.0001) == 4
    assert builds(cell=cell * 1.0001) == 4
    assert builds(cell=cell * 1.0001, pbc=[True, True, False]) == 5
    assert builds(positions=positions[:-1]) == 6
    ptr = {"cell": np.stack([cell, cell]), "pbc": np.stack([pbc, pbc])}
    assert builds(ptr=np.array([0, 20, 40]), **ptr) == 7
    assert builds(ptr=np.array([0, 21, 40]), **ptr) == 8
    assert builds(cell=None, pbc=None) == 9
    assert builds(cell=None, pbc=None) == 9


def test_no_skin_searches_every_time():
    skinned = NeighborList(3.3, 0.0)
    for _ in range(3):
        skinned.update(SYSTEMS["molecule"].positions)
    assert skinned.builds == 3


def test_the_skin_refuses_what_a_search_refuses_and_recovers():
    positions = SYSTEMS["molecule"].positions.copy()
    skinned = NeighborList(3.3, 4.0)
    good = skinned.update(positions)
    bad = positions.copy()
    bad[4] = np.nan
    with pytest.raises(ValueError, match="atom 4 is not finite"):
        skinned.update(bad)
    bad[4] = bad[2]  # within the skin, so that the filter sees it
    with pytest.raises(ValueError, match="atoms 2 and 4 coincide"):
        skinned.update(bad)
    assert_equal(skinned.update(positions), good)


def test_connected_components():
    water = ase.build.molecule("H2O").positions
    positions = np.concatenate([water, water + [9, 0, 0], [[0, 30, 0]], water + [0.5, 20, 0]])
    mixed = np.random.default_rng(2).permutation(len(positions))
    labels = connected_components(neighbor_list(positions, 1.3))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 3, 3]
    shuffled = connected_components(neighbor_list(positions[mixed], 1.3))
    assert shuffled.dtype == np.int64
    firsts = [shuffled.tolist().index(label) for label in range(4)]
    assert firsts == sorted(firsts)
    assert len(set(zip(labels[mixed].tolist(), shuffled.tolist(), strict=True))) == 4
    assert connected_components(neighbor_list(np.empty((0, 3)), 1.0)).tolist() == []
    chain = np.outer(np.arange(5000.0), [1, 0, 0])[::-1]
    assert not connected_components(neighbor_list(chain, 1.1)).any()


@pytest.mark.parametrize("float64", [True, False])
def test_edge_vectors(float64):
    """Two systems, one of them periodic in a small, skewed cell, far from the origin."""
    rng = np.random.default_rng(5)
    positions = rng.uniform(0, 6, (30, 3)) + 1e4
    velocities = rng.normal(size=(30, 3))
    cells = np.stack([np.zeros((3, 3)), 5 * np.eye(3) + rng.uniform(0, 1, (3, 3))])
    system = cells, np.array([[False] * 3, [True] * 3]), np.array([0, 12, 30])
    edges = neighbor_list(positions, 4.0, *system)
    r, w = edge_vectors(edges, positions, velocities, *system, float64=float64)
    i, j = np.repeat(np.arange(30), np.diff(edges.row_ptr)), edges.neighbor
    image = np.einsum("ei,eij->ej", edges.shift, cells[(i >= 12).astype(int)])
    assert abs(edges.shift).max() > 0 and r.dtype == w.dtype == np.dtype(f"f{8 if float64 else 4}")
    tolerance = 1e-12 if float64 else 1e-6
    np.testing.assert_allclose(r, positions[j] - positions[i] + image, rtol=0, atol=tolerance)
    np.testing.assert_allclose(w, velocities[j] - velocities[i], rtol=0, atol=tolerance)
    with pytest.raises(ValueError, match="velocities must be of shape"):
        edge_vectors(edges, positions, velocities[1:], *system, float64=float64)
    with pytest.raises(ValueError, match="compressed rows"):
        wrong = Edges(edges.row_ptr, edges.neighbor + np.int32(30), edges.shift)
        edge_vectors(wrong, positions, velocities, *system, float64=float64)


P = np.arange(12.0).reshape(4, 3)
PTR = np.array([0, 2, 4])
CELLS = np.stack([np.eye(3) * 9, np.eye(3) * 9])
PBCS = np.ones((2, 3), bool)


def with_row(array: np.ndarray, row, value) -> np.ndarray:
    array = array.copy()
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"positions": P.astype(int)},
            r"float32 or float64 .* got a int64 array of shape \(4, 3\)",
        ),
        ({"positions": P[:, :2]}, r"\[atoms, 3\], got a float64 array of shape \(4, 2\)"),
        ({"positions": P.ravel()}, r"got a float64 array of shape \(12,\)"),
        ({"positions": with_row(P, 2, np.nan)}, r"atom 2 is not finite: \[nan, nan, nan\]"),
        ({"positions": with_row(P, 3, np.inf), "ptr": PTR}, r"atom 3 \(system 1\) is not finite"),
        ({"positions": with_row(P, 1, 1e300)}, "atom 1 is too far from the origin"),
        ({"positions": with_row(P, 3, P[1])}, "atoms 1 and 3 coincide: they are 0 Å apart"),
        (
            {"positions": with_row(P, 3, P[1] + 5e-7)},
            "1 and 3 coincide: they are 8.66.*e-07 Å apart",
        ),
        ({"positions": with_row(P, 3, P[2]), "ptr": PTR}, r"atoms 2 and 3 \(system 1\) coincide"),
        (
            {"positions": with_row(P, 2, P[0] + [9, 0, -9]), "cell": np.eye(3) * 9, "pbc": True},
            "atoms 0 and 2 coincide through a periodic image",
        ),
        ({"cutoff": 0.0}, "cutoff must be a positive, finite"),
        ({"cutoff": -1.0}, "cutoff must be a positive, finite"),
        ({"cutoff": np.inf}, "cutoff must be a positive, finite"),
        ({"cutoff": np.nan}, "cutoff must be a positive, finite"),
        ({"cell": np.eye(3)}, "cell is given but pbc is not"),
        ({"pbc": True}, "pbc is True but no cell is given"),
        ({"pbc": [True, False]}, r"a bool or three of them, got a bool array of shape \(2,\)"),
        ({"pbc": "yes"}, "pbc must be a bool"),
        ({"pbc": [0.5, 1.0, 0.0]}, "pbc must be a bool"),
        ({"cell": [9.0, 9, 9], "pbc": True}, r"\[3, 3\], got a float64 array of shape \(3,\)"),
        ({"cell": with_row(np.eye(3), 1, np.nan), "pbc": True}, "cell is not finite: vector 1"),
        ({"cell": with_row(np.eye(3), 1, 0), "pbc": True}, "vector 1 is .* but pbc is True"),
        ({"cell": with_row(np.eye(3), 1, [2, 0, 0]), "pbc": [1, 1, 0]}, "cell is degenerate"),
        ({"cell": np.diag([2e-6, 2e-6, 2e-6]), "pbc": True}, "too thin for the cutoff"),
        ({"positions": P + 1e12, "cell": np.eye(3), "pbc": True}, "atom 0 at .* cells away"),
        ({"ptr": [0.0, 4.0]}, "ptr must be an int64 array"),
        ({"ptr": np.empty(0, int)}, "ptr must be an int64 array"),
        ({"ptr": [0, 3, 2, 4]}, r"ptr must rise from 0 to the number of atoms, 4, got \[0 3 2 4\]"),
        ({"ptr": [0, 2, 3]}, "ptr must rise from 0"),
        ({"ptr": [1, 4]}, "ptr must rise from 0"),
        ({"ptr": PTR, "cell": np.eye(3), "pbc": PBCS}, r"\[2 systems, 3, 3\], got .* \(3, 3\)"),
        ({"ptr": PTR, "cell": CELLS, "pbc": True}, r"\[2 systems, 3\], got .* \(\)"),
        ({"ptr": PTR, "cell": with_row(CELLS, (1, 2), 0), "pbc": PBCS}, r"\(system 1\) vector 2"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        neighbor_list(**{"positions": P, "cutoff": 3.0, **arguments})


@pytest.mark.parametrize("threads", [1, 2])
def test_the_error_of_a_large_system_names_its_atoms(threads):
    positions = diamond(8).positions.copy()
    positions[4000] = positions[7]
    with pytest.raises(ValueError, match="atoms 7 and 4000 coincide"):
        neighbor_list(positions, 3.0, threads=threads)
    batch = np.concatenate([np.arange(3000.0).reshape(-1, 3), P[:2], P[:1], P[:1]])
    with pytest.raises(ValueError, match=r"atoms 1002 and 1003 \(system 2\) coincide"):
        neighbor_list(batch, 3.0, ptr=np.array([0, 1000, 1002, 1004]), threads=threads)


def test_bad_lists_are_refused():
    with pytest.raises(ValueError, match="cutoff must be a positive"):
        NeighborList(-1.0, 1.0)
    with pytest.raises(ValueError, match="skin must be a finite length in Å, 0 or more"):
        NeighborList(3.0, -0.1)
    with pytest.raises(ValueError, match="compressed rows"):
        none = np.zeros((1, 3), np.int32)
        connected_components(Edges(np.array([0, 1]), np.array([3], np.int32), none))


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_strands_that_come_back_to_themselves_in_another_cell_are_endless(turns):
    """So many strands along z, each of which goes on as the next one in the next cell."""
    height, atoms, radius = 8.0, 10 * turns, 3.0 * turns
    angle = 2 * np.pi * np.arange(atoms) / atoms
    z = height / 10 * np.arange(atoms)
    helix = np.stack([radius * np.cos(angle), radius * np.sin(angle), z % height], axis=1)
    cell, pbc = np.diag([40.0, 40.0, height]), [False, False, True]
    assert is_endless(neighbor_list(helix, 2.2, cell, pbc))
    assert not is_endless(neighbor_list(np.delete(helix, 1, axis=0), 2.2, cell, pbc))


def test_a_molecule_across_faces_is_not_endless_and_one_in_too_small_a_cell_is():
    rng = np.random.default_rng(0)
    cell = rng.normal(size=(3, 3)) + 10 * np.eye(3)
    chain = np.arange(8)[:, None] / 8 * cell[0]
    gas = np.concatenate([chain[:4], chain[:3] + cell[1] / 2, [cell[2] / 2]])
    for place in rng.uniform(-30, 30, (20, 3)):
        for system, endless in ((chain[:5], False), (gas, False), (chain, True)):
            x = rng.permutation(system + place)
            inside = x - np.floor(x @ np.linalg.inv(cell)) @ cell
            edges = neighbor_list(inside, 1.8, cell, True)
            assert is_endless(edges) == endless
            assert edges.shift.any() or not endless
    assert not is_endless(neighbor_list(chain, 1.8))
    assert not is_endless(neighbor_list(np.empty((0, 3)), 1.8, cell, True))
