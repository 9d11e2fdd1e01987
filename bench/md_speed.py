"""Wall-clock time of a picosecond of ethanol at 300 K: rollouts beside molecular dynamics.

    python bench/md_speed.py [--quick] [--models NAME ...] [--output DIRECTORY]

Everything runs in one process, in turn, on one thread. See bench/README.md for what each line
means and for the optional peer torchani.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# tblite has threads of its own and reads this when it is loaded.
os.environ["OMP_NUM_THREADS"] = os.environ.get("MDTRAJNET_BENCH_THREADS", "1")

import ase  # noqa: E402
import ase.build  # noqa: E402
import ase.units  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase.md.verlet import VelocityVerlet  # noqa: E402
from providers import THREADS, provider  # noqa: E402
from report import HERE, Timing, began, heading, interleave, loglog, write  # noqa: E402
from verlet import verlet_model  # noqa: E402

from mdtrajnet_fast import (  # noqa: E402
    MDtrajNet,
    MDtrajNetCalculator,
    Trajectory,
    load_model,
    simulate,
    thermal_velocities,
)
from mdtrajnet_fast.data.generate import make_calculator  # noqa: E402
from mdtrajnet_fast.md.window import method_of, stride_of  # noqa: E402
from mdtrajnet_fast.model.checkpoint import provenance

TEMPERATURE_K = 300.0
STEP = 0.5  # fs, of velocity Verlet
PUBLISHED_WINDOW = 10.0  # fs
MANY = 256  # trajectories at once
MODELS = ("molecules-nve", "molecules-nve-small")
FAST = "molecules-nve"  # the model that is asked to be so much faster

END, FRAMES = "end frames", "1 fs frames with velocities"
BATCH = f"end frames, {MANY} trajectories, each"
ANI_ASE, ANI_BARE = "ANI-1x ensemble of 8, ASE", "ANI-1x ensemble of 8, bare torch loop"
ANI_ONE, GFN2 = "ANI-1x, one member, bare torch loop", "GFN2-xTB, tblite, ASE"
OWN, OWN_NATIVE = (f"molecules-nve's own potential, {how}" for how in ("ASE", "native engine"))
DENSE = "published formulation, e3nn, 10 frames with velocities"
# how many times faster than ANI-1x's ensemble
ASKED = {f"{FAST}: {END}": 100, f"{FAST}: {FRAMES}": 30}

Call = Callable[[], object]


class Run(NamedTuple):
    """Something to time: `call` simulates one ethanol for `fs`, or many, together for `fs`."""

    call: Call
    fs: float


def ethanol(seed: int = 0) -> ase.Atoms:
    """The minimum of ase.build, with velocities of 300 K."""
    atoms = ase.build.molecule("CH3CH2OH")
    thermal_velocities(atoms, TEMPERATURE_K, seed)
    return atoms


# ---- Ours.


def own_window(model: MDtrajNet) -> float:
    """The window of its own method, fs."""
    return stride_of(model, method_of(model, None), None)


def rollouts(name: str, model: MDtrajNet, quick: bool) -> Iterator[tuple[str, Run]]:
    """Whole calls of `simulate`, with all that they do once: a picosecond each, less of many."""
    alone, many = ethanol(), [ethanol(seed) for seed in range(MANY)]
    window = own_window(model)
    few = 5 * window if quick else 25 * window

    def call(atoms: ase.Atoms | list[ase.Atoms], dt: float, fs: float) -> Run:
        return Run(lambda: simulate(atoms, dt, duration=fs, model=model), fs)

    yield f"{name}: {END}", call(alone, window, 1000.0)
    yield f"{name}: {FRAMES}", call(alone, 1.0, 1000.0)
    run = call(many, window, few)
    yield f"{name}: {BATCH}", Run(run.call, MANY * run.fs)


# ---- Molecular dynamics. A call goes on where the last one stopped.


def ani1x(member: int | None = None) -> torch.nn.Module:
    """torchani's ANI-1x: the ensemble of 8, or one member.

    The wheel of torchani 2.2.4 holds the weights, but its index of them, ani-1x_8x.info, is empty,
    for which torchani would download all again. What the index should say is given here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pkg_resources, and of a CUDA extension it lacks
        import torchani
    folder = Path(torchani.__file__).parent / "resources" / "ani-1x_8x"
    names = ("rHCNO-5.2R_16-3.5A_a4-8.params", "sae_linfit.dat", "train")
    index = (*(str(folder / name) for name in names), 8)  # constants, self energies, prefix, count
    with mock.patch.object(torchani.neurochem, "parse_neurochem_resources", return_value=index):
        model = torchani.models.ANI1x(periodic_table_index=True, model_index=member)
    return model.eval().requires_grad_(False)


