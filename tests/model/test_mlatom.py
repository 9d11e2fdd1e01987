"""Published checkpoints: parity with the published code, and safety."""

import os

import ase
import cases
import numpy as np
import pytest
import torch

from mdtrajnet_fast import load_model
from mdtrajnet_fast.model.mlatom import load_mlatom
from mdtrajnet_fast.ops import reference as reference_op

# tests/data: random weights in the published file format, and what the published code (e3nn 0.5.0)
# returns for them in float64. Its Wigner symbol for 1 x 2 -> 1 is a float32 constant, which limits
# the agreement in float64 to 1.6e-9 Å.
CASES = [("tiny", k) for k in range(4)] + [("tiny_periodic", 0)]


def reference(name, k):
    with np.load(cases.DATA / f"{name}.npz") as file:
        atoms = ase.Atoms(
            file[f"numbers{k}"],
            file[f"positions{k}"],
            cell=file[f"cell{k}"],
            pbc=file[f"pbc{k}"],
        )
        atoms.set_velocities(file[f"velocities{k}"] / ase.units.fs)
        return atoms, file["times"], file[f"out_positions{k}"], file[f"out_velocities{k}"]


@pytest.mark.parametrize(("name", "k"), CASES)
@pytest.mark.parametrize(
    ("dtype", "position_error", "velocity_error"),
    [("float64", 2e-9, 1e-9), ("float32", 1e-6, 1e-7)],
)
def test_parity(name, k, dtype, position_error, velocity_error):
    atoms, times, expected, expected_velocities = reference(name, k)
    model = load_model(cases.DATA / f"{name}.pt", dtype=dtype)
    positions, velocities = model.predict(atoms, times)
    error = positions - expected
    if atoms.pbc.any():  # the published code wraps its output into the cell; ours is unwrapped
        fractional = error @ np.linalg.inv(atoms.cell)
        error = (fractional - np.round(fractional)) @ atoms.cell
        assert abs(positions - atoms.positions).max() < atoms.cell.lengths().min() / 2
    assert abs(error).max() < position_error
    assert abs(velocities - expected_velocities).max() < velocity_error


def test_parity_batched():
    inputs = [reference("tiny", k) for k in range(4)]
    model = load_model(cases.DATA / "tiny.pt", dtype="float64")
    results = model.predict([atoms for atoms, *_ in inputs], inputs[0][1])
    for (_, _, expected, _), (positions, _) in zip(inputs, results, strict=True):
        assert abs(positions - expected).max() < 2e-9


def test_the_difference_is_the_published_float32_constant(monkeypatch):
    """With the published Wigner symbol in place of the exact one we agree to 1e-9 Å."""
    content = torch.load(cases.DATA / "tiny.pt", weights_only=False)  # our own fixture
    symbol = content["state"]["Txs.0.tp_key._compiled_main_left_right._w3j_1_2_1"].double().abs()
    published = float(symbol.flatten()[(symbol.flatten() - reference_op._KAPPA).abs().argmin()])
    assert 0 < abs(published / reference_op._KAPPA - 1) < 6e-8
    monkeypatch.setattr(reference_op, "_KAPPA", published)
    model = load_model(cases.DATA / "tiny.pt", dtype="float64")
    model.backend = "reference"  # the kernels have a constant of their own
    for k in range(4):
        atoms, times, expected, _ = reference("tiny", k)
        assert abs(model.predict(atoms, times)[0] - expected).max() < 1e-9


def test_collection(tmp_path):
    content = torch.load(cases.DATA / "tiny.pt", weights_only=False)
    for k in range(4):
        changed = dict(content["state"])
        changed["sp_embed.weight"] = changed["sp_embed.weight"] + 0.1 * k
        torch.save(content | {"state": changed}, tmp_path / f"MDtrajNet-1.{k}.pt")
    model = load_model(tmp_path, dtype="float64")
    assert len(model.members) == 4
    atoms, times, *_ = reference("tiny", 1)
    single = [
        load_model(tmp_path / f"MDtrajNet-1.{k}.pt", dtype="float64").predict(atoms, times)[0]
        for k in range(4)
    ]
    np.testing.assert_allclose(model.predict(atoms, times)[0], np.mean(single, axis=0), atol=1e-12)


def test_pickled_code_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"state": {}, "args": Attack()}, tmp_path / "attack.pt")
    with pytest.raises(ValueError, match="attack.pt.*safely"):
        load_model(tmp_path / "attack.pt")
    assert not (tmp_path / "owned").exists()


def test_bad_checkpoints_are_refused(tmp_path):
    content = torch.load(cases.DATA / "tiny.pt", weights_only=False)

    def saved(**changes):
        torch.save(content | changes, tmp_path / "bad.pt")
        return tmp_path / "bad.pt"

    args, state = content["args"], content["state"]
    with pytest.raises(ValueError, match=r'no "state" and "args"'):
        torch.save([1, 2], tmp_path / "list.pt")
        load_model(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="irreps_key = '4x0e [+] 4x1e' is not supported"):
        load_model(saved(args=args | {"irreps_key": "4x0e + 4x1e"}))
    with pytest.raises(ValueError, match="lack.*num_heads"):
        load_model(saved(args={k: v for k, v in args.items() if k != "num_heads"}))
    with pytest.raises(ValueError, match="do not fit"):
        load_model(saved(args=args | {"num_heads": 3}))
    with pytest.raises(ValueError, match="do not fit"):
        load_model(saved(state={k: v for k, v in state.items() if "W_out" not in k}))
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="text.pt"):
        load_model(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="differs in species or sizes"):
        load_mlatom([cases.DATA / "tiny.pt", cases.DATA / "tiny_periodic.pt"])
