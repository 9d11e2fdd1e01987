"""Commands of the documentation, run."""

from __future__ import annotations

import glob
import os
import shlex
import subprocess
import sys
from pathlib import Path

from mdtrajnet_fast.cli import main

# Of the crystal and the fluid.
SHORTER_SOLIDS = [
    ("--duration 6000", "--duration 400 --equilibration 100"),
    ("--equilibration 20000 --dt 50", "--equilibration 1000 --dt 50"),
    ("--dt 50 --duration 20000", "--dt 50 --duration 5000"),
]


def shortened(text: str, changes: list[tuple[str, str]]) -> str:
    """The same commands for a shorter time: what is said, and what is run instead."""
    for said, instead in changes:
        assert said in text, f"{said!r} is not said"
        text = text.replace(said, instead)
    return text


def shell(text: str) -> str:
    """Run lines of shell in the current folder; what those say that are not `mdtrajnet`.

    Commands of `mdtrajnet` run in this process, where starting takes no time; others in bash, with
    this Python's programs.
    """
    said = ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("mdtrajnet "):
            words = [sorted(glob.glob(w)) or [w] if "?" in w else [w] for w in shlex.split(line)]
            assert main(sum(words[1:], [])) == 0, line
            continue
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path}
        command = ["bash", "-e", "-c", line]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stdout + result.stderr
        said += result.stdout
    return said
