"""A watch for operations that a CUDA graph cannot hold, kept on the CPU: see :class:`NoWaits`."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Their result's size, or the number itself, is known to the device alone, or comes from the host.
WAITING = {
    "_local_scalar_dense": "reads a number back",
    "is_nonzero": "reads a number back",
    "equal": "reads a number back",
    "nonzero": "has as many rows as the device finds",
    "masked_select": "has as many elements as the device finds",
    "_unique2": "has as many elements as the device finds",
    "unique_consecutive": "has as many elements as the device finds",
    "bincount": "has as many elements as the device finds",
    "lift_fresh": "makes a tensor of numbers of the host",
}


class NoWaits(TorchDispatchMode):
    """Raises AssertionError for an operation that on a GPU would wait for the host, or it for it.

    Such an operation breaks the capture of a CUDA graph, and stalls what is not captured.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        name = function.overloadpacket.__name__
        assert name not in WAITING, f"{function} {WAITING[name]}"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = {torch.bool, torch.uint8}
            given = {x.dtype for x in args[1] if x is not None}
            assert not given & masks, f"{function} with a mask has as many rows as the device finds"
        if name == "repeat_interleave":
            leaves = tree_leaves((args, kwargs))
            known = any(isinstance(x, int) for x in leaves)
            assert known, f"{function} without output_size has as many rows as the device finds"
        return function(*args, **(kwargs or {}))
