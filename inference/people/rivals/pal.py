r"""PAL: a person is a mixture of prototypes, on frozen embeddings.

Each person has the logits w of a mixture :math:`\pi_g = \mathrm{softmax}(w_g)`. **PAL-A** has
the ideal point :math:`u_g = f(\sum_k \pi_{gk} p_k)` and the reward
:math:`-\lVert f(y) - u_g \rVert`; **PAL-B** has
:math:`u_g(x) = \sum_k \pi_{gk}\, g_k(x)` of the prompt x and the reward
:math:`s \cos(f(y), u_g(x))`. Here f and g are linear. The logit of a choice is the difference of
the rewards, plus one strength times the margin.

Reference: PAL (Chen, Chen, Rege, Wang and Vinayak, arXiv:2406.08469).
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, softplus

from mixdpo_pyro.inference.people.rivals.optimising import (
    MARGIN_RIDGE,
    Parameters,
    fit_logistic,
    minimise,
    ridges,
)
from mixdpo_pyro.inference.people.rivals.records import (
    Embeddings,
    FittedRival,
    KnownChoices,
    Setting,
)
from mixdpo_pyro.inference.people.rivals.types import cluster_memberships

__all__ = ["fit_pal_a", "fit_pal_b"]

_DIMENSIONS = 8
"""Of the space in which responses and people meet."""

_MIXTURE_RIDGE = 0.2
"""Ridge on the logits of mixtures: log odds of two prototypes have a standard deviation
of 3."""

_STARTS = 2

_TINY = 1e-9
"""Under the root of distances, so that they are smooth at zero."""

_Rewards = Callable[[Parameters, Tensor, Embeddings], tuple[Tensor, Tensor]]
"""Rewards of chosen and rejected responses, from parameters and the mixture of each choice."""


def fit_pal_a(choices: KnownChoices, setting: Setting, seed: int = 0) -> FittedRival:
    """Fit PAL-A: prototypes are ideal points.

    Args:
        choices: Choices with embeddings.
        setting: `types`, the number of prototypes, `ridge` on the maps, and `starts`.
        seed: Seed of the starts.
    """

    def start(rng: np.random.Generator, size: int, num_types: int) -> dict[str, np.ndarray]:
        return {
            "map": rng.normal(0, 0.5, (size, _DIMENSIONS)),
            "point": rng.normal(0, 1.0, (num_types, size)),
        }

    return _fit(choices, setting, seed, _distance_rewards, start)


def fit_pal_b(choices: KnownChoices, setting: Setting, seed: int = 0) -> FittedRival:
    """Fit PAL-B: prototypes are maps of the prompt, constant ones where no prompts are given.

    Args:
        choices: Choices with embeddings.
        setting: As of :func:`fit_pal_a`.
        seed: Seed of the starts.
    """
    assert choices.embeddings is not None
    prompt = choices.embeddings.prompt
    num_contexts = 0 if prompt is None else prompt.shape[1]

    def start(rng: np.random.Generator, size: int, num_types: int) -> dict[str, np.ndarray]:
        scale = 1 / np.sqrt(_DIMENSIONS)
        return {
            "map": rng.normal(0, 0.3, (size, _DIMENSIONS)),
            "shift": rng.normal(0, scale, _DIMENSIONS),
            "angle": rng.normal(0, scale, (num_types, _DIMENSIONS)),
            "context": rng.normal(0, 0.03, (num_types, num_contexts, _DIMENSIONS)),
            "log_scale": np.array(1.0),
        }

    return _fit(choices, setting, seed, _cosine_rewards, start)


def _distance_rewards(
    at: Parameters, mixture: Tensor, embeddings: Embeddings
) -> tuple[Tensor, Tensor]:
    place = torch.from_numpy(embeddings.response) @ at["map"]
    ideal = mixture @ (at["point"] @ at["map"])

    def reward(rows: np.ndarray) -> Tensor:
        return -((place[torch.from_numpy(rows)] - ideal).square().sum(1) + _TINY).sqrt()

    return reward(embeddings.chosen), reward(embeddings.rejected)


def _cosine_rewards(
    at: Parameters, mixture: Tensor, embeddings: Embeddings
) -> tuple[Tensor, Tensor]:
    place = normalize(torch.from_numpy(embeddings.response) @ at["map"] + at["shift"], dim=1)
    wanted = at["angle"].expand(1, *at["angle"].shape)
    if embeddings.prompt is not None:
        wanted = wanted + torch.einsum(
            "qf,kfd->qkd", torch.from_numpy(embeddings.prompt), at["context"]
        )
    of_choice = wanted[torch.from_numpy(embeddings.asked)]
    ideal = at["log_scale"].exp() * normalize(
        torch.einsum("nk,nkd->nd", mixture, of_choice), dim=1
    )

    def reward(rows: np.ndarray) -> Tensor:
        return (place[torch.from_numpy(rows)] * ideal).sum(1)

    return reward(embeddings.chosen), reward(embeddings.rejected)


def _fit(
    choices: KnownChoices,
    setting: Setting,
    seed: int,
    rewards: _Rewards,
    start: Callable[[np.random.Generator, int, int], dict[str, np.ndarray]],
) -> FittedRival:
    """The best of several starts, whose mixtures are clusters of people that agree."""
    embeddings = choices.embeddings
    assert embeddings is not None
    num_types, size = int(setting["types"]), embeddings.response.shape[1]
    margin, person = torch.from_numpy(choices.margin), torch.from_numpy(choices.annotator)
    ridge = ridges(size + 1, setting["ridge"])

    def loss(at: Parameters) -> Tensor:
        mixture = at["w"].softmax(1)[person]
        chosen, rejected = rewards(at, mixture, embeddings)
        logit = at["strength"] * margin + chosen - rejected
        return softplus(-logit).sum() + _penalty(at, setting)

    runs = []
    for k in range(int(setting.get("starts", _STARTS))):
        rng = np.random.default_rng((seed, 67, k))
        member = cluster_memberships(choices, ridge, num_types, rng, k)
        log_member = np.log(member)
        shared = {
            "strength": fit_logistic(choices.margin[:, None], np.array([MARGIN_RIDGE])),
            "w": log_member - log_member.mean(1, keepdims=True),
        }
        runs.append(minimise(loss, {**shared, **start(rng, size, num_types)}))
    found, _ = min(runs, key=lambda run: run[1])
    mixture = torch.from_numpy(found["w"]).softmax(1)

    def logit(held: KnownChoices) -> Float[np.ndarray, " choices"]:
        assert held.embeddings is not None
        of_choice = mixture[torch.from_numpy(held.annotator)]
        at = {name: torch.from_numpy(value) for name, value in found.items()}
        chosen, rejected = rewards(at, of_choice, held.embeddings)
        return found["strength"] * held.margin + (chosen - rejected).numpy()

    number = sum(v.size for name, v in found.items() if name != "w" or num_types > 1)
    return FittedRival.by_logit(number, logit, _describe(mixture.numpy()))


def _penalty(at: Mapping[str, Tensor], setting: Setting) -> Tensor:
    total = MARGIN_RIDGE * at["strength"].square().sum()
    total = total + _MIXTURE_RIDGE * at["w"].square().sum()
    for name in ("map", "context"):
        if name in at:
            total = total + setting["ridge"] * at[name].square().sum()
    for name in ("point", "shift", "angle"):  # these have a scale of one
        if name in at:
            total = total + at[name].square().sum()
    if "log_scale" in at:
        total = total + at["log_scale"].square().sum()
    return total / 2


def _describe(mixture: Float[np.ndarray, "annotators types"]) -> dict[str, np.ndarray]:
    """The type that a person is most of, and the whole mixture, the commonest type first."""
    mixture = mixture[:, np.argsort(-mixture.mean(0), kind="stable")]
    people = {"type": 1 + mixture.argmax(1)}
    return people | {f"type_{k + 1}": mixture[:, k] for k in range(mixture.shape[1])}
