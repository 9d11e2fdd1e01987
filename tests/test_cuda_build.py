"""What nvcc makes of the CUDA kernels: they compile, and keep within their budget of resources."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME')}/bin")

pytestmark = pytest.mark.skipif(
    NVCC is None, reason="nvcc is neither on PATH nor in CUDA_HOME/bin: no CUDA compiler to ask"
)


@dataclass(frozen=True)
class Budget:
    """The most that any kernel of a file may take; none may spill."""

    registers: int  # of a thread
    shared: int  # bytes of a block, static
    stack: int = 0  # bytes of a thread


# 64 registers: half of a multiprocessor's threads at a time.  16 bytes of stack: a division's.
# Edge kernels of the attention: for known sizes, launch bounds hold them to 168 registers (two
# blocks of 192 threads a multiprocessor); for any sizes there is one block.
BUDGETS = {
    "neighbors.cu": Budget(registers=64, shared=4096, stack=16),
    "attention.cu": Budget(registers=128, shared=48 * 1024),
    "attention_logits.cu": Budget(registers=232, shared=0),
    "attention_values.cu": Budget(registers=232, shared=0),
}


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel on one architecture."""

    arch: str
    registers: int
    shared: int
    stack: int
    spills: int


def build_flags() -> list[str]:
    """NVCC_FLAGS of setup.py, which cannot be imported."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NVCC_FLAGS":
            return eval(ast.unparse(node.value))  # a list of words
    raise AssertionError("setup.py has no NVCC_FLAGS")


def usages(text: str) -> dict[str, list[Usage]]:
    """The messages of ``ptxas -v``, by mangled name."""
    found: dict[str, list[Usage]] = {}
    for part in text.split("Compiling entry function ")[1:]:
        name, arch = re.match(r"'(\w+)' for '(\w+)'", part).groups()

        def number(pattern: str, part: str = part) -> int:
            match = re.search(pattern, part)
            return int(match[1]) if match else 0

        usage = Usage(
            arch=arch,
            registers=number(r"Used (\d+) registers"),
            shared=number(r"(\d+) bytes smem"),
            stack=number(r"(\d+) bytes stack frame"),
            spills=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        )
        found.setdefault(name, []).append(usage)
    return found


@pytest.mark.parametrize("name", BUDGETS)
def test_compiles_within_its_budget(name, tmp_path):
    command = [NVCC, *build_flags(), "-Xptxas", "-v", f"-I{CSRC}"]
    command += ["-c", str(CSRC / "cuda" / name), "-o", str(tmp_path / "kernels.o")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert any("code=compute_90" in word for word in command)  # PTX, for what comes after sm_90
    assert "warning" not in result.stderr, result.stderr
    kernels = usages(result.stdout + result.stderr)
    assert kernels
    budget = BUDGETS[name]
    for kernel, uses in kernels.items():
        assert {"sm_80", "sm_90"} <= {usage.arch for usage in uses}, kernel
        for usage in uses:
            assert usage.spills == 0, (kernel, usage)
            assert 0 < usage.registers <= budget.registers, (kernel, usage)
            assert usage.shared <= budget.shared, (kernel, usage)
            assert usage.stack <= budget.stack, (kernel, usage)


def test_every_file_with_kernels_has_a_budget():
    kernels = {path.name for path in CSRC.glob("cuda/*.cu") if "__global__" in path.read_text()}
    assert kernels == set(BUDGETS)
