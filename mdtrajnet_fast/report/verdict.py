"""Whether to believe a run, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Verdict(NamedTuple):
    """ok: nothing to warn of. headline: one sentence. checks: what was looked at, and found."""

    ok: bool
    headline: str
    warnings: tuple[str, ...]
    checks: tuple[tuple[str, str], ...]


def verdict(trust: Mapping[str, Any]) -> Verdict:
    """In words what :meth:`.analysis.summary.TrustSummary.to_dict` says in numbers."""
    end = duration(trust["end_fs"])
    if trust["ok"]:
        headline = (
            f"Nothing speaks against this run, to its end at {end}, as far as the model goes: how "
            "right it is, and for what, its card says."
        )
    elif trust["believable_fs"] > trust["start_fs"]:
        until = duration(trust["believable_fs"])
        headline = f"Believe this run up to {until} of {end}, and nothing after that."
    else:
        headline = "Do not believe this run."
    return Verdict(trust["ok"], headline, tuple(trust["warnings"]), tuple(_checks(trust)))


def duration(fs: float) -> str:
    """1500 fs as "1.5 ps"."""
    return f"{fs / 1000:g} ps" if fs >= 1000 else f"{fs:g} fs"


def _checks(trust: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    whole = trust["temperature"]
    if whole["mean"] is not None:
        yield (
            "Temperature",
            f"{whole['mean']:.0f} K on average: {whole['first']:.0f} K in the first fifth, "
            f"{whole['last']:.0f} K in the last",
        )
    elements = {name: t for name, t in trust["elements"].items() if t["mean"] is not None}
    if len(elements) > 1:
        listed = ", ".join(f"{name} {t['mean']:.0f} K" for name, t in elements.items())
        yield "Elements", f"{listed}; in long runs they are equally warm"
    if (energies := trust["energies"]) is not None and energies["drift"] is not None:
        less = "" if energies["heat"] is None else ", less the thermostat's heat,"
        yield (
            "Energy",
            f"the total energy{less} drifts by {abs(energies['drift']):.3f} meV per atom and ps",
        )
    if trust["strongest_band"] is not None:
        share, where = trust["strongest_band"]
        yield (
            "Vibrations",
            f"the strongest band, at {where:.0f} cm⁻¹, holds {100 * share:.0f} % of the kinetic "
            "energy",
        )
    lost, found = (
        [
            f"{'-'.join(change['elements'])} of atoms {' and '.join(map(str, change['atoms']))} "
            f"at {duration(change['time_fs'])}"
            for change in trust[what]
        ]
        for what in ("broken", "formed")
    )
    if trust["bonds"] or lost or found:
        said = (
            f"{len(lost)} of {trust['bonds']} broke: {_some(lost)}"
            if lost
            else f"all {trust['bonds']} of them held"
        )
        yield "Bonds", said + (f"; {len(found)} formed: {_some(found)}" if found else "")
    if (errors := trust["force_errors"]) is not None:
        typical = (sum(e * e for e in errors) / len(errors)) ** 0.5
        yield "Forces", f"the model expects to be wrong by {typical:.3f} eV/Å"
    drift = trust["centre_of_mass_drift"]
    if drift is not None:
        yield "Momentum", f"the centre of mass is {drift:.0e} Å off its straight line"


def _some(items: list[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")
