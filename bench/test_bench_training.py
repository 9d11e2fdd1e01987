"""Both trainings of the comparison see the same data, and its report holds both."""

from __future__ import annotations

import training

from mdtrajnet_fast import TrainConfig
from mdtrajnet_fast.data.generate import generate


def test_a_short_comparison(tmp_path, monkeypatch):
    generate(["O"], tmp_path / "data.h5", trajectories=2, duration_fs=40, equilibration_fs=10)
    recipe = TrainConfig(
        output="unused",
        data=(str(tmp_path / "data.h5"),),
        exclude_trajectories=("traj01",),
        validation={"held": {"data": [str(tmp_path / "data.h5")], "trajectories": ["traj01"]}},
        model={"num_attn_blocks": 1, "velocity_readout": True},
        velocity_weight_fs=4.0,
        validation_pairs=8,
        optimizer="soap",
    )
    other = training.published(recipe)
    assert (other.data, other.validation) == (recipe.data, recipe.validation)
    assert other.exclude_trajectories == recipe.exclude_trajectories
    assert other.model == {} and other.optimizer == "adamw" and other.velocity_weight_fs == 0

    monkeypatch.setattr(training, "PROBE", 40)
    monkeypatch.setattr(training, "PAIRS", 8)
    runs = {
        name: training.trained(config, 1e-4, tmp_path / name)
        for name, config in {"tiny": recipe, "published": other}.items()
    }
    assert runs["published"]["parameters"] > 3 * runs["tiny"]["parameters"]
    assert [len(run["curve"]) for run in runs.values()] == [training.CHECKS] * 2
    report = training.began(quick=False) | {"recipe": "tiny", "minutes": 1e-4, "runs": runs}
    assert training.markdown(report).count("| held |") == 2
    training.plot(report, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
