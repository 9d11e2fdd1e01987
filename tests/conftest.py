"""Settings of all tests, and fixtures that put emulated kernels in a GPU's place.

One thread for tiny tensors: threads cost more than they save, and results repeat to the bit.
"""

import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

# Threads that wait sleep, and do not keep a processor from whom they wait for or from other tests.
# OpenMP reads this when it is loaded, here and in the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402

from mdtrajnet_fast import _C  # noqa: E402

torch.set_num_threads(1)


def pytest_configure(config):
    """Workers of pytest-xdist take files in the order below, not those of most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files with slow tests first: no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(params=_C.build_info()["instruction_sets"])
def instruction_set(request, monkeypatch):
    """Runs a test with each instruction set that the processor has."""
    monkeypatch.setenv("MDTRAJNET_INSTRUCTION_SET", request.param)
    try:
        assert _C.instruction_set() == request.param
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")


@pytest.fixture
def emulated_attention(monkeypatch):
    """Tensors on the CPU count as those of a GPU, whose kernels for attention blocks and window
    potentials run in the emulation."""
    import emulated_gpu

    from mdtrajnet_fast.ops import BACKENDS, blocks, cuda

    emulated = SimpleNamespace(
        CudaAttentionBlock=emulated_gpu.EmulatedBlock,
        cuda_attention_stack=emulated_gpu.emulated_stack,
        cuda_window_bytes=emulated_gpu.emulated_window_bytes,
        cuda_window_potential=emulated_gpu.emulated_window_potential,
    )
    monkeypatch.setattr(cuda, "_C", emulated)
    monkeypatch.setattr(cuda, "_stream", lambda device: 0)
    monkeypatch.setattr(cuda, "_check", lambda tensors, device: [x.contiguous() for x in tensors])
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())

    def chosen(name, *_):
        return BACKENDS[name or "cuda"]

    monkeypatch.setattr(blocks, "choose_backend", chosen)
    monkeypatch.setattr("mdtrajnet_fast.model.network.choose_backend", chosen)


@pytest.fixture
def emulated_neighbors(monkeypatch):
    """Tensors on the CPU count as those of a GPU, whose neighbours the emulation searches."""
    import emulated_gpu

    from mdtrajnet_fast.neighbors import device as neighbors_cuda

    monkeypatch.setattr(neighbors_cuda, "_C", emulated_gpu.EmulatedNeighbors())
    monkeypatch.setattr(neighbors_cuda, "_on_gpu", lambda x: True)
    monkeypatch.setattr(neighbors_cuda, "_stream", lambda x: 0)


@pytest.fixture
def emulated_conservation(monkeypatch):
    """Tensors on the CPU count as those of a GPU, whose kernels for kicks run in the emulation."""
    import emulated_gpu

    from mdtrajnet_fast.md import conservation

    emulated = SimpleNamespace(
        cuda_internal_velocities_bytes=lambda times, atoms: 136 * times * atoms,
        cuda_internal_velocities=emulated_gpu.emulated_internal_velocities,
    )
    monkeypatch.setattr(conservation, "_C", emulated)
    monkeypatch.setattr(conservation, "_on_gpu", lambda x: True)
    monkeypatch.setattr(conservation, "_stream", lambda x: 0)


@pytest.fixture(scope="session")
def water_and_ammonia(tmp_path_factory):
    """Two short trajectories each of water and ammonia, for trainings of potentials."""
    from mdtrajnet_fast.data.generate import generate

    path = tmp_path_factory.mktemp("data") / "data.h5"
    generate(["O", "N"], path, trajectories=2, duration_fs=100, equilibration_fs=20, conformers=1)
    return path


@pytest.fixture(scope="session")
def water_runs(tmp_path_factory):
    """Two runs of water, long enough for spectra."""
    from mdtrajnet_fast.data.generate import generate

    path = tmp_path_factory.mktemp("data") / "runs.h5"
    generate(
        ["O"],
        path,
        trajectories=2,
        temperatures_K=[200],
        step_fs=0.5,
        frame_fs=2.0,
        duration_fs=1700.0,
        conformers=1,
        max_energy_std_eV=0.05,
    )
    return path
