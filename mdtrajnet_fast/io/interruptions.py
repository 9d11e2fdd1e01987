"""Signals that come while something must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

# Those that people, terminals and queueing systems send, and timers of test programs.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Python's signal handlers, such as that of Ctrl-C, wait until the block is done.

    Only the main thread is ever interrupted; in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    handlers = {n: h for n in numbers if callable(h := signal.getsignal(n))}
    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in came:
            handlers[number](number, frame)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started in the block never hear Ctrl-C: it is their parent's business.

    Not even while they import what they need. The parent hears of it after the block, or at once
    where it has other threads, too.
    """
    resource_tracker.ensure_running()  # which would let the signal through when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
