"""What gpu_report.py measures: sections, generators of rows, each run in a process of its own.

torch is imported by sections only: their parent needs none.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.append(str(ROOT / "tests"))
DRY = "--dry-run" in sys.argv

Row = dict[str, Any]
PEER_ATOMS = (8, 8, 8)  # cells of diamond: 4,096 atoms


# ---- What they are made of.


def device() -> str:
    return "cpu" if DRY else "cuda"


def wait() -> None:
    import torch

    if not DRY:
        torch.cuda.synchronize()


def timed(call: Callable[[], object], budget: float = 1.5) -> dict[str, float]:
    """Median and least seconds of a call, after two to warm up; rounds as the budget (s) allows."""
    for _ in range(2):
        begun = time.perf_counter()
        call()
        wait()
        once = time.perf_counter() - begun
    samples = []
    least = 1 if DRY or once > budget else 3
    for _ in range(1 if DRY else max(least, min(50, int(budget / once)))):
        begun = time.perf_counter()
        call()
        wait()
        samples.append(time.perf_counter() - begun)
    return {"median": statistics.median(samples), "min": min(samples)}


def attempts(calls: dict[str, Callable[[], Callable[[], object]]], **info: Any) -> Iterator[Row]:
    """One row for each way of doing the same: its times, or why it has none.

    calls: functions that make ready what is to be timed.
    """
    import torch

    for name, make in calls.items():
        row = {**info, "provider": name}
        try:
            row |= timed(make())
        except Exception as error:  # noqa: BLE001, the next goes on
            row["failed"] = f"{type(error).__name__}: {error}"[:500]
        yield row
        if not DRY:
            torch.cuda.empty_cache()


def command(words: list[str], limit: float, **options: Any) -> Row:
    """Run a command of at most `limit` seconds and print it and the end of what it says.

    returncode: None if it was stopped.
    """
    print("$ " + " ".join(words), flush=True)
    with tempfile.TemporaryFile("w+") as said:  # a file, for a stopped command's words are kept
        try:
            code: int | None = subprocess.run(
                words, stdout=said, stderr=subprocess.STDOUT, timeout=limit, **options
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        said.seek(0)
        tail = said.read()[-3000:]
    tail += "" if code is not None else f"\nstopped after {limit:.0f} s"
    print(tail, flush=True)
    return {"command": " ".join(words), "returncode": code, "tail": tail}


def backends() -> list[str]:
    """Ours on this device, the default first."""
    import torch

    from mdtrajnet_fast.ops import BACKENDS, choose_backend

    first = choose_backend(None, torch.device(device()), torch.float32).name
    rest = [name for name in BACKENDS if name not in (first, "cpu", "reference")]
    return [first] if DRY else [first, *rest]


def model(backend: str | None = None, scale: float = 1.0, **options: Any) -> Any:
    """Published sizes with random weights; scale: of the increments, for rollouts that last."""
    import torch
    from providers import SPECIES

    from mdtrajnet_fast.model.config import ModelConfig
    from mdtrajnet_fast.model.network import MDtrajNet

    torch.manual_seed(0)
    options |= {"num_attn_blocks": 1} if DRY else {}
    made = MDtrajNet(ModelConfig(species=SPECIES, **options), backend=backend)
    for block in made.members[0].blocks:
        block.out_vector.data *= scale
    return made.to(device()).eval().requires_grad_(False)


def on_device(**options: Any) -> Any:
    """A model whose rollouts have their state on the device, also where that is the CPU."""
    return model("reference" if DRY else None, **options)


def crystal(cells: tuple[int, int, int]) -> Any:
    from cases import diamond

    return diamond(cells)


def cubes() -> list[tuple[int, int, int]]:
    """Cells of diamond from 10^3 to 10^6 atoms."""
    return [(n, n, n) for n in ((2, 3) if DRY else (5, 10, 17, 23, 37, 50))]


# ---- Sections.


def build() -> Iterator[Row]:
    """pip install, with what is there."""
    words = [sys.executable, "-m", "pip", "install", ".", "--no-build-isolation", "--no-deps"]
    if DRY:
        print("$ " + " ".join(words) + "    (not in a dry run)")
        return
    row = command(words, 230, cwd=ROOT)
    yield row
    if row["returncode"] != 0:
        raise RuntimeError("the build failed; see its output above")
    yield command([sys.executable, "-m", "mdtrajnet_fast", "info"], 60, cwd=HERE)


def tests() -> Iterator[Row]:
    """The tests that need a GPU."""
    files = [
        str(x) for x in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in x.read_text()
    ]
    words = [sys.executable, "-P", "-m", "pytest", "-m", "gpu", "-q", "--durations=5", "--tb=short"]
    words += ["--collect-only"] if DRY else ["--maxfail=40"]
    if not DRY and importlib.util.find_spec("xdist"):  # compilations side by side
        words += ["-n", str(min(8, os.cpu_count() or 1))]
    # without options of plugins that may not be installed
    words += ["-o", "addopts=--import-mode=importlib", *files]
    row = command(words, 290, cwd=ROOT)
    yield row
    if row["returncode"] != 0:
        raise RuntimeError("tests failed; see their output above")


def machine() -> Iterator[Row]:
    """Name, versions, and the ceilings: a copy and matrix products."""
    import torch

    row: Row = {"what": "machine", "torch": torch.__version__, "cuda": torch.version.cuda}
    for name in ("triton", "e3nn", "nvalchemi-toolkit-ops"):
        try:
            row[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            row[name] = None
    if not DRY:
        properties = torch.cuda.get_device_properties(0)
        row |= {
            "gpu": properties.name,
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
        }
    yield row
    yield from ceilings()


def ceilings() -> Iterator[Row]:
    """Bytes a second of a copy (read and written) and operations a second of matrix products."""
    import torch

    x = torch.ones(1 << (20 if DRY else 28), device=device())
    y = torch.empty_like(x)
    best = timed(lambda: y.copy_(x))["min"]
    yield {"what": "copy", "bytes_per_s": 2 * x.nbytes / best}
    n = 256 if DRY else 8192
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(n, n, device=device(), dtype=dtype) for _ in "ab")
        best = timed(lambda a=a, b=b: a @ b)["min"]
        yield {"what": f"matrix product, {name}", "operations_per_s": 2 * n**3 / best}
    torch.backends.cuda.matmul.allow_tf32 = False


def passes(made: Any, graph: Any) -> dict[str, Callable[[], object]]:
    """One evaluation of the network: values, and values with the exact time derivative."""
    import torch

    t = torch.full((graph.atoms,), 7.0, device=device())
    blocks = made.prepare()

    def values() -> object:
        with torch.no_grad():
            return made(graph, t, blocks)

    def tangent() -> object:
        with torch.no_grad():
            return made.motion(graph, t, blocks)

    return {"values": values, "tangent": tangent}


def scaling() -> Iterator[Row]:
    """A pass over the number of atoms."""
    import torch

    from mdtrajnet_fast.md.device_graph import device_graph
    from mdtrajnet_fast.system import System

    for cells in cubes():
        try:
            graph = device_graph(model(), System.from_atoms(crystal(cells)))
        except Exception as error:  # noqa: BLE001, what was measured stands
            yield {"atoms": 8 * cells[0] ** 3, "failed": f"{type(error).__name__}: {error}"[:500]}
            return
        for backend in backends():
            for what in ("values", "tangent"):
                if not DRY:
                    torch.cuda.reset_peak_memory_stats()
                make = {backend: lambda b=backend, w=what, g=graph: passes(model(b), g)[w]}
                (row,) = attempts(make, what=what, atoms=graph.atoms)
                if "median" in row:
                    row["us_per_atom"] = 1e6 * row["median"] / graph.atoms
                    if not DRY:
                        row["peak_bytes"] = torch.cuda.max_memory_allocated()
                yield row
        del graph


def rollout() -> Iterator[Row]:
    """Windows on the device, frames copied to the host, beside those of the native engine."""
    import numpy as np
    from cases import hot

    from mdtrajnet_fast.md.rollout import rollout as run
    from mdtrajnet_fast.system import System

    ethanols = [hot("CH3CH2OH", seed=k) for k in range(2 if DRY else 1024)]
    systems: dict[str, Any] = {f"{len(ethanols)} ethanols": ethanols}
    for cells in cubes()[1::2] if not DRY else cubes()[:1]:
        systems[f"diamond {8 * cells[0] ** 3}"] = [crystal(cells)]
    # the device first: one thread of the host takes seconds a window
    for provider in ("device", "host"):
        for name, atoms in systems.items():
            system = System.from_atoms(atoms)
            momenta = np.concatenate([one.get_momenta() for one in atoms])
            large = len(system.numbers) > 200_000
            for (kind, made), often in itertools.product(rolled(name).items(), (False, True)):
                if large and (provider == "host" or often):
                    continue  # a minute of the host's time, 20 GB of frames
                potentials = made.config.window_potentials
                window = potentials.window if potentials else 10.0
                frames = (round(window) if potentials else 10) if often else 1
                if provider == "host":
                    made = made.cpu()
                    made.backend = None
                yield windows(
                    run(made, system, momenta, dt=window / frames),
                    window,
                    system=name,
                    model=kind,
                    frames=frames,
                    provider=provider,
                    atoms=len(system.numbers),
                )


def rolled(system: str) -> dict[str, Any]:
    """Models for rollouts of a system: random ones of two kinds, and the bundled one for it."""
    from mdtrajnet_fast import load_model

    own = {"residual": "running", "head": "conserving", "velocity_readout": True}
    bundled = "diamond" if system.startswith("diamond") else "molecules-nve"
    model = load_model(bundled).to(device()).eval().requires_grad_(False)
    model.backend = "reference" if DRY else None
    return {
        "published": on_device(scale=1e-3),
        "own": on_device(scale=1e-3, **own),
        bundled: model,
    }


def potentials() -> Iterator[Row]:
    """Window potentials by their kernels beside plain torch: an evaluation, and a whole window.

    Evaluations are captured as CUDA graphs, as they are in windows, neighbours being known.
    """
    import numpy as np
    from cases import hot

    from mdtrajnet_fast import load_model
    from mdtrajnet_fast.md.rollout import rollout as run
    from mdtrajnet_fast.system import System

    one = [hot("CH3CH2OH")]
    several = [hot("CH3CH2OH", seed=k) for k in range(2 if DRY else 1024)]
    diamonds = [[crystal((n, n, n))] for n in ((2,) if DRY else (10, 20))]
    cases = [(name, x) for name in ("molecules-nve", "molecules-nve-small") for x in (one, several)]
    cases += [("diamond", x) for x in diamonds]
    for name, many in cases:
        system = System.from_atoms(many)
        momenta = np.concatenate([atoms.get_momenta() for atoms in many])
        info = {"model": name, "systems": len(system), "atoms": len(system.numbers)}
        made = load_model(name).to(device()).eval().requires_grad_(False)
        for backend in ("reference",) if DRY else ("cuda", "reference"):
            made.backend = backend
            make = {backend: lambda m=made, s=system: evaluation(m, s)}
            for row in attempts(make, what="energies and slopes", **info):
                if "median" in row:
                    row |= {x: row[x] / EVALUATIONS for x in ("median", "min")}
                    row["us_per_atom"] = 1e6 * row["median"] / row["atoms"]
                yield row
            window = made.config.window_potentials.window
            whole = run(made, system, momenta, dt=window)
            yield windows(whole, window, what="window", provider=backend, **info)


EVALUATIONS = 1 if DRY else 10  # in one CUDA graph: launching it takes a few microseconds


def evaluation(made: Any, system: Any) -> Callable[[], object]:
    """Energies and slopes of a graph as windows have it, EVALUATIONS times; captured on a GPU."""
    from dataclasses import replace

    import torch

    from mdtrajnet_fast.md.device_engine import _State
    from mdtrajnet_fast.md.window import Method
    from mdtrajnet_fast.model.window_potentials import ENDS

    predictor = made.predictor()
    state = _State(made, predictor, system, Method("symplectic"))
    graph = state._surroundings(state.positions)

    def call() -> None:
        for _ in range(EVALUATIONS):
            predictor.slopes(replace(graph), ENDS)  # the graph without what it remembers

    if DRY:
        return call
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        call()
    torch.cuda.current_stream().wait_stream(aside)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        call()
    return lambda: captured.replay()


def windows(run: Iterator[Any], window: float, **row: Any) -> Row:
    """Mean time of a window (fs), after those that capture and warm up."""
    row["window_fs"] = window
    try:
        for _ in range(1 if DRY else 12):
            end = next(run).end
        wait()
        begun, first, count = time.perf_counter(), end, 0
        least = 1 if DRY else 3
        while count < least or (time.perf_counter() - begun < 1.0 and count < 100 and not DRY):
            end = next(run).end
            count += 1
        # means: what is done now and then counts, and a call may have many windows
        row["median"] = (time.perf_counter() - begun) / ((end - first) / window)
        row["us_per_atom"] = 1e6 * row["median"] / row["atoms"]
        row["ns_per_day"] = 86400 / row["median"] * window * 1e-6
    except Exception as error:  # noqa: BLE001, the next goes on
        row["failed"] = f"{type(error).__name__}: {error}"[:500]
    finally:
        run.close()  # type: ignore[attr-defined]
    return row


def neighbors() -> Iterator[Row]:
    """Neighbour lists of 131,072 atoms within 4 Å."""
    import torch

    from mdtrajnet_fast.neighbors.device import Cells, SkinNeighbors, device_neighbor_list
    from mdtrajnet_fast.neighbors.host import neighbor_list
    from mdtrajnet_fast.system import System

    system = System.from_atoms(crystal((3, 3, 3) if DRY else (16, 32, 32)))
    cells = Cells.of(system, torch.device(device()))
    x = torch.from_numpy(system.positions).to(device())
    lengths = torch.from_numpy(system.cell[0]).diagonal().to(x)

    def skin(search: bool) -> Callable[[], object]:
        held = SkinNeighbors(x, 4.0, 0.6, cells)

        def call() -> object:
            if search and not DRY:
                held._state.zero_()
            return held.update(x)

        return call

    def all_pairs() -> Callable[[], object]:
        def call() -> int:
            found = 0
            for rows in x.split(1024):
                d = x - rows[:, None]
                d = d - (d / lengths).round() * lengths
                near = (d.square().sum(-1) <= 16.0).nonzero()
                found += len(near)
            return found

        return call

    def alchemi() -> Callable[[], object]:
        try:
            from nvalchemiops.torch.neighbors import neighbor_list as peer
        except ImportError:  # before 0.3
            from nvalchemiops.neighborlist import neighbor_list as peer
        y, box = x.float(), torch.from_numpy(system.cell).to(device(), torch.float32)
        y = y % lengths.float()
        pbc = torch.ones(1, 3, dtype=torch.bool, device=device())
        return lambda: peer(y, 4.0, cell=box, pbc=pbc, return_neighbor_list=True)

    calls = {
        "ours, exact sizes": lambda: lambda: device_neighbor_list(x, 4.0, cells),
        "ours, skin, searched anew": lambda: skin(True),
        "ours, skin, filtered": lambda: skin(False),
        "ours, CPU": lambda: lambda: neighbor_list(system.positions, 4.0, system.cell[0], True),
        "plain torch, all pairs": all_pairs,
    }
    if importlib.util.find_spec("nvalchemiops"):
        calls["nvalchemi-toolkit-ops, float32"] = alchemi
    yield from attempts(calls, atoms=len(x))


def records() -> list[Any]:
    """Trajectories of molecules of up to 9 atoms."""
    from ase.build import molecule
    from ase.collections import g2
    from cases import hot
    from providers import vibrating

    made = []
    for k, name in enumerate(g2.names):
        atoms = molecule(name)
        if 2 <= len(atoms) <= 9 and set(atoms.symbols) <= set("CHNO"):
            made.append(vibrating(name, hot(name, seed=k), 40 if DRY else 400, k))
    return made[:6] if DRY else made


def training() -> Iterator[Row]:
    """Samples a second: batch drawn, forward, backward, clipped, fused AdamW."""
    import numpy as np
    import torch

    from mdtrajnet_fast.data.device_pairs import ResidentPairs
    from mdtrajnet_fast.data.pairs import Pairs
    from mdtrajnet_fast.train.evaluate import errors

    pairs = Pairs(records())
    kinds = {"published": {}, "own": {"residual": "running", "head": "conserving"}}

    def step(backend: str, batch: int, resident: bool, options: dict) -> Callable[[], object]:
        made = model(backend, **options).requires_grad_(True)
        optimizer = torch.optim.AdamW(made.parameters(), lr=1e-6, fused=True)
        source = ResidentPairs(pairs, made) if resident else pairs
        rng = np.random.default_rng(0)

        def call() -> None:
            drawn = source.batch(pairs.choose(rng, batch, 10.0))
            dx, _ = errors(made, drawn, velocities=False)
            optimizer.zero_grad(set_to_none=True)
            dx.square().mean().backward()
            torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
            optimizer.step()

        return call

    # backends that have gradients
    able = [name for name in (*backends(), "reference") if name != "cuda"]
    for kind, options in kinds.items():
        for batch in (4,) if DRY else (64, 256, 1024, 4096):
            calls = {
                f"{backend}, {'resident' if resident else 'from the host'}": (
                    lambda b=backend, r=resident, n=batch, o=options: step(b, n, r, o)
                )
                for backend in able
                for resident in (True, False)
                if resident or (backend == able[0] and batch <= 256)
            }
            for row in attempts(calls, model=kind, batch=batch):
                if "median" in row:
                    row["samples_per_s"] = batch / row["median"]
                yield row
            if not DRY and kind == "published" and batch == 1024:
                source = ResidentPairs(pairs, model())
                rng = np.random.default_rng(0)
                draw = timed(lambda s=source, r=rng: s.batch(pairs.choose(r, 1024, 10.0)))
                yield {"what": "drawing alone", "batch": batch, **draw}


def window_training() -> Iterator[Row]:
    """Samples a second of window potentials, by SOAP: of the bundled model's sizes."""
    import numpy as np
    import torch

    from mdtrajnet_fast import load_model
    from mdtrajnet_fast.data.device_pairs import ResidentPairs, window_batch
    from mdtrajnet_fast.data.pairs import MARGIN, Pairs
    from mdtrajnet_fast.train.evaluate import window_errors
    from mdtrajnet_fast.train.soap_optimizer import SOAP

    pairs = Pairs(records())

    def step(there: str, batch: int) -> Callable[[], object]:
        made = load_model("molecules-nve").to(there).requires_grad_(True)
        optimizer = SOAP(made.window_potentials.parameters(), lr=1e-6)
        resident = ResidentPairs(pairs, made) if there == "cuda" else None
        rng = np.random.default_rng(0)

        def call() -> None:
            choice = pairs.choose(rng, batch, 3.0, lag_fs=3.0, margin=MARGIN, time_reversal=True)
            drawn = resident.windows(choice) if resident else window_batch(made, pairs, choice)
            optimizer.zero_grad(set_to_none=True)
            sum(x.square().sum() for x in window_errors(made, drawn)[0]).backward()
            optimizer.step()

        return call

    for there, batches in {"cuda": (64, 256, 1024, 4096), "cpu": (48,)}.items():
        if DRY and there == "cuda":
            continue
        for batch in batches:
            for row in attempts({there: lambda t=there, b=batch: step(t, b)}, batch=batch):
                if "median" in row:
                    row["samples_per_s"] = batch / row["median"]
                    row["threads"] = torch.get_num_threads() if there == "cpu" else None
                    if there == "cuda":
                        row["peak_bytes"] = torch.cuda.max_memory_allocated()
                yield row


