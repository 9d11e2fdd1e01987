"""The C interface, from C and with ctypes, against the rollout in Python."""

import ctypes
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import cases
import numpy as np
import pytest
import torch

from mdtrajnet_fast import _C, MDtrajNet, RolloutError, load_model
from mdtrajnet_fast.cli import main
from mdtrajnet_fast.md.export import VERSION, contents, export_model, packed
from mdtrajnet_fast.md.rollout import rollout
from mdtrajnet_fast.md.window import method_of, stride_of
from mdtrajnet_fast.mechanics import momenta_from_velocities, velocities_from_momenta

LIB = Path(_C.__file__).parent / "lib"
CC = shutil.which("cc") or shutil.which("gcc")
OK, INVALID, FILE, BROKEN = range(4)


class Error(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_int),
        ("message", ctypes.c_char * 1000),
        *((name, ctypes.c_int64) for name in ("system", "atom", "windows")),
    ]


class Systems(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int64),
        *((x, ctypes.c_void_p) for x in ("ptr", "numbers", "masses", "cells", "periodic")),
    ]


class Options(ctypes.Structure):
    _fields_ = [
        ("window", ctypes.c_double),
        ("method", ctypes.c_int),
        ("energy_rate", ctypes.c_double),
        ("threads", ctypes.c_int),
    ]


@pytest.fixture(scope="module")
def library():
    library = ctypes.CDLL(str(LIB / "libmdtrajnet.so"))
    library.mdtrajnet_own_window.restype = ctypes.c_double
    return library


# In the order of the header.
CHOICES = (None, "symplectic", "reversible", "plain")


class Refused(Exception):
    """What the library says of a call."""

    def __init__(self, error):
        super().__init__(error.message.decode())
        self.code, self.system, self.atom = error.code, error.system, error.atom
        self.windows = error.windows


class Native:
    """The interface with numpy arrays and exceptions."""

    def __init__(self, library):
        self.library, self.model, self.rollout = library, ctypes.c_void_p(), ctypes.c_void_p()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.library.mdtrajnet_free_rollout(self.rollout)
        self.library.mdtrajnet_free_model(self.model)

    def call(self, name, *arguments):
        error, given = Error(), []
        for x in arguments:
            if isinstance(x, np.ndarray):
                assert x.flags.c_contiguous
                x = ctypes.c_void_p(x.ctypes.data)
            given.append(ctypes.c_int64(x) if isinstance(x, int) else x)
        code = getattr(self.library, f"mdtrajnet_{name}")(*given, ctypes.byref(error))
        assert code == error.code
        if code:
            raise Refused(error)

    def load(self, path):
        self.call("load", str(path).encode(), ctypes.byref(self.model))
        return self

    def start(self, system, window=0.0, method=None, energy_rate=-1.0, threads=1):
        arrays = [system.ptr, system.numbers.astype(np.int32), system.masses, system.cell]
        arrays.append(system.pbc.astype(np.uint8))
        systems = Systems(len(system), *(x.ctypes.data for x in arrays))
        options = Options(window, CHOICES.index(method), energy_rate, threads)
        references = (ctypes.byref(x) for x in (systems, options, self.rollout))
        self.call("start", self.model, *references)
        return self

    def advance(self, windows, x, v):
        self.call("advance", self.rollout, windows, x, v)

    def frames(self, t, x, v):
        frames = np.empty((2, len(t), *x.shape))
        arguments = len(t), np.array(t, float), frames[0], frames[1]
        self.call("advance_with_frames", self.rollout, x, v, *arguments)
        return frames

    def energies(self, x, v, systems):
        energies = np.empty(systems)
        self.call("energies", self.rollout, x, v, energies)
        return energies


def start(atoms):
    """System, positions and velocities, and the momenta that C makes of these."""
    system, _ = cases.state(atoms)
    v = system.velocities.copy()
    return system, system.positions.copy(), v, momenta_from_velocities(v, system.masses)


