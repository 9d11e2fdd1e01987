"""What trainings of potentials and of dipoles have in common."""

import dataclasses

import numpy as np
import pytest
import torch
from pair_cases import potential_config

from mdtrajnet_fast import fit
from mdtrajnet_fast.train import fit as train

SIZES = {
    "potential": {"radial": 12, "products": 16, "hidden": 32},
    "window_potentials": {"layers": 1, "radial": 12, "channels": 8, "products": 8, "hidden": 16},
    "dipole": {"layers": 1, "radial": 12, "channels": 8, "products": 8, "hidden": 16},
}
OPTIONS = {
    "potential": {"max_lag_fs": 30.0},
    "window_potentials": {"optimizer": "soap", "mass_power": 1.0, "time_reversal": True},
    "dipole": {"optimizer": "soap"},
}


@pytest.fixture(params=SIZES)
def config(request, water_and_ammonia, tmp_path):
    target = request.param
    return potential_config(target, water_and_ammonia, tmp_path, SIZES[target], **OPTIONS[target])


def test_resume_is_exact(config, tmp_path):
    """With several processes, too, as test_fit.py shows: they share a batch, see below."""
    config = dataclasses.replace(config, steps=20, validate_every=10)
    whole = fit(config, progress=False).state_dict()
    parts = dataclasses.replace(config, output=str(tmp_path / "parts"))
    fit(parts, progress=False, stop_after=7)
    for name, value in fit(parts, progress=False).state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)


def test_processes_share_a_batch(config, tmp_path):
    """Their number changes the order of sums and nothing else."""
    config = dataclasses.replace(config, steps=4)
    runs = [
        train._Run(dataclasses.replace(config, output=str(tmp_path / str(size))), member)
        for size, member in ((1, train.Member()), (2, train.Member(0, 2)), (3, train.Member(1, 2)))
    ]
    whole, *parts = (run.task.loss(np.random.default_rng(3), run.member).item() for run in runs)
    assert sum(parts) == pytest.approx(whole, rel=1e-5)
