"""Potentials of others, trained on the frames of the dipeptide with their forces.

    python bench/dipeptide_rivals.py train ani data/vacuum-100ps.h5 ani.pt --minutes 15
    python bench/dipeptide_rivals.py errors ani.pt data/vacuum-held-out.h5
    python bench/dipeptide_rivals.py run ani.pt data/vacuum-held-out.h5 runs/ani.npz --ps 20
    python bench/dipeptide_rivals.py cost data/vacuum-held-out.h5 ani.pt alanine-dipeptide

`ani` is one member of ANI-1x (torchani), from its own weights, as molecules-nve starts from its;
`mace` is a MACE (mace-torch, 64x0e + 64x1o, two layers, cutoff 5 Å) from random ones. Both are
trained on energies and forces of all frames, those of the force field there, by Adam with a rate
that falls to nothing in the minutes given, of processor time or, with `--device cuda`, by the
clock, and keep the average of their weights. `cost` is what a ns of a replica takes: a rival's
forces alone, once every step (`gfn2-xtb`: of tblite, one replica after another), and all of
`simulate` with a thermostat for a model of mdtrajnet.
`run` is Langevin dynamics as `dipeptide.py run` has it, of all replicas in one batch of plain
torch. `recipes/dipeptide_data.py` needs openmm, for the forces.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ase
import ase.units
import numpy as np
import torch
from ase.units import fs, kB
from dipeptide import FRAME_FS, FRICTION, TEMPERATURE, dynamics, seen_of
from md_speed import ani1x
from report import interleave
from torch import Tensor, nn

from mdtrajnet_fast import MDtrajNetCalculator, Trajectory, load_model
from mdtrajnet_fast.data.generate import make_calculator
from mdtrajnet_fast.data.records import Record, as_trajectory, load_records
from mdtrajnet_fast.mechanics import InternalMotion

sys.path.append(str(Path(__file__).parents[1] / "recipes"))

STEP = {"ani": 0.5, "mace": 0.5, "gfn2-xtb": 0.5}  # fs
MOVED = 0.01  # Å, about what a step moves hydrogen by: charges begin as those of the last step


class Ani(nn.Module):
    """Energies [batch] in eV, up to a constant, of positions [batch, atoms, 3] in Å."""

    def __init__(self, numbers: np.ndarray):
        super().__init__()
        whole = ani1x(0)  # the constants of its atoms are left out: they would cost digits
        self.aev, self.networks = whole.aev_computer, whole.neural_networks
        self.requires_grad_(True)
        species = [["H", "C", "N", "O"].index(ase.data.chemical_symbols[z]) for z in numbers]
        self.register_buffer("species", torch.tensor(species))

    def forward(self, x: Tensor) -> Tensor:
        species = self.species.expand(len(x), -1)
        energies: Tensor = self.networks(self.aev((species, x))).energies
        return energies * ase.units.Hartree


class Mace(nn.Module):
    """The same of a MACE."""

    def __init__(self, numbers: np.ndarray):
        super().__init__()
        # e3nn's table of Wigner symbols is a pickle of tensors and slices
        with warnings.catch_warnings(), torch.serialization.safe_globals([slice]):
            warnings.simplefilter("ignore")
            from e3nn import o3
            from mace import modules

            block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
            elements = sorted(set(numbers.tolist()))
            self.cutoff = 5.0
            self.model = modules.ScaleShiftMACE(
                r_max=self.cutoff,
                num_bessel=8,
                num_polynomial_cutoff=5,
                max_ell=3,
                interaction_cls=block,
                interaction_cls_first=block,
                num_interactions=2,
                num_elements=len(elements),
                hidden_irreps=o3.Irreps("64x0e + 64x1o"),
                MLP_irreps=o3.Irreps("16x0e"),
                atomic_energies=np.zeros(len(elements)),
                avg_num_neighbors=14.0,
                atomic_numbers=elements,
                correlation=3,
                gate=nn.functional.silu,
                atomic_inter_scale=1.0,
                atomic_inter_shift=0.0,
            ).float()
        kinds = torch.tensor([elements.index(z) for z in numbers.tolist()])
        self.register_buffer("attributes", nn.functional.one_hot(kinds, len(elements)).float())

    def forward(self, x: Tensor) -> Tensor:
        count, atoms = x.shape[:2]
        own = torch.eye(atoms, dtype=torch.bool, device=x.device)
        near = (torch.cdist(x.detach(), x.detach()) < self.cutoff) & ~own
        of, i, j = near.nonzero().T
        edges = torch.stack([i, j]) + of * atoms
        batch = {
            "positions": x.reshape(-1, 3),
            "node_attrs": self.attributes.repeat(count, 1),
            "edge_index": edges,
            "shifts": x.new_zeros(edges.shape[1], 3),
            "unit_shifts": x.new_zeros(edges.shape[1], 3),
            "cell": x.new_zeros(3 * count, 3),
            "batch": torch.arange(count, device=x.device).repeat_interleave(atoms),
            "ptr": torch.arange(0, count * atoms + 1, atoms, device=x.device),
            "head": torch.zeros(count, dtype=torch.long, device=x.device),
        }
        energy: Tensor = self.model(batch, training=self.training, compute_force=False)["energy"]
        return energy


KINDS: dict[str, type[Ani] | type[Mace]] = {"ani": Ani, "mace": Mace}


def with_forces(model: nn.Module, x: Tensor, train: bool = False) -> tuple[Tensor, Tensor]:
    """Energies [batch] eV and forces [batch, atoms, 3] eV/Å."""
    x = x.detach().requires_grad_()
    energies = model(x)
    (slopes,) = torch.autograd.grad(energies.sum(), x, create_graph=train)
    return energies, -slopes


def labelled(records: list[Record]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, energies less their mean and forces of all frames, by the force field."""
    from dipeptide_data import Dipeptide, langevin

    assert records[0].method is not None
    peptide = Dipeptide(records[0].method.split(", ")[1].split(" ")[0])
    context = peptide.context(langevin(1.0))
    x = np.concatenate([record.positions for record in records])
    found = [peptide.forces(context, one.astype(np.float64)) for one in x]
    energies, forces = (np.array(each) for each in zip(*found, strict=True))
    energies -= energies.mean()
    x, energies, forces = (torch.from_numpy(y).float() for y in (x, energies, forces))
    return x, energies, forces


