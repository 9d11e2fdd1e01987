"""Compiles every Triton kernel ahead of time, for GPUs that need not be there.

Run by test_triton.py in a process of its own, without TRITON_INTERPRET. The operation is called on
small CPU tensors with the launcher replaced by one that records kernels and arguments, so that what
is compiled is what would be launched. Prints {"kernel, model, neighbours, target": {registers,
stack, shared}} as JSON: registers a thread, stack bytes a thread (spilled registers), shared bytes
a block.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from unittest.mock import patch

import torch
import triton
import triton_inputs
from mdtrajnet_fast.kernels import attention
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {torch.float32: "*fp32", torch.int64: "*i64"}
# The H200; for the bundled models in both shapes of tiles, and an older and a newer generation.
DEGREES = {"few": (8, 8, 8, 8), "many": (46, 46, 46, 46)}
CASES = [("published", triton_inputs.PUBLISHED, "many", (90,))]
for name, sizes in triton_inputs.BUNDLED.items():
    CASES += [(name, sizes, "few", (90,)), (name, sizes, "many", (80, 90, 120))]


class Launch:
    """A kernel with the arguments of a launch, as the compiler takes them."""

    def __init__(self, kernel: JITFunction, args: tuple, options: dict):
        self.options = {"num_warps": options.pop("num_warps", 4)}
        self.kernel = kernel
        bound = dict(zip(kernel.arg_names, args, strict=False)) | options
        assert set(bound) == set(kernel.arg_names), set(bound) ^ set(kernel.arg_names)
        self.signature, self.constants, self.attributes = {}, {}, {}
        for k, parameter in enumerate(kernel.params):
            value = bound[parameter.name]
            if parameter.is_constexpr:
                self.constants[parameter.name] = value
                kind = "constexpr"
            elif isinstance(value, Tensor):
                kind = TYPES[value.dtype]
                self.attributes[(k,)] = [["tt.divisibility", 16]]  # as torch allocates
            else:
                kind = "i32" if isinstance(value, int) else "fp32"
            self.signature[parameter.name] = kind
        self.name = kernel.__name__ + "_tangent" * self.constants.get("TANGENT", False)

    def compile(self, capability: int) -> dict[str, int]:
        """Registers, stack and shared memory on a compute capability."""
        source = ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options=self.options)
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            text = subprocess.run(
                [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
            ).stdout
        (registers, stack) = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
        shared = compiled.metadata.shared
        return {"registers": int(registers), "stack": int(stack), "shared": shared}


def launches(sizes: tuple[int, ...], degrees: tuple[int, ...]) -> list[Launch]:
    """What the values, the tangents and the gradients launch."""
    state, graph, folded, options, _ = triton_inputs.inputs(sizes, degrees)
    state, folded = triton_inputs.single(state), triton_inputs.single(folded)
    edges = triton_inputs.single((graph.row_ptr, graph.neighbor, graph.r, graph.w))
    options["envelope"] = True  # the larger kernels
    found: dict[str, Launch] = {}

    def record(kernel: JITFunction, *args, grid, warmup, **kwargs) -> None:
        launch = Launch(kernel, args, kwargs)
        found.setdefault(launch.name, launch)

    # the variable lets CPU tensors pass; triton has read it, unset, when it was imported
    with patch.object(JITFunction, "run", record), patch.dict(os.environ, TRITON_INTERPRET="1"):
        attention.forward(*state, *edges, folded, **options)
        attention.tangent(*state, *state, *edges, folded, **options)
        attention.backward(*state, *edges, folded, *state, **options)
    return list(found.values())


def jobs() -> Iterator[tuple[str, Launch, int]]:
    seen = set()
    for model, sizes, degrees, capabilities in CASES:
        for launch in launches(sizes, DEGREES[degrees]):
            for capability in capabilities:
                key = (launch.name, str(launch.constants), str(launch.options), model, capability)
                if key not in seen:
                    seen.add(key)
                    yield f"{launch.name}, {model}, {degrees}, sm_{capability}", launch, capability


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ThreadPool(min(4, len(os.sched_getaffinity(0)))) as pool:
        work = list(jobs())
        results = pool.starmap(lambda name, launch, target: launch.compile(target), work)
    print(json.dumps({job[0]: result for job, result in zip(work, results, strict=True)}))
