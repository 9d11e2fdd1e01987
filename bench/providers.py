"""Ours, the plain-torch reference and the two e3nn peers behind one interface.

A provider holds one model and one input, everything ready that a caller would have ready: for ours,
the reference and "e3nn-sparse" the graph, for "e3nn-dense" the batch of arrays. All hold the same
weights, so all return the same displacements.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import ase
import numpy as np
import torch
from torch import Tensor

from mdtrajnet_fast import load_model
from mdtrajnet_fast.data.device_pairs import window_batch
from mdtrajnet_fast.data.pairs import MARGIN, Pairs
from mdtrajnet_fast.data.records import Record
from mdtrajnet_fast.model.config import ModelConfig
from mdtrajnet_fast.model.network import MDtrajNet
from mdtrajnet_fast.system import System
from mdtrajnet_fast.train.evaluate import window_errors

THREADS = int(os.environ.get("MDTRAJNET_BENCH_THREADS", "1"))
PROVIDERS = ("ours", "reference", "e3nn-sparse", "e3nn-dense")
SPECIES = ("C", "H", "N", "O")


def published_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> MDtrajNet:
    """A model of the published sizes with random weights."""
    torch.manual_seed(seed)
    return MDtrajNet(ModelConfig(species=SPECIES)).to(dtype).eval().requires_grad_(False)


class _Graphs:
    """Ours and the reference: a model on a graph."""

    def __init__(self, model: MDtrajNet, systems: list[ase.Atoms], t: np.ndarray):
        system = System.from_atoms(systems)
        self.model = model
        self.graph = model.graph(system)
        self.t = torch.as_tensor(t[system.system_index]).to(model.dtype)
        self.predictor = model.predictor()  # once a rollout, not once a window

    def displacement(self) -> Tensor:
        return self.model(self.graph, self.t).displacement

    def motion(self) -> tuple[Tensor, Tensor]:
        return self.model.motion(self.graph, self.t)

    def window(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.predictor.motion(self.graph, times)


class _E3nn:
    """What both e3nn peers share: velocities by finite difference, windows as larger batches."""

    def __init__(self, model: MDtrajNet):
        from peers import TIME_STEP, E3nnNetwork

        self.step = TIME_STEP
        self.model = E3nnNetwork(model)

    def pass_(self, copies: int, t: Tensor) -> Tensor:
        """Displacements [copies * atoms, 3] of the input, `copies` times over."""
        raise NotImplementedError

    def displacement(self) -> Tensor:
        return self.pass_(1, self.t)

    def _velocities(self, copies: int, t: Tensor) -> tuple[Tensor, Tensor]:
        now, then = self.pass_(2 * copies, torch.cat([t, t + self.step])).chunk(2)
        return now, (then - now) / self.step

    def motion(self) -> tuple[Tensor, Tensor]:
        return self._velocities(1, self.t)

    def window(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = torch.as_tensor(times).to(self.t).repeat_interleave(len(self.t))
        with torch.no_grad():
            moved, velocities = self._velocities(len(times), t)
        shape = (len(times), -1, 3)
        return moved.numpy().reshape(shape), velocities.numpy().reshape(shape)


class _Sparse(_E3nn):
    def __init__(self, model: MDtrajNet, systems: list[ase.Atoms], t: np.ndarray):
        super().__init__(model)
        system = System.from_atoms(systems)
        self.graph = model.graph(system)
        self.t = torch.as_tensor(t[system.system_index]).to(model.dtype)

    def pass_(self, copies: int, t: Tensor) -> Tensor:
        return self.model.sparse(self.graph.repeat(copies), t)


class _Dense(_E3nn):
    def __init__(self, model: MDtrajNet, systems: list[ase.Atoms], t: np.ndarray):
        super().__init__(model)
        first = systems[0]
        for k, atoms in enumerate(systems):
            if len(atoms) != len(first) or (atoms.cell != first.cell).any():
                raise ValueError(f"a dense batch needs equal sizes and cells; system {k} differs")
        if first.pbc.any() and first.cell.lengths().min() < 2 * model.config.radial_cutoff:
            raise ValueError(
                f"a cell of {first.cell.lengths()} Å is below twice the cutoff of "
                f"{model.config.radial_cutoff:g} Å: the minimum image loses neighbours"
            )
        system = System.from_atoms(systems)
        batch = (len(systems), len(first))

        def real(x: np.ndarray) -> Tensor:
            return torch.as_tensor(x).to(model.dtype)

        self.species = torch.from_numpy(model.species_index(system.numbers)).reshape(batch)
        self.positions = real(system.positions).reshape(*batch, 3)
        self.velocities = real(system.velocities).reshape(*batch, 3)
        self.cell = real(system.cell[0]) if first.pbc.any() else None
        self.t = real(t)

    def pass_(self, copies: int, t: Tensor) -> Tensor:
        start = self.positions.repeat(copies, 1, 1)
        moved = self.model.dense(
            self.species.repeat(copies, 1),
            start,
            self.velocities.repeat(copies, 1, 1),
            t,
            self.cell,
        )
        return (moved - start).flatten(0, 1)


def provider(
    name: str,
    systems: ase.Atoms | Sequence[ase.Atoms],
    *,
    dtype: torch.dtype = torch.float32,
    train: bool = False,
):
    """A provider by name, at times (fs) that differ from system to system.

    Methods: displacement() [atoms, 3]; motion() displacements and velocities, both [atoms, 3];
    window(times) the same as arrays [times, atoms, 3]. `atoms` is their number.
    """
    many = [systems] if isinstance(systems, ase.Atoms) else list(systems)
    model = published_model(dtype=dtype)
    t = np.random.default_rng(0).uniform(1.0, model.config.time_cutoff, len(many))
    if name in ("ours", "reference"):
        # the device chooses ours; "reference" is the plain-torch evaluation
        model.backend = "reference" if name == "reference" else None
        made = _Graphs(model, many, t)
    elif name in ("e3nn-sparse", "e3nn-dense"):
        made = (_Sparse if name == "e3nn-sparse" else _Dense)(model, many, t)
    else:
        raise ValueError(f"unknown provider {name!r}; known are {PROVIDERS}")
    made.model.train(train).requires_grad_(train)
    made.atoms = sum(len(one) for one in many)
    return made


def vibrating(name: str, atoms: ase.Atoms, frames: int, seed: int) -> Record:
    """Frames of a molecule, 1 fs apart: harmonic motion, whose physics is no matter."""
    rng = np.random.default_rng(seed)
    phase = np.arange(frames)[:, None, None] * rng.uniform(0.05, 0.3, (len(atoms), 3))
    return Record(
        molecule=name,
        trajectory="traj00",
        numbers=atoms.numbers.astype(np.int64),
        masses=atoms.get_masses(),
        positions=(atoms.positions + 0.05 * np.sin(phase)).astype(np.float32),
        velocities=(0.01 * np.cos(phase)).astype(np.float32),
        frame_fs=1.0,
        energy=None,
        temperature_K=None,
        smiles=None,
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, bool),
    )


class WindowTrainingStep:
    """Forward, loss and backward of windows of a bundled model's potentials; no optimizer."""

    def __init__(self, name: str, backend: str | None, atoms: ase.Atoms, windows: int):
        self.model = load_model(name)
        self.model.backend = backend
        self.weights = list(self.model.window_potentials.requires_grad_(True).parameters())
        pairs = Pairs([vibrating("molecule", atoms, 100, 0)])
        h = self.model.config.window_potentials.window
        choice = pairs.choose(np.random.default_rng(0), windows, h, lag_fs=h, margin=MARGIN)
        self.batch = window_batch(self.model, pairs, choice)

    def __call__(self) -> tuple[Tensor, ...]:
        errors, energies = window_errors(self.model, self.batch)
        loss = sum(x.square().sum() for x in (*errors, energies))
        return torch.autograd.grad(loss, self.weights)


class TrainingStep:
    """Forward, loss on positions, backward and AdamW: what one step of training takes."""

    def __init__(self, made):
        self.made = made
        self.optimizer = torch.optim.AdamW(made.model.parameters(), lr=1e-6)

    def __call__(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.made.displacement().square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()
