"""MACE with random weights: what it costs, for where its trained weights are not at hand.

    pip install mace-torch

Sizes of the small MACE-MP model (Batatia et al., arXiv 2401.00096; 128x0e, two layers, cutoff 6 Å),
for one element.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch


def calculator(number: int = 6) -> Any:
    """An ASE calculator of atoms of this atomic number, float32 on the CPU."""
    # e3nn's table of Wigner symbols is a pickle of tensors and slices
    with warnings.catch_warnings(), torch.serialization.safe_globals([slice]):
        warnings.simplefilter("ignore")
        from e3nn import o3
        from mace import modules
        from mace.calculators import MACECalculator

        torch.manual_seed(0)
        model = modules.ScaleShiftMACE(
            r_max=6.0,
            num_bessel=10,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes[
                "RealAgnosticResidualInteractionBlock"
            ],
            num_interactions=2,
            num_elements=1,
            hidden_irreps=o3.Irreps("128x0e"),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=np.zeros(1),
            avg_num_neighbors=100.0,
            atomic_numbers=[number],
            correlation=3,
            gate=torch.nn.functional.silu,
            atomic_inter_scale=1e-3,  # small forces: random ones would blow the crystal up
            atomic_inter_shift=0.0,
        ).float()
        return MACECalculator(models=model, device="cpu", default_dtype="float32")
