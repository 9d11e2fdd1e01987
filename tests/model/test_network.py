"""A whole network in one native call against the plain torch code that defines it."""

import dataclasses
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import ase
import cases
import numpy as np
import pytest
import torch

from mdtrajnet_fast import _C, MDtrajNet, load_model
from mdtrajnet_fast.md.simulation import model_hash
from mdtrajnet_fast.model.network import _KEPT
from mdtrajnet_fast.system import System

HEADS = {
    "own": cases.OWN | {"envelope": True},
    "published": {"velocity_readout": True},
    "own, without a read-out": cases.OWN | {"velocity_readout": False},
    "published, without a read-out": {},
}
heads = pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
# largest differences in Å and Å/fs, of motions of up to some 2 Å and 0.2 Å/fs
PRECISION = {torch.float64: 1e-12, torch.float32: 3e-6}
precisions = pytest.mark.parametrize("dtype", PRECISION, ids=["float64", "float32"])


def mixture() -> list[ase.Atoms]:
    """Drifting: isolated and periodic systems, atoms without neighbours, fragments out of sight."""
    apart = cases.hot("CH3CN", seed=7)
    apart.positions[3:] += [9.0, 0.0, 0.0]
    atoms = [*cases.mixture(), apart]
    for k, one in enumerate(atoms):
        one.set_momenta(one.get_momenta() + 0.02 * k * one.get_masses()[:, None])
    return atoms


@heads
@precisions
@pytest.mark.parametrize("members", [1, 3])
def test_values(options, dtype, members):
    times = [np.array([7.3]), np.array([0.0, 0.4, 3.1, 10.0])]
    for seed in range(3):
        torch.manual_seed(seed)
        model = MDtrajNet(cases.config(**options), members=members).to(dtype)
        graph = model.graph(System.from_atoms(mixture()))
        for t in times:
            found = model.displacements(graph, t)
            expected = model.predictor("reference").motion(graph, t)
            for x, y in zip(found, expected, strict=True):
                assert x.dtype == y.dtype == np.float64
                assert x.shape == y.shape == (len(t), graph.atoms, 3)
                np.testing.assert_allclose(x, y, rtol=0, atol=PRECISION[dtype])


