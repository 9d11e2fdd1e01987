"""HDF5 files at every moment of a change, on full disks, and with the marks that others leave."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from mdtrajnet_fast.io import hdf5_files
from mdtrajnet_fast.io.hdf5_files import Hdf5File, changing, reading


def add(path: Path, name: str, seed: int) -> None:
    with changing(path) as file:
        group = file.require_group("mol").create_group(name)
        group["x"] = np.random.default_rng(seed).normal(size=(40, 9, 3))


def contents(path: Path) -> dict[str, bytes]:
    with reading(path) as file:
        return {name: node["x"][()].tobytes() for name, node in file.get("mol", {}).items()}


def crash_states(folder: Path, monkeypatch, change: Callable[[], None]) -> list[dict[str, bytes]]:
    """The files of a folder after each half and each whole step that a change makes on the disk."""
    states = []

    def note(done: object = None) -> object:
        states.append({p.name: p.read_bytes() for p in folder.iterdir()})
        return done

    def then(call: Callable) -> Callable:
        return lambda *args, **kwargs: note(call(*args, **kwargs))

    pwrite = os.pwrite

    def halves(file: int, data: bytes, place: int) -> int:
        pwrite(file, data[: len(data) // 2], place)
        note()
        return note(pwrite(file, data, place))

    with monkeypatch.context() as patch:
        patch.setattr(hdf5_files.os, "pwrite", halves)
        for name in ("replace", "ftruncate"):
            patch.setattr(hdf5_files.os, name, then(getattr(os, name)))
        for name in ("write_bytes", "unlink"):
            patch.setattr(Path, name, then(getattr(Path, name)))
        change()
    return states


@pytest.mark.parametrize("libver", ["earliest", "v110"])
def test_a_kill_at_any_moment_loses_nothing(tmp_path, monkeypatch, libver):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    path = here / "data.h5"
    with h5py.File(path, "w", libver=libver):
        pass
    for k in range(3):
        add(path, f"traj{k}", k)
    before = contents(path)
    states = crash_states(here, monkeypatch, lambda: add(path, "new", 9))
    after = contents(path)
    assert len(states) > 5 and len(after) == 4
    seen = set()
    for number, state in enumerate(states):
        copy = there / str(number)
        copy.mkdir(parents=True)
        for name, data in state.items():
            (copy / name).write_bytes(data)
        found = contents(copy / "data.h5")
        assert found in (before, after)
        seen.add(len(found))
        add(copy / "data.h5", "other", 5)
        assert contents(copy / "data.h5").keys() == found.keys() | {"other"}
        assert not (copy / "data.h5.journal").exists()
        with h5py.File(copy / "data.h5") as file:  # whole for any other program
            assert len(file["mol"]) == len(found) + 1
    assert seen == {3, 4}


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "data.h5"
    add(path, "traj0", 0)
    before = path.read_bytes()
    states = len(crash_states(tmp_path, monkeypatch, lambda: add(path, "new", 1)))
    for fails in range(states):
        path.write_bytes(before)
        left = [fails]

        def full(file, data, place, pwrite=os.pwrite, left=left):
            left[0] -= 1
            if left[0] < 0 and place + len(data) > len(before):
                raise OSError(28, "No space left on device")
            return pwrite(file, data, place)

        with monkeypatch.context() as patch:
            patch.setattr(hdf5_files.os, "pwrite", full)
            if fails < 3:
                with pytest.raises(OSError, match="No space"):
                    add(path, "new", 1)
                assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["data.h5"]


def test_an_error_changes_nothing(tmp_path):
    path = tmp_path / "data.h5"
    add(path, "traj0", 0)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), changing(path) as file:
        del file["mol"]
        raise KeyboardInterrupt
    assert path.read_bytes() == before


def test_marks_of_writers_that_were_killed(tmp_path):
    """Others refuse a file that HDF5 had open; here it is read, and goes on without the mark."""
    path = tmp_path / "data.h5"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file["x"] = np.arange(5)
        file.flush()
        marked = path.read_bytes()
    assert path.read_bytes()[:48] != marked[:48]
    path.write_bytes(marked)
    with pytest.raises(OSError), h5py.File(path):
        pass
    with reading(path) as file:
        assert list(file["x"]) == [0, 1, 2, 3, 4]
    assert path.read_bytes() == marked
    Hdf5File(path).close()
    with h5py.File(path) as file:
        assert list(file["x"]) == [0, 1, 2, 3, 4]


def test_damage_is_no_reason_to_wait(tmp_path):
    """A bit of the metadata of a file with a mark: HDF5 itself would read it again for ever."""
    path = tmp_path / "data.h5"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file["x"] = np.arange(5)
        file.swmr_mode = True
        marked = bytearray(path.read_bytes())
    assert marked[11] == 5
    marked[60] ^= 4
    path.write_bytes(marked)
    with pytest.raises((OSError, RuntimeError, KeyError)), reading(path) as file:
        file["x"][()]


def test_damaged_journals_are_refused(tmp_path):
    path = tmp_path / "data.h5"
    add(path, "traj0", 0)
    (tmp_path / "data.h5.journal").write_bytes(
        b'{"size": 9, "pages": [[0, 4]], "sha256": "0"}\nabcd'
    )
    with pytest.raises(OSError, match="data.h5.journal cannot be read"):
        contents(path)
    with pytest.raises(OSError, match="data.h5.journal cannot be read"):
        add(path, "new", 1)


def test_writers_wait_for_readers(tmp_path, monkeypatch):
    path = tmp_path / "data.h5"
    add(path, "traj0", 0)
    reader = h5py.File(path)
    naps = []

    def nap(seconds):
        naps.append(seconds)
        reader.close()

    monkeypatch.setattr(hdf5_files.time, "sleep", nap)
    add(path, "new", 1)
    assert len(naps) == 1 and contents(path).keys() == {"traj0", "new"}


def test_links_to_what_is_not_there_yet_stay_links(tmp_path):
    (tmp_path / "scratch").mkdir()
    link, target = tmp_path / "data.h5", tmp_path / "scratch" / "data.h5"
    link.symlink_to(target)
    for name in ("first", "second"):
        with changing(link) as file:
            file[name] = 1
    assert link.is_symlink() and not target.is_symlink()
    with reading(link) as file:
        assert set(file) == {"first", "second"}
