r"""Bridging scores: what people agree on who otherwise disagree.

.. math:: \mathrm{logit}\, P(j \succ k) = \beta\Delta + (c_j - c_k) + f_g (x_j - x_k)

with the common score c and the factor x of a response both linear in its embedding, and one
number f for each person, as Community Notes ranks notes. A person's bias to a side is left out:
rows of margins say what was chosen, not where it stood, and a constant would know the answer.

References:
    | Birdwatch (Wojcik et al., arXiv:2210.15723)
    | The bridging score as a reward (arXiv:2506.24118)
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from mixdpo_pyro.inference.people.rivals.optimising import (
    Parameters,
    fit_logistic,
    minimise,
    ridges,
)
from mixdpo_pyro.inference.people.rivals.records import FittedRival, KnownChoices, Setting
from mixdpo_pyro.inference.people.rivals.types import agreement_directions

__all__ = ["common_score", "fit_bridging"]

_STARTS = 2


def fit_bridging(choices: KnownChoices, setting: Setting, seed: int = 0) -> FittedRival:
    """Fit common score and factor, the best of several starts: at zero the factor has no slope.

    Starts are the axes along which choices of one person agree most. The sign of the factor is
    arbitrary; here the sum over people is positive.

    Args:
        choices: Choices with embeddings.
        setting: `ridge` on c, `factor`, the ridge on f and x, and `starts`. A constant may move
            between c and f: where the ridge on c is larger (Community Notes: .15 and .03), what
            a majority wants and a minority does not is told by the factor, not by c.
        seed: Not used: nothing is drawn.
    """
    found = _fit(choices, setting)

    def logit(held: KnownChoices) -> Float[np.ndarray, " choices"]:
        factor = held.features[:, 1:] @ found["factor"]
        return held.features @ found["common"] + found["person"][held.annotator] * factor

    number = sum(value.size for value in found.values())
    return FittedRival.by_logit(number, logit, {"factor": found["person"]})


def common_score(choices: KnownChoices, setting: Setting) -> Float[np.ndarray, " responses"]:
    """The score c of each response on which people agree, apart from the margin's part."""
    assert choices.embeddings is not None
    found = _fit(choices, setting)
    return choices.embeddings.response @ found["common"][1:]


def _fit(choices: KnownChoices, setting: Setting) -> dict[str, np.ndarray]:
    features, person = torch.from_numpy(choices.features), torch.from_numpy(choices.annotator)
    of_common = ridges(features.shape[1], setting["ridge"])
    common_ridge = torch.from_numpy(of_common)

    def loss(at: Parameters) -> Tensor:
        # The margin is common to all: a factor on it would be a strength of each person.
        logit = features @ at["common"] + at["person"][person] * (features[:, 1:] @ at["factor"])
        others = at["factor"].square().sum() + at["person"].square().sum()
        penalty = (common_ridge * at["common"].square()).sum() + setting["factor"] * others
        return softplus(-logit).sum() + penalty / 2

    common = fit_logistic(choices.features, of_common)
    axes, slope = agreement_directions(choices, of_common)
    runs = []
    for k in range(int(setting.get("starts", _STARTS))):
        axis = axes[:, min(k, axes.shape[1] - 1)]
        start = {"common": common, "factor": axis[1:], "person": slope @ axis}
        runs.append(minimise(loss, start))
    found, _ = min(runs, key=lambda run: run[1])
    sign = 1.0 if found["person"].sum() >= 0 else -1.0
    found |= {name: sign * found[name] for name in ("factor", "person")}
    return found
