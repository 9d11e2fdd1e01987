"""The right to write: one process at a time, on all hosts that share a disk and its locks."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path


class Lock:
    """Keeps others from writing `path`, a file or folder to be, until it is closed.

    The system holds the lock (flock on ``.<name>.lock`` beside it) and drops it when the process
    ends, however it ends: a file that a killed process leaves is in nobody's way. A context
    manager. On a file system without locks it warns, with a RuntimeWarning, and keeps nobody away.

    Raises BlockingIOError, with who it is, where another has the lock, and OSError where there can
    be none: on a full disk, in a folder for reading only.
    """

    def __init__(self, path: Path) -> None:
        path = path.resolve()  # of a symbolic link
        self.path = path.with_name(f".{path.name}.lock")
        while True:
            self._file = self.path.open("a+")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.seek(0)
                owner = self._file.read().strip() or "another process"
                self._file.close()
                raise BlockingIOError(
                    f"{path} is being written by {owner}: wait until it is done, or end it"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    self._file.close()
                    raise
                warnings.warn(
                    f"the file system of {path} has no locks ({error.strerror}): make sure that no "
                    "other process writes it",
                    RuntimeWarning,
                    stacklevel=2,
                )
            if self._is_there():
                break
            self._file.close()  # its owner was done, and took it away, after it was opened here
        self._file.truncate(0)
        try:
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()
        except OSError as error:  # a full disk
            self.path.unlink()
            with suppress(OSError):  # the same again
                self._file.close()
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let others write."""
        if not self._file.closed:
            if self._is_there():
                self.path.unlink()
            self._file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
