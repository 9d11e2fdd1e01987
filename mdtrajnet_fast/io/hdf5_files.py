"""HDF5 files that outlive faults: changed whole or not at all, and read whatever state they are in.

HDF5 keeps no journal, and where it cannot write (a full disk, a quota) it ends the process. So it
works on pages in memory here (:class:`_Pages`), which a commit takes to disk with plain writes:
first what lies beyond the end of the file, then, since a kill may come between any two of them,
what replaces bytes of the file as ``<name>.journal``, then in the file, then the journal goes.
A journal that is there is of a process that was killed: readers look through it, and the next
writer takes it into the file.

Nor does a file on disk carry HDF5's mark "open for writing". Files that do, of other programs, are
read as if they did not: HDF5 itself refuses them, or reads damaged ones again and again for ever.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from .interruptions import uninterrupted

_PAGE = 4096  # bytes
_LIBVER = ("v110", "v110")  # all of the metadata have checksums


class Hdf5File:
    """An HDF5 file to change; a context manager, which commits at its end if there was no error.

    create: make the file, which must not exist yet.

    Attribute file: the h5py.File. What is done to it is in memory until :meth:`commit`.

    Raises OSError where the file cannot be opened, FileExistsError with create.
    """

    def __init__(self, path: Path, create: bool = False) -> None:
        path = path.resolve()  # of a symbolic link
        self.raw = path.open("x+b" if create else "r+b", buffering=0)
        try:
            self._pages = _Pages(path, self.raw)
            self._pages.look_through(_journal(path))
            self._pages.commit()
            with uninterrupted():
                self.file = h5py.File(self._pages, "w" if create else "r+", libver=_LIBVER)
        except BaseException:
            self.raw.close()
            raise

    def commit(self) -> None:
        """Take all changes to disk. Raises OSError where that fails; the file is as it was then."""
        with uninterrupted():
            self.file.flush()
            self._pages.commit()

    def close(self, commit: bool = True) -> None:
        """Close the file, with the changes since the last commit or without them."""
        with uninterrupted():
            try:
                self.file.close()
                if commit:
                    self._pages.commit()
            finally:
                self.raw.close()

    def __enter__(self) -> Hdf5File:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(commit=kind is None)


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read from, as its last commit left it.

    Raises OSError where there is none or HDF5 cannot read it, BlockingIOError where another program
    has it open for writing for more than a minute.
    """
    path = path.resolve()
    with path.open("rb", buffering=0) as raw:
        _wait_for(raw, fcntl.LOCK_SH)
        pages = _Pages(path, raw)
        pages.look_through(_journal(path))
        pages.unmark()
        with h5py.File(pages, "r") as file:
            yield file


