"""The command `mdtrajnet info`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from .. import _C
from ..model.checkpoint import bundled_models, load_model, provenance
from ..runs import versions
from .printing import describe

HELP = "What is installed and built, or what a model is."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("model", nargs="?", help="bundled name, folder or .pt file")


def run(options: argparse.Namespace) -> None:
    """Print it."""
    if options.model is not None:
        model = load_model(options.model)
        print(describe(model))
        about = {"config": model.config.to_dict(), "provenance": provenance(options.model)}
        print(json.dumps(about, indent=2))
        return
    build, cuda = _C.build_info(), _C.cuda_devices()
    for name, version in versions().items():
        print(f"{name:<15} {version}")
    print(f"extension       {build['compiler']}, {', '.join(build['instruction_sets'])}")
    print(f"  OpenMP        {build['openmp'] or 'no'}, {torch.get_num_threads()} threads")
    if build["cuda"]:
        kinds = ", ".join(f"sm_{arch}" for arch in build["cuda"]["archs"])
        print(f"  CUDA part     built with nvcc {build['cuda']['nvcc']} for {kinds}")
    else:
        print("  CUDA part     not built: no nvcc was found")
    for device in cuda["devices"]:
        print(f"  GPU           {device}")
    if not cuda["devices"]:
        print(f"  GPU           none: {cuda['error']}")
    for name in ("mdtrajnet.h", "libmdtrajnet.so"):
        print(f"{name:<15} {Path(_C.__file__).parent / 'lib' / name}")
    print("bundled models")
    for name in bundled_models():
        print(f"  {describe(load_model(name))}")
