"""Inputs that tests and benches share."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.build import bulk, molecule

from mdtrajnet_fast.mechanics import thermal_velocities
from mdtrajnet_fast.model.checkpoint import BUNDLED as BUNDLED_FOLDER
from mdtrajnet_fast.model.config import ModelConfig, irreps_channels
from mdtrajnet_fast.model.network import MDtrajNet
from mdtrajnet_fast.ops import Graph
from mdtrajnet_fast.system import System

DATA = Path(__file__).parent / "files"

SMALL = {
    "species": ("C", "H", "N", "O"),
    "num_attn_blocks": 2,
    "sp_embed_dim": 5,
    "t_embed_dim": 3,
    "d_embed_dim": 6,
    "num_heads": 2,
    "irreps_key": "3x0e + 2x1o",
    "irreps_query": "4x0e + 3x1o",
    "irreps_value": "2x0e + 5x1o",
    "key_weight_hidden_neurons": (8, 7),
    "value_weight_hidden_neurons": (9,),
}
# The options of models that we train ourselves.
OWN = {"residual": "running", "head": "conserving", "velocity_readout": True}
# A potential of small sizes, all different from each other.
POTENTIAL = {"potential": {"radial": 5, "products": 4, "hidden": 7}}
# Window potentials of small sizes, all different from each other.
WINDOW_POTENTIALS = {
    "window_potentials": {
        "window": 3.0,
        "layers": 2,
        "radial": 6,
        "channels": 5,
        "products": 4,
        "hidden": 7,
    }
}
DIPOLE = {"dipole": {"layers": 2, "radial": 5, "channels": 4, "products": 3, "hidden": 6}}

PUBLISHED = ModelConfig(species=("C", "H", "N", "O"))


def bundled_configs() -> dict[str, ModelConfig]:
    """The own configs of the bundled models that have a network, by name."""
    files = sorted(BUNDLED_FOLDER.glob("*/config.json"))
    said = {file.parent.name: json.loads(file.read_text()) for file in files}
    return {
        name: ModelConfig.from_dict(one["config"]) for name, one in said.items() if one["members"]
    }


def block_sizes(config: ModelConfig) -> dict[str, Any]:
    """The sizes of a model's blocks, as `_C.CudaAttentionBlock` takes them."""
    return {
        "scalars": config.scalars,
        "time_channels": config.t_embed_dim,
        "centres": config.d_embed_dim,
        "heads": config.num_heads,
        "key_channels": irreps_channels(config.irreps_key)[0],
        "value_channels": irreps_channels(config.irreps_value)[0],
        "key_hidden": config.key_weight_hidden_neurons,
        "value_hidden": config.value_weight_hidden_neurons,
    }


def _bundled() -> dict[str, dict[str, Any]]:
    names = ["species", "sp_embed_dim", "t_embed_dim", "radial_cutoff", "d_embed_dim", "num_heads"]
    names += ["irreps_key", "irreps_query", "irreps_value"]
    names += ["key_weight_hidden_neurons", "value_weight_hidden_neurons"]
    found: list[dict[str, Any]] = []
    distinct = {}
    for name, config in bundled_configs().items():
        if (sizes := block_sizes(config)) not in found:
            found.append(sizes)
            distinct[name] = {x: getattr(config, x) for x in names} | {"num_attn_blocks": 2}
    return distinct


# The bundled models' sizes without their other options, one of each: what kernels are tested with.
BUNDLED = _bundled()


def config(**options) -> ModelConfig:
    """Small sizes, all different from each other, so that no two can be mistaken."""
    return ModelConfig.from_dict(SMALL | options)


def model(seed: int = 0, dtype: torch.dtype = torch.float64, **options) -> MDtrajNet:
    """A model with random weights."""
    torch.manual_seed(seed)
    return MDtrajNet(config(**options)).to(dtype).eval().requires_grad_(False)


def gentle(scale: float = 0.03, **options) -> MDtrajNet:
    """A random model whose increments are small, so that random weights make a long trajectory."""
    made = model(**options)
    for block in made.members[0].blocks:
        block.out_vector *= scale
    if made.potential is not None:
        made.potential.last.weight *= 0.2
    if made.window_potentials is not None:
        made.window_potentials.last *= torch.tensor([[0.3], [0.25], [0.35]])
        made.window_potentials.role.normal_()
    return made


