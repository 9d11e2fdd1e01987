"""What processes that work together, joined by torch.distributed, say to each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist


def each(one: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """What each process has, a small thing that can be pickled, by rank."""
    everybody: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everybody, one, group=group)
    return everybody


def agree(what: str, facts: dict[str, Any], group: dist.ProcessGroup | None = None) -> None:
    """Raise ValueError, with their name and values, where facts are not the same for all.

    what: to call the processes.
    """
    everybody = each(facts, group)
    for name in facts:
        values = [one[name] for one in everybody]
        if len(set(values)) > 1:
            raise ValueError(
                f"the {len(values)} {what} differ in their {name} (by rank: "
                f"{', '.join(map(str, values))}); all need the same files, settings and versions"
            )


@contextmanager
def together(what: str, size: int, then: str = "") -> Iterator[None]:
    """Raises ChildProcessError where another process cannot be reached; then: what to do about it.

    what, size: what to call the processes, and how many there are.
    """
    try:
        yield
    except RuntimeError as error:
        raise ChildProcessError(
            f"one of the {size} {what} has died, or cannot be reached; what it said stands above"
            f"{then}"
        ) from error