def train(
    kind: str,
    data: Path,
    output: Path,
    minutes: float,
    batch: int,
    rate: float,
    device: str,
    seed: int,
) -> None:
    """Train on all trajectories of the files."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    records = load_records(data)
    x, energies, forces = (each.to(device) for each in labelled(records))
    model = KINDS[kind](records[0].numbers).to(device).train()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    )
    offset = nn.Parameter(-model(x[:64]).detach().mean())
    optimizer = torch.optim.Adam([*model.parameters(), offset], lr=rate, amsgrad=True)
    clock = time.process_time if device == "cpu" else time.perf_counter
    begun, steps = clock(), 0
    while (done := (clock() - begun) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done)) * min(1, (steps + 1) / 50)
        chosen = torch.randint(len(x), (batch,), device=device)
        e, f = with_forces(model, x[chosen], train=True)
        wrong = (f - forces[chosen]).square().mean()
        loss = wrong + 0.1 * (e + offset - energies[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        average.update_parameters(model)
        steps += 1
        if steps % 100 == 1:
            print(f"{done:.0%}, step {steps}: force error {wrong.sqrt():.4f} eV/Å", flush=True)
    torch.save({"kind": kind, "weights": average.module.cpu().state_dict()}, output)


def load(path: Path, numbers: np.ndarray) -> tuple[str, nn.Module]:
    """The kind and the model of a file that :func:`train` wrote."""
    held = torch.load(path, weights_only=True)
    model = KINDS[held["kind"]](numbers).eval()
    model.load_state_dict(held["weights"])
    return held["kind"], model.requires_grad_(False)


def errors(model: str, data: Path) -> dict[str, float]:
    """Root mean square errors on every 50th frame: forces eV/Å, energies eV less their mean.

    model: a file that :func:`train` wrote, or a model of mdtrajnet.
    """
    records = load_records(data)
    x, energies, forces = (each[::50] for each in labelled(records))
    if model.endswith(".pt"):
        _, network = load(Path(model), records[0].numbers)
        parts = [with_forces(network, part) for part in x.split(20)]
        e, f = (torch.cat([one[k] for one in parts]).detach() for k in (0, 1))
    else:
        atoms = as_trajectory(records[0])[0]
        atoms.calc = MDtrajNetCalculator(model)
        found = []
        for one in x:
            atoms.positions = one.double().numpy()
            found.append((atoms.get_potential_energy(), atoms.get_forces()))
        e, f = (torch.from_numpy(np.array(each)) for each in zip(*found, strict=True))
    wrong = e - energies
    return {
        "force": float((f - forces).square().mean().sqrt()),
        "of": float(forces.square().mean().sqrt()),
        "energy": float((wrong - wrong.mean()).square().mean().sqrt()),
    }


def run(path: Path, starts: Path, output: Path, ps: float) -> None:
    """Langevin dynamics of all trajectories' first frames, OBABO as the thermostat of simulate."""
    torch.set_num_threads(1)
    atoms = [as_trajectory(record)[0] for record in load_records(starts)]
    kind, model = load(path, atoms[0].numbers)
    h, rng = STEP[kind], np.random.default_rng(1)
    motion, masses = InternalMotion(*atoms), atoms[0].get_masses()[:, None]
    x, p = np.stack([a.positions for a in atoms]), np.stack([a.get_momenta() for a in atoms])
    kept = math.exp(-FRICTION * h / 2)
    spread = np.sqrt(masses * kB * TEMPERATURE * (1 - kept**2))

    def force() -> np.ndarray:
        _, f = with_forces(model, torch.from_numpy(x).float())
        return f.double().numpy()

    def noise() -> np.ndarray:
        motion.at(x.reshape(-1, 3))
        draws = rng.standard_normal(p.shape) * spread
        return motion.of((kept * p + draws).reshape(-1, 3)).reshape(p.shape)

    f, frames, begun = force(), [(x.copy(), p.copy())], time.process_time()
    every = round(FRAME_FS / h)
    for frame in range(round(ps * 1000 / FRAME_FS)):
        for _ in range(every):
            p = noise() + 0.5 * h * fs * f
            x = x + h * fs * p / masses
            f = force()
            p = p + 0.5 * h * fs * f
            p = noise()
        frames.append((x.copy(), p.copy()))
        if not np.isfinite(x).all() or np.abs(x).max() > 100:
            print(f"a run broke at {frame * FRAME_FS / 1000:.1f} ps")
            break
        if frame % 20 == 19:
            print(f"{output}: {(frame + 1) * FRAME_FS / 1000:.0f} ps", flush=True)
    cost = (time.process_time() - begun) * 1e6 / ((len(frames) - 1) * FRAME_FS * len(atoms))
    times = FRAME_FS * np.arange(len(frames))
    xs, ps_ = (np.array(each) for each in zip(*frames, strict=True))
    made = [Trajectory(a, times, xs[:, k], ps_[:, k]) for k, a in enumerate(atoms)]
    seen_of(made, cost).write(output)


