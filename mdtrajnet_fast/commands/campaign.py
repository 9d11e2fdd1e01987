"""The command `mdtrajnet campaign`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path

from ..campaigns.campaign import campaign
from ..campaigns.config import CampaignConfig

_SHOWN = 10  # different errors in print
_WORKERS = ("workers", "address", "jobqueue")

HELP = (
    "Many runs, of structures, temperatures, models and seeds, on many workers; or go on with what "
    "is left of them."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("config", type=Path, help="TOML file, see mdtrajnet_fast.CampaignConfig")
    where = parser.add_argument_group("in place of what the file says")
    add = functools.partial(where.add_argument, default=argparse.SUPPRESS)
    add("--workers", type=int, help="processes on this machine")
    add("--address", help="of a Dask scheduler, or its scheduler file")
    add("--jobqueue", help="YAML file of dask-jobqueue")
    add("--jobs", type=int, help="of the queue")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    """Run the campaign and say what came of it."""
    config = CampaignConfig.read(options.config)
    given = {name: getattr(options, name) for name in (*_WORKERS, "jobs") if name in options}
    if given.keys() & set(_WORKERS):  # one place for all
        given = dict.fromkeys(_WORKERS) | given
    config = dataclasses.replace(config, **given)
    done = campaign(config, progress=not options.quiet)
    print(f"{done.complete} runs complete, {done.broken} broken, {done.failed} failed")
    print(f"Written: {', '.join(str(path) for path in (done.table, *done.written))}")
    if done.errors:
        first = {error: name for name, error in reversed(done.errors.items())}
        shown = [f"{name}: {error}" for error, name in reversed(first.items())]
        more = f"\nand {len(shown) - _SHOWN} other errors, see {done.table}"
        raise ValueError(
            f"{done.failed} runs could not be made:\n"
            + "\n".join(shown[:_SHOWN])
            + (more if len(shown) > _SHOWN else "")
        )