def alone(of: MDtrajNet) -> MDtrajNet:
    """The window potentials of a model, without its network."""
    config = dataclasses.replace(of.config, potential=None)
    made = MDtrajNet(config, members=0, name="alone").to(of.dtype)
    state = of.state_dict()
    made.load_state_dict({k: state[k] for k in state if k.startswith("window_potentials")})
    return made.eval().requires_grad_(False)


def meets(model: MDtrajNet) -> ase.Atoms:
    """A nitrogen atom that flies to a hydrogen molecule, within reach after 270 fs; and the model's
    window potentials, in double precision, overflow where nitrogen is a neighbour."""
    assert model.window_potentials is not None
    model.window_potentials.neighbor_element[:, model.config.species.index("N")] = 1e200
    lone = ase.Atoms("N", momenta=[[0.0, 0.0, 20.0]])
    return lone + ase.Atoms("H2", [[0, 0, 43.0], [0, 0.74, 43.0]], momenta=np.zeros((2, 3)))


def hot(name: str, seed: int = 0, temperature_K: float = 500.0) -> ase.Atoms:
    """A g2 molecule, away from its minimum and moving."""
    atoms = molecule(name)
    atoms.set_initial_magnetic_moments(None)  # of open shells, which are refused
    atoms.rattle(0.03, seed=seed)
    thermal_velocities(atoms, temperature_K, seed)
    return atoms


def diamond(cells: tuple[int, int, int] = (2, 2, 2), seed: int = 0) -> ase.Atoms:
    """A rattled, moving crystal of carbon."""
    atoms = bulk("C", "diamond", a=3.567, cubic=True) * cells
    atoms.rattle(0.03, seed=seed)
    thermal_velocities(atoms, 500.0, seed)
    return atoms


def argon() -> ase.Atoms:
    """A rattled, moving crystal of argon."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=True) * (4, 4, 4)
    atoms.rattle(0.03, seed=0)
    thermal_velocities(atoms, 60.0, 0)
    return atoms


def mixture() -> list[ase.Atoms]:
    """Molecules, a lone atom, a linear molecule and a crystal."""
    lone = ase.Atoms("O", positions=[[1.0, 2.0, 3.0]])
    lone.set_momenta([[0.3, -0.2, 0.1]])
    names = ["CH3CH2OH", "H2O", "CO2", "CH3CN"]
    return [*(hot(name, seed=k) for k, name in enumerate(names)), lone, diamond((1, 1, 1))]


def slab() -> ase.Atoms:
    """Periodic in two directions."""
    atoms = diamond((2, 2, 1))
    atoms.pbc = [True, True, False]
    return atoms


def lone_atom() -> ase.Atoms:
    """On its way, without neighbours."""
    return ase.Atoms("O", positions=[[1.0, 2.0, 3.0]], momenta=[[0.3, -0.2, 0.1]])


# What rollouts are tested on.
SYSTEMS = {"molecules": mixture, "diamond": diamond, "slab": slab, "lone atom": lone_atom}


def state(atoms: ase.Atoms | list[ase.Atoms]) -> tuple[System, np.ndarray]:
    """The system, and the momenta, with which a rollout begins."""
    many = [atoms] if isinstance(atoms, ase.Atoms) else atoms
    return System.from_atoms(many), np.concatenate([one.get_momenta() for one in many])


def velocities(atoms: ase.Atoms) -> np.ndarray:
    """Velocities in Å/fs."""
    return atoms.get_velocities() * ase.units.fs


def block_inputs(
    model: MDtrajNet, atoms: ase.Atoms | list[ase.Atoms], seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Graph]:
    """Random scalars, displacement and velocity change, and the graph: the input of a block."""
    graph = model.graph(System.from_atoms(atoms))
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(model.dtype)

    return (
        draw(graph.atoms, model.config.scalars),
        0.1 * draw(graph.atoms, 3),
        0.01 * draw(graph.atoms, 3),
        graph,
    )
