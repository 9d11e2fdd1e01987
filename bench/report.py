"""Measure ours beside the peers in one process and write the tables of bench/results.

    python bench/report.py [--quick] [--output DIRECTORY]

--quick takes minutes in place of an hour: smaller sizes, fewer rounds. MDTRAJNET_BENCH_THREADS sets
the threads of everything but the line that compares threads. See bench/README.md for what each line
means.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from machine import best_peak, fma_peak, processor, slug  # noqa: E402
from memory import release  # noqa: E402
from operations import operations  # noqa: E402
from providers import THREADS, TrainingStep, provider, published_model  # noqa: E402
from systems import SYSTEMS  # noqa: E402

from mdtrajnet_fast.system import System  # noqa: E402

Timing = dict[str, Any]  # "median", "min" (s) and all "samples"
PEERS = ("e3nn-dense", "e3nn-sparse", "reference")
SHORTEST = 0.03  # s; faster calls are repeated to make one sample of this length
SLOW = 4.0  # s; slower calls are warmed up once and take part in three rounds


def interleave(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time calls in turn, forwards and backwards, so that a busy spell hits all of them."""
    number, slow = {}, set()
    for name, call in calls.items():
        for _ in range(2):  # the second call is past e3nn's just-in-time compilation
            begun = time.perf_counter()
            call()
            once = time.perf_counter() - begun
            if once > SLOW:
                slow.add(name)
                break
        number[name] = max(1, round(SHORTEST / once))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(rounds):
        for name in list(calls) if k % 2 == 0 else reversed(calls):
            if k >= 3 and name in slow:
                continue
            begun = time.perf_counter()
            for _ in range(number[name]):
                calls[name]()
            samples[name].append((time.perf_counter() - begun) / number[name])
    return {
        name: {"median": statistics.median(x), "min": min(x), "samples": x}
        for name, x in samples.items()
    }


def line(
    title: str, calls: dict[str, Callable[[], object]], count: int, unit: str, rounds: int
) -> dict[str, Any]:
    """One comparison: times of each provider, per unit, and the peers' over ours."""
    release()  # what other providers left behind
    print(f"{title} ...", flush=True)
    times = interleave(calls, rounds)
    first = next(iter(times))
    result = {"title": title, "count": count, "unit": unit, "times": times, "ratios": {}}
    for name, timing in times.items():
        result["ratios"][name] = {k: timing[k] / times[first][k] for k in ("median", "min")}
        ratio = result["ratios"][name]["median"]
        print(f"    {name:12} {1e3 * timing['median']:10.2f} ms {ratio:8.2f}", flush=True)
    return result


def build(system: str):
    make, size, _ = SYSTEMS[system]
    return make(size)