def peers() -> Iterator[Row]:
    """4,096 atoms of diamond: ours, plain torch, and the e3nn formulation on our neighbour list."""
    import torch

    from mdtrajnet_fast.md.device_graph import device_graph
    from mdtrajnet_fast.system import System

    system = System.from_atoms(crystal((2, 2, 2) if DRY else PEER_ATOMS))
    graph = device_graph(model(), system)
    t = torch.full((graph.atoms,), 7.0, device=device())

    def e3nn(compiled: bool) -> Callable[[], object]:
        import e3nn as package

        package.set_optimization_defaults(jit_script_fx=not compiled)
        from peers import E3nnNetwork

        network = E3nnNetwork(model()).to(device()).requires_grad_(False)
        if compiled:
            # block by block: the whole network takes minutes. What stays eager, softmax and sums
            # over neighbours, is small beside the tensor products.
            torch._dynamo.config.recompile_limit = 64
            for block in network.blocks:
                block.edges = torch.compile(block.edges)
                block.increments = torch.compile(block.increments)
        return torch.no_grad()(lambda: network.sparse(graph, t))

    for what in ("values", "tangent"):
        calls = {
            name: lambda name=name, what=what: passes(model(name), graph)[what]
            for name in (*backends(), "reference")
        }
        if what == "values" and importlib.util.find_spec("e3nn"):
            calls["e3nn, eager"] = lambda: e3nn(False)
            if not DRY:  # minutes on a CPU
                calls["e3nn, torch.compile"] = lambda: e3nn(True)
        first = None
        for row in attempts(calls, what=what, atoms=graph.atoms):
            first = first or row.get("median")
            if first and "median" in row:
                row["times_ours"] = row["median"] / first
            yield row


