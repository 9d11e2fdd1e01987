"""The attention block of the GPU, on the CPU: values and time tangents against the reference.

The matrix of cases is that of kernel_cases.py, with one hidden layer for each radial network.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence

import ase
import cases
import numpy as np
import pytest
import torch
from cuda_emulation import call, load, needs_compiler, pointer, run_sanitized, thread_order
from emulated_gpu import ATTENTION, CRows, CSizes, CState, CWeights, c_blocks
from kernel_cases import SIZES, SYSTEMS, double, folded_of, like, model_of, options_of
from torch.autograd import forward_ad

from mdtrajnet_fast.model.network import MDtrajNet
from mdtrajnet_fast.ops import BACKENDS, Blocks, Graph, edge_attention, fold
from mdtrajnet_fast.ops.reference import FoldedWeights
from mdtrajnet_fast.system import System

pytestmark = needs_compiler

GUARD = 64  # bytes behind every array that a kernel may write
TOLERANCE = 1e-5  # relative norm
SIZES = {
    "small": SIZES["small"] | {"key_weight_hidden_neurons": (7,)},
    "published": SIZES["published"],  # compiled by themselves, as are the next
    **cases.BUNDLED,
    "three heads": SIZES["three heads"] | {"value_weight_hidden_neurons": (40,)},
    # two blocks of everything: heads, channels, chunks of hidden units, groups of scalar values
    "wide": {
        "species": ("C", "H", "N", "O"),
        "num_attn_blocks": 1,
        "sp_embed_dim": 30,
        "num_heads": 6,
        "irreps_key": "9x0e + 2x1o",
        "irreps_value": "10x0e + 3x1o",
        "key_weight_hidden_neurons": (65,),
        "value_weight_hidden_neurons": (130,),
        "d_embed_dim": 5,
    },
}


def guarded(shape: Sequence[int]) -> np.ndarray:
    """NaN everywhere, and a guard behind it."""
    size = int(np.prod(shape)) * 4
    memory = np.full(size + GUARD, 0xFF, np.uint8)
    return memory[:size].view(np.float32).reshape(shape)


def check_guard(array: np.ndarray) -> None:
    memory = array
    while memory.base is not None:
        memory = memory.base
    assert (memory[-GUARD:] == 0xFF).all()


def c_state(arrays: Sequence[np.ndarray] | None) -> CState | None:
    return None if arrays is None else CState((ctypes.c_void_p * 3)(*map(pointer, arrays)))


class Block:
    """A block's packed weights, for the emulated launchers."""

    def __init__(self, folded: FoldedWeights, *, key_layers: int = 1, **options):
        self.library = load(*ATTENTION)
        self.size = CSizes(
            scalars=folded.query.shape[0],
            time_channels=options["time_channels"],
            centres=options["distance_centres"],
            heads=folded.heads,
            key_channels=folded.query.shape[1] // folded.heads,
            value_channels=folded.scalar_edge.shape[2],
            cutoff=options["radial_cutoff"],
            envelope=options["envelope"],
        )
        weights = CWeights()
        keep = []  # arrays whose pointers are used

        def of(tensor: torch.Tensor) -> int:
            keep.append(np.ascontiguousarray(tensor.float().numpy()))
            return pointer(keep[-1])

        for net, layers in enumerate((folded.key_layers, folded.value_layers)):
            self.size.layers[net] = len(layers)
            for k, (weight, bias) in enumerate(layers):
                self.size.hidden[net][k] = weight.shape[0]
                weights.layer_weight[net][k], weights.layer_bias[net][k] = of(weight), of(bias)
        weights.folded[:] = [of(tensor) for tensor in folded[2:]]
        size = np.zeros(1, np.int64)
        call(self.library.emulated_packed_bytes, self.size, size)
        self.packed = guarded([size.item() // 4])
        call(self.library.emulated_pack, self.size, weights, self.packed)
        check_guard(self.packed)
        assert np.isfinite(self.packed).all()


class Rows:
    """A graph, for `times` copies."""

    def __init__(self, graph: Graph, times: int = 1):
        self.arrays = [np.ascontiguousarray(x.numpy()) for x in graph.csr]
        for array in self.arrays[2:]:
            assert array.dtype == np.float32
        edges = self.arrays[1].shape[0]
        self.view = CRows(graph.atoms, *map(pointer, self.arrays), edges, times)

    def workspace(self, block: Block, tangent: bool, stack: bool) -> np.ndarray:
        size = np.zeros(1, np.int64)
        function = block.library.emulated_attention_bytes
        call(function, block.size, self.view, int(tangent), int(stack), size)
        return guarded([size.item() // 4])


def forward(block: Block, graph: Graph, state, tangent=None, times: int = 1):
    """Increments and their tangents (or None) of torch tensors [times x atoms, .]."""
    rows = Rows(graph, times)
    states = [np.ascontiguousarray(x.numpy()) for x in state]
    tangents = None if tangent is None else [np.ascontiguousarray(x.numpy()) for x in tangent]
    out = [guarded(x.shape) for x in states]
    out_tangent = None if tangent is None else [guarded(x.shape) for x in states]
    workspace = rows.workspace(block, tangent is not None, False)
    values = (c_state(states), c_state(tangents), c_state(out), c_state(out_tangent))
    call(block.library.emulated_attention, block.size, block.packed, rows.view, *values, workspace)
    for array in (*out, *(out_tangent or []), workspace):
        check_guard(array)
    found = [torch.from_numpy(x) for x in out]
    return found, out_tangent and [torch.from_numpy(x) for x in out_tangent]


def stack(blocks: list[Block], running: bool, graph: Graph, scalars, tangent=None, times: int = 1):
    """Displacement and velocity change of the last state, and their tangents (or None)."""
    rows = Rows(graph, times)
    both = [np.ascontiguousarray(x.numpy()) for x in (scalars, tangent) if x is not None]
    out = [[guarded((len(x), 3)) for _ in range(2)] for x in both]
    states = [CState((ctypes.c_void_p * 3)(None, *map(pointer, x))) for x in out]
    sizes, packed = c_blocks([(block.size, pointer(block.packed)) for block in blocks])
    workspace = rows.workspace(blocks[0], tangent is not None, True)
    call(
        blocks[0].library.emulated_attention_stack, sizes, packed, len(blocks), int(running),
        rows.view, both[0], *(both[1:] or [None]), states[0], *(states[1:] or [None]), workspace,
    )  # fmt: skip
    for array in (*out[0], *(out[1] if tangent is not None else []), workspace):
        check_guard(array)
    return [[torch.from_numpy(x) for x in part] for part in out]


def reference(folded: FoldedWeights, options: dict, graph: Graph, state, tangent):
    """Values and tangents in double precision, on the same numbers."""
    wide = FoldedWeights.from_tensors(
        [x.double() for x in folded.tensors()], len(folded.key_layers)
    )
    with torch.no_grad(), forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(x.double(), y.double())
            for x, y in zip(state, tangent, strict=True)
        ]
        out = edge_attention(*duals, double(graph), wide, **options, backend="reference")
        both = [forward_ad.unpack_dual(x) for x in out]
        zeros = [torch.zeros_like(x.primal) for x in both]
        return [x.primal for x in both], [
            z if x.tangent is None else x.tangent for x, z in zip(both, zeros, strict=True)
        ]


def close(found, expected):
    for k, (x, y) in enumerate(zip(found, expected, strict=True)):
        error, size = (x.double() - y).norm(), y.norm()
        assert error <= TOLERANCE * size, (k, float(error / size))


def inputs(sizes: str, system: str, **options) -> tuple[MDtrajNet, list[torch.Tensor], Graph]:
    model = model_of(SIZES[sizes], torch.float32, **options)
    *state, graph = cases.block_inputs(model, SYSTEMS[system]())
    return model, state, graph


@pytest.mark.slow
@pytest.mark.parametrize("envelope", [False, True])
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_tangents(sizes, system, envelope):
    model, state, graph = inputs(sizes, system, envelope=envelope)
    folded, options = folded_of(model), options_of(model)
    tangent = [0.1 * like(x, 5 + k) for k, x in enumerate(state)]
    values, changes = reference(folded, options, graph, state, tangent)
    block = Block(folded, **options)
    close(forward(block, graph, state)[0], values)
    out, out_tangent = forward(block, graph, state, tangent)
    close(out, values)
    close(out_tangent, changes)
    alone = (graph.row_ptr[1:] == graph.row_ptr[:-1]).nonzero().squeeze(1)
    assert len(alone) == {"mixture": 1, "crowd": 0, "alone": 1}[system]
    for x in (*out, *out_tangent):
        assert (x[alone] == 0).all()


@pytest.mark.parametrize("atoms", [cases.hot("H2O"), cases.diamond((1, 1, 1))], ids=["few", "many"])
def test_several_times_at_once_in_several_slices(atoms):
    """Each copy gets what it gets by itself, whatever slice it falls in, to the bit."""
    model = model_of(SIZES["small"], torch.float32)
    *one, graph = cases.block_inputs(model, atoms)
    block = Block(folded_of(model), **options_of(model))
    slices = graph.atoms == 3  # the smaller system fills more than one
    times = block.library.emulated_slice() // 3 + 2 if slices else 3
    state = [torch.cat([x] * times) for x in one]
    state[0][graph.atoms :] += 0.1
    kinds = [None] if slices else [None, [like(x, k) for k, x in enumerate(state)]]
    for tangent in kinds:
        together = forward(block, graph, state, tangent, times)
        for k in (0, 1, times - 1):
            rows = slice(k * graph.atoms, (k + 1) * graph.atoms)
            some = None if tangent is None else [x[rows] for x in tangent]
            single = forward(block, graph, [x[rows] for x in state], some)
            for x, y in zip(together, single, strict=True):
                assert (x is None) == (y is None)
                for a, b in zip(x or [], y or [], strict=True):
                    assert torch.equal(a[rows], b)


@pytest.mark.parametrize("sizes", ["small", *cases.BUNDLED])
def test_the_order_of_threads_changes_no_bit(sizes):
    model, state, graph = inputs(sizes, "mixture", envelope=True)
    tangent = [like(x, k) for k, x in enumerate(state)]
    library = load(*ATTENTION)

    def run(seed: int) -> list[torch.Tensor]:
        with thread_order(library, seed):
            block = Block(folded_of(model), **options_of(model))
            values, changes = forward(block, graph, state, tangent)
            return [*forward(block, graph, state)[0], *values, *changes]

    expected = run(0)
    for seed in (1, 2):
        for x, y in zip(run(seed), expected, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("residual", ["input", "running"])
def test_a_stack_is_its_blocks(residual):
    """Several times at once, with and without tangents."""
    model = model_of(SIZES["small"], torch.float64, residual=residual, num_attn_blocks=3)
    *_, graph = cases.block_inputs(model, [cases.hot("CH3CH2OH"), cases.hot("H2O")])
    model.backend = "reference"
    (prepared,) = model.prepare()
    single = dataclasses.replace(graph, r=graph.r.float(), w=graph.w.float())
    times = 2
    scalars = torch.randn(times * graph.atoms, model.config.scalars, dtype=torch.float64)
    scalars, tangent = scalars.float(), 0.1 * like(scalars, 3).float()
    with forward_ad.dual_level():
        out = prepared(forward_ad.make_dual(scalars.double(), tangent.double()), double(single))
        both = [forward_ad.unpack_dual(x) for x in out]
    blocks = [Block(folded, **options_of(model)) for folded in prepared.folded]
    assert len(blocks) == 3
    (values,) = stack(blocks, residual == "running", single, scalars, None, times)
    close(values, [x.primal for x in both])
    values, changes = stack(blocks, residual == "running", single, scalars, tangent, times)
    close(values, [x.primal for x in both])
    close(changes, [x.tangent for x in both])


def test_no_atoms():
    model, state, graph = inputs("small", "alone")
    block = Block(folded_of(model), **options_of(model))
    empty = [x[:0] for x in state]
    assert [x.shape for x in forward(block, graph, empty, times=0)[0]] == [x.shape for x in empty]


def test_refusals():
    for net in ("key", "value"):
        model = model_of(SIZES["small"], **{f"{net}_weight_hidden_neurons": (4, 5)})
        message = f"the {net} network has 2 hidden layers, .* take one; use backend=.reference"
        with pytest.raises(RuntimeError, match=message):
            Block(folded_of(model), **options_of(model))
    model = model_of(SIZES["small"], d_embed_dim=113)
    with pytest.raises(RuntimeError, match="has 113 Gaussians, but .* take 2 to 112; use backend"):
        Block(folded_of(model), **options_of(model))
    model = model_of(SIZES["small"], d_embed_dim=112)
    *state, graph = cases.block_inputs(model, ase.Atoms("H2", [[0, 0, 0], [0, 0, 1]]))
    state, graph = (
        [x.float() for x in state],
        dataclasses.replace(graph, r=graph.r.float(), w=graph.w.float()),
    )
    folded, options = fold(model.members[0].blocks[0].weights()), options_of(model)
    block = Block(folded, **options)
    tangent = [like(x, k) for k, x in enumerate(state)]
    values, changes = reference(folded, options, graph, state, tangent)
    out, out_tangent = forward(block, graph, state, tangent)
    close(out, values)
    close(out_tangent, changes)
    rows = Rows(graph)
    rows.view.atoms = 2**31
    nothing = [CState()] * 4
    message = "at most 2147483647 atoms, .* got 2147483648 atoms at 1 times; split"
    with pytest.raises(RuntimeError, match=message):
        call(block.library.emulated_attention, block.size, None, rows.view, *nothing, None)


def test_a_block_without_gradients_is_the_native_one(emulated_attention):
    """`edge_attention` on backend "cuda", with and without tangents; not Triton's kernels."""
    model, state, graph = inputs("small", "mixture", envelope=True)
    folded, options = folded_of(model), options_of(model)
    tangent = [0.1 * like(x, 5 + k) for k, x in enumerate(state)]
    values, changes = reference(
        folded, options, graph, state, [tangent[0], *map(torch.zeros_like, tangent[1:])]
    )
    with torch.no_grad():
        close(edge_attention(*state, graph, folded, **options, backend="cuda"), values)
        with forward_ad.dual_level():
            first = forward_ad.make_dual(state[0], tangent[0])
            out = edge_attention(first, *state[1:], graph, folded, **options, backend="cuda")
            both = [forward_ad.unpack_dual(x) for x in out]
            close([x.primal for x in both], values)
            close([x.tangent for x in both], changes)


@pytest.mark.parametrize("kind", [{}, cases.OWN], ids=["published", "own"])
def test_a_model_on_the_emulated_gpu(emulated_attention, kind):
    """Packing, stack and tangents as a model calls them, several times at once."""
    model = model_of(SIZES["small"], torch.float32, **kind)
    system = System.from_atoms([cases.hot("CH3CH2OH"), cases.hot("H2O")])
    graph, times = model.graph(system), np.array([0.5, 10.0])
    found = model.predictor("cuda").motion(graph, times)
    expected = model.predictor("reference").motion(graph, times)
    for a, b in zip(found, expected, strict=True):
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


def test_a_stack_of_blocks_of_different_sizes(emulated_attention):
    """The state between blocks keeps its place in a workspace that each divides for itself."""
    widths = (200, 8, 130, 8)
    models = [
        model_of(SIZES["small"], torch.float32, key_weight_hidden_neurons=(n,)) for n in widths
    ]
    *_, graph = cases.block_inputs(models[0], [cases.hot("CH3CH2OH"), cases.hot("H2O")])
    scalars = like(torch.empty(graph.atoms, models[0].config.scalars), 1)
    results = [
        Blocks(
            [folded_of(model) for model in models],
            True,
            **options_of(models[0]),
            backend=BACKENDS[backend],
        )(scalars, graph)
        for backend in ("cuda", "reference")
    ]
    close(results[0], [x.double() for x in results[1]])


def sanitized_cases() -> None:
    """Values and tangents of a few atoms, for run_sanitized."""
    lone = ase.Atoms("O")
    cluster = ase.Atoms("H10", np.random.default_rng(0).uniform(0, 3, (10, 3)))
    systems = {"small": [cases.hot("CH3CN"), lone], "wide": [cases.hot("H2O")]}
    systems |= {name: [cluster] for name in cases.BUNDLED}
    for sizes, atoms in systems.items():
        model = model_of(SIZES[sizes], torch.float32, envelope=True)
        *state, graph = cases.block_inputs(model, atoms)
        folded, options = folded_of(model), options_of(model)
        tangent = [like(x, k) for k, x in enumerate(state)]
        values, changes = reference(folded, options, graph, state, tangent)
        block = Block(folded, **options)
        close(forward(block, graph, state)[0], values)
        close(forward(block, graph, state, tangent)[1], changes)
        if sizes == "small":
            stack([block] * 2, True, graph, state[0], tangent[0])


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers():
    result = run_sanitized("test_cuda_attention", "sanitized_cases()")
    assert result.returncode == 0, result.stderr
