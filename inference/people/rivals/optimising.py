"""Maximum likelihood with ridges: logistic regression by Newton, anything else by L-BFGS."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from torch import Tensor

__all__ = ["MARGIN_RIDGE", "fit_logistic", "minimise", "ridges"]

MARGIN_RIDGE = 1e-3
"""Ridge on the strength of margins of size one: it only keeps it finite where every choice agrees
with its margin, and moves it by 1e-5 in a thousand choices."""

_STEPS, _TOLERANCE, _HALVINGS = 30, 1e-9, 20

_SMALL_NATS, _SMALL_SHARE = 1e-3, 1e-6
"""A step that lowers a loss by less, in nats or as a share of it, is the last one."""

Parameters = dict[str, Tensor]


def ridges(num_features: int, ridge: float) -> Float[np.ndarray, " features"]:
    """Ridge of each weight; that of the margin, which comes first, is next to nothing."""
    return np.array([MARGIN_RIDGE, *[ridge] * (num_features - 1)])


def fit_logistic(
    features: Float[np.ndarray, "choices features"],
    ridge: Float[np.ndarray, " features"],
    weight: Float[np.ndarray, " choices"] | None = None,
    start: Float[np.ndarray, " features"] | None = None,
    steps: int = _STEPS,
) -> Float[np.ndarray, " features"]:
    r"""Weights of a penalised logistic regression, whose every choice is a success.

    .. math:: \max_\theta \sum_i w_i \log\sigma(x_i^\top\theta) - \theta^\top R\theta/2

    Args:
        features: Chosen minus rejected.
        ridge: Diagonal of R.
        weight: Weight of each choice; default, one.
        start: Where Newton's method starts.
        steps: How many steps it takes at most.
    """
    weight = np.ones(len(features)) if weight is None else weight

    def objective(theta: np.ndarray) -> float:
        return float(weight @ log_expit(features @ theta) - ridge @ theta**2 / 2)

    theta = np.zeros(features.shape[1]) if start is None else start
    value = objective(theta)
    for _ in range(steps):
        miss = expit(-features @ theta)
        slope = features.T @ (weight * miss) - ridge * theta
        bend = (features * (weight * miss * (1 - miss))[:, None]).T @ features + np.diag(ridge)
        step = np.linalg.solve(bend, slope)
        last = value
        for _ in range(_HALVINGS):
            value = objective(theta + step)
            if value >= last:
                break
            step /= 2
        else:
            return theta
        theta = theta + step
        if value - last < _TOLERANCE * (1 + abs(value)):
            break
    return theta


def minimise(
    loss: Callable[[Parameters], Tensor],
    start: Mapping[str, Float[np.ndarray, "..."]],
    max_iterations: int = 150,
) -> tuple[dict[str, np.ndarray], float]:
    """Where a differentiable loss is least, near a start, and its value there."""
    shapes = {name: np.shape(value) for name, value in start.items()}
    sizes = [int(np.prod(shape)) for shape in shapes.values()]

    def named(vector: Tensor) -> Parameters:
        parts = vector.split(sizes)
        return {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}

    def value_and_slope(point: np.ndarray) -> tuple[float, np.ndarray]:
        vector = torch.tensor(point, requires_grad=True)
        value = loss(named(vector))
        (slope,) = torch.autograd.grad(value, vector)
        return float(value.detach()), slope.numpy()

    flat = np.concatenate([np.asarray(v, dtype=np.float64).ravel() for v in start.values()])
    with torch.enable_grad():
        scale = max(1.0, abs(value_and_slope(flat)[0]))
        found = minimize(
            value_and_slope, flat, jac=True, method="L-BFGS-B",
            options={"maxiter": max_iterations, "ftol": max(_SMALL_SHARE, _SMALL_NATS / scale)},
        )  # fmt: skip
    return {n: p.numpy() for n, p in named(torch.from_numpy(found.x)).items()}, float(found.fun)