def roofline() -> Iterator[Row]:
    """Operations and bytes that a pass needs, against what a matrix product and a copy reach."""
    import torch
    from operations import operations

    from mdtrajnet_fast.md.device_graph import device_graph
    from mdtrajnet_fast.model.config import irreps_channels
    from mdtrajnet_fast.system import System

    top = {row["what"]: row for row in ceilings()}
    peak = top["matrix product, float32"]["operations_per_s"]
    bandwidth = top["copy"]["bytes_per_s"]
    graph = device_graph(model(), System.from_atoms(crystal(cubes()[1 if DRY else 3])))
    config = model().config
    neighbours = len(graph.neighbor) / graph.atoms
    work = 2 * config.num_attn_blocks * operations(config).per_atom(neighbours)
    h, (c0, _) = config.num_heads, irreps_channels(config.irreps_key)
    n, m = config.key_weight_hidden_neurons[-1] + 1, config.value_weight_hidden_neurons[-1] + 1
    # written once and read once: an atom's own columns, means of the hidden layer, logits; read in
    # each kernel: an edge's vectors and neighbour
    atom = 2 * 4 * (n * (c0 * h + 2 * h) + m * 2 * h + 3 * h * m)
    edge = 2 * 4 * h + 2 * (24 + 8)
    moved = config.num_attn_blocks * (atom + neighbours * edge)
    bound = max(work / peak, moved / bandwidth)
    for backend in backends():
        call = passes(model(backend), graph)["values"]
        for row in attempts({backend: lambda call=call: call}, atoms=graph.atoms):
            row |= {
                "neighbours": neighbours,
                "operations_per_atom": work,
                "bytes_per_atom": moved,
                "bound_us_per_atom": 1e6 * bound,
                "bound_by": "operations" if work / peak > moved / bandwidth else "bytes",
            }
            if "median" in row:
                measured = row["median"] / graph.atoms
                row["us_per_atom"] = 1e6 * measured
                row["fraction_of_bound"] = bound / measured
                row["fraction_of_peak"] = work / peak / measured
                row["fraction_of_bandwidth"] = moved / bandwidth / measured
            yield row
    if not DRY:
        torch.cuda.empty_cache()


