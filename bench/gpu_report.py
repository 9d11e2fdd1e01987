"""Build, test and measure on a CUDA machine, in one command; needs no network.

    python bench/gpu_report.py [--only SECTION ...] [--minutes 30] [--output DIRECTORY] [--dry-run]

Writes <gpu>.json and <gpu>.png to bench/results; a run of some sections keeps what the file has of
the others, so that several short runs make one report. Every section runs in a process of its own
with a time limit: one that fails, or crashes, or takes too long is recorded with its message and
with what it had measured, and the next goes on. Peers are measured in the same process as ours.
--dry-run does the same on the CPU with tiny sizes, without the build, to see that the script works.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_sections import DRY, HERE, SECTIONS, Row, small_case


def child(name: str, path: Path | None) -> None:
    """Run one section; its rows go to a file, one a line, as they come."""
    run = small_case if name == "small_case" else SECTIONS[name][0]
    for row in run():
        if "tail" not in row:  # a command's output was printed already
            print("  " + ", ".join(f"{k} {show(v)}" for k, v in row.items()), flush=True)
        if path is not None:
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def section(name: str, limit: float, folder: Path) -> Row:
    """Run a section in a process of its own: its rows, and how it ended."""
    path, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    words = [sys.executable, str(Path(__file__).resolve()), "--section", name, "--rows", str(path)]
    words += ["--dry-run"] if DRY else []
    print(f"\n== {name} (at most {limit:.0f} s)", flush=True)
    begun = time.perf_counter()
    result: Row = {"status": "ok", "message": None}
    with log.open("w") as errors:
        # a session of its own, so that what it started ends with it; not the source tree, which
        # would hide what was installed
        process = subprocess.Popen(words, cwd=HERE, stderr=errors, start_new_session=True)
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            result |= {"status": "timed out", "message": f"stopped after {limit:.0f} s"}
        else:
            if code:
                result |= {"status": "failed", "message": log.read_text()[-2000:]}
    rows = path.read_text().splitlines() if path.exists() else []
    result |= {"seconds": time.perf_counter() - begun, "rows": [json.loads(x) for x in rows]}
    print(f"-- {name}: {result['status']}, {result['seconds']:.0f} s", flush=True)
    if result["message"]:
        print(result["message"], flush=True)
    return result


def exponents(rows: list[Row]) -> list[Row]:
    """Slopes of log time over log atoms: of all sizes, and of those that fill the device."""
    found = []
    ways = {(x["provider"], x["what"]) for x in rows if "median" in x}
    for (provider, what), least in itertools.product(sorted(ways), (0, 8000)):
        points = [
            (math.log(x["atoms"]), math.log(x["median"]))
            for x in rows
            if (x.get("provider"), x.get("what")) == (provider, what)
            and "median" in x
            and x["atoms"] >= least
        ]
        if len(points) > 2:
            slope = statistics.linear_regression(*zip(*points, strict=True)).slope
            found.append(
                {"provider": provider, "what": what, "atoms_from": least, "exponent": slope}
            )
    return found


def plot(report: Row, path: Path) -> None:
    """Time per atom over the number of atoms: passes and windows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    series: dict[str, list[tuple[int, float]]] = {}
    sections = report["sections"]
    for row in sections.get("scaling", {}).get("rows", []):
        if "us_per_atom" in row:
            name = f"{row['provider']}, {row['what']}"
            series.setdefault(name, []).append((row["atoms"], row["us_per_atom"]))
    for row in sections.get("rollout", {}).get("rows", []):
        if "us_per_atom" in row and row["system"].startswith("diamond"):
            name = f"window, {row['provider']}, {row['model']}, {row['frames']} frame(s)"
            series.setdefault(name, []).append((row["atoms"], row["us_per_atom"]))
    figure, axes = plt.subplots(figsize=(7.2, 5.0), layout="constrained")
    for name, points in series.items():
        style = "--" if name.startswith("window") else "-"
        axes.loglog(*zip(*points, strict=True), marker="o", linestyle=style, label=name)
    axes.set_xlabel("atoms (diamond)")
    axes.set_ylabel("µs per atom")
    axes.set_title(report["gpu"])
    axes.grid(True, which="both", alpha=0.3)
    if series:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def gpu_name() -> str:
    """What torch calls the first device, asked in a process of its own; "unknown" without one."""
    words = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name(0))"]
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def begun_report(path: Path, gpu: str) -> Row:
    """The report that an earlier run began, or an empty one; one that cannot be read is lost."""
    report: Row = {"gpu": gpu, "sections": {}}
    try:
        report |= json.loads(path.read_text())
    except (OSError, ValueError):
        pass
    return report | {"date": datetime.date.today().isoformat()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections only")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="for all (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, tiny, to try the script"
    )
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section:
        return child(arguments.section, arguments.rows)

    end = time.perf_counter() + 60 * arguments.minutes
    gpu = "dry run" if DRY else gpu_name()
    base = arguments.output / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    report = begun_report(base.with_suffix(".json"), gpu)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, limit) in SECTIONS.items():
            if arguments.only and name not in arguments.only:
                continue
            left = end - time.perf_counter()
            if left < 5:
                report["sections"].setdefault(
                    name, {"status": "left out", "message": "no time left", "rows": []}
                )
                continue
            report["sections"][name] = section(name, min(limit, left), Path(folder))
            if name == "scaling":
                report["exponents"] = exponents(report["sections"][name]["rows"])
            # after every section: what was measured is kept whatever comes
            base.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    try:
        plot(report, base.with_suffix(".png"))
    except Exception as error:  # noqa: BLE001, the figures are written
        print(f"no plot: {type(error).__name__}: {error}")
    print()
    for name, result in report["sections"].items():
        print(f"{name:12} {result['status']:10} {result.get('seconds', 0):6.0f} s")
    for row in report.get("exponents", []):
        print("exponent: " + ", ".join(f"{k} {show(v)}" for k, v in row.items()))
    print(f"written to {base}.json and .png")


if __name__ == "__main__":
    main()