def ends(model, system, momenta, windows, window=None, **options):
    """Positions and velocities after so many windows in Python."""
    method = method_of(model, options.pop("method", None))
    stride = stride_of(model, method, window)
    options = {"method": method, "window": window} | options
    *_, last = rollout(model, system, momenta, dt=stride, duration=windows * stride, **options)
    return last.positions[-1], velocities_from_momenta(last.momenta[-1], system.masses)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """The bundled models' files, as the command line writes them."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("molecules-nve", "molecules-nve-small", "diamond"):
        assert main(["export", name, str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if CC is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("program") / "program"
    source = Path(__file__).parent / "c_api.c"
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-Wno-conversion"]
    link = [f"-I{LIB}", f"-L{LIB}", "-lmdtrajnet", f"-Wl,-rpath,{LIB}"]
    subprocess.run([CC, *flags, source, *link, "-o", program], check=True)
    return program


def run(program, path, system, x, v, calls, windows):
    words = [len(system), len(x), calls, windows]
    parts = (system.ptr, system.numbers, system.masses, system.cell, system.pbc, x, v)
    words += [value for part in parts for value in part.ravel().tolist()]
    text = " ".join(float(word).hex() for word in words)
    result = subprocess.run([program, path], input=text, capture_output=True, text=True, check=True)
    where, message, *rows = result.stdout.split("\n")[:-1]
    numbers = [np.array([float.fromhex(word) for word in row.split()]) for row in rows]
    return [int(word) for word in where.split()], message, numbers


@pytest.mark.parametrize(
    "name, atoms",
    [
        ("molecules-nve", lambda: cases.hot("CH3CH2OH")),
        ("molecules-nve-small", lambda: cases.mixture()[:-1]),  # it is for no crystal
        ("diamond", lambda: cases.diamond((3, 3, 3))),
    ],
)
def test_a_program_in_c(bundled, program, name, atoms):
    """Also beyond the windows in which the energy to keep is learned: 200 fs."""
    model = load_model(name)
    system, x, v, p = start(atoms())
    calls, windows = 6, 15
    expected = ends(model, system, p, calls * windows)
    where, message, (*got, energies) = run(program, bundled / name, system, x, v, calls, windows)
    assert where == [OK, -1, -1, windows] and message == ""
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b.ravel())
    assert len(energies) == len(system) and np.isfinite(energies).all()


def test_a_program_in_c_is_told_what_broke(tmp_path, program):
    model = cases.gentle(0.6, **cases.OWN)
    path = export_model(model, tmp_path / "wild")
    system, x, v, p = start([cases.hot("CO2"), cases.hot("CH3CH2OH")])
    with pytest.raises(RolloutError) as caught:
        ends(model, system, p, 200)
    calls, done = divmod(caught.value.window, 50)
    where, message, got = run(program, path, system, x, v, 4, 50)
    assert calls < 4 and where == [BROKEN, 1, 3, done]
    assert "system 1 broke: atom 3 leaves its course by more than 4 Å" in message
    np.testing.assert_array_equal(got[0], caught.value.positions.ravel())
    v = velocities_from_momenta(caught.value.momenta, system.masses)
    np.testing.assert_array_equal(got[1], v.ravel())


def collection():
    torch.manual_seed(0)
    model = MDtrajNet(cases.config(**cases.OWN), members=2).eval().requires_grad_(False)
    for member in model.members:
        for block in member.blocks:
            block.out_vector *= 0.1
    return model


MODELS = {
    "own": lambda: cases.gentle(**cases.OWN, **cases.POTENTIAL),
    "single": lambda: cases.gentle(dtype=torch.float32, **cases.OWN, **cases.POTENTIAL),
    "no potential": lambda: cases.gentle(envelope=True, **cases.OWN),
    "published": lambda: load_model(cases.DATA / "tiny.pt", dtype="float64"),
    "collection": collection,
    "window potentials": lambda: cases.gentle(**cases.OWN, **cases.WINDOW_POTENTIALS),
    "single window potentials": lambda: cases.gentle(
        dtype=torch.float32, **cases.OWN, **cases.POTENTIAL, **cases.WINDOW_POTENTIALS
    ),
    "no network": lambda: cases.alone(cases.gentle(**cases.OWN, **cases.WINDOW_POTENTIALS)),
    "one layer": lambda: cases.gentle(
        **cases.OWN,
        window_potentials=cases.WINDOW_POTENTIALS["window_potentials"] | {"layers": 1},
    ),
}


@pytest.mark.parametrize("method", [None, "reversible", "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model(tmp_path, library, name, method):
    model = MODELS[name]()
    if not len(model.members) and method:
        path = export_model(model, tmp_path / "model")
        with Native(library).load(path) as native, pytest.raises(Refused, match="no network"):
            native.start(start([cases.hot("H2O")])[0], method=method)
        return
    best = stride_of(model, method_of(model, None), None)
    kicks = method is None and model.window_potentials is not None
    window = best if kicks else 0.9 * model.stride()
    system, x, v, p = start([cases.hot("H2O"), cases.hot("CH4")])
    expected = ends(model, system, p, 30, window, method=method)
    path = export_model(model, tmp_path / "model")
    with Native(library).load(path).start(system, window, method) as native:
        assert library.mdtrajnet_own_window(native.model) == best
        assert library.mdtrajnet_has_potential(native.model) == model.has_energies
        if model.has_energies:
            measured = native.energies(x, v, len(system))
            kept = model.potential_energy(system).numpy() + system.kinetic_energy()
            np.testing.assert_allclose(measured, kept, rtol=1e-6)
        assert [z for z in range(-1, 20) if library.mdtrajnet_knows(native.model, z)] == [
            1,
            6,
            7,
            8,
        ]
        for windows in (1, 0, 12, 17):  # however they are shared out
            native.advance(windows, x, v)
        np.testing.assert_array_equal(x, expected[0])
        np.testing.assert_array_equal(v, expected[1])


def test_frames_energies_and_restart(tmp_path, library):
    model = cases.gentle(**cases.OWN, **cases.POTENTIAL)
    system, x, v, p = start(cases.mixture())
    path = export_model(model, tmp_path / "model")
    with Native(library).load(path).start(system, energy_rate=0.05, threads=2) as native:
        measured = native.energies(x, v, len(system))
        kept = model.potential_energy(system).numpy() + system.kinetic_energy()
        np.testing.assert_allclose(measured, kept, rtol=1e-12)
        first = next(rollout(model, system, p, dt=2.5, energy_rate=0.05, at_once=1))
        frames = native.frames([2.5, 5.0, 7.5], x, v)
        np.testing.assert_array_equal([*frames[0], x], first.positions)
        velocities = velocities_from_momenta(first.momenta, system.masses)
        np.testing.assert_array_equal([*frames[1], v], velocities)
        native.advance(24, x, v)
        expected = ends(model, system, p, 25, energy_rate=0.05)
        np.testing.assert_array_equal(x, expected[0])
        # another velocity, and an energy of its own
        v *= 0.5
        library.mdtrajnet_restart(native.rollout)
        moved = cases.state(cases.mixture())[0].__class__(
            **(vars(system) | {"positions": x.copy()})
        )
        p = momenta_from_velocities(v, system.masses)
        expected = ends(model, moved, p, 25, energy_rate=0.05)
        native.advance(25, x, v)
        np.testing.assert_array_equal(x, expected[0])
        np.testing.assert_array_equal(v, expected[1])


def test_bad_input(bundled, library, tmp_path):
    system, x, v, _ = start([cases.hot("H2O"), cases.hot("CH4")])

    def refused(match, call, code=INVALID, where=(-1, -1)):
        with pytest.raises(Refused, match=match) as caught:
            call()
        assert caught.value.code == code and (caught.value.system, caught.value.atom) == where

    def changed(**parts):
        arrays = {name: values.copy() for name, values in vars(system).items()}
        for name, (index, value) in parts.items():
            arrays[name][index] = value
        return type(system)(**arrays)

    motion = cases.gentle(**cases.OWN, **cases.POTENTIAL, time_cutoff=12.0, window=4.0)
    with Native(library).load(export_model(motion, tmp_path / "motion")) as native:
        begin = native.start
        refused(
            "atom 2 of system 1 .* number 14, .* knows 6 1 7 8",
            lambda: begin(changed(numbers=(5, 14))),
            where=(1, 2),
        )
        refused(
            "atom 0 of system 0 has the mass -1",
            lambda: begin(changed(masses=(0, -1))),
            where=(0, 0),
        )
        refused("cell of system 1", lambda: begin(changed(cell=((1, 0, 0), np.nan))), where=(1, -1))
        refused("ptr must increase", lambda: begin(changed(ptr=(1, 0))), where=(0, -1))
        refused("ptr must begin with 0, got 1", lambda: begin(changed(ptr=(0, 1))))
        refused("up to 12 fs, got 13", lambda: begin(system, window=13.0))
        refused("window must be", lambda: begin(system, window=np.nan))
        refused("energy_rate must be", lambda: begin(system, energy_rate=np.inf))
        refused("not for plain windows", lambda: begin(system, method="plain", energy_rate=0.1))
        refused("no window potentials", lambda: begin(system, method="symplectic"))
        with Native(library).load(bundled / "molecules-nve") as kicks:
            refused("must be 0 or 3 fs", lambda: kicks.start(system, window=4.0))
            kicks.start(system, window=4.0, method="reversible")
        refused("threads must be", lambda: begin(system, threads=-1))
        refused("expected a rollout, got NULL", lambda: native.advance(1, x, v))
        begin(system)
        refused("number of windows, got -1", lambda: native.advance(-1, x, v))
        refused("before 4 fs, got 4", lambda: native.frames([1.0, 4.0], x, v))
        bad = x.copy()
        bad[4, 1] = np.inf
        refused(
            "atom 1 of system 1 has the coordinate inf",
            lambda: native.advance(1, bad, v),
            where=(1, 1),
        )
        bad = v.copy()
        bad[0, 2] = np.nan
        refused(
            "atom 0 of system 0 has the velocity", lambda: native.advance(1, x, bad), where=(0, 0)
        )
        same = x.copy()
        same[4] = same[3]
        refused("system 1 broke: .* coincide", lambda: native.advance(1, same, v), BROKEN, (1, -1))
        native.advance(1, x, v)


def test_bad_files(tmp_path, library):
    model = cases.gentle(**cases.OWN, **cases.POTENTIAL)
    path = export_model(model, tmp_path / "model")
    whole = path.read_bytes()
    with pytest.raises(FileExistsError, match="never overwritten"):
        export_model(model, path)

    def refused(match, data):
        path.write_bytes(data)
        with Native(library) as native, pytest.raises(Refused, match=match) as caught:
            native.load(path)
        assert caught.value.code == FILE and str(path) in str(caught.value)

    for at in (24, 100, 64 * 20, len(whole) // 2, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[at] ^= 4
        refused("checksum", flipped)
    for end in (8, 12, 23):
        refused("ends within its head", whole[:end])
    for end in (24, 25, 64 * 20, len(whole) // 2, len(whole) - 1):
        refused(f"has {end} bytes, but was written with {len(whole)}", whole[:end])
    refused("written with", whole + b"\n")
    for other in (b"", b"\n", b"#!/bin/sh\n" * 9, b"\0" * 99):
        refused("not a model", other)
    later = whole[:8] + struct.pack("<I", VERSION + 1) + whole[12:]
    refused(f"is of version {VERSION + 1}, .* reads version {VERSION}", later)

    def signed(data):
        return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))

    # with a right checksum, from a writer that went wrong
    named = contents(model)
    refused('lacks the array "skin"', packed({k: x for k, x in named.items() if k != "skin"}))
    refused("size of 0", packed(named | {"heads": 0}))
    refused('in "0.0.query", expected', packed(named | {"key_channels": 77}))
    refused("of type <i8", packed(named | {"fs": 1}))
    refused('has 0 numbers .* in "back"', packed(named | {"back": []}))
    refused("9 hidden layers", packed(named | {"value_hidden": [9] * 9}))
    refused("beyond its end", signed(whole[:80] + struct.pack("<Q", 1 << 60) + whole[88:]))
    refused("written with", signed(whole[:12] + struct.pack("<I", 1 << 31) + whole[16:]))

    with Native(library) as native, pytest.raises(Refused, match="cannot be opened: No such file"):
        native.load(tmp_path / "none")
    with Native(library) as native, pytest.raises(Refused, match="not a model"):
        native.load(tmp_path)
    path.write_bytes(whole)
    with Native(library) as native:
        native.load(path)


def test_only_the_header_is_visible():
    names = subprocess.run(
        ["nm", "-D", "--defined-only", LIB / "libmdtrajnet.so"], capture_output=True, text=True
    ).stdout
    exported = {line.split()[-1] for line in names.splitlines()}
    header = (LIB / "mdtrajnet.h").read_text()
    assert exported and all(f"{name}(" in header for name in exported)
    assert all(name in exported for name in ("mdtrajnet_load", "mdtrajnet_advance"))


@pytest.mark.parametrize("options", [cases.POTENTIAL, cases.WINDOW_POTENTIALS])
def test_a_model_in_training_is_written_as_it_is(tmp_path, options):
    model = cases.gentle(**cases.OWN, **options)
    still = export_model(model, tmp_path / "still").read_bytes()
    assert export_model(model.requires_grad_(True), tmp_path / "trained").read_bytes() == still