def cost(starts: Path, models: list[str], replicas: list[int], device: str) -> None:
    """Print the seconds that a ns of a replica takes, of so many at a time."""
    torch.set_num_threads(1)
    records = load_records(starts)
    for count in replicas:
        atoms = [as_trajectory(records[k % len(records)])[0] for k in range(count)]
        x = torch.from_numpy(np.stack([one.positions for one in atoms])).float().to(device)
        calls: dict[str, Callable[[], object]] = {}
        steps: dict[str, float] = {}  # fs
        for path in models:
            if path.endswith(".pt"):
                kind, network = load(Path(path), atoms[0].numbers)
                calls[path] = partial(forces_on_host, network.to(device), x)
                steps[path] = STEP[kind]
            elif path == "gfn2-xtb":
                systems = [one.copy() for one in atoms]
                for one in systems:
                    one.calc = make_calculator(path)
                calls[path] = partial(forces_of_moved, systems, np.random.default_rng(1))
                steps[path] = STEP[path]
            else:
                model = load_model(path).to(device)
                for frames in (1, 11):  # their difference is without what a start takes
                    calls[f"{path}, {frames}"] = partial(dynamics, atoms, model, frames)
        seconds = {name: timing["median"] for name, timing in interleave(calls, 5).items()}
        for path in models:
            if path in steps:
                per_fs = seconds[path] / steps[path]
            else:
                per_fs = (seconds[f"{path}, 11"] - seconds[f"{path}, 1"]) / (10 * FRAME_FS)
            print(
                f"{path}, {count} replicas, {device}: {per_fs * 1e6 / count:.1f} s a ns and replica"
            )


def forces_of_moved(systems: list[ase.Atoms], rng: np.random.Generator) -> None:
    """Forces of their calculators, a step away from where they were asked for before."""
    for one in systems:
        one.rattle(MOVED, rng=rng)
        one.get_forces()


def forces_on_host(model: nn.Module, x: Tensor) -> np.ndarray:
    """What a step needs of a potential."""
    return with_forces(model, x)[1].cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("train")
    sub.add_argument("kind", choices=KINDS)
    sub.add_argument("data", type=Path)
    sub.add_argument("output", type=Path)
    sub.add_argument("--minutes", type=float, default=15.0)
    sub.add_argument("--batch", type=int, default=16)
    sub.add_argument("--rate", type=float, default=1e-3)
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--seed", type=int, default=0)
    sub = commands.add_parser("errors")
    sub.add_argument("model", help=".pt, or name or folder of a model of mdtrajnet")
    sub.add_argument("data", type=Path)
    sub = commands.add_parser("run")
    sub.add_argument("model", type=Path)
    sub.add_argument("starts", type=Path)
    sub.add_argument("output", type=Path)
    sub.add_argument("--ps", type=float, default=20.0)
    sub = commands.add_parser("cost")
    sub.add_argument("starts", type=Path)
    sub.add_argument("models", nargs="+", help=".pt, gfn2-xtb, names or folders of our models")
    sub.add_argument("--replicas", type=int, nargs="+", default=[20])
    sub.add_argument("--device", default="cpu")
    options: Any = parser.parse_args()
    if options.command == "train":
        train(
            options.kind,
            options.data,
            options.output,
            options.minutes,
            options.batch,
            options.rate,
            options.device,
            options.seed,
        )
    elif options.command == "errors":
        print(errors(options.model, options.data))
    elif options.command == "cost":
        cost(options.starts, options.models, options.replicas, options.device)
    else:
        run(options.model, options.starts, options.output, options.ps)


if __name__ == "__main__":
    main()
