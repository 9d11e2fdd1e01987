"""Trajectories to learn from, and batches of them, that tests on all devices share."""

from __future__ import annotations

import dataclasses

import cases
import numpy as np
import torch

from mdtrajnet_fast import TrainConfig, save_model
from mdtrajnet_fast.data.records import Record


def record(name: str, seed: int, frames: int = 40, **changes) -> Record:
    """A molecule that flies apart, so that edges and components change from frame to frame."""
    atoms, rng = cases.hot(name, seed=seed), np.random.default_rng(seed)
    times = np.arange(frames)[:, None, None]
    v = rng.normal(scale=0.08, size=(len(atoms), 3))
    fields = {
        "molecule": name,
        "trajectory": f"traj{seed:02d}",
        "numbers": atoms.numbers.astype(np.int64),
        "masses": atoms.get_masses(),
        "positions": (atoms.positions + v * times).astype(np.float32),
        "velocities": (v + 0.01 * np.sin(times + atoms.positions)).astype(np.float32),
        "frame_fs": 1.0 + seed % 2,
        "energy": None,
        "temperature_K": None,
        "smiles": None,
        "cell": np.zeros((3, 3)),
        "pbc": np.zeros(3, bool),
    }
    return Record(**fields | changes)


NAMES = ("CH3CH2OH", "H2O", "CO2", "H2", "CH4", "C6H6", "OH")
RECORDS = [record(name, seed) for seed, name in enumerate(NAMES)]


def vibration(seed: int, wavenumber: float = 3000.0, frames: int = 60, frame_fs: float = 1.0):
    """A record of H2 that vibrates harmonically, a classical thermal state of 300 K or so."""
    omega = 2 * np.pi * wavenumber / 33356.41
    rng = np.random.default_rng(seed)
    a, phase = 0.08 * abs(rng.standard_normal()) + 0.01, 7 * rng.random()
    t = frame_fs * np.arange(frames)
    positions, velocities = np.zeros((frames, 2, 3)), np.zeros((frames, 2, 3))
    for atom, sign in ((0, -1), (1, 1)):
        positions[:, atom, 2] = sign * (0.4 + a / 2 * np.cos(omega * t + phase))
        velocities[:, atom, 2] = -sign * a / 2 * omega * np.sin(omega * t + phase)
    return Record(
        molecule="H2",
        trajectory=f"traj{seed:02d}",
        numbers=np.array([1, 1]),
        masses=np.array([1.008, 1.008]),
        positions=positions.astype(np.float32),
        velocities=velocities.astype(np.float32),
        frame_fs=frame_fs,
        energy=None,
        temperature_K=300.0,
        smiles=None,
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, bool),
    )


def assert_same_batch(ours, theirs) -> None:
    for field in dataclasses.fields(theirs.graph):
        a, b = getattr(ours.graph, field.name), getattr(theirs.graph, field.name)
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), field.name
        else:
            assert a == b, field.name
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def potential_config(target, data, folder, sizes, **options) -> TrainConfig:
    """A training of a potential of that name and of those sizes, on data of H, N and O; the model
    that it is of is written to the folder."""
    save_model(
        cases.model(dtype=torch.float32, **cases.OWN, species=("H", "N", "O")), folder / "motion"
    )
    common = {
        "output": str(folder / "run"),
        "data": (str(data),),
        "exclude_trajectories": ("traj01",),
        "validation": {"held": {"data": [str(data)], "trajectories": ["traj01"]}},
        "target": target,
        target: sizes,
        "initial": str(folder / "motion"),
        "steps": 200,
        "batch_size": 16,
        "learning_rate": 0.01,
        "warmup_steps": 5,
        "ema_decay": 0.95,
        "validate_every": 100,
        "validation_pairs": 64,
        "threads": 1,
    }
    return TrainConfig(**common | options)