class AseLoop:
    """ASE's velocity Verlet with a calculator."""

    def __init__(self, calculator: Any, atoms: ase.Atoms):
        self.atoms = atoms
        atoms.calc = calculator
        self.dynamics = VelocityVerlet(atoms, STEP * ase.units.fs)

    def __call__(self, fs: float) -> np.ndarray:
        self.dynamics.run(round(fs / STEP))
        return self.atoms.positions


class TorchLoop:
    """Velocity Verlet in plain torch, with a potential of torchani that TorchScript compiled.

    In the cell of the atoms, where they are periodic in three directions.
    """

    def __init__(self, model: torch.nn.Module, atoms: ase.Atoms):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.model = torch.jit.script(model)
        self.numbers = torch.tensor(atoms.numbers, dtype=torch.int64)[None]
        self.x = torch.tensor(atoms.positions, dtype=torch.float32)[None]  # Å
        velocities = torch.tensor(atoms.get_velocities() * ase.units.fs)
        self.v = velocities.to(self.x)[None]  # Å/fs
        masses = torch.tensor(atoms.get_masses())[:, None]
        self.box: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        if atoms.pbc.all():
            self.box = torch.tensor(atoms.cell[:]).to(self.x), torch.tensor(atoms.pbc)
        self.scale = (-ase.units.Hartree * ase.units.fs**2 / masses).to(self.x)
        self.acceleration = self.accelerate()

    def accelerate(self) -> torch.Tensor:
        """Accelerations in Å/fs^2."""
        x = self.x.detach().requires_grad_()
        energy = self.model((self.numbers, x), *self.box).energies  # Hartree
        (gradient,) = torch.autograd.grad(energy.sum(), x)
        return gradient * self.scale

    def __call__(self, fs: float) -> np.ndarray:
        for _ in range(round(fs / STEP)):
            self.v = self.v + 0.5 * STEP * self.acceleration
            self.x = self.x + STEP * self.v
            self.acceleration = self.accelerate()
            self.v = self.v + 0.5 * STEP * self.acceleration
        return self.x[0].numpy()


def dynamics(quick: bool) -> Mapping[str, Callable[[], Run]]:
    """The peers; each is made when called, which fails where its package is missing."""
    fs = 5.0 if quick else 50.0

    def run(loop: Callable[[float], object], fs: float = fs) -> Run:
        return Run(lambda: loop(fs), fs)

    def dense() -> Run:
        made = provider("e3nn-dense", ethanol())
        return Run(lambda: made.window(np.arange(1.0, PUBLISHED_WINDOW + 1)), PUBLISHED_WINDOW)

    def own_native() -> Run:
        model, atoms = load_model(FAST), ethanol()
        steps = verlet_model(model, STEP)
        every = own_window(model)
        return Run(lambda: simulate(atoms, every, duration=1000.0, model=steps), 1000.0)

    return {
        ANI_ASE: lambda: run(AseLoop(ani1x().ase(), ethanol())),
        ANI_BARE: lambda: run(TorchLoop(ani1x(), ethanol())),
        ANI_ONE: lambda: run(TorchLoop(ani1x(0), ethanol())),
        GFN2: lambda: run(AseLoop(make_calculator("gfn2-xtb"), ethanol())),
        OWN: lambda: run(AseLoop(MDtrajNetCalculator(FAST), ethanol())),
        OWN_NATIVE: own_native,
        DENSE: dense,
    }


def same_course(fs: float = 20.0) -> float:
    """The largest distance (Å) between the two loops with ANI-1x, from one start."""
    model = ani1x()
    there, here = AseLoop(model.ase(), ethanol())(fs), TorchLoop(model, ethanol())(fs)
    return float(abs(there - here).max())


# ---- The report.


def measure(models: Mapping[str, MDtrajNet], quick: bool) -> dict[str, Any]:
    """Seconds of wall-clock time per simulated picosecond, and who is missing, and why."""
    runs: dict[str, Run] = {}
    missing: dict[str, str] = {}
    for name, model in models.items():
        runs |= rollouts(name, model, quick)
    for name, make in dynamics(quick).items():
        try:
            runs[name] = make()
        except (ImportError, ValueError) as error:  # the latter from make_calculator
            missing[name] = f"{type(error).__name__}: {error}"
            print(f"missing: {name}: {missing[name]}", flush=True)
    load = [os.getloadavg()[0]]
    times = interleave({name: run.call for name, run in runs.items()}, 3 if quick else 9)
    load.append(os.getloadavg()[0])
    trust = {}
    for name, model in models.items():
        watched = simulate(ethanol(), own_window(model), duration=1000.0, model=model)
        assert isinstance(watched, Trajectory) and watched.trust is not None
        trust[name] = watched.trust.to_dict()
    return {
        "times": {name: per_picosecond(times[name], run.fs) for name, run in runs.items()},
        "missing": missing,
        "load": load,
        "trust": trust,
        "loops_differ_A": same_course() if ANI_BARE in runs else None,
    }


