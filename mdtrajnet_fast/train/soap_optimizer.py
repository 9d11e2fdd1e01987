"""SOAP: AdamW in the eigenbasis of the gradients' second moment, on one side of path weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Steps between refreshes of an eigenbasis: it turns slowly, and a refresh takes a QR decomposition.
_REFRESH = 10
_EPS = 1e-8
# Elements of parameters that are stacked: small ones cost more to call for than to compute, and
# stacks of large ones would not stay in cache from one operation to the next.
_STACKED = 1 << 16


class SOAP(Optimizer):
    """AdamW, whose moments of path weights are taken in a rotated basis.

    A path weight [n, ...] multiplies n hidden units, whose gradients are correlated. With the
    gradient as a matrix G [n, .], the running mean of G G^T has an eigenbasis Q [n, n]: squares are
    averaged and steps are taken of Q^T G and rotated back. This is SOAP (Vyas et al.,
    arXiv 2409.11321) with the preconditioner on one side only, since the other one is up to ten
    times as long. It costs two products with Q a weight and step. Small parameters of
    one shape are stacked and take their steps together.

    params: what to train; those of three and more dimensions count as path weights.
    lr, betas, weight_decay: as AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        betas: tuple[float, float] = (0.95, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self._stacks: dict[int, tuple[list[int], dict[str, Tensor]]] = {}  # by the first parameter

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._stacks = {}  # the old ones are not of this state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        for group in self.param_groups:
            equal: dict[tuple[torch.Size, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    state = self.state[parameter] or self._begin(parameter)
                    equal.setdefault((parameter.shape, state["step"]), []).append(parameter)
            for parameters in equal.values():
                most = max(1, _STACKED // parameters[0].numel())
                for k in range(0, len(parameters), most):
                    self._advance(parameters[k : k + most], **group)

    def _begin(self, parameter: Tensor) -> dict[str, Any]:
        zero = torch.zeros_like(parameter.flatten(1) if parameter.ndim >= 3 else parameter)
        state = self.state[parameter] = {"step": 0, "mean": zero, "square": zero}
        if parameter.ndim >= 3:
            square = parameter.new_zeros(2, len(parameter), len(parameter))
            state["moment"], state["basis"] = square
        return state

    def _stack(self, parameters: list[Tensor]) -> dict[str, Tensor]:
        """The states of parameters on top of each other; their own become views of these stacks."""
        members = list(map(id, parameters))
        stacked, stacks = self._stacks.get(members[0], ([], {}))
        if members != stacked:
            states = [self.state[parameter] for parameter in parameters]
            names = [name for name in states[0] if name != "step"]
            stacks = {name: torch.stack([state[name] for state in states]) for name in names}
            for k, state in enumerate(states):
                state.update({name: stacks[name][k] for name in names})
            self._stacks[members[0]] = members, stacks
        return stacks

    def _advance(
        self,
        parameters: list[Tensor],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        **_: Any,
    ) -> None:
        """One step of parameters that have equal shapes and have taken equally many."""
        state = self._stack(parameters)
        for parameter in parameters:
            self.state[parameter]["step"] += 1
        count = self.state[parameters[0]]["step"]
        gradients = [x.grad for x in parameters if x.grad is not None]
        gradient = torch.stack(gradients) if len(gradients) > 1 else gradients[0][None]
        rotates = "basis" in state
        if rotates:
            gradient = gradient.flatten(2)
            moment = gradient @ gradient.mT
            if count == 1:
                state["moment"].copy_(moment)
                state["basis"].copy_(torch.linalg.eigh(moment)[1].flip(2))
            else:
                state["moment"].lerp_(moment, 1 - betas[1])
            if count % _REFRESH == 0:  # one step of a subspace iteration
                state["basis"].copy_(torch.linalg.qr(state["moment"] @ state["basis"])[0])
        mean = state["mean"].lerp_(gradient, 1 - betas[0])
        if rotates:
            gradient, mean = state["basis"].mT @ gradient, state["basis"].mT @ mean
        square = state["square"].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        size = (square / (1 - betas[1] ** count)).sqrt_().add_(_EPS)
        change = torch.div(mean, size, out=size)
        if rotates:
            change = state["basis"] @ change
        changes = change.view(-1, *parameters[0].shape).unbind()
        if weight_decay:
            torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, changes, alpha=-lr / (1 - betas[0] ** count))
