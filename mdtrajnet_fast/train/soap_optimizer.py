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


class SOAP(Optimizer):
    """AdamW, whose moments of path weights are taken in a rotated basis.

    A path weight [n, ...] multiplies n hidden units, whose gradients are correlated. With the
    gradient as a matrix G [n, .], the running mean of G G^T has an eigenbasis Q [n, n]: squares are
    averaged and steps are taken of Q^T G and rotated back. This is SOAP (Vyas et al.,
    arXiv 2409.11321) with the preconditioner on one side only, since the other one is up to ten
    times as long. It costs two products with Q a weight and step.

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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._advance(parameter, self.state[parameter], **group)

    def _advance(
        self,
        parameter: Tensor,
        state: dict[str, Any],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        **_: Any,
    ) -> None:
        assert parameter.grad is not None
        rotates = parameter.ndim >= 3
        gradient = parameter.grad.flatten(1) if rotates else parameter.grad
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(gradient)
            state["square"] = torch.zeros_like(gradient)
        state["step"] += 1
        count = state["step"]
        if rotates:
            moment = gradient @ gradient.T
            if count == 1:
                state["moment"] = moment
                state["basis"] = torch.linalg.eigh(moment)[1].flip(1)
            else:
                state["moment"].lerp_(moment, 1 - betas[1])
            if count % _REFRESH == 0:  # one step of a subspace iteration
                state["basis"] = torch.linalg.qr(state["moment"] @ state["basis"])[0]
        mean = state["mean"].lerp_(gradient, 1 - betas[0])
        if rotates:
            gradient, mean = state["basis"].T @ gradient, state["basis"].T @ mean
        square = state["square"].lerp_(gradient * gradient, 1 - betas[1])
        size = (square / (1 - betas[1] ** count)).sqrt_().add_(_EPS)
        change = mean / size
        if rotates:
            change = state["basis"] @ change
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(change.view_as(parameter), alpha=-lr / (1 - betas[0] ** count))
