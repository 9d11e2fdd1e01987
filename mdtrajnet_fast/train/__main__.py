"""What torchrun starts: ``torchrun --nproc-per-node 2 -m mdtrajnet_fast.train RECIPE``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch.distributed as dist

from .config import TrainConfig
from .fit import fit


def main() -> int:
    """Train as a recipe says, with the other processes that torchrun has started."""
    parser = argparse.ArgumentParser(prog="mdtrajnet_fast.train", description=__doc__)
    parser.add_argument("config", type=Path, help="a recipe (TOML)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    try:
        fit(TrainConfig.read(options.config), progress=not options.quiet)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the checkpoint", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"mdtrajnet_fast.train: {error}", file=sys.stderr)
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
