"""The attention block on the GPU: `forward`, `tangent` and `backward`, plain functions on tensors.

float32 on CUDA devices, for hidden networks of one layer; the mathematics is that of
`mdtrajnet_fast.ops.reference`, and `folded` has the fields of its folded weights. Each call is a
short chain of launches without a synchronisation:

1. geometry of the edges                                                      (.edges)
2. centres' own matrices [N, n (c0 h + 2 h)] = s @ key_atom                   (torch.matmul)
3. logits, partial sums over chunks of hidden units                           (.keys)
4. softmax over a centre's edges                                              (.edges)
5. centres' own matrices [N, m 2 h] = s @ value_atom                          (torch.matmul)
6. means of the hidden layer, vector values                                   (.values)
7. scalar values from the means; output map                                   (torch.matmul)

Steps 2 to 7 take the centres in slices that bound memory. Nothing of edges x hidden units is
stored: an edge has 9 numbers of geometry, its weights and its partial logits; in the backward pass
also the gradient of its neighbour's query, which one kernel gathers over the reversed list.

Reasons
* The per-atom products are plain dense ones (20 x 5160 an atom at published sizes), which a library
  runs near its peak; in a kernel of few centres each would read all 412 kB of weights again.
* Logits and values are two kernels with softmax between them. One kernel with an online softmax
  would save 4 floats an edge of traffic (0.1 % of the work) and hold both kernels' registers.
* A program has 32 hidden units: all its operands fit in registers and shared memory, small systems
  spread over more of the device, and the gradients of shared weights stay in registers while the
  program walks over its centres. The price is the Gaussians once a chunk: 16 exp beside 32 erf.
* Tiles have 16 rows: one centre's edges, 46 in 48 rows for diamond, or two centres of up to 8 edges
  each for molecules, for which the centres' own products are done twice (see .common).
* Weights are loaded inside the loop over tiles, from addresses that the compiler cannot know to be
  constant (`jump`): hoisted, they filled the registers (255, and 0.3 to 14 kB spilled).
* Sums over chunks and programs are separate steps, and neighbours' gradients are gathered: no
  atomics, results repeat to the bit on a device. (The number of programs follows the device.)

Multiply-adds an edge at published sizes, forward: 26.6 k (34.8 k with two centres a tile). Traffic:
some 120 B an edge, and 60 kB an atom of own matrices and means, as much as 16 edges: what bounds
molecules. Compiled for sm_90, 35 % of the instructions of the forward kernels are FMAs and three
blocks of four warps fit a multiprocessor, from which 0.35 us an atom and block was expected for
diamond; an H100 takes 0.40 (1.10 with the tangent), where the native kernels take 0.14 (0.29). The
backward kernels (255 or 190 registers, eight warps) fit one block. Chosen without measurement:
tiles, chunks, warps, programs, slices. To try first: tiles of 64 rows with four warps and "tf32x3"
products, whose operands need not sit in registers. `allow_tf32` is correct but not tuned: with
tiles of 16 rows the tensor cores' layouts repeat on every warp and registers spill.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional

from . import edges as _edges
from . import keys as _keys
from . import values as _values

# Values of the largest per-atom matrices that live at once: bounds memory at 256 MB a matrix.
_SLICE = 1 << 26
# Edges of a program of the elementwise kernels.
_BLOCK = 256


class Gradients(NamedTuple):
    """What `backward` returns; `folded` has the fields and shapes of the folded weights."""

    scalars: Tensor  # [N, S]
    displacement: Tensor  # [N, 3]
    velocity_change: Tensor  # [N, 3]
    r: Tensor  # [E, 3]
    w: Tensor  # [E, 3]
    folded: Any


class _Tile(NamedTuple):
    """How one kernel is cut: edges a centre, centres a tile, warps."""

    slot: int
    pack: int
    warps: int


class _Tiles(NamedTuple):
    """The tiles of the kernels with products; held to no spills by tests/test_triton.py."""

    key: _Tile
    value: _Tile
    key_tangent: _Tile
    value_tangent: _Tile
    key_backward: _Tile
    value_backward: _Tile


# Two centres share a tile where centres have few edges; not in the tangents, which have the most
# numbers alive and would run out of registers.
_FEW = _Tiles(
    key=_Tile(8, 2, 4),
    value=_Tile(8, 2, 4),
    key_tangent=_Tile(16, 1, 8),
    value_tangent=_Tile(16, 1, 8),
    key_backward=_Tile(8, 2, 8),
    value_backward=_Tile(8, 2, 8),
)
_MANY = _Tiles(
    key=_Tile(16, 1, 4),
    value=_Tile(16, 1, 4),
    key_tangent=_Tile(16, 1, 8),
    value_tangent=_Tile(16, 1, 8),
    key_backward=_Tile(16, 1, 8),
    value_backward=_Tile(16, 1, 8),
)
# Hidden units of a program.
_CHUNK = 32


def _chunks(hidden: int) -> int:
    return triton.cdiv(hidden, _CHUNK)


class _Plan(NamedTuple):
    """Sizes of a call and the options of every launch."""

    scalars: int
    heads: int
    channels: int  # of a head's scalar key
    hidden_key: int
    hidden_value: int
    basis: int
    time: int
    cutoff: float
    envelope: bool
    precision: str
    few: bool  # edges a centre
    programs: int  # that fill the device

    @property
    def tiles(self) -> _Tiles:
        return _FEW if self.few else _MANY

    @property
    def head_columns(self) -> int:
        """Heads, padded."""
        return max(4, triton.next_power_of_2(self.heads))

    @property
    def key_columns(self) -> int:
        """Columns of the scalar key, padded."""
        channels = max(triton.next_power_of_2(self.channels), 16 // self.head_columns)
        return channels * self.head_columns

    @property
    def inv_step(self) -> float:
        return (self.basis - 1) / self.cutoff

    def common(self, tile: _Tile, hidden: int) -> dict[str, Any]:
        """Compile-time arguments that the kernels of keys and values share."""
        return {
            "HIDDEN": hidden,
            "BASIS": self.basis,
            "STRIDE": self.basis + self.time,
            "HEADS": self.heads,
            "HP": self.head_columns,
            "KB": _CHUNK,
            "BP": max(16, triton.next_power_of_2(self.basis)),
            "SLOT": tile.slot,
            "PACK": tile.pack,
            "PRECISION": self.precision,
            "num_warps": tile.warps,
        }

    def grid(self, tile: _Tile, hidden: int, atoms: int) -> tuple[int, int]:
        chunks = _chunks(hidden)
        groups = triton.cdiv(atoms, tile.pack)
        return min(groups, triton.cdiv(self.programs, chunks)), chunks

    def slices(self, atoms: int) -> Iterator[tuple[int, int]]:
        own = (self.hidden_key + 1) * (self.key_columns + 2 * self.head_columns)
        own += (self.hidden_value + 1) * (2 * self.head_columns + 3 * self.heads)
        step = max(1, _SLICE // own)
        return ((k, min(k + step, atoms)) for k in range(0, atoms, step))


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Launches go to the device of the first argument."""

    @functools.wraps(function)
    def run(scalars: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device_of(scalars):
            return function(scalars, *args, **kwargs)

    return run


def _plan(
    scalars: Tensor,
    neighbor: Tensor,
    folded: Any,
    radial_cutoff: float,
    distance_centres: int,
    time_channels: int,
    envelope: bool,
    allow_tf32: bool,
) -> _Plan:
    for name in ("key_layers", "value_layers"):
        layers = getattr(folded, name)
        if len(layers) != 1:
            widths = tuple(weight.shape[0] for weight, _ in layers)
            raise NotImplementedError(
                f"the Triton kernels serve hidden networks of one layer; {name} has {len(layers)}, "
                f'of widths {widths}. Use backend="reference" for this model'
            )
    if scalars.dtype != torch.float32:
        raise ValueError(
            f"the Triton kernels compute in float32, got scalars of {scalars.dtype}. Convert the "
            'model with .float(), or use backend="reference"'
        )
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if scalars.device.type != "cuda" and not interpreted:
        raise ValueError(
            f"the Triton kernels run on CUDA devices, got tensors on {scalars.device}. Move the "
            'model with .to("cuda"), or use another backend'
        )
    heads, n = folded.scalar_atom.shape[0], folded.key_edge.shape[0]
    programs = 4
    if scalars.device.type == "cuda":
        properties = torch.cuda.get_device_properties(scalars.device)
        programs = 8 * properties.multi_processor_count
    return _Plan(
        scalars=scalars.shape[1],
        heads=heads,
        channels=folded.query.shape[1] // heads,
        hidden_key=n - 1,
        hidden_value=folded.value_edge.shape[0] - 1,
        basis=distance_centres,
        time=time_channels,
        cutoff=radial_cutoff,
        envelope=envelope,
        precision="tf32" if allow_tf32 else "ieee",
        # the mean degree is known without asking the device; it decides speed and nothing else
        few=neighbor.shape[0] <= 8 * scalars.shape[0],
        programs=programs,
    )


class _Columns(NamedTuple):
    """Where real columns lie among padded ones; `index` None where nothing is padded."""

    index: Tensor | None
    width: int

    def pad(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        if self.index is None:
            return x
        return x.new_zeros(*x.shape[:-1], self.width).index_copy(-1, self.index, x)

    def unpad(self, x: Tensor) -> Tensor:
        return x if self.index is None else x.index_select(-1, self.index)


@functools.lru_cache(maxsize=64)
def _columns(
    heads: int, channels: int, hp: int, cp: int, blocks: tuple[bool, ...], device: torch.device
) -> _Columns:
    """Columns of blocks (True: a channel and head each, False: a head each), head fastest.

    hp, cp: columns of a block of either kind, padded. Remembered, for the index comes from the
    host: copied in every call it would wait there, and could not be captured in a CUDA graph.
    """
    offset, index = 0, []
    for of_channels in blocks:
        for c in range(channels if of_channels else 1):
            index += [offset + c * hp + head for head in range(heads)]
        offset += cp if of_channels else hp
    if len(index) == offset:
        return _Columns(None, offset)
    return _Columns(torch.tensor(index, device=device), offset)


class _Weights(NamedTuple):
    """Folded weights with padded columns, and where the columns were."""

    query: Tensor  # [S, CP]
    key_atom: Tensor  # [S, n (CP + 2 HP)]
    key_edge: Tensor  # [n, 2 CP + 4 HP]
    value_atom: Tensor  # [S, m 2 HP]
    value_edge: Tensor  # [m, 6 HP]
    key_layer: Tensor  # [n - 1, basis + time]
    value_layer: Tensor
    of_query: _Columns
    of_key_atom: _Columns
    of_key_edge: _Columns
    of_value_atom: _Columns
    of_value_edge: _Columns


def _weights(plan: _Plan, folded: Any) -> _Weights:
    def columns(*blocks: bool) -> _Columns:
        sizes = plan.heads, plan.channels, plan.head_columns, plan.key_columns
        return _columns(*sizes, blocks, folded.query.device)

    query = columns(True)
    key_atom = columns(True, False, False)
    key_edge = columns(True, True, False, False, False, False)
    value_atom = columns(False, False)
    value_edge = columns(*[False] * 6)
    return _Weights(
        query=query.pad(folded.query),
        key_atom=key_atom.pad(folded.key_atom).flatten(1),
        key_edge=key_edge.pad(folded.key_edge),
        value_atom=value_atom.pad(folded.value_atom).flatten(1),
        value_edge=value_edge.pad(folded.value_edge),
        key_layer=folded.key_layers[0][0].contiguous(),
        value_layer=folded.value_layers[0][0].contiguous(),
        of_query=query,
        of_key_atom=key_atom,
        of_key_edge=key_edge,
        of_value_atom=value_atom,
        of_value_edge=value_edge,
    )


def _geometry(
    row_ptr: Tensor,
    neighbor: Tensor,
    r: Tensor,
    w: Tensor,
    moved: tuple[Tensor, Tensor],
    moved_t: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor | None]:
    """The edges' features [9, E], and their tangents."""
    edges = neighbor.shape[0]
    r, w = r.contiguous(), w.contiguous()
    # there may be room for more edges than row_ptr counts: the last atom's, whom nobody reads
    edge = torch.arange(edges, device=row_ptr.device)
    centre = torch.searchsorted(row_ptr[1:], edge, right=True).clamp_(max=row_ptr.shape[0] - 2)
    feature = r.new_empty(_edges.FEATURES, edges)
    feature_t = None if moved_t is None else torch.empty_like(feature)
    _edges.geometry[(triton.cdiv(edges, _BLOCK),)](
        r, w, centre, neighbor, *moved, feature,
        *(moved_t or moved), feature if feature_t is None else feature_t,
        edges, BLOCK=_BLOCK, TANGENT=feature_t is not None,
    )  # fmt: skip
    return feature, feature_t


def _softmax_options(plan: _Plan) -> dict[str, Any]:
    return {
        "HEADS": plan.heads,
        "HP": plan.head_columns,
        "CHUNKS": _chunks(plan.hidden_key),
        "CENTRES": 16 if plan.few else 4,
        "SLOT": 8 if plan.few else 32,
        "ENVELOPE": plan.envelope,
        "num_warps": 4,
    }


def _logits(
    plan: _Plan,
    weights: _Weights,
    row_ptr: Tensor,
    neighbor: Tensor,
    span: tuple[int, int],
    primal: tuple[Tensor, Tensor, Tensor, Tensor],  # feature, query, own, offset
    dual: tuple[Tensor, Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor | None]:
    """Partial logits [chunks, E, h] of the slice's edges, and their tangents."""
    edges = neighbor.shape[0]
    tile = plan.tiles.key if dual is None else plan.tiles.key_tangent
    grid = plan.grid(tile, plan.hidden_key, span[1] - span[0])
    logits = primal[0].new_empty(grid[1], edges, plan.heads)
    logits_t = None if dual is None else torch.empty_like(logits)
    feature, query, own, offset = primal
    _keys.logits[grid](
        row_ptr, neighbor, feature, query, own, weights.key_edge, weights.key_layer, offset, logits,
        *(dual or primal), logits if logits_t is None else logits_t,
        *span, edges, plan.inv_step,
        CP=plan.key_columns, TANGENT=dual is not None, **plan.common(tile, plan.hidden_key),
    )  # fmt: skip
    return logits, logits_t


def _scalar_values(
    mean: Tensor, sums: Tensor, s: Tensor, folded: Any
) -> tuple[Tensor, Tensor]:  # [h, i, 3, m - 1], [h, i, 3], [i, S] -> [h, i, S, v0], [h, i, v0]
    """Products of the means with the weights of s_i (before the sum over S), and the values."""
    h, i, s_ = mean.shape[0], *s.shape
    main, bias = folded.scalar_atom[:, :-1], folded.scalar_atom[:, -1:]
    product = torch.baddbmm(sums[:, :, :1] * bias, mean[:, :, 0], main).view(h, i, s_, -1)
    return product, _sum_over_scalars(product, s) + _edge_values(mean, sums, folded)


def _sum_over_scalars(product: Tensor, s: Tensor) -> Tensor:
    return torch.einsum("hisc,is->hic", product, s)


def _edge_values(mean: Tensor, sums: Tensor, folded: Any) -> Tensor:
    main, bias = _scalar_edge(folded.scalar_edge)
    return torch.baddbmm(sums[:, :, 1:] @ bias, mean[:, :, 1:].flatten(2), main)


def _scalar_edge(x: Tensor) -> tuple[Tensor, Tensor]:  # [h, 2 m, v0]
    """The weights [h, 2 (m - 1), v0] of the means times d and w.u, and the biases [h, 2, v0]."""
    x = x.unflatten(1, (2, -1))
    return x[:, :, :-1].flatten(1, 2), x[:, :, -1]


def _run(
    state: tuple[Tensor, Tensor, Tensor],
    state_t: tuple[Tensor, Tensor, Tensor] | None,
    row_ptr: Tensor,
    neighbor: Tensor,
    r: Tensor,
    w: Tensor,
    folded: Any,
    plan: _Plan,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Increments, followed by their tangents if those of the state are given."""
    scalars = state[0].contiguous()
    states = [scalars] if state_t is None else [scalars, state_t[0].contiguous()]
    dual = state_t is not None
    n, edges = scalars.shape[0], neighbor.shape[0]
    outs = [
        (torch.zeros_like(x), x.new_zeros(n, 3), x.new_zeros(n, 3)) if edges == 0
        else (torch.empty_like(x), x.new_empty(n, 3), x.new_empty(n, 3)) for x in states
    ]  # fmt: skip
    if edges == 0:
        return outs
    weights = _weights(plan, folded)
    moved_t = None if state_t is None else (state_t[1].contiguous(), state_t[2].contiguous())
    features = _geometry(
        row_ptr, neighbor, r, w, (state[1].contiguous(), state[2].contiguous()), moved_t
    )
    queries = [x @ weights.query for x in states]

    def offsets(layer: tuple[Tensor, Tensor]) -> list[Tensor]:
        weight, bias = layer[0][:, plan.basis :], layer[1]
        return [
            functional.linear(x[:, -plan.time :], weight, None if k else bias)
            for k, x in enumerate(states)
        ]

    key_offsets, value_offsets = offsets(folded.key_layers[0]), offsets(folded.value_layers[0])
    softmax_options = _softmax_options(plan)
    value_tile = plan.tiles.value_tangent if dual else plan.tiles.value
    a = r.new_empty(edges, plan.heads)
    a_t = torch.empty_like(a) if dual else a
    for first, last in plan.slices(n):
        s = [x[first:last] for x in states]
        own = [x @ weights.key_atom for x in s]
        sets = list(zip(features, queries, own, key_offsets, strict=False))
        logits, logits_t = _logits(
            plan, weights, row_ptr, neighbor, (first, last), sets[0], sets[1] if dual else None
        )
        _edges.softmax[(triton.cdiv(last - first, softmax_options["CENTRES"]),)](
            row_ptr, features[0], logits, a,
            features[1] if dual else features[0], logits_t if dual else logits, a_t,
            first, last, edges, 1 / plan.cutoff, TANGENT=dual, **softmax_options,
        )  # fmt: skip
        own = [x @ weights.value_atom for x in s]
        grid = plan.grid(value_tile, plan.hidden_value, last - first)
        results = [
            (
                r.new_empty(plan.heads, last - first, 3, plan.hidden_value),
                r.new_empty(plan.heads, last - first, 3),
                r.new_empty(grid[1], last - first, 6),
            )
            for _ in states
        ]
        _values.values[grid](
            row_ptr, features[0], a, own[0], weights.value_edge, weights.value_layer,
            value_offsets[0], *results[0],
            features[-1] if dual else features[0], a_t, own[-1], value_offsets[-1], *results[-1],
            first, last, edges, plan.inv_step,
            TANGENT=dual, **plan.common(value_tile, plan.hidden_value),
        )  # fmt: skip
        mean, sums, _ = results[0]
        product, value = _scalar_values(mean, sums, s[0], folded)
        values = [value]
        if dual:
            mean_t, sums_t, _ = results[1]
            _, value_t = _scalar_values(mean_t, sums_t, s[0], folded)
            values.append(value_t + _sum_over_scalars(product, s[1]))
        for out, value, result in zip(outs, values, results, strict=True):
            torch.mm(value.transpose(0, 1).flatten(1), folded.out, out=out[0][first:last])
            vector = result[2].sum(0)
            out[1][first:last] = vector[:, :3]
            out[2][first:last] = vector[:, 3:]
    return outs


@_on_device
def forward(
    scalars: Tensor,  # [N, S]
    displacement: Tensor,  # [N, 3] Å
    velocity_change: Tensor,  # [N, 3] Å/fs
    row_ptr: Tensor,  # [N + 1] int64
    neighbor: Tensor,  # [E] int64
    r: Tensor,  # [E, 3] Å
    w: Tensor,  # [E, 3] Å/fs
    folded: Any,
    *,
    radial_cutoff: float,
    distance_centres: int,
    time_channels: int,
    envelope: bool = False,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # increments [N, S], [N, 3], [N, 3]
    """One attention block: the increments of scalars, positions (Å) and velocities (Å/fs).

    allow_tf32: products on tensor cores with 10 bits of mantissa; float32 otherwise.

    Raises NotImplementedError for hidden networks of several layers, ValueError for tensors that
    are not float32 or not on a CUDA device.
    """
    plan = _plan(
        scalars, neighbor, folded, radial_cutoff, distance_centres, time_channels, envelope,
        allow_tf32,
    )  # fmt: skip
    state = (scalars, displacement, velocity_change)
    return _run(state, None, row_ptr, neighbor, r, w, folded, plan)[0]


@_on_device
def tangent(
    scalars: Tensor,  # [N, S]
    displacement: Tensor,  # [N, 3] Å
    velocity_change: Tensor,  # [N, 3] Å/fs
    scalars_t: Tensor,  # the tangents of these three
    displacement_t: Tensor,
    velocity_change_t: Tensor,
    row_ptr: Tensor,  # [N + 1] int64
    neighbor: Tensor,  # [E] int64
    r: Tensor,  # [E, 3] Å
    w: Tensor,  # [E, 3] Å/fs
    folded: Any,
    *,
    radial_cutoff: float,
    distance_centres: int,
    time_channels: int,
    envelope: bool = False,
    allow_tf32: bool = False,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """The increments, and their tangents along those of the state (geometry and weights fixed).

    Raises as :func:`forward` does.
    """
    plan = _plan(
        scalars, neighbor, folded, radial_cutoff, distance_centres, time_channels, envelope,
        allow_tf32,
    )  # fmt: skip
    state = (scalars, displacement, velocity_change)
    state_t = (scalars_t, displacement_t, velocity_change_t)
    increments, tangents = _run(state, state_t, row_ptr, neighbor, r, w, folded, plan)
    return increments, tangents


def reverse_edges(neighbor: Tensor, atoms: int) -> tuple[Tensor, Tensor]:
    """Edges by the atom they end in: row pointer [atoms + 1] and edge ids [E], ascending."""
    ends, rev_edge = neighbor.sort(stable=True)
    rev_ptr = torch.searchsorted(ends, torch.arange(atoms + 1, device=neighbor.device))
    return rev_ptr, rev_edge


@_on_device
def backward(
    scalars: Tensor,  # [N, S]
    displacement: Tensor,  # [N, 3] Å
    velocity_change: Tensor,  # [N, 3] Å/fs
    row_ptr: Tensor,  # [N + 1] int64
    neighbor: Tensor,  # [E] int64
    r: Tensor,  # [E, 3] Å
    w: Tensor,  # [E, 3] Å/fs
    folded: Any,
    grad_scalars: Tensor,  # [N, S], of the increments
    grad_displacement: Tensor,  # [N, 3]
    grad_velocity_change: Tensor,  # [N, 3]
    *,
    radial_cutoff: float,
    distance_centres: int,
    time_channels: int,
    envelope: bool = False,
    allow_tf32: bool = False,
    reverse: tuple[Tensor, Tensor] | None = None,
) -> Gradients:
    """Gradients of the state, the geometry and every folded weight from those of the increments.

    Nothing of the forward pass is needed: logits and hidden layers are computed anew. `reverse` is
    what :func:`reverse_edges` returns for the neighbours, to save its sort where it is known.
    Raises as :func:`forward` does.
    """
    plan = _plan(
        scalars, neighbor, folded, radial_cutoff, distance_centres, time_channels, envelope,
        allow_tf32,
    )  # fmt: skip
    n, edges = scalars.shape[0], neighbor.shape[0]
    weight_gradients = {
        name: torch.zeros_like(getattr(folded, name)) for name in folded._fields[2:]
    }
    for name in ("key_layers", "value_layers"):
        weight, bias = getattr(folded, name)[0]
        weight_gradients[name] = [(torch.zeros_like(weight), torch.zeros_like(bias))]
    grads = folded._replace(**weight_gradients)
    g_s = torch.zeros_like(scalars)
    g_dx, g_dv = r.new_zeros(n, 3), r.new_zeros(n, 3)
    g_r, g_w = r.new_zeros(edges, 3), r.new_zeros(edges, 3)
    if edges == 0:
        return Gradients(g_s, g_dx, g_dv, g_r, g_w, grads)

    hp, cp, h = plan.head_columns, plan.key_columns, plan.heads
    scalars = scalars.contiguous()
    weights = _weights(plan, folded)
    feature, _ = _geometry(
        row_ptr, neighbor, r, w, (displacement.contiguous(), velocity_change.contiguous()), None
    )
    query = scalars @ weights.query
    time = scalars[:, -plan.time :]

    def offset(layer: tuple[Tensor, Tensor]) -> Tensor:
        return functional.linear(time, layer[0][:, plan.basis :], layer[1])

    key_offset, value_offset = offset(folded.key_layers[0]), offset(folded.value_layers[0])
    g_key_offset, g_value_offset = torch.empty_like(key_offset), torch.empty_like(value_offset)
    softmax_options = _softmax_options(plan)
    key_chunks = _chunks(plan.hidden_key)
    value_chunks = _chunks(plan.hidden_value)
    a, g_logits = r.new_empty(edges, h), r.new_empty(edges, h)
    g_a = r.new_empty(value_chunks, edges, h)
    g_feature_value = r.new_empty(value_chunks, 8, edges)
    g_feature_key = r.new_empty(key_chunks, 3, edges)
    g_distance = r.new_empty(edges)
    g_edge_query = r.new_empty(key_chunks, edges, cp)
    g_vector = torch.cat([grad_displacement, grad_velocity_change], dim=1)
    scalar_main, scalar_bias = folded.scalar_atom[:, :-1], folded.scalar_atom[:, -1]
    edge_main, edge_bias = _scalar_edge(folded.scalar_edge)
    g_scalar_edge = grads.scalar_edge.view(h, 2, plan.hidden_value + 1, -1)
    g_key_atom = torch.zeros_like(weights.key_atom)
    g_key_edge = torch.zeros_like(weights.key_edge)
    g_value_atom = torch.zeros_like(weights.value_atom)
    g_value_edge = torch.zeros_like(weights.value_edge)

    for first, last in plan.slices(n):
        count = last - first
        s, g_out = scalars[first:last], grad_scalars[first:last]
        own = s @ weights.key_atom
        logits, _ = _logits(
            plan, weights, row_ptr, neighbor, (first, last),
            (feature, query, own, key_offset), None,
        )  # fmt: skip
        softmax_grid = (triton.cdiv(count, softmax_options["CENTRES"]),)
        _edges.softmax[softmax_grid](
            row_ptr, feature, logits, a, feature, logits, a,
            first, last, edges, 1 / plan.cutoff, TANGENT=False, **softmax_options,
        )  # fmt: skip
        # scalar values, as far as their gradients need no mean
        g_value = (g_out @ folded.out.T).view(count, h, -1).transpose(0, 1)  # [h, i, v0]
        outer = torch.einsum("is,hic->hisc", s, g_value).flatten(2)
        g_mean = r.new_empty(h, count, 3, plan.hidden_value)
        g_sums = r.new_empty(h, count, 3)
        g_mean[:, :, 0] = outer @ scalar_main.transpose(1, 2)
        g_mean[:, :, 1:] = (g_value @ edge_main.transpose(1, 2)).view(h, count, 2, -1)
        g_sums[:, :, :1] = outer @ scalar_bias[:, :, None]
        g_sums[:, :, 1:] = g_value @ edge_bias.transpose(1, 2)
        # values
        own_v = s @ weights.value_atom
        g_own = torch.empty_like(own_v)
        mean, sums = torch.empty_like(g_mean), torch.empty_like(g_sums)
        grid = plan.grid(plan.tiles.value_backward, plan.hidden_value, count)
        part_edge = r.new_empty(grid[0], plan.hidden_value + 1, 6 * hp)
        part_layer = r.new_empty(grid[0], plan.basis, plan.hidden_value)
        _values.values_backward[grid](
            row_ptr, feature, a, own_v, weights.value_edge, weights.value_layer, value_offset,
            g_mean, g_sums, g_vector,
            mean, sums, g_a, g_feature_value, g_own, g_value_offset, part_edge, part_layer,
            first, last, edges, plan.inv_step,
            **plan.common(plan.tiles.value_backward, plan.hidden_value),
        )  # fmt: skip
        g_value_edge += part_edge.sum(0)
        grads.value_layers[0][0][:, : plan.basis] += part_layer.sum(0).T
        g_value_atom += s.T @ g_own
        g_s[first:last] += g_own @ weights.value_atom.T
        product, value = _scalar_values(mean, sums, s, folded)
        g_s[first:last] += torch.einsum("hisc,hic->is", product, g_value)
        grads.out.addmm_(value.transpose(0, 1).flatten(1).T, g_out)
        grads.scalar_atom[:, :-1] += mean[:, :, 0].transpose(1, 2) @ outer
        grads.scalar_atom[:, -1:] += sums[:, :, :1].transpose(1, 2) @ outer
        g_scalar_edge[:, :, :-1] += (mean[:, :, 1:].flatten(2).transpose(1, 2) @ g_value).unflatten(
            1, (2, -1)
        )
        g_scalar_edge[:, :, -1] += sums[:, :, 1:].transpose(1, 2) @ g_value
        # logits
        _edges.softmax_backward[softmax_grid](
            row_ptr, feature, logits, g_a, g_logits, g_distance,
            first, last, edges, 1 / plan.cutoff, VALUE_CHUNKS=value_chunks, **softmax_options,
        )  # fmt: skip
        g_own = torch.empty_like(own)
        grid = plan.grid(plan.tiles.key_backward, plan.hidden_key, count)
        part_edge = r.new_empty(grid[0], plan.hidden_key + 1, 2 * cp + 4 * hp)
        part_layer = r.new_empty(grid[0], plan.basis, plan.hidden_key)
        _keys.logits_backward[grid](
            row_ptr, neighbor, feature, query, own, weights.key_edge, weights.key_layer, key_offset,
            g_logits, g_edge_query, g_feature_key, g_own, g_key_offset, part_edge, part_layer,
            first, last, edges, plan.inv_step,
            CP=cp, **plan.common(plan.tiles.key_backward, plan.hidden_key),
        )  # fmt: skip
        g_key_edge += part_edge.sum(0)
        grads.key_layers[0][0][:, : plan.basis] += part_layer.sum(0).T
        g_key_atom += s.T @ g_own
        g_s[first:last] += g_own @ weights.key_atom.T

    _edges.geometry_backward[(triton.cdiv(edges, _BLOCK),)](
        feature, g_feature_value, g_feature_key, g_distance, g_r, g_w, edges,
        VALUE_CHUNKS=value_chunks, KEY_CHUNKS=key_chunks, BLOCK=_BLOCK, ENVELOPE=plan.envelope,
    )  # fmt: skip
    g_query = torch.empty_like(query)
    _edges.gather[(n,)](
        row_ptr, *(reverse or reverse_edges(neighbor, n)), g_r, g_w, g_edge_query,
        g_dx, g_dv, g_query, edges, CP=cp, CHUNKS=key_chunks, BLOCK=16, num_warps=1,
    )  # fmt: skip
    g_s += g_query @ weights.query.T
    for layer, gradient, (g_weight, g_bias) in (
        (folded.key_layers[0], g_key_offset, grads.key_layers[0]),
        (folded.value_layers[0], g_value_offset, grads.value_layers[0]),
    ):
        g_s[:, -plan.time :] += gradient @ layer[0][:, plan.basis :]
        g_weight[:, plan.basis :] = gradient.T @ time
        g_bias.copy_(gradient.sum(0))
    grads = grads._replace(
        query=weights.of_query.unpad(scalars.T @ g_query),
        key_atom=weights.of_key_atom.unpad(g_key_atom.unflatten(1, (plan.hidden_key + 1, -1))),
        key_edge=weights.of_key_edge.unpad(g_key_edge),
        value_atom=weights.of_value_atom.unpad(
            g_value_atom.unflatten(1, (plan.hidden_value + 1, -1))
        ),
        value_edge=weights.of_value_edge.unpad(g_value_edge),
    )
    return Gradients(g_s, g_dx, g_dv, g_r, g_w, grads)
