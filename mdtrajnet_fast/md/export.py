"""A model in one file for programs without Python: what csrc/mdtrajnet.h loads.

The file holds all that a rollout needs: folded weights, sizes, elements, and the constants of
:mod:`.window`, of which C++ has no copy. Numbers are little-endian::

    8 bytes     MAGIC
    uint32      VERSION
    uint32      number of arrays
    uint64      bytes of the file
    64 bytes    for each array: its name (40, padded with zeros), type (8: "<f4", "<f8" or "<i8"),
                uint64 where it begins, a multiple of 64, and uint64 how many numbers it has
    ...         the arrays
    uint32      CRC-32 of all before
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers
from ase.units import fs

from ..model.archive import write_whole
from ..model.config import irreps_channels
from ..model.network import MDtrajNet
from ..model.packed_weights import density_weights, potential_weights
from ..ops.reference import FoldedWeights
from ..system import FARTHEST
from .window import (
    BACK,
    ENERGY_RATES,
    MOST_SCALED,
    NEWTON_STEPS,
    SETTLING_FS,
    SKIN,
    SYMPLECTIC_ENERGY_EVERY_FS,
    UNCERTAIN,
    stride_of,
)

MAGIC = b"\x93MDTRAJ\n"
# Readers refuse any other.
VERSION = 4
# Of a model without a potential, or without window potentials, which has no sizes either.
_NO_POTENTIAL, _NO_WINDOW_POTENTIALS = (0,) * 3, (0,) * 5


def export_model(model: MDtrajNet, path: str | Path) -> Path:
    """Write a model with its weights as they are now, in its own precision, to the file `path`.

    Raises FileExistsError for a file that is there, OSError where it cannot be written, and
    ValueError for a model that the kernels for CPUs do not take, or that keeps a temperature.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists and is never overwritten: choose another name")
    if model.config.temperature_K is not None:
        raise ValueError(
            f"model {model.name!r} keeps a temperature by its plain map, which a file cannot say; "
            "export a model of constant energy, and give it a thermostat"
        )
    model.predictor("cpu")  # refuses what there are no kernels for
    write_whole(path, packed(contents(model)))
    return path


@torch.no_grad()
def contents(model: MDtrajNet) -> dict[str, Any]:
    """What the file says of a model: numbers and arrays by their names."""
    config = model.config
    named: dict[str, Any] = {
        "species": [atomic_numbers[symbol] for symbol in config.species],
        "window": float(model.stride()),
        "time_cutoff": float(config.time_cutoff),
        "radial_cutoff": float(config.radial_cutoff),
        "running": config.residual == "running",
        "conserving": config.head == "conserving",
        "readout": config.velocity_readout,
        "envelope": config.envelope,
        "real": model.dtype == torch.float64,
        "members": len(model.members),
        "blocks": config.num_attn_blocks,
        "species_channels": config.sp_embed_dim,
        "time_channels": config.t_embed_dim,
        "centres": config.d_embed_dim,
        "heads": config.num_heads,
        "key_channels": irreps_channels(config.irreps_key)[0],
        "value_channels": irreps_channels(config.irreps_value)[0],
        "key_hidden": config.key_weight_hidden_neurons,
        "value_hidden": config.value_weight_hidden_neurons,
        "potential": _NO_POTENTIAL,
        "window_potentials": _NO_WINDOW_POTENTIALS,
        "symplectic_window": 0.0,
        # the rules of a rollout
        "fs": fs,
        "skin": SKIN,
        "back": BACK,
        "most_scaled": MOST_SCALED,
        "newton_steps": NEWTON_STEPS,
        "energy_rate": ENERGY_RATES["reversible"],
        "symplectic_energy_rate": ENERGY_RATES["symplectic"],
        "symplectic_energy_every": SYMPLECTIC_ENERGY_EVERY_FS,
        "settling": SETTLING_FS,
        "uncertain": UNCERTAIN,
        "farthest": FARTHEST,
    }
    for m, (member, blocks) in enumerate(zip(model.members, model.prepare("cpu"), strict=True)):
        named[f"{m}.embedding"] = member.species_embedding.detach()  # type: ignore[operator]
        for b, folded in enumerate(blocks.folded):
            named |= {f"{m}.{b}.{name}": x.detach() for name, x in _block(folded).items()}
    if model.potential is not None:
        (_, *sizes, _), weights = potential_weights(model.potential)
        named["potential"] = sizes
        named |= {f"potential.{k}": x for k, x in enumerate(weights)}
    if model.window_potentials is not None:
        (_, _, *window_sizes, _), weights = density_weights(model.window_potentials)
        named["window_potentials"] = window_sizes
        named["symplectic_window"] = stride_of(model, "symplectic", None)
        named |= {f"window_potentials.{k}": x for k, x in enumerate(weights)}
    return named


def _block(folded: FoldedWeights) -> dict[str, Any]:
    """The tensors of a block: "key0", "key0.bias", ..., "value0", ..., "query", ..., "out"."""
    nets = {"key": folded.key_layers, "value": folded.value_layers}
    named: dict[str, Any] = {}
    for net, layers in nets.items():
        for k, (weight, bias) in enumerate(layers):
            named |= {f"{net}{k}": weight, f"{net}{k}.bias": bias}
    return named | {name: getattr(folded, name) for name in FoldedWeights._fields[2:]}


def packed(named: dict[str, Any]) -> bytes:
    """The bytes of a file with these numbers and arrays."""
    arrays = {name: np.atleast_1d(np.asarray(value)) for name, value in named.items()}
    at = 24 + 64 * len(arrays)
    table, data = bytearray(), bytearray()
    for name, x in arrays.items():
        of_type = x.dtype.newbyteorder("<") if x.dtype.kind == "f" else np.dtype("<i8")
        data += bytes(-(at + len(data)) % 64)
        table += struct.pack(
            "<40s8sQQ", name.encode(), of_type.str.encode(), at + len(data), x.size
        )
        data += x.astype(of_type).tobytes()
    head = MAGIC + struct.pack("<IIQ", VERSION, len(arrays), at + len(data) + 4)
    whole = bytes(head + table + data)
    return whole + struct.pack("<I", zlib.crc32(whole))
