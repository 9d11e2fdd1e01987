"""Dipoles are trained on those of the data."""

import csv

import ase
import numpy as np
import pytest
import torch
from pair_cases import RECORDS, potential_config

from mdtrajnet_fast import fit, load_model
from mdtrajnet_fast.data.pairs import Pairs
from mdtrajnet_fast.data.records import load_records
from mdtrajnet_fast.train.evaluate import dipole_errors, rms_dipole_errors

SIZES = {"layers": 1, "radial": 12, "channels": 8, "products": 8, "hidden": 16}


def test_training(water_and_ammonia, tmp_path):
    """All else stays as it is; log, files and figures hold what was learned."""
    config = potential_config("dipole", water_and_ammonia, tmp_path, SIZES, optimizer="soap")
    trained = fit(config, progress=False)
    with (tmp_path / "run" / "log.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    pairs = Pairs(load_records(water_and_ammonia, trajectories=["traj01"]))
    saved = load_model(tmp_path / "run" / "model")
    found = rms_dipole_errors(saved, pairs, 64)
    assert found["dipole"] == pytest.approx(float(last["val_held_dipole"]), rel=1e-5)
    assert found["zero"] == pytest.approx(float(last["val_held_zero"]), rel=1e-9)
    assert found["dipole"] < 0.1 * found["zero"]
    motion = load_model(tmp_path / "motion").state_dict()
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(value, trained.state_dict()[name], rtol=0, atol=0)
        if not name.startswith("dipole."):
            torch.testing.assert_close(value, motion[name], rtol=0, atol=0)
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
    # of the frames that were chosen
    choice = pairs.choose_frames(np.random.default_rng(0), 5)
    errors = dipole_errors(saved, pairs, choice).numpy()
    for k, error in enumerate(errors):
        record, frame = pairs.records[choice.record[k]], choice.first[k]
        predicted = saved.dipoles(ase.Atoms(record.numbers, record.positions[frame]))
        np.testing.assert_allclose(error, predicted - record.dipole[frame], atol=1e-6)


def test_data_without_dipoles_are_refused():
    pairs = Pairs(RECORDS)
    choice = pairs.choose_frames(np.random.default_rng(0), 5)
    with pytest.raises(ValueError, match="CH3CH2OH/traj00 has no dipoles: make data with a"):
        pairs.dipoles(choice)
