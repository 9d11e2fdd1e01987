"""Batches made on the device, here the CPU, equal those of Pairs and model.graph."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch
from cases import gentle
from no_waits import NoWaits
from pair_cases import RECORDS, assert_same_batch, record
from torch.utils._python_dispatch import _disable_current_modes

from mdtrajnet_fast import fit
from mdtrajnet_fast.data.device_pairs import ResidentPairs, tensor_batch, window_batch
from mdtrajnet_fast.data.pairs import MARGIN, Pairs
from mdtrajnet_fast.data.records import write_records
from mdtrajnet_fast.train import fit as train
from mdtrajnet_fast.train.evaluate import errors, window_errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"time_reversal": True, "lag_power": 1.0}, {"lag_fs": 6.0}],
    ids=["plain", "reversed", "one lag"],
)
def test_batches_are_those_of_pairs(dtype, options):
    model, pairs = cases.model(dtype=dtype, **cases.OWN), Pairs(RECORDS)
    resident = ResidentPairs(pairs, model)
    sizes = set()
    for seed, count in enumerate((1, 2, 50, 50, 50)):
        choice = pairs.choose(np.random.default_rng(seed), count, 8.0, **options)
        ours = resident.batch(choice)
        assert_same_batch(ours, tensor_batch(model, pairs.batch(choice)))
        sizes.add((len(ours.graph.neighbor), ours.graph.components))
    assert len(sizes) == 5


def test_pairs_at_the_cutoff():
    """Decided as the neighbour list decides: a distance equal to the cutoff belongs to it."""
    line = np.zeros((2, 3, 3), np.float32)
    line[:, 1, 0], line[:, 2, 0] = 4.0, np.float32(8.0000005)
    given = record("H2O", 0, positions=line, velocities=np.zeros_like(line))
    model, pairs = cases.model(), Pairs([given])
    choice = pairs.choose(np.random.default_rng(0), 3, 1.0)
    ours = ResidentPairs(pairs, model).batch(choice)
    assert_same_batch(ours, tensor_batch(model, pairs.batch(choice)))
    assert ours.graph.row_ptr.tolist() == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert ours.graph.components == 6


def unwatched(array: np.ndarray) -> torch.Tensor:
    """An array on the device, unseen by NoWaits: what is sent need not be waited for."""
    with _disable_current_modes():
        return torch.from_numpy(array)


def test_drawing_waits_for_nothing(monkeypatch):
    """But for the few numbers that are sent to the device, which it need not wait for."""
    resident = ResidentPairs(Pairs(RECORDS), cases.model())
    choice = resident.pairs.choose(np.random.default_rng(0), 20, 8.0, time_reversal=True)
    monkeypatch.setattr(resident, "_send", unwatched)
    with NoWaits():
        resident.batch(choice)


def test_windows_are_those_of_pairs(monkeypatch):
    """Drawn without waiting; their graphs have more edges, of which nothing is seen."""
    model = gentle(**cases.OWN, **cases.WINDOW_POTENTIALS).requires_grad_(True)
    pairs = Pairs([x for x in RECORDS if x.frame_fs == 1.0])
    resident = ResidentPairs(pairs, model)
    how = {"lag_fs": 3.0, "time_reversal": True, "margin": MARGIN}
    choice = pairs.choose(np.random.default_rng(4), 12, 3.0, **how)
    found = []
    for batch in (window_batch(model, pairs, choice), resident.windows(choice)):
        for a, b in zip(batch[1:], window_batch(model, pairs, choice)[1:], strict=True):
            assert a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=1e-12)
        model.zero_grad()
        errors, energies = window_errors(model, batch)
        errors = [*errors, energies]
        sum(x.square().sum() for x in errors).backward()
        gradients = [p.grad for p in model.window_potentials.parameters()]
        found.append([*errors, *gradients])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(resident, "_send", unwatched)
    model.backend = "reference"  # as on a device
    with NoWaits(), torch.no_grad():
        window_errors(model, resident.windows(choice))


def test_errors_and_gradients():
    model = cases.model(**cases.OWN).requires_grad_(True)
    pairs = Pairs(RECORDS)
    gradients = []
    for source in (pairs, ResidentPairs(pairs, model)):
        model.zero_grad()
        dx, dv = errors(model, source.batch(pairs.choose(np.random.default_rng(3), 20, 8.0)))
        (dx.square().mean() + dv.square().mean()).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_training_takes_the_same_steps(tmp_path, monkeypatch):
    write_records(tmp_path / "data.h5", RECORDS)
    runs = []
    for kind in ("pairs", "resident"):
        config = train.TrainConfig(
            output=str(tmp_path / kind),
            data=(str(tmp_path / "data.h5"),),
            model=cases.SMALL | cases.OWN,
            steps=5,
            batch_size=8,
            threads=1,
        )
        if kind == "resident":
            begin = train._Run.__init__

            def on_device(self, *arguments, begin=begin):
                begin(self, *arguments)
                self.task.source = ResidentPairs(self.pairs, self.model)

            monkeypatch.setattr(train._Run, "__init__", on_device)
        runs.append(fit(config, progress=False).state_dict())
    assert all(torch.equal(runs[1][name], value) for name, value in runs[0].items())


def test_what_cannot_be_resident_is_refused():
    model = cases.model()
    periodic = record("H2O", 1, cell=np.eye(3) * 20, pbc=np.array([True, False, False]))
    with pytest.raises(ValueError, match="H2O/traj01 is periodic"):
        ResidentPairs(Pairs([RECORDS[0], periodic]), model)
    positions = RECORDS[1].positions.copy()
    positions[7, 2] = positions[7, 1]
    with pytest.raises(ValueError, match="H2O/traj01 has frames in which atoms coincide"):
        ResidentPairs(Pairs([record("H2O", 1, positions=positions)]), model)
    with pytest.raises(ValueError, match="does not know the elements Si"):
        ResidentPairs(Pairs([record("SiH4", 2)]), model)