WAITS = re.compile(r"cuda(Stream|Device|Event)Synchronize|cudaMemcpy(?!Async)|cudaMalloc|cudaFree")


def trace() -> Iterator[Row]:
    """What a profiler sees inside captured windows: copies to or from the host, and waits."""
    import numpy as np
    from cases import hot

    from mdtrajnet_fast.md.rollout import engine_for
    from mdtrajnet_fast.md.window import Method
    from mdtrajnet_fast.system import System

    many = [hot("CH3CH2OH", k, 300.0) for k in range(8)]
    system = System.from_atoms(many)
    momenta = np.concatenate([one.get_momenta() for one in many])
    for name, made in rolled("molecules").items():
        method = "reversible" if made.window_potentials is None else "symplectic"
        engine = engine_for(made, system, Method(method))
        engine.set_state(system.positions, momenta)
        yield from traced(engine, model=name)


def traced(engine: Any, **row: Any) -> Iterator[Row]:
    """Three windows of an engine, each with a frame within."""
    from torch.profiler import ProfilerActivity, profile, record_function

    from mdtrajnet_fast.md.window import Plan

    plan = Plan(0, [[1.0, 3.0]], [[True, True]])
    for _ in range(2):
        engine.begin(plan)
        engine.end()
    activities = [ProfilerActivity.CPU] + ([] if DRY else [ProfilerActivity.CUDA])
    with profile(activities=activities) as profiler:
        for _ in range(3):
            with record_function("one window"):
                engine.begin(plan)
            engine.end()
        wait()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [x for x in json.loads(path.read_text())["traceEvents"] if x.get("ph") == "X"]
    spans = [
        (x["ts"], x["ts"] + x["dur"])
        for x in events
        if x["name"] == "one window" and x.get("cat") == "user_annotation"
    ]
    inside = [
        x
        for x in events
        if x.get("cat") in ("cuda_runtime", "cuda_driver")
        and any(a <= x["ts"] <= b for a, b in spans)
    ]
    replays = [x for x in inside if x["name"].startswith("cudaGraphLaunch")]
    own = {x["args"].get("correlation") for x in replays}
    there = [x for x in events if x.get("args", {}).get("correlation") in own]
    yield row | {
        "windows": len(spans),
        "replays": len(replays),
        "runtime_calls": sorted({x["name"] for x in inside}),
        "waits": sorted({x["name"] for x in inside if WAITS.search(x["name"])}),
        "kernels": sum(x.get("cat") == "kernel" for x in there),
        "host_copies_in_graphs": sum(
            x.get("cat") == "gpu_memcpy" and bool(re.search("HtoD|DtoH", x["name"])) for x in there
        ),
        "device_us": sum(x["dur"] for x in there if x.get("cat") == "kernel") / 3,
    }
    if not DRY and len(replays) != len(spans):
        raise RuntimeError(f"{len(spans)} windows took {len(replays)} graph launches, not one each")
    if any(WAITS.search(x["name"]) for x in inside):
        raise RuntimeError("a window waits for the device; see waits")


