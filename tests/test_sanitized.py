"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mdtrajnet_fast import _C

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=c++17", "-O1", "-g", "-fopenmp", "-fno-math-errno", f"-I{ROOT / 'csrc'}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
INSTRUCTIONS = {
    "base": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [*(f"-mavx512{x}" for x in ("f", "dq", "bw", "vl")), "-mfma"],
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ with its sanitizers")
def test_attention(tmp_path):
    """The best instruction set that there is: its vectors reach farthest."""
    name = _C.instruction_set()
    choice = tmp_path / "choice.cpp"
    choice.write_text(
        '#include "cpu/attention.hpp"\n'
        "const mdtrajnet::AttentionKernels* mdtrajnet::attention_kernels(const char*) {\n"
        f"    return &attention_kernels_{name}();\n}}\n"
    )
    unit = ROOT / "csrc" / "cpu" / f"attention_{name}.cpp"
    main = ROOT / "csrc" / "testing" / "attention_main.cpp"
    program = tmp_path / "attention"
    command = ["g++", *FLAGS, *INSTRUCTIONS[name], *SANITIZE, main, choice, unit, "-o", program]
    subprocess.run(command, check=True)
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    result = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == f"{name}: 144 of 144 finite\n"
