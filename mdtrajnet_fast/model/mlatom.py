"""Read checkpoints of the published implementation (MLatom) into a model: a one-way converter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .archive import build, load_archive
from .config import ModelConfig, irreps_channels
from .network import AttentionBlock, MDtrajNet, Network

_SIZES = (
    "num_attn_blocks",
    "lmax",
    "sp_embed_dim",
    "time_cutoff",
    "t_embed_dim",
    "radial_cutoff",
    "d_embed_dim",
    "num_heads",
    "irreps_key",
    "irreps_query",
    "irreps_value",
    "key_weight_hidden_neurons",
    "value_weight_hidden_neurons",
)


def _numpy_globals() -> list[Any]:
    # what a pickled NumPy array of strings is made of, under NumPy 1's and 2's module names
    reconstruct = np.array(0).__reduce__()[0]
    return [
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        type(np.dtype("U1")),
    ]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a published checkpoint, ``{"state": ..., "args": ...}``, without running code.

    Raises ValueError if the file holds anything else.
    """
    content = load_archive(path, safe=_numpy_globals())
    if not (isinstance(content, dict) and {"state", "args"} <= set(content)):
        raise ValueError(
            f'{path} holds no "state" and "args": not a published MDtrajNet checkpoint'
        )
    return content


def _config(args: dict[str, Any], path: str | Path) -> ModelConfig:
    if not isinstance(args, dict):
        raise ValueError(f'{path}: "args" is no dictionary of sizes')
    missing = [name for name in ("species", *_SIZES) if name not in args]
    if missing:
        raise ValueError(f"{path}: the checkpoint's args lack {missing}")
    try:
        species = tuple(str(s) for s in np.asarray(args["species"]).tolist())
        return ModelConfig(species=species, **{name: args[name] for name in _SIZES})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _split(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Cut the last dimension of a flat weight [..., numel] into consecutive shapes."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    if sum(sizes) != flat.shape[-1]:
        raise ValueError(f"expected {sum(sizes)} weights, the file has {flat.shape[-1]}")
    pieces = flat.split(sizes, dim=-1)
    return [p.unflatten(-1, shape) for p, shape in zip(pieces, shapes, strict=True)]


def _tensor_product(last: Tensor, config: ModelConfig, irreps: str) -> tuple[Tensor, Tensor]:
    """Path weights [n, .] of a fully connected tensor product as (scalar, vector) paths.

    e3nn orders the weights path by path: for each pair (input irrep, harmonic) the heads in order,
    each [multiplicity in, channels].
    """
    c0, c1 = irreps_channels(irreps)
    h, sp, t = config.num_heads, config.sp_embed_dim, config.t_embed_dim
    # input 0e: x Y0 -> 0e, x Y1 -> 1o; input 1o: x Y0 -> 1o, x Y1 -> 0e, x Y2 -> 1o
    vector_input = [(h, 1, c1), (h, 1, c0), (h, 1, c1)]
    shapes = [(h, sp, c0), (h, sp, c1), *vector_input, *vector_input, (h, t, c0), (h, t, c1)]
    sp0, sp1, r_y0, r_y1, r_y2, w_y0, w_y1, w_y2, t0, t1 = (
        x.transpose(-3, -2) for x in _split(last, shapes)
    )  # each [n, multiplicity, h, c]
    scalar = torch.cat([sp0, t0, r_y1, w_y1], dim=-3)
    vector = torch.cat([sp1, t1, r_y0, w_y0, r_y2, w_y2], dim=-3)
    return scalar, vector


def _linear_in(flat: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """o3.Linear from (sp x 0e, 1o, 1o, t x 0e) to the heads' queries: ([S, h, c0], [2, h, c1])."""
    c0, c1 = irreps_channels(config.irreps_query)
    h, sp, t = config.num_heads, config.sp_embed_dim, config.t_embed_dim
    shapes = [(h, sp, c0), (h, 1, c1), (h, 1, c1), (h, t, c0)]
    scalar, r, w, time = (x.transpose(0, 1) for x in _split(flat, shapes))
    return torch.cat([scalar, time]), torch.cat([r, w])


def _linear_out(flat: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """o3.Linear from the heads' values back to the state: ([h, c0, S], [h, c1, 2])."""
    c0, c1 = irreps_channels(config.irreps_value)
    sp, t = config.sp_embed_dim, config.t_embed_dim
    pieces = _split(flat, [(c0, sp), (c0, t), (c1, 1), (c1, 1)] * config.num_heads)
    to_species, to_time, to_r, to_w = (torch.stack(pieces[k::4]) for k in range(4))
    return torch.cat([to_species, to_time], dim=2), torch.cat([to_r, to_w], dim=2)


def _load_block(block: AttentionBlock, state: dict[str, Tensor], config: ModelConfig) -> None:
    block_state: dict[str, Tensor] = {}
    for ours, theirs, irreps, widths in (
        ("key", "mlp_key_weight", config.irreps_key, config.key_weight_hidden_neurons),
        ("value", "mlp_value_weight", config.irreps_value, config.value_weight_hidden_neurons),
    ):
        for k in range(len(widths)):
            for part in ("weight", "bias"):
                block_state[f"{ours}_layers.{k}.{part}"] = state[f"{theirs}.{2 * k}.{part}"]
        last = f"{theirs}.{2 * len(widths)}"
        paths = torch.cat([state[f"{last}.weight"].T, state[f"{last}.bias"][None]])
        block_state[f"{ours}_scalar"], block_state[f"{ours}_vector"] = _tensor_product(
            paths, config, irreps
        )
    (q0, q1), (k0, k1) = irreps_channels(config.irreps_query), irreps_channels(config.irreps_key)
    block_state["query_scalar"], block_state["query_vector"] = _linear_in(
        state["W_query.weight"], config
    )
    block_state["out_scalar"], block_state["out_vector"] = _linear_out(
        state["W_out.weight"], config
    )
    block_state["bilinear_scalar"], block_state["bilinear_vector"] = _split(
        state["dot.weight"], [(q0, k0), (q1, k1)]
    )
    block.load_state_dict(block_state)


def _load_network(network: Network, state: dict[str, Tensor], path: str | Path) -> None:
    state = {re.sub(r"^(_orig_mod|module)\.", "", name): x for name, x in state.items()}
    try:
        network.species_embedding.data.copy_(state["sp_embed.weight"])
        for k, block in enumerate(network.blocks):
            prefix = f"Txs.{k}."
            mine = {n[len(prefix) :]: x for n, x in state.items() if n.startswith(prefix)}
            _load_block(block, mine, network.config)  # type: ignore[arg-type]
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: the weights do not fit the sizes in its args: {error}"
        ) from error


def _state(state: Any, path: str | Path) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(f'{path}: "state" holds other things than tensors')
    return state


def load_mlatom(paths: str | Path | Sequence[str | Path], name: str | None = None) -> MDtrajNet:
    """A model from one published checkpoint, or the collection of several equal ones.

    Weights keep the file's precision (float32). Raises ValueError, naming the file, for content
    that is not such a checkpoint, for unsupported irreps and for members of different sizes.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    if not files:
        raise ValueError("expected at least one checkpoint file")
    contents = [read_checkpoint(path) for path in files]
    configs = [_config(c["args"], path) for c, path in zip(contents, files, strict=True)]
    for path, config in zip(files, configs, strict=True):
        if config != configs[0]:
            raise ValueError(f"{path} differs in species or sizes from {files[0]}")
    weights = {
        f"{k}.{key}": x
        for k, (content, path) in enumerate(zip(contents, files, strict=True))
        for key, x in _state(content["state"], path).items()
    }
    try:
        model = build(configs[0], len(files), name or Path(files[0]).stem, weights)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{files[0]}: {error}") from error
    for member, content, path in zip(model.members, contents, files, strict=True):
        _load_network(member, content["state"], path)  # type: ignore[arg-type]
    return model
