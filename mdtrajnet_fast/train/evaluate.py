"""Errors of a model on pairs of frames, beside the guesses that need no model."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.units import fs
from torch import Tensor

from ..data.device_pairs import TensorBatch, WindowBatch, tensor_batch, window_batch
from ..data.pairs import MARGIN, Batch, Choice, Pairs
from ..data.records import Record, check_constant_energy
from ..model.network import MDtrajNet
from ..model.window_potentials import ENDS, ENERGY, MIDDLE
from ..ops import choose_backend

AT_ONCE = 64  # pairs of a forward pass

COLUMNS = (
    "position",
    "velocity",
    "static",
    "ballistic",
    "velocity_static",
    "thermal_velocity",
)


def errors(
    model: MDtrajNet, batch: Batch | TensorBatch, velocities: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Position (Å) and velocity (Å/fs) errors [atoms, 3] of a batch; differentiable."""
    if isinstance(batch, Batch):
        batch = tensor_batch(model, batch)
    graph, t, displacement, velocity = batch
    if velocities:
        dx, v = model.motion(graph, t)
        return dx - displacement, v - velocity
    return model(graph, t).displacement - displacement, None


def energy_errors(model: MDtrajNet, batch: Batch) -> Tensor:
    """Changes of the total energy (eV) from start to end that the potential sees in each pair.

    float64 [pairs], differentiable; 0 for data of constant energy and a potential without error.
    Raises ValueError for a model without a potential.
    """
    start, end = batch.system, batch.end
    gain = end.kinetic_energy() - start.kinetic_energy()
    potential = model.potential_energy(end) - model.potential_energy(start)
    return potential + torch.from_numpy(gain).to(potential)


@torch.no_grad()
def rms_energy_errors(
    model: MDtrajNet, pairs: Pairs, count: int, lag_fs: float, *, seed: int = 0
) -> dict[str, float]:
    """Root mean square of :func:`energy_errors` over `count` random pairs at one lag.

    Returns energy (eV), and unchanged: what it is where no potential energy changes. Raises
    ValueError as :meth:`~mdtrajnet_fast.data.pairs.Pairs.draw` and :func:`energy_errors`, and for
    data that were made with a thermostat.
    """
    check_constant_energy(pairs.records, "an error of energies")
    rng = np.random.default_rng(seed)
    wrong, gains = [], []
    for done in range(0, count, AT_ONCE):
        batch = pairs.draw(rng, min(AT_ONCE, count - done), lag_fs, lag_fs=lag_fs)
        wrong.append(energy_errors(model, batch).cpu().numpy())
        gains.append(batch.end.kinetic_energy() - batch.system.kinetic_energy())
    rms = [float(np.sqrt(np.mean(np.concatenate(x) ** 2))) for x in (wrong, gains)]
    return {"energy": rms[0], "unchanged": rms[1]}


def dipole_errors(model: MDtrajNet, pairs: Pairs, choice: Choice) -> Tensor:
    """Errors of the dipole moments at the starts of pairs: float64 [pairs, 3] e Å; differentiable.

    Raises ValueError for a model without a dipole, periodic systems and data without dipoles.
    """
    found = model.dipole_moments(pairs.batch(choice).system)
    return found - torch.from_numpy(pairs.dipoles(choice)).to(found)


@torch.no_grad()
def rms_dipole_errors(
    model: MDtrajNet, pairs: Pairs, count: int, *, seed: int = 0
) -> dict[str, float]:
    """Root mean square per Cartesian component of :func:`dipole_errors` at `count` random frames.

    Returns dipole (e Å), and zero: what it is of dipoles that are all zero. Raises ValueError as
    :func:`dipole_errors`.
    """
    rng = np.random.default_rng([seed, 0x7A11DA7E])
    wrong, true = [], []
    for done in range(0, count, AT_ONCE):
        choice = pairs.choose_frames(rng, min(AT_ONCE, count - done))
        wrong.append(dipole_errors(model, pairs, choice).cpu().numpy())
        true.append(pairs.dipoles(choice))
    rms = [float(np.sqrt(np.mean(np.concatenate(x) ** 2))) for x in (wrong, true)]
    return {"dipole": rms[0], "zero": rms[1]}


