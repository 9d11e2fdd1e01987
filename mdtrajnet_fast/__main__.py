"""The command `mdtrajnet`, also as `python -m mdtrajnet_fast`."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line; returns the exit status.

    While modules are imported, and when all is done, there is nothing to lose: Ctrl-C ends the
    process at once there, without the traceback of whatever it was at.
    """
    handler = signal.getsignal(signal.SIGINT)
    ours = handler is signal.default_int_handler  # else it is ignored, as in the background
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from . import cli

    try:
        if ours:
            signal.signal(signal.SIGINT, handler)
        return cli.main()
    except KeyboardInterrupt:  # before there was a command
        return cli.INTERRUPTED
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
