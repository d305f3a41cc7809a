"""The posterior of the strength with the size of the margins' errors as one of its parameters."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.likelihood.panels import tabulate
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.robustness.errors.pair_errors import (
    PRIOR_SD,
    PairErrors,
    fit_with_errors,
    margin_scale,
)
from mixdpo_pyro.inference.robustness.errors.responses import without_recurring

__all__ = ["allow_for_errors", "draw_prior_errors"]


def allow_for_errors(result: Fit, errors: PairErrors) -> Fit:
    """The fit with errors of the margins, the draws of their size among its parameters.

    Mean and cv are those of `errors`. Annotators' strengths, and all else that is computed from
    the choices, take errors of the median size, as they take thresholds of ties; choices that
    share a response with another one of the same person are dropped, as they are for `errors`.

    Args:
        result: A fit of pairs with annotator ids, without errors.
        errors: Its errors, see
            :func:`~mixdpo_pyro.inference.robustness.errors.pair_errors.estimate_pair_errors`.

    Returns:
        A fit whose posterior has a parameter `pair_error`, the standard deviation of the errors of
        pairs in nats, or `response_error`, of those of single responses.
    """
    without = replace(result, choices=without_recurring(result.choices))
    found = fit_with_errors(without, [float(np.median(errors.ratio))])[0]
    size = errors.ratio * margin_scale(without.choices)
    posterior = replace(
        found.posterior,
        mean=errors.mean,
        cv=errors.cv,
        parameters=_by_name(size, errors.source == "responses"),
        sample_stats={},
    )
    return replace(found, posterior=_with_strengths(posterior, found.choices, result.posterior))


def draw_prior_errors(result: Fit, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws of the errors' size from its prior, where the fit has such a parameter."""
    known = result.posterior
    if known.margin_error is None:
        return {}
    size = PRIOR_SD * margin_scale(result.choices) * np.abs(rng.standard_normal(known.cv.shape))
    return _by_name(size, "response_error" in known.parameters)


def _by_name(size: Float[np.ndarray, " samples"], are_of_responses: bool) -> dict[str, np.ndarray]:
    """The parameter that stands for margins' errors of this standard deviation."""
    return {"response_error": size / np.sqrt(2)} if are_of_responses else {"pair_error": size}


def _with_strengths(posterior: Posterior, choices: Choices, like: Posterior) -> Posterior:
    """With draws of annotators' strengths, or their summary, as another posterior has them."""
    if like.strength is None and not like.strength_summary:
        return posterior
    table = tabulate(choices, posterior.family, posterior.flip_probability)
    if like.strength is None:
        summary = table.summarise_strengths(posterior.mean, posterior.cv)
        return replace(posterior, strength_summary=summary, annotators=choices.labels)
    point = torch.from_numpy(posterior.mean), torch.from_numpy(posterior.cv)
    draws = table.draw_strengths(*point, np.random.default_rng((posterior.seed, 53))).numpy()
    return replace(posterior, strength=draws, annotators=choices.labels)
