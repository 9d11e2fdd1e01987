"""simulate: from ASE atoms to trajectories, with files, restart, progress and a trust summary."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import ase
import numpy as np
from tqdm import tqdm

from .analysis import TrustMonitor
from .checkpoint import load_model
from .ensembles import set_velocities, thermal_velocities
from .model import MDtrajNet
from .rollout import Frames, exact, rollout
from .system import System
from .trajectory import Trajectory, count_frames, open_writer, truncate


def simulate(
    atoms: ase.Atoms | Sequence[ase.Atoms],
    dt: float = 1.0,
    *,
    duration: float = 1000.0,
    model: str | Path | MDtrajNet = "molecules-nve",
    window: float | None = None,
    velocities: np.ndarray | Sequence[np.ndarray] | None = None,
    temperature_K: float | None = None,
    seed: int = 0,
    trajectory: str | Path | Sequence[str | Path] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Trajectory | list[Trajectory]:
    """Predict the molecular dynamics of one system, or of many at once.

    atoms: one ase.Atoms, or a list of them, all predicted in the same batches. Velocities are read
        from their momenta. The atoms themselves are not changed.
    dt: spacing of the frames (fs); of the output only, the rollout does not depend on it.
    duration: length of the trajectory (fs), counted from its frame 0.
    model: a name or path for :func:`~mdtrajnet_fast.load_model`, or a loaded model.
    window: stride of the rollout (fs); None for the model's own.
    velocities: [atoms, 3] Å/fs (a list of such arrays for a list), in place of those of atoms.
    temperature_K, seed: draw velocities at exactly this kinetic temperature over the free degrees
        of freedom (:func:`~mdtrajnet_fast.ensembles.thermal_velocities`); system k of a list draws
        with seed + k.
    trajectory: file to stream the frames to (.traj, .extxyz or .h5), or one for each system.
        Written after every window; never overwritten.
    resume: continue the file (or files) up to `duration`, or begin where there is none. The start
        comes from the file; atoms only has to be the same system. With the same settings, machine
        and number of threads the result is, bit for bit, that of a run without the stop.
    progress: show a progress bar.

    Returns a :class:`~mdtrajnet_fast.Trajectory` (a list of them for a list) with frames at 0, dt,
    2 dt, ... up to duration, and its `trust` summary. Momentum, and angular momentum of isolated
    molecules, are those of the start; positions are unwrapped.

    Raises ValueError for elements that the model does not know, atoms at rest without a temperature
    and settings out of range; FileExistsError for a trajectory file that is there already without
    resume; :class:`~mdtrajnet_fast.rollout.RolloutError` when a trajectory breaks, the frames
    until then being in the file.
    """
    single = isinstance(atoms, ase.Atoms)
    many = [atoms.copy()] if isinstance(atoms, ase.Atoms) else [a.copy() for a in atoms]
    paths = _each(trajectory, single, len(many), "trajectory files")
    given = _each(velocities, single, len(many), "arrays of velocities")
    network = model if isinstance(model, MDtrajNet) else load_model(model)
    network.species_index(System.from_atoms(many).numbers)
    for k, one in enumerate(many):
        if one.constraints:
            raise ValueError(
                f"system {k} has constraints ({type(one.constraints[0]).__name__}), which a "
                "predicted trajectory cannot keep: remove them with atoms.set_constraint()"
            )
    stride = exact(network.stride(window))
    if not 0 < dt <= duration < np.inf:
        raise ValueError(f"expected 0 < dt <= duration (fs), got dt {dt} and duration {duration}")
    metadata = {
        "model": network.name,
        "model_hash": model_hash(network),
        "dtype": str(network.dtype).removeprefix("torch."),
        "dt_fs": float(dt),
        "window_fs": float(stride),
    }
    start = boundary = 0
    continues = resume and any(path is not None and Path(path).exists() for path in paths)
    if continues:
        parts, start, boundary = _held(paths, exact(dt), stride)
    else:
        parts = []
        for k, (one, v) in enumerate(zip(many, given, strict=True)):
            _set_start(one, v, temperature_K, seed + k, k)
            x, p = one.positions[None], one.get_momenta()[None]
            parts.append(Trajectory(one, [0.0], x, p, metadata))

    with ExitStack() as stack:
        recorders = [
            _Recorder(one, part, path, continues, metadata, stack)
            for one, part, path in zip(many, parts, paths, strict=True)
        ]
        positions = np.concatenate([part.positions[boundary] for part in parts])
        momenta = np.concatenate([part.momenta[boundary] for part in parts])
        system = dataclasses.replace(System.from_atoms(many), positions=positions)
        bar = stack.enter_context(
            tqdm(total=duration, initial=float(start * stride), unit="fs", disable=not progress)
        )
        for frames in rollout(
            network, system, momenta, dt=dt, window=window, duration=duration, start=start
        ):
            for recorder, a, b in zip(recorders, system.ptr, system.ptr[1:], strict=False):
                recorder.add(frames, slice(a, b))
            bar.update(min(float(stride), duration - bar.n))
    done = [recorder.trajectory() for recorder in recorders]
    return done[0] if single else done


class _Recorder:
    """Keeps, writes and watches the frames of one system."""

    def __init__(
        self,
        atoms: ase.Atoms,
        held: Trajectory,
        path: str | Path | None,
        append: bool,
        metadata: dict[str, Any],
        stack: ExitStack,
    ):
        self._atoms, self._metadata = atoms, metadata
        self._writer = None
        if path is not None:
            self._writer = stack.enter_context(
                open_writer(path, atoms, append=append, metadata=metadata)
            )
            if not append:
                self._writer.write(held.times, held.positions, held.momenta)
        self._times, self._positions, self._momenta = [held.times], [held.positions], [held.momenta]
        self._monitor = TrustMonitor(atoms)
        self._monitor.update(held.times, held.positions, held.momenta)

    def add(self, frames: Frames, own: slice) -> None:
        """Take in this system's share of a window, less the frames that are there already."""
        new = frames.times > self._times[-1][-1]
        if not new.any():
            return
        times = frames.times[new]
        positions, momenta = frames.positions[new, own], frames.momenta[new, own]
        self._times.append(times)
        self._positions.append(positions)
        self._momenta.append(momenta)
        self._monitor.update(times, positions, momenta, lonely=frames.lonely[own])
        if self._writer is not None:
            self._writer.write(times, positions, momenta)

    def trajectory(self) -> Trajectory:
        """All frames, with their trust summary."""
        times, positions, momenta = map(
            np.concatenate, (self._times, self._positions, self._momenta)
        )
        trajectory = Trajectory(self._atoms, times, positions, momenta, self._metadata)
        trajectory.trust = self._monitor.summary()
        return trajectory


