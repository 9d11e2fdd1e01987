"""Models on disk."""

import json
import subprocess
import sys
import warnings

import cases
import numpy as np
import pytest
import torch
from ase.units import fs

from mdtrajnet_fast import MDtrajNetDynamics, bundled_models, load_model, save_model, simulate
from mdtrajnet_fast.md.simulation import model_hash
from mdtrajnet_fast.model.checkpoint import BUNDLED, provenance


@pytest.mark.parametrize("options", [{}, cases.OWN])
def test_round_trip(tmp_path, options):
    model = cases.model(**options)
    save_model(model, tmp_path / "model", provenance={"data": "none"})
    again = load_model(tmp_path / "model", dtype="float64")
    assert again.config == model.config
    assert again.name == model.name
    assert provenance(tmp_path / "model") == {"data": "none"}
    atoms = cases.hot("H2O")
    for x, y in zip(model.predict(atoms, [3.0]), again.predict(atoms, [3.0]), strict=True):
        np.testing.assert_array_equal(x, y)
    assert load_model(tmp_path / "model").dtype == torch.float32


def test_float64_models_are_not_rounded(tmp_path):
    model = cases.model(**cases.OWN)
    with torch.no_grad():
        for p in model.parameters():
            p += 1e-9 * torch.rand_like(p)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model", dtype="float64")
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_the_longest_lag_is_kept_and_warned_of(tmp_path):
    model = cases.model(**cases.OWN, longest_lag=5.0)
    assert load_model(save_model(model, tmp_path / "model")).config.longest_lag == 5
    assert "longest_lag" not in cases.config().to_dict()  # nor in the hash of older models
    atoms = cases.hot("H2O")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model.predict(atoms, [5.0])
        MDtrajNetDynamics(atoms.copy(), fs, model=model, window=5.0)
    beyond = "6 fs are beyond the 5 fs that model 'unnamed' was trained on"
    with pytest.warns(RuntimeWarning, match=beyond):
        model.predict(atoms, [1.0, 6.0])
    with pytest.warns(RuntimeWarning, match=beyond):
        MDtrajNetDynamics(atoms.copy(), fs, model=model, window=6.0)
    for window, doubted in ((5.0, False), (6.0, True)):
        trust = simulate(atoms, 1.0, duration=12, model=model, window=window).trust
        assert any(beyond in text for text in trust.warnings) == doubted
        assert (trust.believable_fs == 0) == doubted


def test_molecules_larger_than_those_of_the_training_are_warned_of(tmp_path):
    model = cases.model(**cases.OWN, largest=3)
    assert load_model(save_model(model, tmp_path / "model")).config.largest == 3
    assert model_hash(model) == model_hash(cases.model(**cases.OWN))
    settings = {"dt": 1.0, "duration": 2, "model": model}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        simulate(cases.hot("H2O"), **settings)
    beyond = "system 1 has 4 atoms, and the molecules that model 'unnamed' was trained on at most 3"
    with pytest.warns(RuntimeWarning, match=beyond):
        simulate([cases.hot("H2O"), cases.hot("NH3")], **settings)
    with pytest.warns(RuntimeWarning, match="system 0 has 4 atoms"):
        MDtrajNetDynamics(cases.hot("NH3"), fs, model=model)
    with pytest.raises(ValueError, match="largest must be a whole number"):
        cases.config(largest=0)


def test_loading_does_without_the_compiler_of_torch(tmp_path):
    """To import it takes longer than all the rest; torch 2.7 needs a part for any layer."""
    code = (
        "import sys, torch, mdtrajnet_fast as m\n"
        "with torch.device('meta'): torch.nn.Linear(1, 1)\n"
        "there = set(sys.modules)\n"
        "for name in m.bundled_models(): m.load_model(name)\n"
        "assert not {'torch._dynamo', 'sympy'} & (sys.modules.keys() - there)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_never_overwritten(tmp_path):
    save_model(cases.model(), tmp_path)
    with pytest.raises(FileExistsError, match="another folder"):
        save_model(cases.model(), tmp_path)


def rewrite(file, **changes):
    """A config.json as somebody would change it on purpose: without its checksum."""
    about = json.loads(file.read_text()) | changes
    about.pop("sha256", None)
    file.write_text(json.dumps(about))


def test_a_changed_number_in_config_is_noticed(tmp_path):
    file = save_model(cases.model(), tmp_path / "m") / "config.json"
    text = file.read_text()
    for old, new in (('"radial_cutoff": 4.0', '"radial_cutoff": 4.5'), ("unnamed", "unnamee")):
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match="m cannot be read.*checksum is wrong.*take its"):
            load_model(tmp_path / "m")
    file.write_text(json.dumps(json.loads(text), sort_keys=True))  # only laid out otherwise
    load_model(tmp_path / "m")
    rewrite(file, name="changed on purpose")  # and as older versions wrote them
    assert load_model(tmp_path / "m").name == "changed on purpose"


