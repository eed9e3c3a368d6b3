"""Muon: momentum whose matrices are orthogonalised by a Newton-Schulz iteration (Jordan et al., 2024)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def orthogonalise(x: Tensor) -> Tensor:
    """Bring all singular values of (n, rows, columns), rows <= columns, near 1."""
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x


class Muon:
    """For matrices stacked over layers, (n_layer, n_out, n_in); those of one shape are orthogonalised together."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._momentum = [torch.zeros_like(p) for p in self._parameters]

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        groups: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
        for parameter, average in zip(self._parameters, self._momentum, strict=True):
            assert parameter.grad is not None
            average.lerp_(parameter.grad, 1 - momentum)
            update = parameter.grad.lerp(average, momentum)
            if parameter.shape[1] > parameter.shape[2]:
                update = update.mT
            groups.setdefault(tuple(update.shape[1:]), []).append((parameter, update.bfloat16()))
        for members in groups.values():
            updates = orthogonalise(torch.cat([update for _, update in members]))
            for (parameter, _), update in zip(members, updates.split([len(p) for p, _ in members]), strict=True):
                n_out, n_in = parameter.shape[1:]
                direction = update.mT if n_out > n_in else update
                scale = max(1.0, n_out / n_in) ** 0.5
                parameter.mul_(1 - lr * weight_decay).add_(direction.to(parameter.dtype), alpha=-lr * scale)
