"""The command line `mdtrajnet`."""

from __future__ import annotations

import argparse
import io
import sys

from . import __version__
from .commands import (
    analyze,
    campaign,
    convert,
    evaluate,
    export,
    finetune,
    generate,
    info,
    report,
    simulate,
    spectrum,
    train,
    trjconv,
)
from .md.rollout import RolloutError

COMMANDS = (
    simulate,
    train,
    finetune,
    generate,
    evaluate,
    convert,
    export,
    info,
    spectrum,
    analyze,
    trjconv,
    report,
    campaign,
)

INTERRUPTED = 130  # the exit status of what Ctrl-C ended, as shells have it

# Errors whose message says it all; others are faults of this package, and come with a traceback.
_SAID = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    RolloutError,
    FloatingPointError,
    MemoryError,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # encodings without Å print something else
            stream.reconfigure(errors="replace")
    options = argument_parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options.run(options)
    except _SAID as error:
        said = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            said = f"out of memory ({said})"
        print(f"mdtrajnet {options.command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mdtrajnet {options.command}: interrupted; what is written stays", file=sys.stderr)
        return INTERRUPTED
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        print(f"mdtrajnet {options.command}: out of memory ({error})", file=sys.stderr)  # of torch
        return 2
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """Of all commands."""
    whole = argparse.ArgumentParser(
        prog="mdtrajnet", description="Predict molecular dynamics trajectories directly."
    )
    whole.add_argument("--version", action="version", version=f"mdtrajnet_fast {__version__}")
    choices = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        one = choices.add_parser(
            command.__name__.rpartition(".")[2],
            help=command.HELP,
            description=command.HELP,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        one.set_defaults(run=command.run)
        command.add_arguments(one)
    return whole


if __name__ == "__main__":
    sys.exit(main())
