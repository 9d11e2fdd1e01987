"""Symmetries, velocities, batches and options of the model."""

import ase
import cases
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.constraints import FixAtoms
from scipy.spatial.transform import Rotation

from mdtrajnet_fast import MDtrajNet, ModelConfig, simulate
from mdtrajnet_fast.md.rollout import rollout
from mdtrajnet_fast.system import System

TIMES = [0.5, 3.0, 10.0]
PUBLISHED: dict = {}
OPTIONS = {
    "published": PUBLISHED,
    "own": cases.OWN,
    "envelope": {"envelope": True},
    "conserving": {"head": "conserving"},
    "readout": {"velocity_readout": True, "residual": "running"},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def moved(atoms, rotation=None, shift=0.0, boost=0.0):
    """The same system in another frame; rotation [3, 3] acts from the right."""
    q = np.eye(3) if rotation is None else rotation
    other = atoms.copy()
    other.set_cell(atoms.cell @ q)
    other.positions = atoms.positions @ q + shift
    momenta = atoms.get_momenta() @ q
    other.set_momenta(momenta + np.asarray(boost) * atoms.get_masses()[:, None] / ase.units.fs)
    return other


def close(result, expected, tolerance=1e-10):
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


@options
@pytest.mark.parametrize("atoms", [cases.hot("CH3CH2OH"), cases.diamond((1, 1, 1))])
def test_rotations_and_reflections(options, atoms):
    model = cases.model(**options)
    positions, velocities = model.predict(atoms, TIMES)
    for k, sign in enumerate((1, -1)):
        q = sign * Rotation.random(random_state=k).as_matrix()
        result = model.predict(moved(atoms, q), TIMES)
        close(result[0], positions @ q)
        close(result[1], velocities @ q)


@options
def test_translation(options):
    model = cases.model(**options)
    atoms, shift = cases.hot("CH3CN"), np.array([3.0, -40.0, 1000.0])
    positions, velocities = model.predict(atoms, TIMES)
    result = model.predict(moved(atoms, shift=shift), TIMES)
    close(result[0], positions + shift, 1e-9)
    close(result[1], velocities)


def test_translation_in_float32_costs_nothing():
    """Only differences enter, taken in float64: far from the origin is as good as at it."""
    model = cases.model(dtype=torch.float32)
    atoms, shift = cases.hot("CH3CN"), 1e4
    near, far = model.predict(atoms, TIMES), model.predict(moved(atoms, shift=shift), TIMES)
    close(far[0] - shift, near[0], 1e-6)
    close(far[1], near[1], 1e-7)


@options
def test_permutation(options):
    model = cases.model(**options)
    for atoms in (cases.hot("CH3CH2OH"), cases.diamond((1, 1, 1))):
        order = np.random.default_rng(0).permutation(len(atoms))
        positions, velocities = model.predict(atoms, TIMES)
        result = model.predict(atoms[order], TIMES)
        close(result[0], positions[:, order])
        close(result[1], velocities[:, order])


@options
def test_galilean_boost(options):
    """Own models move with the boost; the published function ignores it, as published."""
    model = cases.model(**options)
    atoms, boost = cases.hot("CH3CH2OH"), np.array([0.01, -0.02, 0.03])
    positions, velocities = model.predict(atoms, TIMES)
    result = model.predict(moved(atoms, boost=boost), TIMES)
    conserving = model.config.head == "conserving"
    drift = np.array(TIMES)[:, None, None] * boost if conserving else 0.0
    close(result[0], positions + drift)
    covariant = conserving or model.config.velocity_readout
    close(result[1], velocities + (boost if covariant else 0.0))


@options
def test_batch_equals_single(options):
    model = cases.model(**options)
    mixture = cases.mixture()
    batch = model.predict(mixture, TIMES)
    assert len(batch) == len(mixture)
    for atoms, (positions, velocities) in zip(mixture, batch, strict=True):
        expected = model.predict(atoms, TIMES)
        assert positions.shape == velocities.shape == (len(TIMES), len(atoms), 3)
        close(positions, expected[0])
        close(velocities, expected[1])
        for k, t in enumerate(TIMES):
            close(model.predict(atoms, [t])[0][0], expected[0][k])


@pytest.mark.parametrize("options", [PUBLISHED, {"head": "conserving", "envelope": True}])
def test_velocity_is_the_time_derivative(options):
    model = cases.model(**options)
    for atoms in (cases.hot("CH3CH2OH"), cases.diamond((1, 1, 1))):
        h = 1e-4
        _, velocities = model.predict(atoms, [4.0])
        later, _ = model.predict(atoms, [4.0 - h, 4.0 + h])
        close(velocities[0], (later[1] - later[0]) / (2 * h), 1e-9)


def test_conserving_head_is_exact_at_zero_and_keeps_momentum():
    model = cases.model(**cases.OWN)
    atoms = cases.hot("CH3CH2OH")
    atoms.set_momenta(atoms.get_momenta() + 0.2)
    masses, v0 = atoms.get_masses()[:, None], cases.velocities(atoms)
    h = 1e-4
    positions, velocities = model.predict(atoms, [0.0, 7.0, h, 2 * h])
    moved = positions - atoms.positions
    close(moved[0], 0.0, 1e-13)
    close(velocities[0], v0, 1e-13)
    close((masses * moved[1]).sum(0), 7.0 * (masses * v0).sum(0))
    close((masses * velocities[1]).sum(0), (masses * v0).sum(0))
    assert abs(moved[1] - 7.0 * v0).max() > 1e-3
    # dR/dt(0) = v0, by a difference of second order
    close((2 * moved[2] - moved[3] / 2) / h, v0, 1e-7)


def test_lone_atom():
    """The published function leaves it where it is; own models and the rollout move it by v0 t."""
    atoms = ase.Atoms("O", positions=[[1.0, 2.0, 3.0]])
    v0 = np.array([[0.01, -0.02, 0.03]])
    atoms.set_momenta(v0 * atoms.get_masses()[:, None] / ase.units.fs)
    close(cases.model().predict(atoms, [10.0])[0][0], atoms.positions)
    positions, velocities = cases.model(**cases.OWN).predict(atoms, [10.0])
    close(positions[0], atoms.positions + 10.0 * v0)
    close(velocities[0], v0)
    for options in (PUBLISHED, cases.OWN):
        (frames,) = rollout(
            cases.model(**options), System.from_atoms(atoms), atoms.get_momenta(), dt=5, duration=10
        )
        close(frames.positions, atoms.positions + np.array([5.0, 10.0])[:, None, None] * v0)


@pytest.mark.parametrize("options", [PUBLISHED, cases.OWN], ids=["published", "own"])
def test_two_molecules_that_part(options):
    """Each of two molecules 20 Å apart keeps its own drift, as if the other were not there."""
    model = cases.model(**options)
    boost = np.array([0.05, 0.0, 0.0])
    left, right = cases.hot("H2O"), moved(cases.hot("CH3CN"), shift=[20.0, 0, 0], boost=boost)
    left = moved(left, boost=-boost)
    both = left + right
    momenta = both.get_momenta()
    (frames,) = rollout(model, System.from_atoms(both), momenta, dt=10, duration=10)
    for part, own in ((left, slice(0, 3)), (right, slice(3, None))):
        system = System.from_atoms(part)
        (alone,) = rollout(model, system, part.get_momenta(), dt=10, duration=10)
        close(frames.positions[:, own], alone.positions)
        close(frames.momenta[:, own], alone.momenta)
        masses = part.get_masses()[:, None]
        drift = (masses * (alone.positions[-1] - part.positions)).sum(0) / masses.sum()
        close(drift, 10.0 * part.get_momenta().sum(0) / masses.sum() * ase.units.fs)
    if model.config.head == "conserving":
        positions, _ = model.predict(both, [10.0])
        close(positions[0, :3], model.predict(left, [10.0])[0][0])


def test_long_acoustic_wave():
    """A wave much longer than the cutoff moves the atoms of a large cell, each by its own v0 t."""
    atoms = bulk("C", "diamond", a=3.567, cubic=True) * (24, 1, 1)
    length = atoms.cell.lengths()[0]
    v0 = np.zeros((len(atoms), 3))
    v0[:, 1] = 1e-3 * np.sin(2 * np.pi * atoms.positions[:, 0] / length)
    atoms.set_momenta(v0 * atoms.get_masses()[:, None] / ase.units.fs)
    config = cases.config(**cases.OWN)
    model = MDtrajNet(config).double().requires_grad_(False)
    for block in model.members[0].blocks:
        block.out_vector.zero_()  # what is left is the drift that the head adds by itself
    positions, _ = model.predict(atoms, [10.0])
    wave = positions[0] - atoms.positions
    amplitude = (wave * v0).sum() / (v0 * v0).sum() / 10.0
    assert 0.98 < amplitude < 1.0
    close(wave, amplitude * 10.0 * v0, 1e-6)


def test_collection_predicts_the_mean_of_its_members():
    torch.manual_seed(0)
    both = MDtrajNet(cases.config(), members=2).double().requires_grad_(False)
    atoms = cases.hot("H2O")
    mean, mean_velocity = both.predict(atoms, TIMES)
    results = []
    for member in both.members:
        one = MDtrajNet(cases.config()).double()
        one.members[0].load_state_dict(member.state_dict())
        results.append(one.requires_grad_(False).predict(atoms, TIMES))
    close(mean, np.mean([p for p, _ in results], axis=0))
    close(mean_velocity, np.mean([v for _, v in results], axis=0))
    assert abs(results[0][0] - results[1][0]).max() > 1e-3


def test_bad_input_is_refused():
    model = cases.model()
    atoms = cases.hot("H2O")
    with pytest.raises(ValueError, match=r"0, 10\] fs.*got 11.*simulate"):
        model.predict(atoms, [1.0, 11.0])
    with pytest.raises(ValueError, match="got nan"):
        model.predict(atoms, [np.nan])
    with pytest.raises(ValueError, match="does not know the elements Si.*first at atom 1"):
        model.predict(ase.Atoms("CSi", positions=[[0, 0, 0], [0, 0, 2]]), [1.0])
    with pytest.raises(ValueError, match="no atoms"):
        model.predict([atoms, ase.Atoms()], [1.0])
    with pytest.raises(TypeError, match=r"expected ase\.Atoms"):
        model.predict([atoms, "H2O"], [1.0])
    broken = atoms.copy()
    broken.positions[1] = broken.positions[0]
    with pytest.raises(ValueError, match="0.*1"):
        model.predict(broken, [1.0])
    for change, message in (
        (lambda a: a.positions.__setitem__((1, 2), np.nan), "atom 1 of system 0 has position"),
        (lambda a: a.positions.__setitem__((2, 0), 1e12), "atom 2 of system 0 has position"),
        (lambda a: a.set_momenta(np.full((3, 3), np.inf)), "atom 0 of system 0 has momentum"),
        (lambda a: a.set_masses([16, -1, 1]), "atom 1 of system 0 has mass -1.0"),
        (lambda a: a.numbers.__setitem__(1, -3), "atom 1 of system 0 has atomic number -3"),
        (lambda a: a.numbers.__setitem__(1, 130), "atom 1 of system 0 has atomic number 130"),
        (lambda a: a.set_cell(np.full((3, 3), np.nan)), "cell of system 0"),
        (lambda a: a.set_constraint(FixAtoms([0])), "system 0 has constraints .FixAtoms"),
    ):
        broken = atoms.copy()
        change(broken)
        for function in (model.predict, lambda a, t: simulate(a, 1.0, duration=5, model=model)):
            with pytest.raises(ValueError, match=message):
                function(broken, [1.0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"irreps_key": "8x0e + 8x1e"}, "irreps_key = '8x0e [+] 8x1e' is not supported"),
        ({"irreps_value": "8x0e + 8x1o + 4x2e"}, "irreps_value.*2e.*not supported"),
        ({"lmax": 1}, "lmax = 1 is not supported"),
        ({"species": ("C", "Xx")}, "species"),
        ({"species": ("C", "C")}, "distinct"),
        ({"window": 11.0}, "window = 11.0"),
        ({"num_heads": 0}, "num_heads"),
        ({"t_embed_dim": 1}, "t_embed_dim"),
        ({"key_weight_hidden_neurons": ()}, "key_weight_hidden_neurons"),
        ({"residual": "none"}, "residual"),
        ({"head": "other"}, "head"),
        ({"radial_cutoff": 0.0}, "radial_cutoff"),
        ({"colour": 1}, "unknown model settings .*colour"),
    ],
)
def test_bad_configurations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict({"species": ("C", "H")} | settings)


def test_published_sizes():
    model = MDtrajNet(ModelConfig(species=("C", "H", "N", "O")))
    assert sum(p.numel() for p in model.parameters()) == 3_093_568