@pytest.mark.parametrize("instruction_set", _C.build_info()["instruction_sets"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["small", "molecules-nve"])
def test_times_are_predicted_independently(name, dtype, instruction_set, monkeypatch):
    """To the bit: a time does not see the others asked for with it, nor a result the threads."""
    monkeypatch.setenv("MDTRAJNET_INSTRUCTION_SET", instruction_set)
    try:
        _C.instruction_set()
    except ValueError:
        pytest.skip("this processor has not got it")
    if name == "small":
        model = cases.model(dtype=getattr(torch, dtype), **cases.OWN)
    else:
        model = load_model(name, dtype)
        model.config = dataclasses.replace(model.config, systems=None)  # crystals, too
    graph = model.graph(System.from_atoms(mixture()))
    times = np.linspace(0.7, 10.0, 21)
    together = model.displacements(graph, times)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for k in (0, 1, 13, 20):
                alone = model.displacements(graph, times[k : k + 1])
                for one, many in zip(alone, together, strict=True):
                    np.testing.assert_array_equal(one[0], many[k])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("options", [cases.OWN, {}], ids=["own", "published"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_last_time_does_not_depend_on_the_others(backend, options):
    """To the bit, on every backend: the end of a window, whatever the frames before it."""
    model = cases.model(dtype=torch.float32, **options)
    model.backend = backend
    graph = model.graph(System.from_atoms(mixture()))
    alone = model.displacements(graph, np.array([10.0]))
    for count in (1, 3, 9):
        many = model.displacements(graph, np.append(np.linspace(0.5, 9.0, count), 10.0))
        for one, several in zip(alone, many, strict=True):
            assert several.shape[0] == count + 1
            np.testing.assert_array_equal(one[0], several[-1])


def test_refuses_what_the_kernels_would_misread():
    model = cases.model(**cases.OWN)
    system = System.from_atoms(cases.hot("H2O"))
    times = np.array([1.0])
    for name in ("species", "component"):
        graph = model.graph(system)
        getattr(graph, name)[1] = 17
        with pytest.raises(ValueError, match="atom 1 has 17"):
            model.displacements(graph, times)
    with pytest.raises(ValueError, match="float32 tensors"):
        cases.model(dtype=torch.float32, **cases.OWN).displacements(model.graph(system), times)


def test_weights_are_kept_until_they_change():
    """Whatever changes them, even behind the back of torch's own counters."""
    model = cases.model(**cases.OWN)
    atoms = cases.hot("CH3CH2OH")
    kept, name, found = model.predictor(), model_hash(model), model.predict(atoms, [5.0])
    assert model.predictor() is kept and model.predictor("reference") is not kept
    weight = model.members[0].blocks[0].out_vector
    weight.data[0, 0, 0] *= 1.5
    assert model.predictor() is not kept and model_hash(model) != name
    assert abs(model.predict(atoms, [5.0])[0] - found[0]).max() > 1e-6
    weight.data[0, 0, 0] /= 1.5
    np.testing.assert_array_equal(model.predict(atoms, [5.0])[0], found[0])
    assert model_hash(model) == name
    single = model.float().predictor()
    assert single is not kept and model.predict(atoms, [5.0])[0] is not None


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_kept_of_a_model_goes_with_it(backend):
    model = cases.model(**cases.OWN)
    model.backend = backend
    model.predict(cases.hot("H2O"), [5.0])
    count = len(_KEPT)
    del model
    assert len(_KEPT) == count - 1


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_predictor_has_the_weights_as_they_were(backend):
    model = cases.model(**cases.OWN, **cases.POTENTIAL)
    graph, t = model.graph(System.from_atoms(cases.hot("CH3CH2OH"))), np.array([5.0])
    made = model.predictor(backend)
    before = (*made.motion(graph, t), made.energies(graph).numpy())
    for weight in model.parameters():
        weight.data *= 1.1
    after = (*made.motion(graph, t), made.energies(graph).numpy())
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_instruction_sets_pack_anew(monkeypatch):
    model = cases.model(**cases.OWN)
    best = model.predictor()
    monkeypatch.setenv("MDTRAJNET_INSTRUCTION_SET", "base")
    assert _C.instruction_set() == "base" and model.predictor() is not best


def test_gradients_do_not_see_what_is_kept():
    model = cases.model(**cases.OWN).requires_grad_(True)
    graph = model.graph(System.from_atoms(cases.hot("CH3CH2OH")))
    model.displacements(graph, np.array([5.0]))
    t = torch.full((graph.atoms,), 7.0, dtype=torch.float64)
    model(graph, t).displacement.square().sum().backward()
    for name, x in model.named_parameters():
        assert x.grad is not None, name


def test_a_collection_takes_one_call(monkeypatch):
    model = MDtrajNet(cases.config(**cases.OWN), members=4).double()
    predictor, calls = model.predictor(), []

    class Counted:
        def motion(self, *arguments, native=predictor.native):
            calls.append(arguments)
            return native.motion(*arguments)

    monkeypatch.setattr(predictor, "native", Counted())
    model.predict(cases.mixture(), [1.0, 2.0])
    assert len(calls) == 1


def test_threads_take_turns_in_forward_mode():
    """torch has one level of it in a process."""
    model, system = cases.model(), cases.state(cases.hot("H2O"))[0]
    graph = model.graph(system)
    t = torch.full((len(system.numbers),), 3.0, dtype=torch.float64)
    with torch.no_grad():
        blocks = model.prepare("reference")
        alone = model.motion(graph, t, blocks)
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(torch.no_grad()(model.motion), graph, t, blocks) for _ in range(32)]
    for job in jobs:
        for a, b in zip(job.result(), alone, strict=True):
            torch.testing.assert_close(a, b)


def test_forks_do_not_wait_for_threads_that_they_have_not():
    """OpenMP would, in a child of a process that has computed on several threads."""
    torch.set_num_threads(2)
    try:
        big = torch.ones(1 << 22)
        big.sum()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply_async(_sum, (1 << 22,)).get(timeout=60) == (1 << 22, 1)
    finally:
        torch.set_num_threads(1)


def _sum(count: int) -> tuple[float, int]:
    return torch.ones(count).sum().item(), torch.get_num_threads()