def small_case() -> Iterator[Row]:
    """Neighbour list, values, tangent and window potentials of a few molecules: what the sanitizer
    watches."""
    from cases import mixture

    from mdtrajnet_fast import load_model
    from mdtrajnet_fast.md.device_graph import device_graph
    from mdtrajnet_fast.system import System

    system = System.from_atoms(mixture())
    graph = device_graph(model(), system)
    for backend in backends():
        for what, call in passes(model(backend), graph).items():
            call()
            wait()
            yield {"what": what, "backend": backend, "edges": len(graph.neighbor)}
    kicks = load_model("molecules-nve-small").to(device()).eval().requires_grad_(False)
    graph = device_graph(kicks, system)
    kicks.predictor().slopes(graph, 0)
    wait()
    yield {"what": "window potentials", "edges": len(graph.neighbor)}


def sanitizer() -> Iterator[Row]:
    """compute-sanitizer on the small case, where it is installed."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    tool = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:{home}/bin")
    own = [sys.executable, str(HERE / "gpu_report.py"), "--section", "small_case"]
    if DRY:
        yield command([*own, "--dry-run"], 120, cwd=HERE)
        return
    if tool is None:
        yield {"skipped": "there is no compute-sanitizer on PATH or in CUDA_HOME/bin"}
        return
    bad: list[str] = []
    for check in ("memcheck", "racecheck", "synccheck"):
        words = [tool, f"--tool={check}", "--error-exitcode=9", *own]
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        row = command(words, 110, cwd=HERE, env=environment)
        yield {"check": check, **row}
        bad += [f"{check} ended with {row['returncode']}"] * (row["returncode"] != 0)
    if bad:
        raise RuntimeError(f"{', '.join(bad)}; see the output above")


# By importance: what comes last is left out when time is short. Limits in seconds.
SECTIONS: dict[str, tuple[Callable[[], Iterator[Row]], float]] = {
    "build": (build, 240),
    "tests": (tests, 300),
    "machine": (machine, 40),
    "scaling": (scaling, 120),
    "neighbors": (neighbors, 60),
    "potentials": (potentials, 90),
    "rollout": (rollout, 150),
    "window_training": (window_training, 60),
    "training": (training, 120),
    "trace": (trace, 60),
    "roofline": (roofline, 45),
    "peers": (peers, 300),
    "sanitizer": (sanitizer, 340),
}
