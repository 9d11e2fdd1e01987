"""What a benchmark runs on: the processor, its caches, and the multiply-adds it can do at most."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("fma_peak.cpp")
_SETS = ("sse4_2", "avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "amx_tile", "asimd", "sve")


@cache
def fma_peak(threads: int = 1, repeats: int = 200) -> dict[str, dict[str, float]]:
    """GFLOP/s by instruction set and type, {"avx512": {"f32": ..., "f64": ...}, ...}.

    The maximum of several runs of `fma_peak.cpp`, compiled on demand with $CXX (or Python's own
    compiler) into a temporary directory. Raises RuntimeError with the compiler's message if it
    cannot be built.
    """
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "fma_peak"
        command = [*compiler[:1], "-O3", "-std=c++17", "-ffp-contract=fast", "-pthread"]
        built = subprocess.run(
            [*command, str(_SOURCE), "-o", str(program)], capture_output=True, text=True
        )
        if built.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)} failed on {_SOURCE}:\n{built.stderr}")
        printed = subprocess.run(
            [program, str(threads), str(repeats)], capture_output=True, text=True, check=True
        ).stdout
    peak: dict[str, dict[str, float]] = {}
    for line in printed.splitlines():
        instructions, kind, value = line.split()
        peak.setdefault(instructions, {})[kind] = float(value)
    return peak


def best_peak(threads: int = 1, kind: str = "f32") -> float:
    """GFLOP/s of the best instruction set."""
    return max(x[kind] for x in fma_peak(threads).values())


def processor() -> dict[str, object]:
    """Name, instruction sets that matter, cores this process may use, caches (level: size)."""
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level = (index / "type").read_text().strip(), (index / "level").read_text().strip()
        if kind != "Instruction":
            caches[f"L{level}"] = (index / "size").read_text().strip()
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        # a virtual machine can hide the generation in the name
        "family": fields.get("cpu family"),
        "model": fields.get("model"),
        "instruction_sets": [name for name in _SETS if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "caches": caches,
    }


def slug(cpu: dict[str, object]) -> str:
    """What :func:`processor` returns, as part of a file name."""
    name = f"{cpu['name']} {cpu['family']} {cpu['model']}".lower()
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


if __name__ == "__main__":
    print(processor())
    for count in sorted({1, len(os.sched_getaffinity(0))}):
        print(f"{count} thread(s), GFLOP/s:", fma_peak(count))
