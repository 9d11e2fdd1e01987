"""The README's own commands and code run as they are printed, but for how long solids are."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import snippets

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(command, folder):
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def shell(text, folder):
    bin_folder = Path(sys.executable).parent
    return run(["bash", "-e", "-c", f'export PATH="{bin_folder}:$PATH"\n{text}'], folder)


@pytest.mark.slow
def test_first_command(tmp_path):
    """The first block, without the installation that these tests run in already."""
    install, command = blocks("sh")[0].split("&&")
    assert install.strip() == "pip install ."
    out = shell(command, tmp_path)
    assert "Trust:" in out
    folder = tmp_path / "ethanol-300K"
    assert {"trajectory.traj", "spectrum.png", "report.html", "run.json"} <= {
        p.name for p in folder.iterdir()
    }


def test_second_command_is_what_ci_runs():
    tests = "pytest -n 2 --dist loadfile"
    assert blocks("sh")[1].strip() == f'pip install ".[test]" && {tests}'
    ci = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    assert 'pip install ".[test]"' in ci and f"\n{tests}" in ci


def test_python_block(tmp_path):
    (code,) = blocks("python")
    out = run([sys.executable, "-c", code], tmp_path)
    assert "Trust:" in out
    assert {"water.h5", "ammonia.traj", "ase.traj"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_other_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets.shell(blocks("sh")[2])
    out = capsys.readouterr().out
    assert "ballistic" in out and "molecules-nve" in out
    assert (tmp_path / "acetamide" / "trajectory-spectrum.png").exists()
    assert (tmp_path / "acetamide" / "report.html").exists()
    assert (tmp_path / "acetamide.xtc").exists() and (tmp_path / "acetamide.pdb").exists()


@pytest.mark.slow
def test_crystals_and_fluids(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets.shell(snippets.shortened(blocks("sh")[4], snippets.SHORTER_SOLIDS))
    out = capsys.readouterr().out
    assert out.count("Trust: no warnings") == 2
    assert out.count("No vdos: frames every 50 fs") == 1
    for name, kinds in (
        ("diamond-300K", "rdf msd vdos kinetic"),
        ("argon-150K", "rdf msd kinetic"),
    ):
        found = {p.name for p in (tmp_path / f"{name}-analysis").glob("*.png")}
        assert found == {f"{kind}.png" for kind in kinds.split()}
    for picture in re.findall(r"]\((docs/.*?)\)", README):
        assert (Path(__file__).parent.parent / picture).exists()


@pytest.mark.slow
def test_campaign(tmp_path):
    out = shell(blocks("sh")[5], tmp_path)
    assert "12 runs complete, 0 broken, 0 failed" in out
    assert len((tmp_path / "alcohols" / "table.csv").read_text().splitlines()) == 13


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_c_program(tmp_path):
    (code,) = blocks("c")
    (tmp_path / "water.c").write_text(code)
    lines = shell(blocks("sh")[3], tmp_path).splitlines()
    assert len(lines) == 12 and lines[-1].startswith("  750 fs: oxygen at z = ")
    assert lines[1] == "Without its dipole."
