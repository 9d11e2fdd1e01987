"""SOAP: what its rotated steps are and are not."""

import pytest
import torch

from mdtrajnet_fast.train.soap_optimizer import SOAP


def run(parameter, loss, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss(parameter).backward()
        optimizer.step()
    return loss(parameter).item()


@pytest.mark.parametrize("shape", [(7,), (4, 5)])
def test_vectors_and_matrices_get_adamw(shape):
    torch.manual_seed(0)
    start, target = torch.randn(shape, dtype=torch.float64), torch.randn(shape).double()
    results = []
    for kind in (SOAP, torch.optim.AdamW):
        x = start.clone().requires_grad_(True)
        optimizer = kind([x], lr=0.03, betas=(0.95, 0.99), weight_decay=0.1)
        run(x, lambda y: (y - target).pow(4).sum(), optimizer, 25)
        results.append(x.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)


def test_steps_do_not_depend_on_the_basis_of_the_hidden_units():
    """Rotating the hidden units of a path weight rotates its steps: AdamW's do not do that."""
    torch.manual_seed(1)
    start = torch.randn(6, 3, 5, dtype=torch.float64)
    scale = torch.logspace(0, 2, 6, dtype=torch.float64)[:, None, None]
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]

    def loss(x):
        return (scale * x).square().sum() + (x - start).pow(4).sum()

    def turned(x):
        return loss(torch.einsum("ab,bcd->acd", turn.T, x))

    for kind, equal in ((SOAP, True), (torch.optim.AdamW, False)):
        a = start.clone().requires_grad_(True)
        b = torch.einsum("ab,bcd->acd", turn, start).clone().requires_grad_(True)
        run(a, loss, kind([a], lr=0.01), 30)
        run(b, turned, kind([b], lr=0.01), 30)
        near = torch.allclose(b, torch.einsum("ab,bcd->acd", turn, a), rtol=1e-5, atol=1e-7)
        assert near == equal


def test_correlated_hidden_units_are_no_obstacle():
    torch.manual_seed(2)
    factor = torch.randn(8, 8) @ torch.diag(torch.logspace(-1.5, 0, 8)) @ torch.randn(8, 8)
    target = torch.randn(8, 4, 3)

    def loss(x):
        return torch.einsum("ab,bcd->acd", factor, x - target).square().mean()

    ends = {}
    for kind in (SOAP, torch.optim.AdamW):
        x = torch.zeros(8, 4, 3, requires_grad=True)
        ends[kind] = run(x, loss, kind([x], lr=0.02, betas=(0.95, 0.99)), 300)
    assert ends[SOAP] < 0.5 * ends[torch.optim.AdamW]


def twelve(dtype=torch.float64):
    """Parameters of three shapes, some large; all with gradients but the last two."""
    torch.manual_seed(3)
    shapes = [(6, 3, 5)] * 4 + [(7,)] * 3 + [(20, 50, 40)] * 3 + [(6, 3, 5), (7,)]
    return [torch.randn(shape, dtype=dtype).requires_grad_(True) for shape in shapes]


def steps(optimizers, parameters, begin, end, skips=None):
    for step in range(begin, end):
        torch.manual_seed(step)
        for k, x in enumerate(parameters[:-2]):
            gradient = torch.randn_like(x) * x.detach().abs()
            x.grad = None if k in (skips or {}).get(step, []) else gradient
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("skips", [{}, {2: [0], 3: [1], 5: [0, 1], 6: [5]}])
def test_stacks_take_the_steps_of_single_parameters(skips):
    """Also where some have no gradient for a while, and are stacked with others again later."""
    together, single = twelve(), twelve()
    options = {"lr": 0.01, "weight_decay": 0.1}
    steps([SOAP(together, **options)], together, 0, 25, skips)
    steps([SOAP([x], **options) for x in single], single, 0, 25, skips)
    for a, b, start in zip(together, single, twelve(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert torch.equal(a, start) == (a.grad is None)


def test_states_are_those_of_single_parameters(tmp_path):
    """No stack shows in a file, and after loading one the steps go on with the same bits."""
    whole, parts = twelve(), twelve()
    first, second = SOAP(whole, lr=0.01), SOAP(parts, lr=0.01)
    steps([first], whole, 0, 25)
    steps([second], parts, 0, 12)
    torch.save(second.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved["state"].keys() == set(range(10))
    state = saved["state"][7]
    assert state["step"] == 12 and state["mean"].shape == (20, 2000)
    assert state["moment"].shape == state["basis"].shape == (20, 20)
    second.load_state_dict(saved)
    steps([second], parts, 12, 25)
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a, b)
