"""The emulation of CUDA on the CPU: what it computes, and what it finds."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cuda_emulation import CSRC, call, load, needs_compiler, run_sanitized, thread_order

pytestmark = needs_compiler

SOURCE = CSRC / "testing" / "faults.cu"
FAULTS = re.search(r"enum Fault \{([^}]*)\}", SOURCE.read_text())[1].replace(",", " ").split()


def fault(name: str, out: np.ndarray) -> None:
    call(load(SOURCE).emulated_fault, FAULTS.index(name), out)


def run_fault(name: str) -> None:
    """For run_sanitized."""
    fault(name, np.zeros(32, np.float32))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("block", [(32, 1), (7, 5), (16, 16), (1, 1), (32, 32)])
def test_blocks_shared_memory_and_shuffles(block, seed):
    library = load(SOURCE)
    values = np.random.default_rng(0).integers(-99, 99, (6, block[0] * block[1]))
    sums = np.zeros(6, np.float32)
    with thread_order(library, seed):
        call(library.emulated_sum_blocks, values.astype(np.float32), sums, *block)
    np.testing.assert_array_equal(sums, values.sum(1))


def test_parts_of_a_warp_votes_and_atomics():
    out = np.zeros(35, np.int32)
    call(load(SOURCE).emulated_parts, out)
    assert out.tolist() == [111] * 8 + [117] * 24 + [496, 31, 64]


WAIT = r"%d threads wait for their block at .*faults.cu:\d+ \(first \(%d, 0, 0\)\)"


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("returns_early", [r"block \(0, 0, 0\); 1 threads returned \(first \(3,", WAIT % (31, 0)]),
        ("other_barrier", [WAIT % (1, 3), WAIT % (31, 0)]),
        ("lane_waits_alone", ["1 threads wait for lanes of their warp at", WAIT % (31, 0)]),
        ("absent_lane", [r"a shuffle reads a lane that takes no part at .*faults.cu:\d+, block"]),
        ("outside_mask", [r"mask leaves it out at .* thread \(8, 0, 0\)"]),
    ],
)
def test_what_diverges_is_reported(name, messages):
    out = np.zeros(32, np.float32)
    with pytest.raises(RuntimeError) as error:
        fault(name, out)
    assert all(re.search(message, str(error.value)) for message in messages), error.value
    fault("none", out)  # nothing of it is left


def test_shared_memory_starts_as_nan():
    out = np.zeros(32, np.float32)
    fault("never_written", out)
    assert np.isnan(out).all()


def test_an_order_that_matters_shows():
    library, seen = load(SOURCE), set()
    for seed in range(8):
        out = np.zeros(32, np.float32)
        with thread_order(library, seed):
            fault("last_writer", out)
        seen.add(out[0])
    assert len(seen) > 3 and 31.0 in seen


def test_dynamic_shared_memory_has_its_limits():
    launch, out = load(SOURCE).emulated_much_shared, np.zeros(32, np.float32)
    call(launch, 48 * 1024, 0, out)
    with pytest.raises(RuntimeError, match="invalid launch: .* 49153 bytes .* 49152 are allowed"):
        call(launch, 48 * 1024 + 1, 0, out)
    call(launch, 90 * 1024, 99 * 1024, out)
    with pytest.raises(RuntimeError):
        call(launch, 0, 228 * 1024, out)


def test_sanitizers_find_nothing_where_nothing_is():
    result = run_sanitized("test_cuda_emulation", "run_fault('none')")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("past_dynamic", "heap-buffer-overflow"),
        ("past_global", "heap-buffer-overflow"),
        ("past_static", "index [0-9]+ out of bounds"),
    ],
)
def test_sanitizers_find_what_is_out_of_bounds(name, message):
    result = run_sanitized("test_cuda_emulation", f"run_fault('{name}')")
    assert result.returncode != 0
    assert re.search(message, result.stderr), result.stderr
