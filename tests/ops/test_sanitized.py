"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import cases
import pytest

from mdtrajnet_fast import _C
from mdtrajnet_fast.md.export import export_model

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O1", "-g", "-fopenmp", "-fno-math-errno", f"-I{ROOT / 'csrc'}"]
TEAM = ROOT / "csrc" / "cpu" / "team.cpp"
DOMAIN = [ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in ("domain", "neighbors")]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
INSTRUCTIONS = {
    "base": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [*(f"-mavx512{x}" for x in ("f", "dq", "bw", "vl")), "-mfma"],
}


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ with its sanitizers"),
]


def run(tmp_path, *sources, flags=(), arguments=()):
    """What a program of these sources prints."""
    program = tmp_path / "program"
    subprocess.run(["g++", *FLAGS, *flags, *SANITIZE, *sources, "-o", program], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    command = [program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    return result.stdout


def choice(tmp_path, name):
    """A source that makes the kernels of an instruction set those that are chosen."""
    path = tmp_path / "choice.cpp"
    path.write_text(
        '#include "cpu/attention.hpp"\n'
        "const mdtrajnet::AttentionKernels* mdtrajnet::attention_kernels(const char*) {\n"
        f"    return &attention_kernels_{name}();\n}}\n"
    )
    return path


def test_attention_and_potentials(tmp_path):
    """The best instruction set that there is: its vectors reach farthest."""
    name = _C.instruction_set()
    unit = ROOT / "csrc" / "cpu" / f"attention_{name}.cpp"
    main = ROOT / "csrc" / "testing" / "attention_main.cpp"
    units = [choice(tmp_path, name), unit, TEAM, *DOMAIN]
    printed = run(tmp_path, main, *units, flags=INSTRUCTIONS[name])
    assert printed == f"{name}: 288 of 288 finite\n"


def test_head(tmp_path):
    """What surrounds the blocks of a network."""
    head = ROOT / "csrc" / "cpu" / "head.cpp"
    printed = run(tmp_path, ROOT / "csrc" / "testing" / "head_main.cpp", head, TEAM, *DOMAIN)
    assert printed == "96 of 96 right\n"


def test_model_files(tmp_path):
    """Files that no writer would write, with the right checksum."""
    path = export_model(cases.gentle(**cases.OWN, **cases.POTENTIAL), tmp_path / "model")
    names = ("model_file", "predictor", "head", "attention_base", "team", "domain", "neighbors")
    units = [ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in names]
    main = ROOT / "csrc" / "testing" / "model_file_main.cpp"
    printed = run(tmp_path, main, choice(tmp_path, "base"), *units, flags=["-O0"], arguments=[path])
    assert printed == "1000 of 1000 right\n"