def accuracy(system: str, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Errors of each provider in float32 against our float64: positions (Å), velocities (Å/fs)."""
    atoms = build(system)
    exact = [x.double() for x in provider("ours", atoms, dtype=torch.float64).motion()]
    start = System.from_atoms(atoms).positions
    errors = {}
    for name in names:
        moved, velocity = (x.double() for x in provider(name, atoms).motion())
        dx, dv = moved - exact[0], velocity - exact[1]
        errors[name] = {
            "position_max": float(dx.abs().max()),
            "position_relative": float(dx.abs().max() / abs(start).max()),
            "displacement_relative": float(dx.norm() / exact[0].norm()),
            "velocity_rms": float(dv.square().mean().sqrt()),
            "velocity_relative": float(dv.norm() / exact[1].norm()),
        }
    return errors


def comparisons(quick: bool) -> list[dict[str, Any]]:
    """Ours beside the peers where they can run."""
    lines = []
    rounds = 3 if quick else 7
    everyone = ("ours", *PEERS)
    motion, positions = attrgetter("motion"), attrgetter("displacement")

    def compare(
        title: str,
        system: str,
        call: Callable[[Any], Callable[[], object]],
        names: tuple[str, ...] = everyone,
        *,
        rounds: int = rounds,
        train: bool = False,
        samples: int | None = None,
    ) -> None:
        made = {name: provider(name, build(system), train=train) for name in names}
        calls = {name: call(one) for name, one in made.items()}
        count, unit = (made["ours"].atoms, "atom") if samples is None else (samples, "sample")
        lines.append(line(title, calls, count, unit, rounds))

    def window(times: np.ndarray) -> Callable[[Any], Callable[[], object]]:
        return lambda made: lambda: made.window(times)

    with torch.no_grad():
        compare("diamond 512, positions and velocities", "diamond-512", motion)
        lines[-1]["errors"] = accuracy("diamond-512", everyone)
        if not quick:  # the largest that two dense passes fit into some 8 GB
            compare("diamond 1000, positions and velocities", "diamond-1000", motion, rounds=3)
        alone = ("ours", "reference")
        compare("diamond 4096, positions and velocities", "diamond-4096", motion, alone)
        compare("diamond 512, positions", "diamond-512", positions)
        compare("64 ethanols, positions", "ethanol-64", positions, samples=64)
        lines[-1]["errors"] = accuracy("ethanol-64", everyone)
        frames = "ethanol, 10 frames with velocities"
        compare(frames, "ethanol-1", window(np.arange(1.0, 11)), rounds=3 * rounds, samples=1)
        frame = "ethanol, end frame with velocities"
        compare(frame, "ethanol-1", window(np.array([10.0])), rounds=3 * rounds, samples=1)
    step = "64 ethanols, training step"
    compare(step, "ethanol-64", TrainingStep, rounds=min(rounds, 5), train=True, samples=64)
    return lines


def scaling(quick: bool) -> dict[str, Any]:
    """Time per pass (positions) over the number of atoms, and the exponent from 10^3 atoms on."""
    largest = 40_000 if quick else 110_000
    result: dict[str, Any] = {}
    for kind in ("diamond", "fluid"):
        sizes = [name for name in SYSTEMS if name.startswith(kind)]
        for system in sizes:
            count = int(system.split("-")[1])
            if count < 200 or count > largest:
                continue
            atoms = build(system)
            names = ["ours"]
            if kind == "diamond":
                names += ["reference"] if count < 5000 else []
                names += ["e3nn-sparse", "e3nn-dense"] if count <= 512 else []
            made = {name: provider(name, atoms) for name in names}
            calls = {name: m.displacement for name, m in made.items()}
            with torch.no_grad():
                row = line(f"{kind} {count}, scaling", calls, count, "atom", 3)
            for name, timing in row["times"].items():
                result.setdefault(f"{kind}, {name}", []).append({"atoms": count, **timing})
    exponents = {}
    for series, rows in result.items():
        large = [row for row in rows if row["atoms"] >= 1000]
        if len(large) > 2:
            atoms = np.log([row["atoms"] for row in large])
            exponents[series] = {
                k: float(np.polyfit(atoms, np.log([row[k] for row in large]), 1)[0])
                for k in ("median", "min")
            }
    return {"series": result, "exponents": exponents}


def thread_scaling(quick: bool) -> dict[str, Any]:
    """One thread against two, four, ... on some 10^4 atoms."""
    cores = len(os.sched_getaffinity(0))
    counts = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= cores]
    made = provider("ours", build("diamond-10648"))

    def call(threads: int) -> Callable[[], object]:
        def timed() -> None:
            torch.set_num_threads(threads)
            made.displacement()

        return timed

    with torch.no_grad():
        row = line(
            "diamond 10648, positions, threads",
            {str(k): call(k) for k in counts},
            made.atoms,
            "atom",
            3 if quick else 5,
        )
    torch.set_num_threads(THREADS)
    return row


def peak_fraction(quick: bool) -> dict[str, Any]:
    """The multiply-adds of our equations a second, as a fraction of what the processor can do."""
    made = provider("ours", build("diamond-4096"))
    neighbours = len(made.graph.neighbor) / made.atoms
    config = made.model.config
    counts = operations(config)
    flop = 2 * config.num_attn_blocks * made.atoms * counts.per_atom(neighbours)
    with torch.no_grad():
        row = line(
            "diamond 4096, positions",
            {"ours": made.displacement},
            made.atoms,
            "atom",
            3 if quick else 9,
        )
    peak = best_peak(THREADS)
    time_of = row["times"]["ours"]
    return {
        "neighbours": neighbours,
        "multiply_adds_per_edge_and_block": counts.edge,
        "multiply_adds_per_atom_and_block": counts.atom,
        "gflop_per_pass": flop / 1e9,
        "peak_gflops": peak,
        "gflops": {k: flop / 1e9 / time_of[k] for k in ("median", "min")},
        "fraction": {k: flop / 1e9 / time_of[k] / peak for k in ("median", "min")},
    }


def graph_cost(quick: bool) -> dict[str, Any]:
    """Neighbour list and graph, which the other lines leave out, beside a pass."""
    atoms = build("diamond-4096")
    model = published_model()
    made = provider("ours", atoms)
    with torch.no_grad():
        return line(
            "diamond 4096, graph beside a pass",
            {
                "pass": made.displacement,
                "graph": lambda: model.graph(System.from_atoms(atoms)),
            },
            made.atoms,
            "atom",
            3 if quick else 5,
        )


def memory(quick: bool) -> list[dict[str, Any]]:
    """Peak memory of a pass beyond its input, each in a process of its own."""
    rows = []
    wanted = [
        ("ours", "displacement", 11 if quick else 23),
        ("ours", "motion", 11 if quick else 23),
    ]
    wanted += [("e3nn-sparse", "displacement", 4), ("e3nn-dense", "displacement", 4)]
    for name, mode, cells in wanted:
        command = [sys.executable, str(HERE / "memory.py"), name, mode, "diamond", str(cells)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        row = {"provider": name, "pass": mode, **json.loads(printed)}
        row["kB_per_atom"] = row["growth"] / row["atoms"] / 1e3
        print(f"memory of {name}, {mode}: {row['kB_per_atom']:.1f} kB an atom", flush=True)
        rows.append(row)
    return rows


def versions(*also: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("mdtrajnet_fast", "torch", "e3nn", "numpy", *also):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    described = subprocess.run(git, capture_output=True, text=True)
    found["commit"] = described.stdout.strip() or None
    return found


def launched(processes: int) -> list[str]:
    """The words of a command line that start a script in so many processes, more than one with
    torchrun."""
    if processes == 1:
        return [sys.executable]
    torchrun = ["-m", "torch.distributed.run", "--standalone"]
    return [sys.executable, *torchrun, "--nproc-per-node", str(processes)]


def began(quick: bool, *also: str) -> dict[str, Any]:
    """What every report says of its run; also: further packages whose versions matter."""
    return {
        "date": datetime.date.today().isoformat(),
        "quick": quick,
        "threads": THREADS,
        "processor": processor(),
        "versions": versions(*also),
    }


def heading(report: dict[str, Any]) -> list[str]:
    """Processor, day, threads and versions, as the first lines of a report."""
    cpu = report["processor"]
    return [
        f"# {cpu['name']} (family {cpu['family']}, model {cpu['model']}), {report['date']}",
        "",
        f"{report['threads']} thread(s) of {cpu['cores']}; {', '.join(cpu['instruction_sets'])}; "
        + ", ".join(f"{k} {v}" for k, v in cpu["caches"].items())
        + "; "
        + ", ".join(f"{k} {v}" for k, v in report["versions"].items() if v),
        "",
    ]


def write(report: dict[str, Any], text: str, folder: Path, kind: str) -> Path:
    """Print a report and write it as JSON and Markdown; returns their path without suffix."""
    stem = f"{kind}-{report['date']}-{slug(report['processor'])}"
    stem += "-quick" if report["quick"] else ""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / stem
    base.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    base.with_suffix(".md").write_text(text)
    print("\n" + text)
    return base


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    peak = report["fma_peak"]
    out = [
        *heading(report),
        "Random weights of published sizes, float32. Medians of interleaved rounds, the fastest "
        'in brackets. "ratio" is the time over that of ours.'
        + (" Quick run: few rounds." if report["quick"] else ""),
        "",
        "| multiply-add peak, GFLOP/s | " + " | ".join(peak) + " |",
        "|---" * (len(peak) + 1) + "|",
    ]
    for kind in ("f32", "f64"):
        out.append(f"| {kind} | " + " | ".join(f"{x[kind]:.1f}" for x in peak.values()) + " |")
    out += ["", "## Side by side", "", "| | provider | ms | ms per unit | units/s | ratio |"]
    out += ["|---|---|---:|---:|---:|---:|"]
    for row in [*report["comparisons"], report["threads_line"], report["graph"]]:
        for k, (name, timing) in enumerate(row["times"].items()):
            median, low = 1e3 * timing["median"], 1e3 * timing["min"]
            ratio = row["ratios"][name]
            out.append(
                f"| {row['title'] if k == 0 else ''} | {name} | {median:.4g} ({low:.4g}) "
                f"| {median / row['count']:.4g} / {row['unit']} "
                f"| {1e3 * row['count'] / median:.4g} "
                f"| {ratio['median']:.3g} ({ratio['min']:.3g}) |"
            )
    out += ["", "## Errors in float32, against ours in float64", ""]
    out += ["| | provider | largest position error, Å | relative to the coordinates "]
    out[-1] += "| velocity error, rms, Å/fs | relative to the velocities |"
    out += ["|---|---|---:|---:|---:|---:|"]
    for row in report["comparisons"]:
        for name, e in row.get("errors", {}).items():
            out.append(
                f"| {row['title'].split(',')[0]} | {name} | {e['position_max']:.1e} "
                f"| {e['position_relative']:.1e} | {e['velocity_rms']:.1e} "
                f"| {e['velocity_relative']:.1e} |"
            )
    f = report["peak_fraction"]
    out += [
        "",
        "## Of the machine's limit",
        "",
        f"Diamond of 4096 atoms, positions, {f['neighbours']:.1f} neighbours: "
        f"{f['multiply_adds_per_edge_and_block']:,} multiply-adds an edge and "
        f"{f['multiply_adds_per_atom_and_block']:,} an atom and block, "
        f"{f['gflops']['median']:.1f} GFLOP/s ({f['gflops']['min']:.1f}) of a peak of "
        f"{f['peak_gflops']:.1f}: {100 * f['fraction']['median']:.1f} % "
        f"({100 * f['fraction']['min']:.1f} %).",
        "",
        "## Growth with the number of atoms",
        "",
        "Positions; time ~ atoms^exponent, fitted from 1000 atoms on.",
        "",
        "| | atoms: ms | exponent |",
        "|---|---|---:|",
    ]
    for series, rows in report["scaling"]["series"].items():
        times = ", ".join(f"{row['atoms']}: {1e3 * row['median']:.4g}" for row in rows)
        exponent = report["scaling"]["exponents"].get(series)
        fitted = f"{exponent['median']:.3f} ({exponent['min']:.3f})" if exponent else ""
        out.append(f"| {series} | {times} | {fitted} |")
    out += [
        "",
        "## Memory of a pass beyond its input",
        "",
        "| provider | pass | atoms | kB an atom |",
    ]
    out += ["|---|---|---:|---:|"]
    for row in report["memory"]:
        out.append(
            f"| {row['provider']} | {row['pass']} | {row['atoms']} | {row['kB_per_atom']:.4g} |"
        )
    return "\n".join(out) + "\n"


@contextmanager
def loglog(path: Path) -> Iterator[Any]:
    """Axes for curves in logarithmic scales, which become a picture with grid and legend."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.8), layout="constrained")
    yield axes
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot(report: dict[str, Any], path: Path) -> None:
    """Time of a pass against the number of atoms, both logarithmic."""
    with loglog(path) as axes:
        for series, rows in report["scaling"]["series"].items():
            exponent = report["scaling"]["exponents"].get(series)
            label = series + (f", exponent {exponent['median']:.2f}" if exponent else "")
            axes.loglog(
                [row["atoms"] for row in rows],
                [row["median"] for row in rows],
                marker="o",
                linestyle="-" if series.startswith("diamond") else "--",
                label=label,
            )
        axes.set_xlabel("atoms")
        axes.set_ylabel("s per pass (positions)")
        axes.set_title(f"{report['processor']['name']}, {report['threads']} thread(s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="default: %(default)s"
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    torch.set_num_threads(THREADS)

    report = {
        **began(quick),
        "fma_peak": fma_peak(THREADS),
        "comparisons": comparisons(quick),
        "threads_line": thread_scaling(quick),
        "graph": graph_cost(quick),
        "peak_fraction": peak_fraction(quick),
        "scaling": scaling(quick),
        "memory": memory(quick),
    }
    base = write(report, markdown(report), arguments.output, "cpu")
    plot(report, base.with_suffix(".png"))
    print(f"written to {base}.json, .md and .png")


if __name__ == "__main__":
    main()
