"""The window potentials of a model as a model of their own, without the network beside them.

    python recipes/windows_alone.py runs/dipeptide-vacuum alanine-dipeptide models/alanine-dipeptide

For a model that was fine-tuned for symplectic windows, whose network knows nothing of the new data.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from mdtrajnet_fast import MDtrajNet, load_model
from mdtrajnet_fast.model.checkpoint import provenance, save_model
from mdtrajnet_fast.model.config import ModelConfig


def windows_alone(model: MDtrajNet, name: str) -> MDtrajNet:
    """A model of no members with the same windows. Raises ValueError where there are none."""
    if model.window_potentials is None:
        raise ValueError(f"model {model.name!r} has no window potentials")
    config = dataclasses.replace(
        ModelConfig(species=model.config.species),  # what describes a network is as by default
        radial_cutoff=model.config.radial_cutoff,
        window_potentials=model.config.window_potentials,
        systems=model.config.systems,
        largest=model.config.largest,
    )
    alone = MDtrajNet(config, 0, name).to(model.dtype)
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if k in alone.state_dict()})
    return alone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("name")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    alone = windows_alone(load_model(options.model), options.name)
    print(save_model(alone, options.output, provenance=provenance(options.model)))


if __name__ == "__main__":
    main()
