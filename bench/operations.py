"""How many multiply-adds our evaluation of an attention block needs.

The count behind "fraction of the multiply-add peak" in the report: what the factorised equations
(`mdtrajnet_fast/ops/reference.py`) ask for, whatever a kernel does beyond that. Exponentials, error
functions and padding are not in it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from mdtrajnet_fast.model.config import ModelConfig, irreps_channels


class Operations(NamedTuple):
    """Multiply-adds of one block."""

    edge: int
    atom: int

    def per_atom(self, neighbours: float) -> float:
        """Multiply-adds per atom with that many neighbours."""
        return self.atom + neighbours * self.edge


def operations(config: ModelConfig) -> Operations:
    """Multiply-adds per edge and per atom of one block, positions only."""
    (c0, _), (v0, _) = (irreps_channels(x) for x in (config.irreps_key, config.irreps_value))
    h, s, basis = config.num_heads, config.scalars, config.d_embed_dim

    def hidden_layers(widths: tuple[int, ...]) -> int:
        # the first layer's time part is the same for all edges of an atom
        return sum(a * b for a, b in pairwise((basis, *widths)))

    n = config.key_weight_hidden_neurons[-1]
    m = config.value_weight_hidden_neurons[-1]
    edge = (
        hidden_layers(config.key_weight_hidden_neurons)
        + hidden_layers(config.value_weight_hidden_neurons)
        + n * (h * c0 + 2 * h)  # logits: columns of the centre
        + n * (2 * h * c0 + 4 * h)  # logits: columns of the model
        + m * 8 * h  # values: hidden layer times 1, d, w.u and vectors
        + m * 3 * h
    )
    atom = (
        n * s * (h * c0 + 2 * h)  # the centre's columns
        + m * s * 2 * h  # the value's vector weights
        + h * m * s * v0  # averaged hidden layer into scalars
        + 2 * h * m * v0
    )
    return Operations(edge, atom)
