"""The documentation: it builds without warnings, and what it shows runs.

Every page is a folder of its own, in which its blocks of `sh` and `python` run in order; a block
with a `:caption:` is a file of that name. Where a page says long trainings or runs, they are
shortened.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from snippets import SHORTER_SOLIDS, shell, shortened

ROOT = Path(__file__).parent.parent
DOCS, EXAMPLES = ROOT / "docs", ROOT / "examples"
PAGES = ["start.md", *(f"tutorials/{p.name}" for p in sorted((DOCS / "tutorials").glob("*.md")))]
BLOCK = re.compile(
    r"^```(?:\{code-block\} )?(?P<kind>\w+)\n(?::caption: (?P<file>[^\n]*)\n)?(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# As `shortened` takes it.
SHORTER = {
    "start.md": [("--duration 5000", "--duration 1500"), ("--duration 6000", "--duration 1800")],
    "tutorials/own-molecule.md": [("--duration 2000", "--duration 400 --equilibration 100")],
    "tutorials/spectra.md": [
        ("--duration 10000", "--duration 1700 --equilibration 100"),
        ("--duration 2000 --frame", "--duration 150 --equilibration 50 --step 0.5 --frame"),
    ],
    "tutorials/nvt-and-solids.md": [
        ("--dt 2 --duration 2000", "--dt 2 --duration 400 --equilibration 100"),
        *SHORTER_SOLIDS,
    ],
    "tutorials/own-potential.md": [
        ("--trajectories 10 ", "--trajectories 3 "),
        ("--duration 400 --frame", "--duration 60 --equilibration 20 --frame"),
        ("--steps 1000", "--steps 3"),
        ("traj09", "traj02"),
        ("steps = 3000", "steps = 3"),
        ("warmup_steps = 100", "warmup_steps = 1"),
        ("--dt 2 --duration 2000", "--dt 2 --duration 50 --equilibration 0"),
    ],
    "tutorials/finetuning.md": [
        ("finetune molecules-nve onccO.h5", "finetune molecules-nve-small onccO.h5"),
        ("--trajectories 25 ", "--trajectories 3 "),
        ("--conformers 5 --duration 300", "--conformers 1 --duration 30 --equilibration 10"),
        ("--trajectories 4 --duration 100", "--trajectories 1 --duration 30 --equilibration 10"),
        ("--steps 1000", "--steps 2"),
        ("--dt 2 --duration 2000", "--dt 2 --duration 50 --equilibration 0"),
    ],
    "tutorials/other-programs.md": [("<total_steps> 400 <", "<total_steps> 8 <")],
    "tutorials/cluster.md": [("--dt 2 --duration 500", "--duration 10 --equilibration 0")],
    "tutorials/gpu.md": [] if torch.cuda.is_available() else [("cuda", "cpu")],
}


def blocks(page):
    """(kind, file or None, text) of the code blocks of a page, as they are run."""
    text = shortened((DOCS / page).read_text(), SHORTER.get(page, []))
    return [(one["kind"], one["file"], one["text"]) for one in BLOCK.finditer(text)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page == "tutorials/published-weights.md":
        for member in range(2):
            shutil.copy(ROOT / "tests/files/tiny.pt", f"MDtrajNet-1.{member}.pt")
    ran = 0
    for kind, file, text in blocks(page):
        if file is not None:
            Path(file).write_text(text)
        elif kind == "sh":
            shell(text)
            ran += 1
        elif kind == "python":
            exec(compile(text, page, "exec"), {"__name__": "__main__"})
            ran += 1
        else:
            assert kind == "text", f"{page}: a block of {kind}"
    assert ran


@pytest.mark.parametrize("example", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_examples(example, tmp_path, monkeypatch, capsys):
    from ase.build import bulk, molecule

    monkeypatch.chdir(tmp_path)
    bulk("C", "diamond", a=3.566).write("crystal.cif")
    molecule("H2O").write("molecule.xyz")
    arguments, made = {
        "infrared_spectrum.py": (["molecule.xyz", "1", "2"], {"infrared.csv", "infrared.png"}),
        "phonon_dos.py": (["crystal.cif", "0.2"], {"phonons.csv"}),
        "harmonic_frequencies.py": (["molecule.xyz"], set()),
    }[example]
    monkeypatch.setattr(sys, "argv", [example, *arguments])
    runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    assert "cm^-1" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"crystal.cif", "molecule.xyz", *made}


def test_examples_are_in_the_documentation():
    pages = "".join((DOCS / page).read_text() for page in PAGES)
    for example in EXAMPLES.glob("*.py"):
        assert f"examples/{example.name}" in pages


def test_it_builds_without_warnings_and_without_a_network(tmp_path):
    pytest.importorskip("sphinx", reason="no Sphinx: pip install '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(tmp_path)]
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | nowhere, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    for name in ("index", "api", "commands", *(Path(page).with_suffix("") for page in PAGES)):
        page = (tmp_path / f"{name}.html").read_text()
        loaded = re.findall(r'<(?:script|img)[^>]* src="(.*?)"|<link [^>]*href="(.*?)"', page)
        assert not [url for pair in loaded for url in pair if url.startswith(("http", "//"))]
    api = (tmp_path / "api.html").read_text()
    import mdtrajnet_fast

    for name in mdtrajnet_fast.__all__:
        assert f'id="mdtrajnet_fast.{name}"' in api, f"{name} is not in docs/api.md"