def test_bad_models_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model 'nonsense'.*molecules-nve"):
        load_model("nonsense")
    with pytest.raises(ValueError, match="dtype"):
        load_model(save_model(cases.model(), tmp_path / "good"), dtype="float16")

    def broken(name, **changes):
        folder = save_model(cases.model(), tmp_path / name)
        rewrite(folder / "config.json", **changes)
        return folder

    with pytest.raises(ValueError, match="version 99 is newer"):
        load_model(broken("newer", version=99))
    with pytest.raises(ValueError, match="format"):
        load_model(broken("other", format="other"))
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(broken("members", members=2))
    folder = save_model(cases.model(), tmp_path / "torn")
    (folder / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="torn"):
        load_model(folder)


def test_bundled_models_load_and_say_where_they_come_from():
    assert "molecules-nve" in bundled_models()
    for name in bundled_models():
        model, about = load_model(name), provenance(name)
        assert "mdtrajnet train" in about["command"] and about["data"] and about["settings"]
        if not len(model.members):  # window potentials alone, below
            continue
        assert {"C", "H", "N", "O"} <= set(model.config.species)
        assert model.config.window == 4
        assert {"held_out", "unseen"} <= set(about["errors"])
        for errors in about["errors"].values():
            assert 0 < errors["position_A"] < 0.3 * min(errors["static_A"], errors["ballistic_A"])
        card = (BUNDLED / name / "README.md").read_text()
        assert f"{about['errors']['unseen']['position_A']:.4f}" in card


@pytest.mark.parametrize(
    ("name", "window", "systems", "most"),
    [
        ("diamond", 4.0, "periodic", 0.011),
        ("argon", 50.0, "periodic", 0.011),
        ("alanine-dipeptide", 3.0, "molecules", 0.011),
        ("alanine-dipeptide-gbn2", 3.0, "molecules", 0.011),
        ("alanine-dipeptide-small", 4.0, "molecules", 0.013),
    ],
)
def test_bundled_models_of_windows_alone_say_how_good_they_are(name, window, systems, most):
    model, about = load_model(name), provenance(name)
    assert not len(model.members) and model.config.systems == systems
    assert model.config.window_potentials.window == window
    assert model.usual_uncertainty is not None
    for errors in about["window_errors"].values():
        assert errors["time_fs"] == window
        assert errors["velocity_A_per_fs"] < most * errors["thermal_velocity_A_per_fs"]
    card = (BUNDLED / name / "README.md").read_text()
    held_out = about["window_errors"]["held_out"]
    share = held_out["velocity_A_per_fs"] / held_out["thermal_velocity_A_per_fs"]
    assert f"{share:.2%}".replace("%", " %") in card


def test_damaged_weights_are_refused(tmp_path):
    """safetensors has no checksum: a changed bit would be another function."""
    save_model(cases.model(), tmp_path / "m")
    file = tmp_path / "m" / "weights.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-100] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match="checksum is wrong"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attn_blocks", 10**9),
        ("sp_embed_dim", 10**9),
        ("num_heads", 10**6),
        ("num_attn_blocks", 2.0),
        ("envelope", float("nan")),
        ("radial_cutoff", float("inf")),
        ("head", None),
        ("window_potentials", {"layers": 10**9}),
        ("potential", {"hidden": 10**12}),
    ],
)
def test_sizes_are_those_of_the_weights(tmp_path, name, value):
    """Before memory is taken: sizes of config.json could ask for all that there is."""
    save_model(cases.model(), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    rewrite(file, config=json.loads(file.read_text())["config"] | {name: value})
    with pytest.raises(ValueError, match="m cannot be read as a model"):
        load_model(tmp_path / "m")


def test_what_config_lacks_is_not_guessed(tmp_path):
    save_model(cases.model(**cases.OWN), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    about = json.loads(file.read_text())
    for name in ("envelope", "residual", "lmax"):
        less = {k: v for k, v in about["config"].items() if k != name}
        rewrite(file, config=less)
        with pytest.raises(ValueError, match=f"config.json lacks {name}"):
            load_model(tmp_path / "m")


def test_damaged_published_checkpoints_are_refused(tmp_path):
    raw = bytearray((cases.DATA / "tiny.pt").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "bad.pt").write_bytes(raw)
    with pytest.raises(ValueError, match="bad.pt is damaged"):
        load_model(tmp_path / "bad.pt")
    content = torch.load(cases.DATA / "tiny.pt", weights_only=False)
    for name in ("num_attn_blocks", "sp_embed_dim"):
        torch.save(content | {"args": content["args"] | {name: 10**9}}, tmp_path / "bomb.pt")
        with pytest.raises(ValueError, match="bomb.pt.*(do not fit|suits the)"):
            load_model(tmp_path / "bomb.pt")


def test_nobody_is_advised_to_run_the_code_of_a_file(tmp_path):
    file = tmp_path / "text.pt"
    file.write_text("3\n\nO 0 0 0\nH 0 0 1\nH 0 1 0\n")
    with pytest.raises(ValueError, match="text.pt is damaged, or cannot be read") as refused:
        load_model(file)
    assert "weights_only" not in str(refused.value)