def per_picosecond(timing: Timing, fs: float) -> Timing:
    """A timing of `fs` as one of a picosecond."""
    samples = [1000 / fs * x for x in timing["samples"]]
    return {**{k: 1000 / fs * timing[k] for k in ("median", "min")}, "samples": samples}


def peer(times: Mapping[str, Timing]) -> str | None:
    """The faster of the two ways to run ANI-1x's ensemble; None where there is none."""
    ways = [name for name in (ANI_ASE, ANI_BARE) if name in times]
    return min(ways, key=lambda name: times[name]["median"], default=None)


def ratios(times: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """How many times faster than the peer, median over median and minimum over minimum."""
    best = peer(times)
    if best is None:
        return {}
    return {
        name: {k: times[best][k] / timing[k] for k in ("median", "min")}
        for name, timing in times.items()
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    times, faster = report["times"], report["ratios"]
    start, end = report["load"]
    cores = report["processor"]["cores"]
    out = [
        *heading(report),
        f"Ethanol at {TEMPERATURE_K:g} K. Wall-clock time for a simulated picosecond, medians of "
        "interleaved rounds, the fastest in brackets. Rollouts in the models' own windows of "
        f"{' and '.join(f'{x:g}' for x in sorted(set(report['windows'].values())))} fs; velocity "
        f"Verlet with {STEP:g} fs steps."
        + (" Quick run: few rounds, short runs." if report["quick"] else ""),
        "",
        f"Load average {start:.1f} at the start and {end:.1f} at the end, on {cores} cores; this "
        "benchmark alone makes 1. Where it is more than the cores, or a median is far from its "
        "minimum, others disturbed: they take time from everybody, so that ratios suffer less "
        "than times, and calls with much data in the caches more than others. Judge by a run on "
        "a quiet machine.",
        "",
        "| | ms per ps | times faster than ANI-1x's ensemble | asked |",
        "|---|---:|---:|---:|",
    ]
    for name, timing in times.items():
        ratio = faster.get(name)
        shown = f"{ratio['median']:.3g} ({ratio['min']:.3g})" if ratio else "no peer"
        asked = f"at least {ASKED[name]}" if name in ASKED else ""
        ms = f"{1e3 * timing['median']:.4g} ({1e3 * timing['min']:.4g})"
        out.append(f"| {name} | {ms} | {shown} | {asked} |")
    out += [f"| {name} | missing: {why} | | |" for name, why in report["missing"].items()]
    if best := peer(times):
        out += ["", f"The peer is the faster of the two: {best}. "]
        if (differ := report["loops_differ_A"]) is not None:
            out[-1] += f"From one start the two are {differ:.1e} Å apart after 20 fs."
    out.append("")
    for name, trust in report["trust"].items():
        warned = "; ".join(trust["warnings"]) or "no warnings"
        kelvin = trust["temperature"]["mean"]
        out.append(f"{name}: a rollout of a picosecond has a mean of {kelvin:.0f} K, {warned}.")
    return "\n".join(out) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """The error of the models after a window against the time that a window takes."""
    with loglog(path) as axes:
        for kind, marker in ((END, "o"), (FRAMES, "s"), (BATCH, "^")):
            times = [report["times"][f"{name}: {kind}"]["median"] for name in report["errors"]]
            axes.loglog(
                [x * report["windows"][n] for n, x in zip(report["errors"], times, strict=True)],
                [error["position_A"] for error in report["errors"].values()],
                marker=marker,
                label=kind,
            )
        axes.set_xlabel("ms a window, ethanol, one thread")
        axes.set_ylabel("error after a window, unseen molecules at 300 K, Å")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter runs, fewer rounds")
    parser.add_argument(
        "--models", nargs="+", default=MODELS, metavar="NAME", help="names or folders"
    )
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="default: %(default)s"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    models = {Path(name).name: load_model(name) for name in arguments.models}
    about = {Path(name).name: provenance(name) for name in arguments.models}
    measured = measure(models, arguments.quick)
    report = {
        **began(arguments.quick, "ase", "torchani", "tblite"),
        "ratios": ratios(measured["times"]),
        "asked": ASKED,
        "windows": {name: own_window(model) for name, model in models.items()},
        "peer": peer(measured["times"]),
        "errors": {
            name: one["errors"]["unseen_300K"]
            for name, one in about.items()
            if "unseen_300K" in one.get("errors", {})
        },
        **measured,
    }
    base = write(report, markdown(report), arguments.output, "md-speed")
    if report["errors"]:
        plot(report, base.with_suffix(".png"))
    print(f"written to {base}.json, .md and, for models that say their errors, .png")


if __name__ == "__main__":
    main()
