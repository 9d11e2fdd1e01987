"""Peak memory of one pass beyond what the input takes, in a process of its own (Linux).

    python bench/memory.py <provider> <displacement|motion> <diamond|fluid> <size>

size: cells along an edge of diamond, atoms of the fluid. Prints JSON: atoms, bytes before the pass
and the growth of the peak during it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import torch  # noqa: E402
from providers import THREADS, provider  # noqa: E402
from systems import crystal, fluid  # noqa: E402


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def release() -> None:
    """Give freed memory back to the system, where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_growth(call: Callable[[], object]) -> int:
    """Bytes by which the resident peak grows during a call, what it returns included."""
    release()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    kept = call()
    peak = _status("VmHWM")
    del kept
    return peak - before


def growth(name: str, mode: str, system: str, size: int) -> dict[str, int]:
    """Resident bytes before a pass and the growth of their peak during it."""
    torch.set_num_threads(THREADS)
    make = {"diamond": crystal, "fluid": fluid}[system]
    with torch.no_grad():
        # code pages, thread stacks and compiled tensor products belong to no atom
        small = provider(name, crystal(3))
        getattr(small, mode)()
        getattr(small, mode)()
        atoms = make(size)
        made = provider(name, atoms)
        release()
        before = _status("VmRSS")
        grown = peak_growth(getattr(made, mode))
    return {"atoms": len(atoms), "before": before, "growth": grown}


if __name__ == "__main__":
    provider_name, pass_name, system_name, system_size = sys.argv[1:]
    print(json.dumps(growth(provider_name, pass_name, system_name, int(system_size))))
