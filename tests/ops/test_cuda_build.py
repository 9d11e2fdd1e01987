"""What nvcc makes of the CUDA kernels: they compile, and keep within their budget of resources.

The bundled models and the published sizes have edge kernels of their own, and nobody else has.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cases
import pytest

from mdtrajnet_fast import _C
from mdtrajnet_fast.model.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME')}/bin")

needs_nvcc = pytest.mark.skipif(
    NVCC is None, reason="nvcc is neither on PATH nor in CUDA_HOME/bin: no CUDA compiler to ask"
)
MODELS = {"published": cases.PUBLISHED} | cases.bundled_configs()


@dataclass(frozen=True)
class Budget:
    """The most that any kernel of a file may take; none may spill."""

    registers: int  # of a thread
    shared: int  # bytes of a block, static
    stack: int = 0  # bytes of a thread
    known: int | None = None  # registers of kernels for known sizes, where a file must have them


# 64 registers: half of a multiprocessor's threads at a time.  16 bytes of stack: a division's.
# Edge kernels of the attention: for known sizes, two blocks of 192 threads a multiprocessor; for
# any sizes there is one block.  Window potentials: three blocks of 128
# threads.
BUDGETS = {
    "neighbors.cu": Budget(registers=64, shared=4096),
    "neighbors_bins.cu": Budget(registers=64, shared=0, stack=16),
    "neighbors_components.cu": Budget(registers=32, shared=0),
    "neighbors_scan.cu": Budget(registers=64, shared=64),
    "neighbors_skin.cu": Budget(registers=64, shared=0, stack=16),
    "attention.cu": Budget(registers=128, shared=48 * 1024),
    "attention_logits.cu": Budget(registers=232, shared=0, known=168),
    "attention_values.cu": Budget(registers=232, shared=0, known=168),
    "conservation.cu": Budget(registers=128, shared=0, stack=16),
    "window_potentials.cu": Budget(registers=168, shared=0),
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


def known_sizes(kernel: str) -> tuple[int, int] | None:
    """Gaussians and hidden units of a mangled Known<Gaussians, units>; None for any sizes."""
    match = re.search(r"5KnownILi(\d+)ELi(\d+)EE", kernel)
    return (int(match[1]), int(match[2])) if match else None


def native(config: ModelConfig, **changed: object) -> _C.CudaAttentionBlock:
    sizes = cases.block_sizes(config) | changed
    return _C.CudaAttentionBlock(**sizes, cutoff=config.radial_cutoff, envelope=config.envelope)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_kernels_of_its_own(name):
    """Also where there is no CUDA to run them."""
    assert native(MODELS[name]).specialised
    other = [{"heads": 5}, {"key_channels": 9}, {"centres": 21}, {"value_hidden": [200]}]
    other += [{"key_hidden": []}, {"key_hidden": 2 * MODELS[name].key_weight_hidden_neurons}]
    for sizes in other:
        assert not native(MODELS[name], **sizes).specialised, sizes


@pytest.mark.slow
@needs_nvcc
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
    if budget.known:  # few or many edges, tangents: for every model, and for no sizes besides
        assert Counter(filter(None, map(known_sizes, kernels))) == {
            (x.d_embed_dim, -(-x.key_weight_hidden_neurons[0] // 64) * 64): 3
            for x in MODELS.values()
        }
    for kernel, uses in kernels.items():
        assert {"sm_80", "sm_90"} <= {usage.arch for usage in uses}, kernel
        registers = budget.known if known_sizes(kernel) else budget.registers
        for usage in uses:
            assert usage.spills == 0, (kernel, usage)
            assert 0 < usage.registers <= registers, (kernel, usage)
            assert usage.shared <= budget.shared, (kernel, usage)
            assert usage.stack <= budget.stack, (kernel, usage)


def test_every_file_with_kernels_has_a_budget():
    kernels = {path.name for path in CSRC.glob("cuda/*.cu") if "__global__" in path.read_text()}
    assert kernels == set(BUDGETS)
