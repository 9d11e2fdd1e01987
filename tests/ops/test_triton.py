"""The Triton kernels against the float64 reference, and what they need of a GPU.

Neither needs a GPU: the kernels run in Triton's interpreter, and are compiled ahead of time. Each
happens in a process of its own, for the interpreter is switched on before triton is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import triton_inputs

pytest.importorskip("triton", reason="triton has no wheels for this platform")

HERE = Path(__file__).parents[1]
# Registers a thread and bytes of shared memory a block; no more than a block may ever have.
PRODUCTS = {
    "logits": (184, 32 << 10),
    "values": (255, 16 << 10),
    "logits_tangent": (248, 32 << 10),
    "values_tangent": (192, 20 << 10),
    "logits_backward": (255, 44 << 10),
    "values_backward": (255, 28 << 10),
}
ELEMENTWISE = (128, 2 << 10)


def child(script: str, tmp_path: Path) -> dict[str, dict[str, float]]:
    """What a script prints, as JSON, run with a cache of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(HERE / script)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_values_tangents_and_gradients(tmp_path):
    cases = child("triton_interpret.py", tmp_path)
    assert len(cases) == 3 + len(triton_inputs.BUNDLED) + 1 + 3 * 2 + 2 * 3 - 1
    for case, errors in cases.items():
        assert len(errors) == 26, case  # 3 values, twice, 3 tangents, 17 gradients
        # a float32 distance knows the rest to the cutoff to 1e-4 of it where that is small
        most = 1e-3 if case == "at the cutoff" else 1e-5
        wrong = {quantity: error for quantity, error in errors.items() if not error < most}
        assert not wrong, case


@pytest.mark.slow
def test_registers_and_shared_memory(tmp_path):
    kernels = child("triton_compile.py", tmp_path)
    compiled: dict[tuple[str, str], set[str]] = {}
    for name in kernels:
        kernel, model, _, target = name.split(", ")
        compiled.setdefault((model, target), set()).add(kernel)
    targets = product(triton_inputs.BUNDLED, ("sm_80", "sm_90", "sm_120"))
    assert set(compiled) == {("published", "sm_90"), *targets}
    assert all(found > set(PRODUCTS) for found in compiled.values())
    for name, usage in kernels.items():
        kernel, *_, target = name.split(", ")
        registers, shared = PRODUCTS.get(kernel, ELEMENTWISE)
        assert usage["registers"] <= registers, (name, usage)
        assert usage["shared"] <= shared, (name, usage)
        # nothing is spilled; sm_80 may keep two numbers on the stack, as triton 3.6 does
        assert usage["stack"] <= (8 if target == "sm_80" else 0), (name, usage)


def operation(change, dtype=torch.float32):
    from mdtrajnet_fast.kernels import attention

    state, graph, folded, options, _ = triton_inputs.inputs(triton_inputs.SMALL, (1, 1))
    edges = graph.row_ptr, graph.neighbor, graph.r.to(dtype), graph.w.to(dtype)
    state = [x.to(dtype) for x in state]
    return attention.forward(*state, *edges, change(folded), **options)


def test_refusals():
    with pytest.raises(NotImplementedError, match=r"key_layers has 2, of widths \(8, 8\)") as e:
        operation(lambda f: f._replace(key_layers=f.key_layers * 2))
    assert 'backend="reference"' in str(e.value)
    with pytest.raises(ValueError, match="float32, got scalars of torch.float64"):
        operation(lambda f: f, torch.float64)
    with pytest.raises(ValueError, match="run on CUDA devices, got tensors on cpu"):
        operation(lambda f: f)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("degrees", [(3, 0, 8, 1, 8, 9, 5), (37, 0, 1, 16, 46)])
def test_on_the_device(degrees):
    from mdtrajnet_fast.kernels import attention

    from mdtrajnet_fast.ops import edge_attention

    state, graph, folded, options, _ = triton_inputs.inputs(triton_inputs.PUBLISHED, degrees)
    exact = edge_attention(*state, graph, folded, **options)
    edges = graph.row_ptr, graph.neighbor, graph.r, graph.w
    args = triton_inputs.single((*state, *edges, folded), "cuda")
    for got, expected in zip(attention.forward(*args, **options), exact, strict=True):
        assert (got.cpu().double() - expected).norm() < 1e-5 * expected.norm()
    first, again = (attention.backward(*args, *args[:3], **options) for _ in range(2))
    assert torch.equal(first.r, again.r)
    assert torch.equal(first.folded.key_edge, again.folded.key_edge)
