"""Neural Characteristic Flow in eager PyTorch, as one would write it from the paper.

Same network, losses and batch as `brenier.NCF`, Adam as published. Written to be fast within that
style: batched, no Python loop over points, one backward pass, the cheaper of two forms of distance.

Reference:
    Park, Liu, Zhou and Osher, *Neural Hamilton–Jacobi Characteristic Flows for Optimal Transport*,
    ICLR 2026.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Distances = Callable[[Tensor, Tensor], Tensor]
Collocation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images `T(x)` and preimages `S(y)` to times (n,) and places (n, d)."""


class DenseQuadratic(nn.Module):
    """`u(t, x)`: dense layers with quadratic skips from `z = (t, x)`, see `brenier.networks`."""

    def __init__(self, dim: int, widths: Sequence[int], activation: str):
        super().__init__()

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.1 * torch.randn(*shape))

        self.squared = nn.ParameterList(normal(dim + 1, w) for w in widths)
        self.linear = nn.ParameterList(normal(dim + 1, w) for w in widths)
        self.biases = nn.ParameterList(normal(w) for w in widths)
        self.hidden = nn.ParameterList(map(normal, widths[:-1], widths[1:]))
        self.head = normal(widths[-1])
        self.activation = getattr(nn.functional, activation)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Values (n,) at times (n,) and points (n, d)."""
        z = torch.cat([t[:, None], x], dim=1)
        skips = [
            (z @ a) ** 2 + torch.addmm(b, z, m)
            for a, m, b in zip(self.squared, self.linear, self.biases, strict=True)
        ]
        h = skips[0]
        for weight, skip in zip(self.hidden, skips[1:], strict=True):
            h = self.activation(torch.addmm(skip, h, weight))
        return h @ self.head


def value_and_momentum(u: nn.Module, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """`u` and `p = ∇u`, both differentiable in the parameters."""
    x = x.detach().requires_grad_()
    value = u(t, x)
    (p,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    return value, p


def energy_distance(x: Tensor, y: Tensor, distances: Distances) -> Tensor:
    """U-statistic; the distance of a point to itself is zero and needs no mask."""
    n, m = len(x), len(y)
    within_x = distances(x, x).sum() / (n * (n - 1))
    within_y = distances(y, y).sum() / (m * (m - 1))
    return 2 * distances(x, y).mean() - within_x - within_y


def product_distances(x: Tensor, y: Tensor) -> Tensor:
    """Distances through one matrix product."""
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :]
    return torch.addmm(squares, x, y.T, alpha=-2).clamp_min(1e-12).sqrt()


def faster_distances(n: int, dim: int) -> Distances:
    """The cheaper of `torch.cdist` and `product_distances`, forward and backward, at this size."""

    def seconds(distances: Distances) -> float:
        x = torch.randn(n, dim, requires_grad=True)
        y = torch.randn(n, dim)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            energy_distance(x, y, distances).backward()
            times.append(time.perf_counter() - start)
        return min(times)

    return min((torch.cdist, product_distances), key=seconds)


def maps(u: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`T(x) = x + ∇u(0, x)` and `S(y) = y - ∇u(1, y)`."""
    _, p = value_and_momentum(u, torch.zeros(len(x)), x)
    _, q = value_and_momentum(u, torch.ones(len(y)), y)
    return x + p, y - q


def residual(u: nn.Module, t: Tensor, z: Tensor) -> Tensor:
    """`u(t, z) - ½ t |p|² - u(0, z - t p)` with `p = ∇u(t, z)`."""
    value, p = value_and_momentum(u, t, z)
    foot = z - t[:, None] * p
    return value - 0.5 * t * (p * p).sum(1) - u(torch.zeros_like(t), foot)


def loss(
    u: nn.Module,
    x: Tensor,
    y: Tensor,
    collocation: Collocation,
    distances: Distances,
) -> Tensor:
    """Both energy distances and the mean squared residual at the points of `collocation`."""
    images, preimages = maps(u, x, y)
    matching = energy_distance(images, y, distances) + energy_distance(preimages, x, distances)
    t, z = collocation(images.detach(), preimages.detach())
    return matching + residual(u, t, z).square().mean()


def in_box(x: Tensor, y: Tensor, n: int) -> Collocation:
    """Uniform times and places in the bounding box of the batch, as published."""
    both = torch.cat([x, y])
    low, high = both.amin(0), both.amax(0)

    def points(images: Tensor, preimages: Tensor) -> tuple[Tensor, Tensor]:
        return torch.rand(n), low + torch.rand(n, len(low)) * (high - low)

    return points


def on_paths(x: Tensor, y: Tensor, n: int) -> Collocation:
    """Uniform times on the current paths, half of them from either side."""

    def points(images: Tensor, preimages: Tensor) -> tuple[Tensor, Tensor]:
        i, j = torch.randint(len(x), (n // 2,)), torch.randint(len(y), (n - n // 2,))
        t = torch.rand(n)
        s, r = t[: n // 2, None], 1 - t[n // 2 :, None]
        forward = x[i] + s * (images[i] - x[i])
        return t, torch.cat([forward, y[j] + r * (preimages[j] - y[j])])

    return points


def stepper(
    u: nn.Module,
    x: Tensor,
    y: Tensor,
    collocation: Collocation,
    distances: Distances,
    learning_rate: float = 1e-3,
) -> Callable[[], float]:
    """One training step on this batch per call; returns the loss."""
    optimizer = torch.optim.Adam(u.parameters(), lr=learning_rate, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        value = loss(u, x, y, collocation, distances)
        value.backward()
        optimizer.step()
        return value.item()

    return step