@contextmanager
def changing(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, made where there is none, to change: all of it or, after an error, nothing.

    Raises OSError where that cannot be, BlockingIOError where another program has it open for more
    than a minute.
    """
    if not path.exists():
        make(path, lambda file: None)
    with Hdf5File(path) as changed:
        _wait_for(changed.raw, fcntl.LOCK_EX)
        with uninterrupted():  # HDF5 does not bear it within
            yield changed.file


def make(path: Path, fill: Callable[[Hdf5File], None]) -> None:
    """Make a file of what `fill` writes, or replace one: there is never half of it.

    Raises OSError where that cannot be; what was there stays then.
    """
    path = path.resolve()  # of a symbolic link, which stays one
    fresh = path.with_name(path.name + ".tmp")
    fresh.unlink(missing_ok=True)
    try:
        with Hdf5File(fresh, create=True) as made:
            fill(made)
            made.commit()
            os.fsync(made.raw.fileno())
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


class _Pages(io.RawIOBase):
    """A file as HDF5 sees it: what it writes is kept here, page by page, until a commit."""

    def __init__(self, path: Path, raw: io.FileIO) -> None:
        self.path, self.raw = path, raw
        self.size = os.fstat(raw.fileno()).st_size
        self._place = 0
        self._pages: dict[int, bytearray] = {}  # by where they begin

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; there are zeros beyond the end."""
        view = memoryview(buffer).cast("B")
        end = self._place + len(view)
        view[:] = os.pread(self.raw.fileno(), len(view), self._place).ljust(len(view), b"\0")
        for begin in range(self._place - self._place % _PAGE, end, _PAGE):
            if (page := self._pages.get(begin)) is not None:
                low, high = max(begin, self._place), min(begin + _PAGE, end)
                view[low - self._place : high - self._place] = page[low - begin : high - begin]
        self._place = end
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        end = self._place + len(view)
        for begin in range(self._place - self._place % _PAGE, end, _PAGE):
            page = self._pages.get(begin)
            if page is None:
                page = bytearray(os.pread(self.raw.fileno(), _PAGE, begin).ljust(_PAGE, b"\0"))
                self._pages[begin] = page
            low, high = max(begin, self._place), min(begin + _PAGE, end)
            page[low - begin : high - begin] = view[low - self._place : high - self._place]
        self._place = end
        self.size = max(self.size, end)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._place if size is None else size
        return self.size

    def flush(self) -> None:
        """Nothing: a commit writes."""

    def look_through(self, journal: _Journal | None) -> None:
        """See the file as it is with the pages of a journal."""
        if journal is not None:
            for place, page in journal.pages:
                self.seek(place)
                self.write(page)
            self.size = journal.size

    def unmark(self) -> None:
        """See the file without the mark "open for writing"."""
        self.seek(0)
        head = bytearray(_SUPERBLOCK)
        self.readinto(head)
        if (clean := _unmarked(bytes(head), self.size)) != head:
            size = self.size
            self.seek(0)
            self.write(clean)
            self.size = size

    def commit(self) -> None:
        """Take the pages to the file; OSError where that fails, the file being as it was."""
        self.unmark()
        file, old = self.raw.fileno(), os.fstat(self.raw.fileno()).st_size
        replaced: list[tuple[int, bytes]] = []
        added: list[tuple[int, bytes]] = []
        for begin, whole in sorted(self._pages.items()):
            page = bytes(whole[: max(0, self.size - begin)])
            inside = page[: max(0, old - begin)]
            if inside != os.pread(file, len(inside), begin):
                replaced.append((begin, inside))
            if len(inside) < len(page):
                added.append((begin + len(inside), page[len(inside) :]))
        journal = _Journal(self.size, tuple(replaced))
        try:
            for place, page in added:
                _write_at(file, place, page)
            if replaced:
                journal.write(self.path)
        except BaseException:
            os.ftruncate(file, old)
            raise
        for place, page in reversed(replaced):  # what says how much there is lies at the beginning
            _write_at(file, place, page)
        if os.fstat(file).st_size != self.size:
            os.ftruncate(file, self.size)
        _journal_path(self.path).unlink(missing_ok=True)
        self._pages.clear()


class _Journal:
    """What a commit replaces in a file: its size afterwards, and bytes with their places."""

    def __init__(self, size: int, pages: tuple[tuple[int, bytes], ...]) -> None:
        self.size, self.pages = size, pages

    def write(self, path: Path) -> None:
        content = b"".join(page for _, page in self.pages)
        head = {
            "size": self.size,
            "pages": [(place, len(page)) for place, page in self.pages],
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        target = _journal_path(path)
        part = target.with_name(target.name + ".tmp")
        try:
            part.write_bytes(json.dumps(head).encode() + b"\n" + content)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        os.replace(part, target)


def _journal_path(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def _journal(path: Path) -> _Journal | None:
    """The journal that lies beside a file. Raises OSError for a damaged one."""
    target = _journal_path(path)
    try:
        head, _, content = target.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    try:
        said = json.loads(head)
        if hashlib.sha256(content).hexdigest() != said["sha256"]:
            raise ValueError("the checksum is not that of the content")
        pages, start = [], 0
        for place, length in said["pages"]:
            pages.append((int(place), content[start : start + length]))
            start += length
        return _Journal(int(said["size"]), tuple(pages))
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(
            f"{target} cannot be read ({error}): restore {path.name} from a copy, or remove the "
            "journal and lose what was written last"
        ) from error


def _write_at(file: int, place: int, data: bytes) -> None:
    while data:
        done = os.pwrite(file, data, place)
        place, data = place + done, data[done:]


def _wait_for(raw: io.FileIO, kind: int) -> None:
    """Lock a file, as HDF5 does, after up to a minute of waiting for others."""
    for _ in range(600):
        try:
            fcntl.flock(raw, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.1)
        except OSError as error:  # a file system without locks
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                return
            raise
    raise BlockingIOError(f"{raw.name} is in use by another program for more than a minute")


# The superblock of version 2 or 3: signature, version, sizes of addresses, the mark, addresses of
# the base, the extension, the end and the root, and a checksum.
_SUPERBLOCK = 48  # bytes
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def _unmarked(head: bytes, size: int) -> bytes:
    """A superblock without the mark "open for writing", for a file of `size` bytes."""
    if len(head) < _SUPERBLOCK or head[:9] != _SIGNATURE + b"\3" or head[9] != 8 or not head[11]:
        return head
    # while a file is open for writing, the end that it names is that of its opening
    end = max(size, int.from_bytes(head[28:36], "little"))
    clean = head[:11] + b"\0" + head[12:28] + struct.pack("<Q", end) + head[36:44]
    return clean + struct.pack("<I", _lookup3(clean)) + head[_SUPERBLOCK:]


def _lookup3(data: bytes) -> int:
    """HDF5's checksum of metadata: Bob Jenkins' hashlittle, from 0."""
    mask = 0xFFFFFFFF

    def rot(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    a = b = c = (0xDEADBEEF + len(data)) & mask
    whole = -(-len(data) // 12) * 12
    words = struct.unpack(f"<{whole // 4}I", data.ljust(whole, b"\0"))
    for k in range(0, len(words) - 3, 3):
        a, b, c = (a + words[k]) & mask, (b + words[k + 1]) & mask, (c + words[k + 2]) & mask
        for shift in (4, 6, 8, 16, 19, 4):
            a = ((a - c) & mask) ^ rot(c, shift)
            c = (c + b) & mask
            a, b, c = b, c, a
    a, b, c = ((x + y) & mask for x, y in zip((a, b, c), words[-3:], strict=True))
    for shift in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - rot(b, shift)) & mask
        a, b, c = b, c, a
    return b
