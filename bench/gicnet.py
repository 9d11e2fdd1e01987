"""A network for one molecule in internal coordinates (as GICnet) beside a model for all molecules.

    python bench/gicnet.py train-0.h5 train-1.h5 --model molecules-nve --keep FOLDER

After Ge, Zhang, Hou, Chen, Ullah and Dral, J. Phys. Chem. Lett. 2023, 14, 7732: for every molecule
a network of its own maps the internal coordinates of the start, their time derivatives and a time
to the internal coordinates at that time. bench/README.md says what is as published and what not.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from internal import (
    Tree,
    automorphisms,
    derivatives,
    rigid,
    superpose,
    to_cartesian,
    to_internal,
    wrap,
    z_matrix,
)
from report import HERE, began, write
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mdtrajnet_fast import load_model
from mdtrajnet_fast.data.pairs import Choice, Pairs
from mdtrajnet_fast.data.records import Record, load_records
from mdtrajnet_fast.md.rollout import rollout
from mdtrajnet_fast.mechanics import momenta_from_velocities, velocities_from_momenta
from mdtrajnet_fast.model.network import MDtrajNet

MOLECULES = ("CCO", "CC(N)=O", "O=CO", "CN", "C=CC")
HELD_OUT = ("traj01", "traj02", "traj08", "traj09")
AT_300_K = ("traj01",)
WINDOW = 10.0  # fs
SETTINGS = {
    "widths": (256, 128),
    "batch": 64,
    "learning_rate": 5e-3,
    "weight_decay": 0.1,
    "velocity_weight_fs": 4.0,  # as in the recipe of molecules-nve
    "lag_power": 1.0,
    "first_order_fs": 2.0,  # how long q0 + v0 t is mixed in (published: 0.32)
    "linear": 6,  # cosines of the time that linear maps of the input are multiplied with
    "mirror": True,  # half of the pairs mirrored
    "symmetric": True,  # every trajectory in all orders of equivalent atoms
    "ema_decay": 0.999,
    "seed": 0,
}


class Frames(NamedTuple):
    """All frames of some trajectories, one after the other, in internal coordinates."""

    q: Tensor  # [frames, 3 atoms - 6] Å and rad
    velocity: Tensor  # [frames, 3 atoms - 6] per fs
    back: Tensor  # [frames, 3 atoms, 3 atoms - 6] dx/dq
    offset: np.ndarray  # [trajectories] number of each one's first frame


def internal_frames(records: Sequence[Record], tree: Tree) -> Frames:
    """The frames of trajectories of one molecule, computed in float64 and kept in float32."""
    refs, masses = torch.from_numpy(tree.refs), torch.from_numpy(records[0].masses[tree.order])
    x, v = (
        torch.from_numpy(np.concatenate([getattr(r, name) for r in records])[:, tree.order])
        for name in ("positions", "velocities")
    )
    x, v = x.double(), v.double()
    forth, back = derivatives(x, refs, masses)
    velocity = (forth @ v.flatten(1)[..., None])[..., 0]
    offset = np.cumsum([0] + [len(r.positions) for r in records])
    return Frames(to_internal(x, refs).float(), velocity.float(), back.float(), offset)


class InternalNet(nn.Module):
    """Change of the internal coordinates [pairs, 3 atoms - 6] in the time t [pairs, 1] (fs)."""

    def __init__(self, frames: Frames, atoms: int, settings: dict[str, Any]):
        super().__init__()
        self.atoms, self.first_order_fs = atoms, settings["first_order_fs"]
        x = self.features(frames.q, frames.velocity)
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("deviation", x.std(0) + 1e-3)
        self.register_buffer("scale", frames.velocity.std(0) * WINDOW / 2)
        sizes = [x.shape[1] + 1, *settings["widths"], frames.q.shape[1]]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.linear = nn.Parameter(torch.zeros(settings["linear"], x.shape[1], frames.q.shape[1]))

    def features(self, q: Tensor, velocity: Tensor) -> Tensor:
        """Bonds, angles, sines and cosines of dihedrals, and the velocities."""
        plain, dihedral = q.split([2 * self.atoms - 3, self.atoms - 3], dim=-1)
        return torch.cat([plain, dihedral.sin(), dihedral.cos(), velocity], dim=-1)

    def forward(self, q: Tensor, velocity: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The change and its time derivative (per fs): values and tangents go through together.

        To first order in short times, then the network's; the mix is the published one.
        """
        x = (self.features(q, velocity) - self.mean) / self.deviation
        z = self.layers[0](torch.cat([x, 2 * t / WINDOW - 1], dim=-1))
        dz = self.layers[0].weight[:, -1] * (2 / WINDOW)
        for layer in self.layers[1:]:  # GELU: z below which a normal variable lies, times z
            below = 0.5 + 0.5 * torch.erf(z * 0.5**0.5)
            dz = (below + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)) * dz
            z, dz = layer(z * below), dz @ layer.weight.T
        for k, weight in enumerate(self.linear):
            rate = k * math.pi / WINDOW
            y = x @ weight
            z, dz = z + torch.cos(rate * t) * y, dz - rate * torch.sin(rate * t) * y
        early = torch.exp(-((t / self.first_order_fs) ** 2))
        d_early = -2 * t / self.first_order_fs**2 * early
        z, dz = z * self.scale - t * velocity, dz * self.scale - velocity
        return t * velocity + (1 - early) * z, velocity + (1 - early) * dz - d_early * z


