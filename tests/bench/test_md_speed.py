"""The benchmark beside molecular dynamics: its ratios, its table, its missing peers by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def md_speed(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the module sets: put back afterwards
    import md_speed

    return md_speed


def timing(*samples):
    return {"median": float(np.median(samples)), "min": min(samples), "samples": list(samples)}


def test_the_faster_loop_is_the_peer(md_speed):
    times = {
        md_speed.END: timing(0.1, 0.2, 0.3),
        md_speed.ANI_ASE: timing(30.0, 30.0, 30.0),
        md_speed.ANI_BARE: timing(10.0, 20.0, 21.0),
    }
    assert md_speed.peer(times) == md_speed.ANI_BARE
    assert md_speed.ratios(times)[md_speed.END] == {"median": 100.0, "min": 100.0}
    del times[md_speed.ANI_BARE], times[md_speed.ANI_ASE]
    assert md_speed.peer(times) is None and md_speed.ratios(times) == {}


def test_per_picosecond(md_speed):
    assert md_speed.per_picosecond(timing(1.0, 2.0, 3.0), 50.0) == timing(20.0, 40.0, 60.0)


def test_missing_peers_are_named(md_speed, monkeypatch, tmp_path):
    """A whole run without peers, on times made up: they are missing by name, in the table too."""

    def lacks():
        raise ModuleNotFoundError("No module named 'torchani'")

    names = (md_speed.ANI_ASE, md_speed.ANI_BARE, md_speed.GFN2)
    monkeypatch.setattr(md_speed, "dynamics", lambda quick: dict.fromkeys(names, lacks))
    monkeypatch.setattr(md_speed, "interleave", lambda calls, _: dict.fromkeys(calls, timing(0.5)))
    monkeypatch.setattr("sys.argv", ["md_speed.py", "--quick", "--output", str(tmp_path)])
    md_speed.main()
    (table,) = tmp_path.glob("md-speed-*-quick.md")
    assert table.with_suffix(".json").exists()
    text = table.read_text()
    for name in names:
        assert f"| {name} | missing: ModuleNotFoundError: No module named 'torchani' |" in text
    assert f"| {md_speed.FAST}: {md_speed.END} | 500 (500) | no peer | at least 100 |" in text
    assert table.with_suffix(".png").stat().st_size > 1000


def test_bare_loop_is_ase_loop(md_speed):
    pytest.importorskip("torchani")
    assert md_speed.same_course(5.0) < 1e-5