def _each(given: Any, single: bool, count: int, what: str) -> list[Any]:
    """One entry for each system, from what a caller gave for one or for many."""
    if given is None:
        return [None] * count
    many = [given] if single or isinstance(given, str | Path) else list(given)
    if len(many) != count:
        raise ValueError(f"a list of {count} systems needs a list of {count} {what}, got {given!r}")
    return many


def _set_start(
    atoms: ase.Atoms,
    velocities: np.ndarray | None,
    temperature_K: float | None,
    seed: int,
    index: int,
) -> None:
    if velocities is not None and temperature_K is not None:
        raise ValueError("give either velocities or temperature_K, not both")
    if temperature_K is not None:
        thermal_velocities(atoms, temperature_K, seed)
    elif velocities is not None:
        set_velocities(atoms, velocities)
    elif not atoms.get_momenta().any():
        raise ValueError(
            f"system {index} ({atoms.get_chemical_formula()}) is at rest: give temperature_K to "
            "draw velocities, velocities (Å/fs), or atoms with momenta"
        )


def _held(
    paths: list[str | Path], dt: Fraction, stride: Fraction
) -> tuple[list[Trajectory], int, int]:
    """What the files hold, the window to go on with, and its first frame.

    The rollout can go on from any frame that is the end of a window, for such a frame is its state.
    Later frames are predicted once more, to the same bits, and not written again.
    """
    missing = [str(path) for path in paths if not Path(path).exists()]
    if missing:
        raise FileNotFoundError(f"cannot resume: {', '.join(missing)} missing beside other files")
    frames = min(count_frames(path) for path in paths)
    for path in paths:
        truncate(path, frames)
    parts = [Trajectory.read(path) for path in paths]
    boundary = max(k for k in range(frames) if k * dt % stride == 0)
    return parts, int(boundary * dt / stride), boundary


def model_hash(model: MDtrajNet) -> str:
    """First 16 hex digits of the SHA-256 of a model's configuration and weights.

    Tells which function made a trajectory.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_dict()).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
