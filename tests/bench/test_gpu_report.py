"""The GPU report's dry run: its sections on the CPU, with tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "gpu_report.py"


@pytest.fixture
def gpu_sections(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_sections

    monkeypatch.setattr(gpu_sections, "DRY", True)
    return gpu_sections


@pytest.fixture
def gpu_report(gpu_sections, monkeypatch):
    import gpu_report

    monkeypatch.setattr(gpu_report, "DRY", True)
    return gpu_report


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "scaling",
        "potentials",
        "rollout",
        "neighbors",
        "window_training",
        "training",
        "trace",
        "roofline",
        "peers",
    ],
)
def test_sections(gpu_sections, name):
    rows = list(gpu_sections.SECTIONS[name][0]())
    assert rows and [row for row in rows if "failed" in row] == []
    if name == "trace":
        assert rows[0]["windows"] == 3 and rows[0]["waits"] == []
    else:
        assert all(row["median"] > 0 for row in rows)
    if name == "rollout":
        assert {row["provider"] for row in rows} == {"device", "host"}


def test_the_whole_writes_its_report(tmp_path):
    words = [sys.executable, str(SCRIPT), "--dry-run", "--output", str(tmp_path)]
    words += ["--only", "build", "tests", "machine", "sanitizer"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    sections = json.loads((tmp_path / "dry-run.json").read_text())["sections"]
    assert {name: x["message"] for name, x in sections.items() if x["status"] != "ok"} == {}
    assert set(sections) == {"build", "tests", "machine", "sanitizer"}
    assert all(f"== {name} " in done.stdout for name in sections)
    assert sections["machine"]["rows"][1]["bytes_per_s"] > 0
    assert "tests collected" in sections["tests"]["rows"][0]["tail"]
    assert (tmp_path / "dry-run.png").exists()


def test_what_fails_or_lasts_is_recorded(gpu_report, tmp_path, monkeypatch):
    """A section that fails leaves its message and its rows, and so does one that lasts too long."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import pathlib, sys, time\n"
        "rows = pathlib.Path(sys.argv[sys.argv.index('--rows') + 1])\n"
        "rows.write_text('{\"measured\": 1}\\n')\n"
        "time.sleep(60) if 'lasts' in sys.argv else sys.exit('out of memory')\n"
    )
    monkeypatch.setattr(gpu_report, "__file__", str(broken))
    failed = gpu_report.section("fails", 30, tmp_path)
    assert failed["status"] == "failed" and "out of memory" in failed["message"]
    late = gpu_report.section("lasts", 2, tmp_path)
    assert late["status"] == "timed out" and late["seconds"] < 30
    assert failed["rows"] == late["rows"] == [{"measured": 1}]


def test_a_way_that_fails_leaves_the_others(gpu_sections):
    def fails():
        raise MemoryError("too much")

    rows = list(gpu_sections.attempts({"bad": fails, "good": lambda: lambda: None}, atoms=3))
    assert rows[0] == {"atoms": 3, "provider": "bad", "failed": "MemoryError: too much"}
    assert rows[1]["median"] > 0 and "failed" not in rows[1]


def test_a_stopped_command_keeps_its_words(gpu_sections):
    words = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    row = gpu_sections.command(words, 2)
    assert row["returncode"] is None and row["tail"] == "begun\n\nstopped after 2 s"


def test_exponents(gpu_report):
    """Of all sizes and of the larger ones; ways that failed, or ran for two sizes, have none."""
    rows = [
        {"provider": "a", "what": "values", "atoms": n, "median": 1e-6 * max(n, 8000) ** 1.02}
        for n in (1000, 8000, 64000, 512000)
    ]
    rows += [{"provider": "b", "what": "values", "atoms": n, "median": 1.0} for n in (1000, 8000)]
    rows += [{"provider": "b", "what": "values", "atoms": 64000, "failed": "no memory"}]
    rows += [{"atoms": 10**6, "failed": "no memory"}]
    whole, large = gpu_report.exponents(rows)
    assert whole["exponent"] < 0.9 and whole["atoms_from"] == 0
    assert abs(large["exponent"] - 1.02) < 1e-9 and large["provider"] == "a"


def test_runs_of_some_sections_make_one_report(gpu_report, tmp_path):
    path = tmp_path / "gpu.json"
    assert gpu_report.begun_report(path, "x")["sections"] == {}
    path.write_text(json.dumps({"gpu": "x", "sections": {"build": {"status": "ok"}}}))
    assert gpu_report.begun_report(path, "x")["sections"] == {"build": {"status": "ok"}}
    path.write_text("{")
    assert gpu_report.begun_report(path, "x")["sections"] == {}
