"""Trajectory files hold every bit, survive kills, and refuse what would harm a run."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.io.trajectory import TrajectoryWriter as AseWriter
from endless_writer import killed_at_the_end, numbered

from mdtrajnet_fast.io.formats import SCALARS
from mdtrajnet_fast.io.trajectory import (
    Trajectory,
    count_frames,
    is_hdf5_trajectory,
    open_writer,
    truncate,
)
from mdtrajnet_fast.mechanics import momenta_from_velocities, velocities_from_momenta

SUFFIXES = (".traj", ".extxyz", ".h5")
METADATA = {
    "model": 'weights "v1" \\ é = {x}',
    "seed": 7,
    "dt_fs": 0.1 + 0.2,
    "nested": {"8": [1, 2.5, None, True], "text": "two\nlines"},
}


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    masses = atoms.get_masses()
    masses[4] = 2.01410177812  # deuterium
    atoms.set_masses(masses)
    return atoms


def slab() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64 / 3)
    atoms.set_cell(atoms.cell[:] + 1 / 3)  # triclinic, digits to the end
    atoms.pbc = (True, True, False)
    return atoms


def made_up(
    atoms: Atoms, frames: int, seed: int = 0, known: Iterable[str] = tuple(SCALARS)
) -> Trajectory:
    rng = np.random.default_rng(seed)
    shape = (frames, len(atoms), 3)
    positions = rng.normal(size=shape) * 10.0 ** rng.integers(-12, 4, shape)
    momenta = rng.normal(size=shape)
    positions[0, 0] = [5e-324, -0.0, 1 / 3]
    times = np.cumsum(rng.uniform(0.1, 3, frames))
    scalars = {}
    for name in known:
        scalars[name] = rng.normal(size=frames) * 10.0 ** rng.integers(-12, 6, frames)
        scalars[name][0], scalars[name][-1] = -0.0, -3.0
    return Trajectory(atoms, times, positions, momenta, METADATA, **scalars)


def columns(part: Trajectory) -> tuple[np.ndarray | None, ...]:
    return part.times, part.positions, part.momenta, part.potential_energies, part.heat


def without(name: str, run: Trajectory) -> Trajectory:
    """A copy that does not know one of the scalars."""
    kept = {k: v for k, v in run.scalars.items() if k != name}
    return Trajectory(run.atoms, *columns(run)[:3], run.metadata, **kept)


def assert_same_bits(a: Trajectory, b: Trajectory) -> None:
    for x, y in ((a.times, b.times), (a.positions, b.positions), (a.momenta, b.momenta)):
        assert x.shape == y.shape and x.tobytes() == y.tobytes()
    assert a.scalars.keys() == b.scalars.keys()
    for name, values in a.scalars.items():
        assert values.dtype == np.float64
        assert values.tobytes() == b.scalars[name].tobytes()
    assert np.array_equal(a.atoms.numbers, b.atoms.numbers)
    assert a.atoms.get_masses().tobytes() == b.atoms.get_masses().tobytes()
    assert np.array_equal(a.atoms.cell[:], b.atoms.cell[:])
    assert np.array_equal(a.atoms.pbc, b.atoms.pbc)
    assert json.dumps(a.metadata) == json.dumps(b.metadata)


def test_conversion_is_ase_and_independent_of_shape() -> None:
    atoms = ethanol()
    momenta = np.random.default_rng(1).normal(size=(3, 5, len(atoms), 3))
    velocities = velocities_from_momenta(momenta, atoms.get_masses())
    for k in np.ndindex(3, 5):
        atoms.set_momenta(momenta[k])
        assert np.array_equal(velocities[k], atoms.get_velocities() * units.fs)
        one = velocities_from_momenta(momenta[k], atoms.get_masses())
        assert one.tobytes() == velocities[k].tobytes()
    back = momenta_from_velocities(velocities, atoms.get_masses())
    np.testing.assert_allclose(back, momenta, rtol=5e-16)
    # Kinetic energy in eV, from Å/fs by hand: 1 amu (Å/fs)^2 = 103.6427 eV.
    kinetic = 0.5 * np.sum(atoms.get_masses()[:, None] * velocities[-1, -1] ** 2) * 103.642697
    assert kinetic == pytest.approx(atoms.get_kinetic_energy(), rel=1e-6)


@pytest.mark.parametrize("masses", [[1.0, 0.0], [1.0, np.nan], [1.0]])
def test_conversion_refuses_bad_masses(masses: list[float]) -> None:
    with pytest.raises(ValueError, match="atom 1 has mass|expected"):
        velocities_from_momenta(np.ones((2, 3)), masses)


def test_trajectory_as_a_sequence() -> None:
    trajectory = made_up(ethanol(), 6)
    atoms = trajectory[-1]
    assert atoms.info["time_fs"] == trajectory.times[-1]
    assert np.array_equal(atoms.positions, trajectory.positions[-1])
    assert np.array_equal(atoms.get_velocities() * units.fs, trajectory.velocities[-1])
    assert len(list(trajectory)) == len(trajectory) == 6
    assert trajectory.trust is None
    part = trajectory[1::2]
    assert isinstance(part, Trajectory)
    assert np.array_equal(part.times, trajectory.times[1::2])
    assert np.array_equal(part.momenta, trajectory.momenta[1::2])
    assert np.array_equal(part.potential_energies, trajectory.potential_energies[1::2])
    assert np.array_equal(part.heat, trajectory.heat[1::2])
    assert "9 atoms, 6 frames" in repr(trajectory)
    assert "periodic along ab)" in repr(made_up(slab(), 2))
    with pytest.raises(IndexError):
        trajectory[6]
    with pytest.raises(ValueError, match=r"positions \(6, 9, 3\).*for 2 atoms"):
        Trajectory(slab(), trajectory.times, trajectory.positions, trajectory.momenta)
    with pytest.raises(ValueError, match=r"energies \(5,\) for 6 frames; expected \[6\] eV"):
        Trajectory(ethanol(), *columns(trajectory)[:3], None, trajectory.potential_energies[:5])
    with pytest.raises(ValueError, match=r"heat \(6, 1\) for 6 frames; expected \[6\] eV"):
        Trajectory(ethanol(), *columns(trajectory)[:3], heat=trajectory.heat[:, None])


def test_energies_are_those_of_ase() -> None:
    trajectory = made_up(ethanol(), 6)
    for k, atoms in enumerate(trajectory):
        assert atoms.get_potential_energy() == trajectory.potential_energies[k]
        assert atoms.get_kinetic_energy() == pytest.approx(trajectory.kinetic_energies[k], 1e-14)
        assert atoms.get_total_energy() == pytest.approx(trajectory.total_energies[k], 1e-14)
        assert atoms.info["heat_eV"] == trajectory.heat[k]
    bare = made_up(ethanol(), 6, known=())
    assert bare.potential_energies is bare.total_energies is bare.heat is bare[0].calc is None
    assert "heat_eV" not in bare[0].info
    assert np.array_equal(bare.kinetic_energies, trajectory.kinetic_energies)


def test_conserved_energies() -> None:
    """The total ones; with a thermostat less its heat, and where that is unknown, none."""
    run = made_up(ethanol(), 6)
    assert np.array_equal(run.conserved_energies, run.total_energies - run.heat)
    alone = without("heat", run)
    assert np.array_equal(alone.conserved_energies, run.total_energies)
    alone.metadata["thermostat"] = run.metadata["thermostat"] = "csvr"
    assert np.array_equal(run.conserved_energies, run.total_energies - run.heat)
    assert alone.conserved_energies is None
    for name in SCALARS:
        assert without(name, run).conserved_energies is None
    assert made_up(ethanol(), 6, known=()).conserved_energies is None


def test_heat_is_not_what_describes_atoms(tmp_path: Path) -> None:
    """Frames that a run starts from may have it of another one."""
    frame = made_up(ethanol(), 2)[0]
    assert "heat_eV" in frame.info
    for suffix in SUFFIXES:
        run = Trajectory(frame, [0.0], *np.ones((2, 1, 9, 3)), None, [1.0])
        run.write(tmp_path / f"run{suffix}")
        again = Trajectory.read(tmp_path / f"run{suffix}")
        assert again.heat is None and "heat_eV" not in again[0].info


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", SCALARS)
def test_the_first_frames_decide_what_there_is(tmp_path: Path, suffix: str, name: str) -> None:
    whole, path = made_up(ethanol(), 9), tmp_path / f"run{suffix}"
    old = without(name, whole)
    old[:2].write(path)  # as older files are
    with open_writer(path, ethanol(), append=True) as writer:
        writer.write(*columns(whole[2:5]))  # with what is left out
    with open_writer(path, ethanol(), append=True) as writer:
        writer.write(*columns(old[5:]))
    assert_same_bits(Trajectory.read(path), old)
    truncate(path, 3)
    assert_same_bits(Trajectory.read(path), old[:3])

    path = tmp_path / f"with{suffix}"
    whole[:2].write(path)
    for opened in (0, 1):
        with open_writer(path, ethanol(), append=True) as writer:
            part = slice(2 + opened, 3 + opened)
            said = name.replace("_", " ")
            with pytest.raises(ValueError, match=f"with{suffix} has the {said} of every .*{name}"):
                writer.write(*columns(old[part]))
            writer.write(*columns(whole[part]))
    assert_same_bits(Trajectory.read(path), whole[:4])
    truncate(path, 3)
    assert_same_bits(Trajectory.read(path), whole[:3])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name, key", [("potential_energies", "energy"), ("heat", "heat_eV")])
def test_energies_that_are_damaged_are_named(
    tmp_path: Path, suffix: str, name: str, key: str
) -> None:
    path, whole = tmp_path / f"run{suffix}", made_up(ethanol(), 4)
    for odd in ("nan", "missing"):
        path.unlink(missing_ok=True)
        if suffix == ".h5":
            whole.write(path)
            with h5py.File(path, "r+") as file:
                file[name][2] = np.nan
        elif suffix == ".extxyz":
            whole.write(path)
            held = f" {key}={float(whole.scalars[name][2])!r}"
            path.write_text(path.read_text().replace(held, {"nan": f" {key}=nan"}.get(odd, "")))
        else:
            frames = list(whole)
            frames[0].info["metadata"] = METADATA
            place = frames[2].info if name == "heat" else frames[2].calc.results
            place[key] = np.nan
            if odd == "missing":
                del place[key]
            ase.io.write(path, frames)
        lack = f"frame 2 has no {name.replace('_', ' ')}"
        said = lack if odd == "missing" and suffix != ".h5" else "energies or heat are not finite"
        with pytest.raises(ValueError, match=f"run{suffix} is damaged: .*{said}"):
            Trajectory.read(path)


def test_info_that_looks_like_times_and_energies(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.info["note"] = "x time_fs=9 energy=4 heat_eV=3 y"
    for k, known in enumerate(itertools.product(([-1.5, 2.0], None), ([0.0, 3.5], None))):
        whole = Trajectory(atoms, [1.0, 2.0], *np.ones((2, 2, 9, 3)), None, *known)
        path = tmp_path / f"run{k}.extxyz"
        whole.write(path)
        assert_same_bits(Trajectory.read(path), whole)
        assert Trajectory.read(path).atoms.info == atoms.info


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("make", [ethanol, slab])
@pytest.mark.parametrize("known", [tuple(SCALARS), ("potential_energies",), ("heat",), ()])
def test_round_trip_is_exact(tmp_path: Path, suffix: str, make, known: tuple[str, ...]) -> None:
    path = tmp_path / f"run{suffix}"
    trajectory = made_up(make(), 50, known=known)  # past the growth of the .traj index at 42
    trajectory.write(path)
    assert_same_bits(Trajectory.read(path), trajectory)
    assert count_frames(path) == 50
    for part in (slice(-1, None), slice(3, 40, 5), slice(None, None, -1), slice(20, 3, -4)):
        assert_same_bits(Trajectory.read(path, part), trajectory[part])
    assert_same_bits(Trajectory.read(path, slice(7, 7)), trajectory[7:7])


@pytest.mark.parametrize("suffix", [".traj", ".extxyz"])
@pytest.mark.parametrize("make", [ethanol, slab])
def test_ase_reads_our_files(tmp_path: Path, suffix: str, make) -> None:
    path = tmp_path / f"run{suffix}"
    trajectory = made_up(make(), 3)
    trajectory.write(path)
    frames = ase.io.read(path, index=":")
    for frame, ours in zip(frames, trajectory, strict=True):
        assert frame.info["time_fs"] == ours.info["time_fs"]
        assert frame.positions.tobytes() == ours.positions.tobytes()
        assert frame.get_momenta().tobytes() == ours.get_momenta().tobytes()
        assert frame.get_masses().tobytes() == ours.get_masses().tobytes()
        assert np.array_equal(frame.cell[:], ours.cell[:])
        assert np.array_equal(frame.pbc, ours.pbc)
        assert frame.get_potential_energy() == ours.get_potential_energy()
        assert frame.get_kinetic_energy() == ours.get_kinetic_energy()
        assert frame.info["heat_eV"] == ours.info["heat_eV"]
    info = frames[0].info["metadata"]
    assert info["model"] == METADATA["model"] and info["dt_fs"] == METADATA["dt_fs"]
    assert "metadata" not in frames[1].info


def test_h5_layout_for_other_readers(tmp_path: Path) -> None:
    trajectory = made_up(ethanol(), 5)
    trajectory.write(tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["velocities"].attrs["unit"] == "Angstrom fs-1"
        assert np.array_equal(file["velocities"][:], trajectory.velocities)
        assert file["positions"].maxshape == (None, 9, 3)
        assert file["potential_energies"].attrs["unit"] == "eV"
        assert np.array_equal(file["potential_energies"][:], trajectory.potential_energies)
        assert file["heat"].attrs["unit"] == "eV"
        assert np.array_equal(file["heat"][:], trajectory.heat)
        assert json.loads(file.attrs["metadata"]) == METADATA


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_restart_equals_one_run(tmp_path: Path, suffix: str) -> None:
    whole = made_up(ethanol(), 60)
    path, once = tmp_path / f"run{suffix}", tmp_path / f"once{suffix}"
    whole.write(once)
    with open_writer(path, ethanol(), metadata=METADATA) as writer:
        for k in range(0, 50, 10):
            part = whole[k : k + 10]
            writer.write(*columns(part))
        assert writer.frames == 50
    truncate(path, 43)
    assert_same_bits(Trajectory.read(path), whole[:43])
    truncate(path, 20)
    with open_writer(path, ethanol(), append=True, metadata=METADATA) as writer:
        assert writer.frames == 20
        for k in range(20, 60):
            writer.write(*columns(whole[k : k + 1]))
    assert_same_bits(Trajectory.read(path), whole)
    if suffix == ".extxyz":
        assert path.read_bytes() == once.read_bytes()
    if suffix != ".h5":
        assert len(ase.io.read(path, ":")) == 60


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncate_to_nothing_and_begin_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run{suffix}"
    trajectory = made_up(ethanol(), 4)
    trajectory.write(path)
    with pytest.raises(ValueError, match="cannot keep 5 frames .* holds 4"):
        truncate(path, 5)
    truncate(path, 0)
    assert count_frames(path) == 0
    with pytest.raises(ValueError, match=r"no complete frame .*open_writer\(path, atoms, append"):
        Trajectory.read(path)
    with open_writer(path, ethanol(), append=True, metadata={"other": 1}) as writer:
        writer.write(*columns(trajectory))
    again = Trajectory.read(path)
    assert again.metadata == {"other": 1}
    assert np.array_equal(again.positions, trajectory.positions)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_write_can_be_read_at_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run{suffix}"
    whole = made_up(ethanol(), 6)
    with open_writer(path, ethanol(), append=True, metadata=METADATA) as writer:
        for k in range(0, 6, 2):
            part = whole[k : k + 2]
            writer.write(*columns(part))
            assert_same_bits(Trajectory.read(path), whole[: k + 2])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("per_call", [1, 37])
def test_killed_writer(tmp_path: Path, suffix: str, per_call: int) -> None:
    atoms = ethanol()
    for trial in range(3):
        path = tmp_path / f"run{trial}{suffix}"
        with killed_at_the_end(path, atoms, METADATA, per_call) as child:
            hanging = time.monotonic() + 300
            while not (path.exists() and path.stat().st_size > 150_000):
                assert child.is_alive() and time.monotonic() < hanging
                time.sleep(0.002)
            time.sleep(0.01 * trial)

        n = count_frames(path)
        assert n > 0
        survived = Trajectory.read(path)
        for ours, written in zip(columns(survived), numbered(0, n, len(atoms)), strict=True):
            assert ours.tobytes() == written.tobytes()

        with open_writer(path, atoms, append=True, metadata=METADATA) as writer:
            assert writer.frames == n
            writer.write(*numbered(n, 5, len(atoms)))
        continued = Trajectory.read(path)
        assert continued.positions.tobytes() == numbered(0, n + 5, len(atoms))[1].tobytes()
        if suffix == ".h5":  # the mark "open for writing" is gone
            with h5py.File(path) as file:
                assert len(file["times"]) == n + 5
        else:
            assert len(ase.io.read(path, ":")) == n + 5


@pytest.mark.parametrize("suffix", [".traj", ".extxyz"])
def test_file_cut_at_any_byte_of_the_last_frame(tmp_path: Path, suffix: str) -> None:
    whole = made_up(molecule("H2O"), 4)
    path, shorter = tmp_path / f"run{suffix}", tmp_path / f"shorter{suffix}"
    whole[:3].write(shorter)
    whole.write(path)
    data = path.read_bytes()
    if suffix == ".extxyz":
        start = shorter.stat().st_size
    else:  # the last frame's first byte: its positions
        start = data.rindex(whole.positions[3].tobytes())
    for cut in range(start, len(data)):
        path.write_bytes(data[:cut])
        assert count_frames(path) == 3, cut
    path.write_bytes(data[: (start + len(data)) // 2])
    with open_writer(path, molecule("H2O"), append=True) as writer:
        writer.write(*columns(whole[3:]))
    assert_same_bits(Trajectory.read(path), whole)


@contextmanager
def limit(kind: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("room", [0, 10, 1000, 5000, 20_000])
def test_full_disk(tmp_path: Path, suffix: str, room: int) -> None:
    """Where a write finds no room, the frames before it stay, and the file can be continued."""
    path = tmp_path / f"run{suffix}"
    whole = made_up(ethanol(), 300)
    writer = open_writer(path, ethanol(), metadata=METADATA)
    writer.write(*columns(whole[:2]))
    with limit(resource.RLIMIT_FSIZE, path.stat().st_size + room):
        with pytest.raises(OSError, match=r"the \d+ frames before this are complete"):
            for k in range(2, 300):
                part = whole[k : k + 1]
                writer.write(*columns(part))
        writer.close()
    held = writer.frames
    assert_same_bits(Trajectory.read(path), whole[:held])
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]
    with open_writer(path, ethanol(), append=True) as writer:
        writer.write(*columns(whole[held:]))
    assert_same_bits(Trajectory.read(path), whole)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk_on_continuing(tmp_path: Path, suffix: str) -> None:
    """Nothing that is held is written again: no room is needed for it, and it cannot be lost."""
    path = tmp_path / f"run{suffix}"
    whole = made_up(ethanol(), 250)
    whole.write(path)
    with limit(resource.RLIMIT_FSIZE, path.stat().st_size // 2):
        open_writer(path, ethanol(), append=True).close()
        if suffix == ".h5":
            with pytest.raises(OSError):
                truncate(path, 249)
    assert_same_bits(Trajectory.read(path), whole)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_interruptions_wait_for_the_end_of_a_write(
    tmp_path: Path, suffix: str, monkeypatch
) -> None:
    path = tmp_path / f"run{suffix}"
    whole = made_up(ethanol(), 4)
    writer = open_writer(path, ethanol(), metadata=METADATA)
    write = type(writer._sink).write

    def interrupted(sink, start, times, *columns) -> None:
        signal.raise_signal(signal.SIGINT)
        write(sink, start, times, *columns)

    monkeypatch.setattr(type(writer._sink), "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.write(*columns(whole[:2]))
    writer.close()
    assert_same_bits(Trajectory.read(path), whole[:2])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_broken_write_call_is_not_a_frame(tmp_path: Path, suffix: str, monkeypatch) -> None:
    path = tmp_path / f"run{suffix}"
    whole = made_up(ethanol(), 4)
    writer = open_writer(path, ethanol(), metadata=METADATA)
    writer.write(*columns(whole[:2]))

    def broken(sink, *_) -> None:
        if suffix == ".h5":
            sink.file.file["positions"].resize(4, axis=0)
            sink.file.file["positions"][2:] = 99.0
        elif suffix == ".extxyz":
            sink.file.write(b"9\nProperties=spec")
        else:
            sink.file.backend.write(positions=whole.positions[2])
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(writer._sink), "write", broken)
        with pytest.raises(MemoryError):
            writer.write(*columns(whole[2:]))
    assert_same_bits(Trajectory.read(path), whole[:2])
    with open_writer(path, ethanol(), append=True) as writer:
        writer.write(*columns(whole[2:]))
    assert_same_bits(Trajectory.read(path), whole)


def test_traj_with_a_frame_half_written_at_its_end(tmp_path: Path) -> None:
    """As ASE's own close leaves it, in a program that was interrupted while it wrote."""
    path = tmp_path / "run.traj"
    whole = made_up(ethanol(), 4)
    whole[:3].write(path)
    with AseWriter(str(path), "a") as file:
        file.backend.write(positions=whole.positions[3])
    assert_same_bits(Trajectory.read(path), whole[:3])
    with open_writer(path, ethanol(), append=True) as writer:
        writer.write(*columns(whole[3:]))
    assert_same_bits(Trajectory.read(path), whole)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_writer_at_a_time(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run{suffix}"
    whole = made_up(ethanol(), 3)
    with open_writer(path, ethanol(), append=True) as writer:
        writer.write(*columns(whole[:2]))
        with pytest.raises(BlockingIOError, match=f"being written by process {os.getpid()} on"):
            open_writer(path, ethanol(), append=True)
        assert len(Trajectory.read(path)) == 2
    (tmp_path / f".{path.name}.lock").write_text("process 1 on a host that is down\n")
    with open_writer(path, ethanol(), append=True) as writer:
        writer.write(*columns(whole[2:]))
    assert len(Trajectory.read(path)) == 3 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_more_writers_than_descriptors(tmp_path: Path, suffix: str) -> None:
    whole = made_up(ethanol(), 6)
    paths = [tmp_path / f"{k}{suffix}" for k in range(40)]
    opened = len(os.listdir("/proc/self/fd"))
    with limit(resource.RLIMIT_NOFILE, 64), ExitStack() as stack:
        writers = [stack.enter_context(open_writer(p, ethanol(), metadata=METADATA)) for p in paths]
        for k in range(0, 6, 2):
            part = whole[k : k + 2]
            for writer in writers:
                writer.write(*columns(part))
        assert len(os.listdir("/proc/self/fd")) <= opened + 2 * 16
        paths[0].write_bytes(paths[0].read_bytes() + b"x")
        with pytest.raises(OSError, match="changed by another"):
            writers[0].write([1e6], *columns(whole[:1])[1:])
    for path in paths[1:]:
        assert_same_bits(Trajectory.read(path), whole)
    assert len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_describes_the_atoms_is_kept(tmp_path: Path, suffix: str) -> None:
    """Through files, restarts and conversions; not what is true of one state only."""
    atoms = molecule("H2O")
    atoms.set_tags([1, 2, 2])
    atoms.set_initial_charges([-0.8, 0.4, 0.4])
    atoms.set_initial_magnetic_moments([[0, 0, 1.5]] * 3)
    atoms.set_array("residuenames", np.array(["HOH", "HOH", "W%s"]))
    atoms.set_array("chosen", np.array([True, False, True]))
    atoms.set_array("forces", np.ones((3, 3)))
    atoms.info = {"name": "007", "smiles": "[H]\\O", "k": {"a": [1, 2.5]}, "axis": np.arange(3.0)}
    atoms.info |= {"energy": -1.0, "time": 3.0}

    def check(found: Atoms) -> None:
        assert found.info.keys() - {"time_fs", "metadata"} == {"name", "smiles", "k", "axis"}
        assert [found.info[k] for k in ("name", "smiles")] == ["007", "[H]\\O"]
        assert found.info["k"] == {"a": [1, 2.5]}
        np.testing.assert_array_equal(found.info["axis"], np.arange(3.0))
        assert not found.has("forces")
        for name in ("tags", "initial_charges", "residuenames", "chosen"):
            np.testing.assert_array_equal(found.arrays[name], atoms.arrays[name])
            assert found.arrays[name].dtype.kind == atoms.arrays[name].dtype.kind

    x = np.stack([atoms.positions] * 2)
    whole = Trajectory(atoms, [0.0, 1.0], x, x)
    check(whole[1])
    path = tmp_path / f"run{suffix}"
    whole[:1].write(path)
    with open_writer(path, molecule("H2O"), append=True) as writer:
        writer.write([1.0], x[:1], x[:1])
    check(Trajectory.read(path)[1])
    for other in SUFFIXES:
        Trajectory.read(path).write(tmp_path / f"other{other}")
        check(Trajectory.read(tmp_path / f"other{other}")[0])
    if suffix != ".h5":
        assert list(ase.io.read(path, ":")[1].get_tags()) == [1, 2, 2]
    atoms.info = {"name": "w", "odd": lambda: None}
    with pytest.warns(UserWarning, match=r"cannot hold info\['odd'\]"):
        Trajectory(atoms, [0.0], x[:1], x[:1]).write(tmp_path / f"odd{suffix}")
    assert Trajectory.read(tmp_path / f"odd{suffix}").atoms.info == {"name": "w"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_refusals(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run{suffix}"
    trajectory = made_up(ethanol(), 3)
    with pytest.raises(FileNotFoundError):
        Trajectory.read(path)
    with pytest.raises(FileNotFoundError, match="there is no folder .*missing; make it first"):
        trajectory.write(tmp_path / "missing" / path.name)
    with pytest.raises(ValueError, match="no frames to write"):
        trajectory[3:].write(path)
    assert list(tmp_path.iterdir()) == []
    trajectory.write(path)
    before = path.read_bytes()

    with pytest.raises(FileExistsError, match="append=True"):
        trajectory.write(path)
    with pytest.raises(ValueError, match="atomic numbers differ"):
        open_writer(path, molecule("H2O"), append=True)
    with pytest.raises(ValueError, match="its masses differ"):
        open_writer(path, molecule("CH3CH2OH"), append=True)
    with pytest.raises(ValueError, match="another run: seed: 7 there, 8 given"):
        open_writer(path, ethanol(), append=True, metadata={**METADATA, "seed": 8})
    with pytest.raises(ValueError, match="JSON"):
        open_writer(tmp_path / f"new{suffix}", ethanol(), metadata={"x": np.zeros(3)})
    assert not (tmp_path / f"new{suffix}").exists()
    with open_writer(path, ethanol(), append=True) as writer:
        for times in (trajectory.times[-1:], [np.nan], [np.inf]):
            with pytest.raises(ValueError, match="increasing times"):
                writer.write(times, trajectory.positions[-1:], trajectory.momenta[-1:])
        with pytest.raises(ValueError, match=r"expected \[frames\]"):
            writer.write([99.0], trajectory.positions[0], trajectory.momenta[0])
    assert count_frames(path) == 3
    if suffix != ".h5":
        assert path.read_bytes() == before


def test_foreign_files_and_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.traj, \.extxyz, \.h5"):
        open_writer(tmp_path / "run.xyz", ethanol())
    with pytest.raises(ValueError, match=r"\.traj, \.extxyz, \.h5"):
        Trajectory.read(tmp_path / "run")
    for suffix in (".traj", ".extxyz"):
        ase.io.write(tmp_path / f"foreign{suffix}", ethanol())
        with pytest.raises(ValueError, match="not written by this package"):
            Trajectory.read(tmp_path / f"foreign{suffix}")
    for libver in ("earliest", "v110"):
        with h5py.File(tmp_path / "foreign.h5", "w", libver=libver) as file:
            file["x"] = 1
        with pytest.raises(ValueError, match="not written by this package"):
            Trajectory.read(tmp_path / "foreign.h5")
        assert not is_hdf5_trajectory(tmp_path / "foreign.h5")
        with h5py.File(tmp_path / "data.h5", "w", libver=libver) as file:
            file.create_group("water").attrs["frame_fs"] = 1.0
        with pytest.raises(ValueError, match=r"data.h5 is .* the data format: .*load_records"):
            Trajectory.read(tmp_path / "data.h5")
    for suffix in SUFFIXES:
        (tmp_path / f"noise{suffix}").write_bytes(b"this is not a trajectory\n" * 9)
        with pytest.raises(ValueError, match="not a readable|damaged"):
            Trajectory.read(tmp_path / f"noise{suffix}")


@pytest.mark.parametrize("suffix", [".TRAJ", ".Extxyz", ".H5", ".hdf5"])
def test_suffixes_in_any_case(tmp_path: Path, suffix: str) -> None:
    water = molecule("H2O")
    Trajectory(water, [0.0], water.positions[None], water.positions[None]).write(
        tmp_path / f"a{suffix}"
    )
    np.testing.assert_array_equal(
        Trajectory.read(tmp_path / f"a{suffix}").momenta[0], water.positions
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_links_stay_links(tmp_path: Path, suffix: str) -> None:
    """Cutting a file that a symbolic link leads to cuts that file."""
    water = molecule("H2O")
    x = np.stack([water.positions] * 3)
    there, link = tmp_path / f"there{suffix}", tmp_path / f"link{suffix}"
    Trajectory(water, [0.0, 1.0, 2.0], x, x).write(there)
    link.symlink_to(there)
    truncate(link, 2)
    assert link.is_symlink() and len(Trajectory.read(there)) == 2


def test_damaged_h5_is_named(tmp_path: Path) -> None:
    path, part = tmp_path / "run.h5", tmp_path / "part.h5"
    trajectory = made_up(ethanol(), 5)
    with open_writer(path, ethanol()) as writer:
        writer.write(*columns(trajectory))
        unfinished = path.read_bytes()  # marked as open for writing, as a kill leaves it
        assert is_hdf5_trajectory(path)
    finished = path.read_bytes()
    for data in (finished, unfinished):
        part.write_bytes(data)
        assert_same_bits(Trajectory.read(part), Trajectory.read(path))
        for size in (0, 20, 100, 3000):
            part.write_bytes(data[:size])
            for read in (count_frames, Trajectory.read, lambda p: truncate(p, 1)):
                with pytest.raises(ValueError, match="part.h5 is (damaged|not a readable)"):
                    read(part)
            assert not is_hdf5_trajectory(part)
    with h5py.File(part, "w") as file:
        file.attrs.update({"format": "mdtrajnet_fast trajectory", "version": 1})
    with pytest.raises(ValueError, match="part.h5 is damaged.*'times'"):
        count_frames(part)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_anywhere_is_named(tmp_path: Path, suffix: str) -> None:
    """Another byte anywhere: read, where nothing checks it, or refused with the file's name."""
    path = tmp_path / f"run{suffix}"
    made_up(molecule("H2O"), 5).write(path)
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place, value in zip(rng.integers(0, len(raw), 150), rng.integers(0, 256, 150), strict=True):
        spoiled = bytearray(raw)
        spoiled[place] = value
        path.write_bytes(spoiled)
        for read in (
            Trajectory.read,
            lambda p: open_writer(p, molecule("H2O"), append=True).close(),
        ):
            try:
                read(path)
            except ValueError as error:
                assert path.name in str(error)
                refused += 1
    assert refused > 10
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_times_that_go_back_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    made_up(ethanol(), 5).write(path)
    with h5py.File(path, "r+") as file:
        file["times"][3] = file["times"][2]
    with pytest.raises(ValueError, match="run.h5 is damaged: its times do not increase"):
        Trajectory.read(path)


def test_a_damaged_traj_is_not_taken_for_a_short_one(tmp_path):
    """Frames that the index has and the file still holds are not cut off."""
    water = molecule("H2O")
    x = np.random.default_rng(0).normal(size=(9, 3, 3))
    whole = tmp_path / "whole.traj"
    Trajectory(water, np.arange(9.0), x, x).write(whole)
    raw = whole.read_bytes()
    for place in (100, len(raw) // 2):
        spoiled = tmp_path / "spoiled.traj"
        spoiled.write_bytes(raw[:place] + b"more" + raw[place:])
        with pytest.raises(
            ValueError, match="spoiled.traj is damaged|spoiled.traj is not a readable"
        ):
            Trajectory.read(spoiled)
        before = spoiled.read_bytes()
        with pytest.raises(ValueError, match=r"spoiled\.traj"):
            open_writer(spoiled, water, append=True)
        assert spoiled.read_bytes() == before
    cut = tmp_path / "cut.traj"
    cut.write_bytes(raw[: len(raw) // 2])
    assert 0 < len(Trajectory.read(cut)) < 9