class WindowErrors(NamedTuple):
    """What the kicks of symplectic windows (:mod:`..md.window`) leave of true windows.

    All [atoms, 3]. position: Å at the end. velocity: Å/fs there. acceleration: Å/fs^2 at the start,
    of the potential energy.
    """

    position: Tensor
    velocity: Tensor
    acceleration: Tensor


def window_errors(model: MDtrajNet, batch: WindowBatch) -> tuple[WindowErrors, Tensor]:
    """Errors of pairs that are one window long, and atomic energies at their start [atoms] (eV);
    differentiable.

    The kick at the end is taken at the true end. Raises ValueError for a model without window
    potentials.
    """
    potentials, sizes = model.window_potentials, model.config.window_potentials
    if potentials is None or sizes is None:
        raise ValueError(f"model {model.name!r} has no window potentials")
    h = sizes.window
    if choose_backend(model.backend, model.device, model.dtype).networks:
        slopes_of = potentials.native_slopes()
    else:
        slopes_of = partial(potentials.slopes, learning=torch.is_grad_enabled())
    masses = batch.masses[:, None] / fs**2

    def accelerations(roles: list[int], positions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of the atoms in a role each at some positions, together: a GPU likes long arrays. And
        their energies in these roles."""
        graph = batch.graph(torch.stack(positions))
        of_atoms = torch.cat([torch.full_like(graph.species[: len(x)], role) for role in roles])
        energies, slopes = slopes_of(graph, of_atoms)
        return -slopes.view(len(roles), -1, 3) / masses, energies.view(len(roles), -1)

    x, v = batch.positions, batch.velocities
    (at_start, now, at_end), (_, energy, _) = accelerations(
        [ENDS, ENERGY, ENDS], [x, x, x + batch.displacement.double()]
    )
    first, last = h / 6 * at_start, h / 6 * at_end
    (between,), _ = accelerations([MIDDLE], [x + h / 2 * (v + first).detach().double()])
    kick = 2 * h / 3 * between
    found = WindowErrors(
        position=h * (v + first + kick / 2) - batch.displacement,
        velocity=v + first + kick + last - batch.end_velocities,
        acceleration=now - batch.accelerations,
    )
    return found, energy


@torch.no_grad()
def rms_window_errors(
    model: MDtrajNet, pairs: Pairs, count: int, *, seed: int = 0
) -> dict[str, float]:
    """Root mean squares per Cartesian component of :func:`window_errors` over `count` random pairs.

    Returns them by name, and to compare with them thermal_velocity and true_acceleration.
    """
    assert model.config.window_potentials is not None
    h = model.config.window_potentials.window
    rng = np.random.default_rng([seed, 0x7A11DA7E])
    squares = np.zeros(5)
    atoms = 0
    for done in range(0, count, AT_ONCE):
        choice = pairs.choose(rng, min(AT_ONCE, count - done), h, lag_fs=h, margin=MARGIN)
        batch = window_batch(model, pairs, choice)
        true = batch.end_velocities, batch.accelerations
        found = [x.double().cpu().numpy() for x in (*window_errors(model, batch)[0], *true)]
        squares += [(x**2).mean(1).sum() for x in found]
        atoms += len(batch.masses)
    names = (*WindowErrors._fields, "thermal_velocity", "true_acceleration")
    return dict(zip(names, np.sqrt(squares / atoms).tolist(), strict=True))


def fraction(error: float, of: float) -> float:
    """An error as a fraction of what it is an error of; not a number where that is zero."""
    return error / of if of else math.nan


@dataclass(frozen=True, eq=False)
class AtomErrors:
    """Squared errors of the atoms of many pairs at one lag, to be averaged over any of them."""

    squares: np.ndarray  # [atoms, COLUMNS], means over the three components, Å² and (Å/fs)²
    numbers: np.ndarray  # [atoms] atomic numbers
    record: np.ndarray  # [atoms] which trajectory of the pairs each is from

    def rms(self) -> dict[str, float]:
        """Root mean squares of all atoms, as :func:`rms_errors` gives them."""
        return dict(zip(COLUMNS, np.sqrt(self.squares.mean(0)).tolist(), strict=True))

    def split(self, codes: np.ndarray) -> dict[int, AtomErrors]:
        """The atoms of each code, in the order of the codes: integers [atoms]."""
        parts = ((int(code), codes == code) for code in np.unique(codes))
        return {
            code: AtomErrors(self.squares[own], self.numbers[own], self.record[own])
            for code, own in parts
        }


@torch.no_grad()
def atom_errors(
    model: MDtrajNet, pairs: Pairs, count: int, *, lag_fs: float | None = None, seed: int = 0
) -> AtomErrors:
    """Errors of every atom of `count` random pairs at one lag (fs), by default the model's window.

    Raises ValueError for a count below one and where a trajectory has no frames so far apart.
    """
    if count < 1:
        raise ValueError(f"expected at least one pair to judge a model by, got {count}")
    lag = model.stride(lag_fs)
    rng = np.random.default_rng([seed, 0x7A11DA7E])
    squares, numbers, record = [], [], []
    for k in range(0, count, AT_ONCE):
        choice = pairs.choose(rng, min(AT_ONCE, count - k), lag, lag_fs=lag)
        batch = pairs.batch(choice)
        system = batch.system
        dx, dv = errors(model, batch)
        assert dv is not None
        columns = (
            dx.double().cpu().numpy(),
            dv.double().cpu().numpy(),
            batch.displacement,
            batch.displacement - system.velocities * batch.t[:, None],
            batch.velocity - system.velocities,
            batch.velocity,
        )
        squares.append(np.stack([(x**2).mean(1) for x in columns], axis=1))
        numbers.append(system.numbers)
        record.append(np.repeat(choice.record, np.diff(system.ptr)))
    return AtomErrors(np.concatenate(squares), np.concatenate(numbers), np.concatenate(record))


def rms_errors(
    model: MDtrajNet, pairs: Pairs, count: int, *, lag_fs: float | None = None, seed: int = 0
) -> dict[str, float]:
    """Root mean square errors per Cartesian component over `count` random pairs at one lag.

    Returns position (Å), velocity (Å/fs), and the errors of the guesses that need no model: static
    (R0, in Å), ballistic (R0 + v0 t, in Å) and velocity_static (v0, in Å/fs); and to compare
    velocities with thermal_velocity, the root mean square of the true ones (Å/fs). Arguments and
    errors as for :func:`atom_errors`.
    """
    return atom_errors(model, pairs, count, lag_fs=lag_fs, seed=seed).rms()


def error_table(key: str, groups: Mapping[Any, AtomErrors]) -> dict[str, list[Any]]:
    """Errors of groups of atoms, or of the same pairs at several lags: a row for each.

    Columns: `key` with the names of the groups, "atoms" with their numbers of atoms, counted in
    every pair, and the figures of :func:`rms_errors`.
    """
    rows = [one.rms() for one in groups.values()]
    table: dict[str, list[Any]] = {
        key: list(groups),
        "atoms": [len(one.record) for one in groups.values()],
    }
    return table | {name: [row[name] for row in rows] for name in COLUMNS}


def grouped_tables(
    result: AtomErrors, records: Sequence[Record]
) -> dict[str, dict[str, list[Any]]]:
    """The error tables "elements", "temperatures" and "molecules" of what was found on `records`.

    Their first columns: "element" (symbol), "temperature_K" (target; None where a record has none),
    "molecule" (SMILES, or the name where there is none; largest error of positions first).
    """
    numbers = result.split(result.numbers)
    elements = {chemical_symbols[z]: part for z, part in numbers.items()}

    def by_record(labels: Sequence[Hashable], order: Any = None) -> dict[Any, AtomErrors]:
        names = sorted(set(labels), key=order)
        code = np.array([names.index(label) for label in labels])
        return {names[k]: part for k, part in result.split(code[result.record]).items()}

    temperatures = by_record(
        [None if r.temperature_K is None else float(r.temperature_K) for r in records],
        lambda t: (t is None, t),
    )
    molecules = by_record([r.smiles or r.molecule for r in records])
    worst_first = sorted(molecules.items(), key=lambda item: -item[1].rms()["position"])
    return {
        "elements": error_table("element", elements),
        "temperatures": error_table("temperature_K", temperatures),
        "molecules": error_table("molecule", dict(worst_first)),
    }