def train(
    records: Sequence[Record], minutes: float, settings: dict[str, Any], steps: int | None = None
) -> tuple[InternalNet, Tree, dict[str, Any]]:
    """A network for one molecule, after so many minutes of processor time (or `steps`).

    The loss is the mean square error of positions and, times velocity_weight_fs, of velocities:
    errors of internal coordinates times dx/dq at the true end, which is first order in them.
    Returns what was spent and the losses (Å^2) of the first and last hundred steps as well.
    """
    first = records[0]
    orders = [list(range(len(first.numbers)))]
    if settings["symmetric"]:
        orders = automorphisms(first.numbers, first.positions[0])
    tree = z_matrix(first.numbers, np.concatenate([r.positions for r in records]))
    records = [
        replace(r, positions=r.positions[:, order], velocities=r.velocities[:, order])
        for order in orders
        for r in records
    ]
    pairs, frames, atoms = Pairs(records), internal_frames(records, tree), len(first.numbers)
    torch.manual_seed(settings["seed"])
    rng = np.random.default_rng(settings["seed"])
    net = InternalNet(frames, atoms, settings)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    mean = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(settings["ema_decay"]))
    losses: list[float] = []
    begun, done = time.process_time(), 0.0
    while done < 1:
        power = settings["lag_power"]
        choice = pairs.choose(rng, settings["batch"], WINDOW, lag_power=power, time_reversal=True)
        a, b = (torch.from_numpy(frames.offset[choice.record] + n) for n in choice[1:3])
        t, sign = (torch.from_numpy(x).float()[:, None] for x in (choice.t, choice.sign))
        mirror = torch.ones(len(t), frames.q.shape[1])
        if settings["mirror"]:
            mirror[:, 2 * atoms - 3 :] = torch.randint(0, 2, (len(t), 1)) * 2 - 1
        start, velocity = frames.q[a] * mirror, frames.velocity[a] * mirror * sign
        dq, v = net(start, velocity, t)
        wrong = wrap(dq - (frames.q[b] * mirror - start), atoms) * mirror
        wrong_v = (v - frames.velocity[b] * mirror * sign) * mirror
        x = frames.back[b] @ torch.stack([wrong, settings["velocity_weight_fs"] * wrong_v], dim=-1)
        loss = x.square().sum(-1).mean()
        optimizer.param_groups[0]["lr"] = settings["learning_rate"] * (
            min(1.0, (len(losses) + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-3
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean.update_parameters(net)
        losses.append(loss.item())
        spent = (time.process_time() - begun) / 60
        done = spent / minutes if steps is None else len(losses) / steps
    spent_on = {
        "minutes": spent,
        "steps": len(losses),
        "parameters": sum(p.numel() for p in net.parameters()),
        "orders": len(orders),
        "loss": [float(np.mean(losses[:100])), float(np.mean(losses[-100:]))],
    }
    return mean.module, tree, spent_on


@torch.no_grad()
def compare(
    net: InternalNet, tree: Tree, model: MDtrajNet, records: Sequence[Record]
) -> dict[str, Any]:
    """Errors on all pairs of frames of `records` that are 10 fs apart, root mean square per
    Cartesian component: positions in Å, velocities in Å/fs."""
    lag = [round(WINDOW / r.frame_fs) for r in records]
    first = [np.arange(len(r.positions) - n) for r, n in zip(records, lag, strict=True)]
    number = np.repeat(np.arange(len(records)), [len(f) for f in first])
    starts = np.concatenate(first)
    ones = np.ones(len(starts))
    choice = Choice(number, starts, starts + np.array(lag)[number], WINDOW * ones, ones)
    pairs, atoms = Pairs(records), len(tree.order)
    batch = pairs.batch(choice)

    def tensor(flat: np.ndarray) -> Tensor:  # [pairs, atoms, 3], in the order of the tree
        return torch.from_numpy(flat).double().view(-1, atoms, 3)[:, tree.order]

    x0, v0 = tensor(batch.system.positions), tensor(batch.system.velocities)
    x1, v1 = x0 + tensor(batch.displacement), tensor(batch.velocity)
    refs, masses = torch.from_numpy(tree.refs), torch.from_numpy(records[0].masses[tree.order])
    q0 = to_internal(x0, refs)
    vq0 = (derivatives(x0, refs, masses)[0] @ v0.flatten(1)[..., None])[..., 0]
    t = torch.full((len(x0), 1), WINDOW)
    dq, vq = net(q0.float(), vq0.float(), t)
    built = to_cartesian(q0 + dq.double(), refs)
    x, rotation = superpose(built, x1, masses)
    v = derivatives(built, refs, masses)[1] @ vq.double()[..., None]
    v = v.view_as(built) @ rotation + rigid(x, x0, v0, masses)

    ours = []
    for k in range(0, len(starts), 256):  # in windows of the model's own
        some = pairs.batch(Choice(*(c[k : k + 256] for c in choice)))
        end, mass = some.end, some.system.masses
        p = momenta_from_velocities(some.system.velocities, mass)
        *_, frames = rollout(model, some.system, p, dt=WINDOW, duration=WINDOW)
        velocities = velocities_from_momenta(frames.momenta[-1], mass)
        ours.append((frames.positions[-1] - end.positions, velocities - end.velocities))
    dx, dv = (tensor(np.concatenate(e)) for e in zip(*ours, strict=True))
    placed = superpose(x1 + dx, x1, masses)[0]
    wrong = {
        "position": {
            "gicnet": x - x1,
            "model": dx,
            "model, superposed": placed - x1,
            "static": x0 - x1,
            "ballistic": x0 + WINDOW * v0 - x1,
        },
        "velocity": {"gicnet": v - v1, "model": dv, "static": v0 - v1},
    }
    figures = {
        kind: {name: float(e.square().mean().sqrt()) for name, e in some.items()}
        for kind, some in wrong.items()
    }
    return {"pairs": len(starts), **figures}


def trained(
    records: Sequence[Record], minutes: float, keep: Path | None
) -> tuple[InternalNet, Tree, dict[str, Any]]:
    """:func:`train`, or what an earlier run left in the folder `keep`.

    Raises ValueError where that was trained otherwise.
    """
    first = records[0]
    wanted = {
        "smiles": first.smiles or first.molecule,
        "trajectories": [r.trajectory for r in records],
        "frames": sum(len(r.positions) for r in records),
        "minutes": minutes,
        "settings": json.loads(json.dumps(SETTINGS)),
    }
    path = None if keep is None else keep / f"{first.molecule}.safetensors"
    if path is None or not path.exists():
        net, tree, spent = train(records, minutes, SETTINGS)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            arrays = {"order": torch.from_numpy(tree.order), "refs": torch.from_numpy(tree.refs)}
            notes = {"wanted": json.dumps(wanted), "spent": json.dumps(spent)}
            save_file(net.state_dict() | arrays, path, metadata=notes)
        return net, tree, spent
    with safe_open(path, "pt") as file:
        notes = {key: json.loads(value) for key, value in file.metadata().items()}
    if notes["wanted"] != wanted:
        raise ValueError(f"{path} was trained with {notes['wanted']}, now asked for is {wanted}")
    arrays = load_file(path)
    tree = Tree(arrays.pop("order").numpy(), arrays.pop("refs").numpy())
    net = InternalNet(internal_frames(records[:1], tree), len(first.numbers), SETTINGS)
    net.load_state_dict(arrays)
    return net, tree, notes["spent"]


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    cpu, name = report["processor"], report["model"]
    out = [
        f"# {cpu['name']} (family {cpu['family']}, model {cpu['model']}), {report['date']}",
        "",
        f"GICnet-like: a network for each molecule, {report['minutes']:g} minutes of processor "
        f"time each on one thread ({report['training_frames']} frames a molecule); {name}: one "
        "network for all. The same pairs of frames 10 fs apart, trajectories held out from both: "
        f"{', '.join(report['held_out'])}. Root mean square errors per Cartesian component. "
        "GICnet-like positions are placed on the true ones (superposed by mass); in brackets, the "
        "same done to the model's.",
        "",
        f"| | pairs | position, Å: GICnet-like | {name} | ratio | static | ballistic "
        f"| velocity, Å/fs: GICnet-like | {name} | ratio | static |",
        "|---" + "|---:" * 10 + "|",
    ]
    for title, row in report["rows"].items():
        x, v = row["position"], row["velocity"]
        out.append(
            f"| {title} | {row['pairs']} | {x['gicnet']:.4f} "
            f"| {x['model']:.4f} ({x['model, superposed']:.4f}) | {x['gicnet'] / x['model']:.2f} "
            f"| {x['static']:.4f} | {x['ballistic']:.4f} | {v['gicnet']:.5f} | {v['model']:.5f} "
            f"| {v['gicnet'] / v['model']:.2f} | {v['static']:.5f} |"
        )
    steps = ", ".join(f"{m} {t['steps']}" for m, t in report["training"].items())
    parameters = ", ".join(f"{m} {t['parameters']}" for m, t in report["training"].items())
    out += ["", f"GICnet-like: steps: {steps}; parameters: {parameters}; {report['settings']}."]
    out += ["", ", ".join(f"{k} {v}" for k, v in report["versions"].items() if v) + "."]
    return "\n".join(out) + "\n"


def mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Root mean square over molecules, each with the same weight."""

    def mean(kind: str) -> dict[str, float]:
        return {
            name: float(np.sqrt(np.mean([row[kind][name] ** 2 for row in rows])))
            for name in rows[0][kind]
        }

    pairs = sum(row["pairs"] for row in rows)
    return {"pairs": pairs, "position": mean("position"), "velocity": mean("velocity")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path, help="HDF5 files with trajectories")
    parser.add_argument("--model", default="molecules-nve", help="name or folder")
    parser.add_argument("--molecules", nargs="+", default=list(MOLECULES), metavar="SMILES")
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="processor time for each molecule's training"
    )
    parser.add_argument("--keep", type=Path, help="store trained networks here and use them again")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)

    model = load_model(options.model)
    training: dict[str, Any] = {}
    cold: dict[str, Any] = {}
    pooled: dict[str, Any] = {}
    for smiles in options.molecules:
        known = load_records(options.data, molecules=[smiles], exclude_trajectories=HELD_OUT)
        held_out = load_records(options.data, molecules=[smiles], trajectories=HELD_OUT)
        net, tree, training[smiles] = trained(known, options.minutes, options.keep)
        at_300_K = [r for r in held_out if r.trajectory in AT_300_K]
        cold[f"{smiles}, 300 K"] = compare(net, tree, model, at_300_K)
        pooled[f"{smiles}, 150 to 600 K"] = compare(net, tree, model, held_out)
        print(smiles, training[smiles], list(pooled.values())[-1], flush=True)
    for rows, title in ((cold, "300 K"), (pooled, "150 to 600 K")):
        rows[f"all, {title}"] = mean_row(list(rows.values()))
    report = began(quick=False) | {
        "model": model.name,
        "minutes": options.minutes,
        "held_out": HELD_OUT,
        "training_frames": sum(len(r.positions) for r in known),
        "settings": SETTINGS,
        "training": training,
        "rows": cold | pooled,
    }
    base = write(report, markdown(report), options.output, "gicnet")
    print(f"written to {base}.json and .md")


if __name__ == "__main__":
    main()
