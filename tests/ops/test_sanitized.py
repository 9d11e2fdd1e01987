"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import cases
import pytest

from mdtrajnet_fast import _C
from mdtrajnet_fast.md.export import export_model

CSRC = Path(__file__).parents[2] / "csrc"
# As the compiler takes them: to optimise what is watched takes it four times as long, which the
# programs do not gain back. -g1: lines and names, all that messages have.
FLAGS = ["-std=c++17", "-O0", "-g1", "-fopenmp", "-fno-math-errno", f"-I{CSRC}"]
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


def compiled(folder, *sources, flags=()):
    """The objects of these sources."""
    command = ["g++", *FLAGS, *flags, *SANITIZE, "-c", *sources]
    subprocess.run(command, check=True, cwd=folder)
    return [folder / f"{source.stem}.o" for source in sources]


def run(folder, *objects, arguments=()):
    """What a program of these objects prints."""
    program = folder / "program"
    subprocess.run(["g++", "-fopenmp", *SANITIZE, *objects, "-o", program], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    command = [program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    return result.stdout


def cpu(*names):
    return [CSRC / "cpu" / f"{name}.cpp" for name in names]


def program_of(name):
    return CSRC / "testing" / f"{name}.cpp"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Objects that every program has."""
    folder = tmp_path_factory.mktemp("shared")
    return compiled(folder, *cpu("head", "team", "domain", "neighbors"))


def choice(tmp_path, kernels, header="attention"):
    """A source that makes these kernels those that are chosen."""
    path = tmp_path / "choice.cpp"
    path.write_text(
        f'#include "cpu/{header}.hpp"\n'
        "const mdtrajnet::AttentionKernels* mdtrajnet::attention_kernels(const char*) {\n"
        f"    {kernels}\n}}\n"
    )
    return path


def test_attention_and_potentials(tmp_path, shared):
    """The best instruction set that there is: its vectors reach farthest."""
    name = _C.instruction_set()
    chosen = choice(tmp_path, f"return &attention_kernels_{name}();")
    kernels = compiled(tmp_path, *cpu(f"attention_{name}"), flags=INSTRUCTIONS[name])
    main = compiled(tmp_path, chosen, program_of("attention_main"))
    assert run(tmp_path, *main, *kernels, *shared) == f"{name}: 324 of 324 finite\n"


def test_head(tmp_path, shared):
    """What surrounds the blocks of a network."""
    main = compiled(tmp_path, program_of("head_main"))
    assert run(tmp_path, *main, *shared) == "96 of 96 right\n"


def test_model_files(tmp_path, shared):
    """Files that no writer would write, with the right checksum."""
    path = export_model(cases.gentle(**cases.OWN, **cases.POTENTIAL), tmp_path / "model")
    # to read a model is to pack its weights: the other kernels would take the compiler a minute
    functions = ", ".join(f"{{pack<{t}>, release<{t}>}}" for t in ("float", "double"))
    kernels = f'static constexpr AttentionKernels packing = {{"base", {functions}}};'
    chosen = choice(tmp_path, f"{kernels}\n    return &packing;", "attention_pack")
    sources = [program_of("model_file_main"), chosen, *cpu("model_file", "predictor")]
    program = compiled(tmp_path, *sources)
    assert run(tmp_path, *program, *shared, arguments=[path]) == "1000 of 1000 right\n"
