"""The figures that runs of crystals and fluids are compared by."""

from pathlib import Path

import numpy as np
import pytest

from mdtrajnet_fast import Trajectory

FRAMES, DT = 400, 6.0  # fs


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    import periodic

    return periodic


def crystal(bench, stretch: float = 1.0, wavenumber: float = 1000.0, seed: int = 0) -> Trajectory:
    """Diamond whose atoms swing, each by itself, with about this wavenumber."""
    rng = np.random.default_rng(seed)
    atoms = bench.diamond(3)
    atoms.set_cell(stretch * atoms.cell[:], scale_atoms=True)
    w = 2 * np.pi * wavenumber / 33356.41 * rng.uniform(0.8, 1.2, (len(atoms), 3))
    t = DT * np.arange(FRAMES)
    phase = w * t[:, None, None] + rng.uniform(0, 2 * np.pi, w.shape)
    x, v = 0.05 * np.sin(phase), 0.05 * w * np.cos(phase)
    p = v * atoms.get_masses()[:, None] / 0.09822694788464063  # ASE's fs
    return Trajectory(atoms, t, atoms.positions + x, p)


def gas(bench, step: float, seed: int = 0) -> Trajectory:
    """Atoms that walk at random, so far in each step."""
    rng = np.random.default_rng(seed)
    atoms = bench.argon(1.374, cells=3)
    x = atoms.positions + rng.normal(0, step, (FRAMES, len(atoms), 3)).cumsum(0)
    return Trajectory(atoms, 50.0 * np.arange(FRAMES), x, np.ones_like(x))


def missed(found: dict) -> list[str]:
    return [name for name, figure in found.items() if not figure.met]


def test_a_crystal_agrees_with_itself_and_not_with_others(bench):
    same = bench.solid(crystal(bench, seed=1), crystal(bench))
    assert missed(same) == []
    positions, heights, vibrations = same
    assert same[positions].value < 3e-3 and same[vibrations].value > 0.97
    assert positions in missed(bench.solid(crystal(bench, stretch=1.02), crystal(bench)))
    assert missed(bench.solid(crystal(bench, wavenumber=1300.0), crystal(bench))) == [vibrations]
    assert bench.half(crystal(bench), 1).times[0] == DT * FRAMES / 2


def test_a_fluid_agrees_with_itself_and_not_with_others(bench):
    same = bench.fluid(gas(bench, 0.2), gas(bench, 0.2))
    assert missed(same) == []
    distribution, walk = same
    again = bench.fluid(gas(bench, 0.2, seed=1), gas(bench, 0.2))
    np.testing.assert_allclose(again[walk].value, 1.0, atol=0.15)
    other = bench.fluid(gas(bench, 0.3), gas(bench, 0.2))
    assert walk in missed(other)
    np.testing.assert_allclose(other[walk].value, 2.25, rtol=0.2)
    assert distribution in missed(bench.fluid(gas(bench, 0.001), gas(bench, 0.2)))


def test_the_table_says_what_is_asked_and_whether_it_is_met(bench):
    figures = {"height": bench.Figure(0.1, "10.0%", "5 %", False)}
    state = {"duration": 20_000.0, "model": "diamond", "window": 6.0, "warnings": []}
    cpu = {"name": "x", "family": 1, "model": 2, "cores": 1, "instruction_sets": [], "caches": {}}
    report = {"processor": cpu, "date": "today", "threads": 1, "versions": {}}
    text = bench.markdown(
        report | {"states": {"cold": state | {"figures": figures, "halves": figures}}}
    )
    assert "**cold**, 20 ps with diamond, windows of 6 fs. Trust summary: no warnings." in text
    assert "| height | 10.0% | 5 % | no | 10.0% |" in text


def test_states_have_the_sizes_in_their_names(bench):
    for name, state in bench.STATES.items():
        assert f"{len(state.atoms):,} atoms" in name
        assert state.spacing % state.step == 0 and state.duration % state.spacing == 0
    np.testing.assert_allclose(
        bench.argon(1.374).get_masses().sum() / 0.602214 / bench.argon(1.374).cell.volume,
        1.374,
        rtol=1e-3,
    )


def test_boxes_are_rectangular_and_of_one_element(bench):
    atoms = bench.diamond(1)
    atoms.symbols[0] = "Si"
    with pytest.raises(ValueError, match="expected one element, got"):
        bench.Box(atoms, [])
    atoms.set_cell(atoms.cell[:] @ [[1, 0.1, 0], [0, 1, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="rectangular"):
        bench.Box(atoms, [])
