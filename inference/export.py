"""A fit as an ArviZ object: named groups, dims and coords, written against the 1.x API."""

from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from mixdpo_pyro.errors import MissingPackageError, extra_named
from mixdpo_pyro.inference.choices import (
    Choices,
    orient_at_random,
    random_subset,
    select_annotators,
    select_choices,
    select_units,
    without_ids,
)
from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.likelihood.left_out import log_prob_given_others
from mixdpo_pyro.inference.likelihood.pairs import pair_log_prob
from mixdpo_pyro.inference.likelihood.panels import log_likelihood_at, tabulate
from mixdpo_pyro.inference.outcomes import log_prior_of_parameters, prior_parameters
from mixdpo_pyro.inference.posterior import Posterior, make_dataset
from mixdpo_pyro.inference.predictive import (
    draw_margin_errors,
    replicate_choices,
    replicate_outcomes,
)
from mixdpo_pyro.inference.robustness.errors.allowed_for import draw_prior_errors
from mixdpo_pyro.models import cv_prior, mean_prior

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["LeftOut", "to_arviz", "to_datatree", "to_inference_data"]

LeftOut = Literal["annotator", "choice"]


def to_arviz(
    result: Fit, max_pairs: int = 2000, seed: int = 0, left_out: LeftOut = "annotator"
) -> Any:
    """Everything ArviZ needs, in the form that the installed ArviZ takes.

    An `InferenceData` where arviz 0.x is installed, else an `xarray.DataTree`, which arviz 1.x,
    arviz-stats and arviz-plots work on; these two take an `InferenceData` as well. The groups and
    the arguments are those of :func:`to_datatree`.
    """
    tree = to_datatree(result, max_pairs, seed, left_out)
    return to_inference_data(tree) if _takes_inference_data() else tree


def _takes_inference_data() -> bool:
    """Whether the installed arviz is of the generation before the tree."""
    try:
        return int(version("arviz").split(".")[0]) < 1
    except PackageNotFoundError:
        return False


def to_datatree(
    result: Fit, max_pairs: int = 2000, seed: int = 0, left_out: LeftOut = "annotator"
) -> "xr.DataTree":
    """Everything ArviZ needs for diagnosis, comparison and predictive checks, as a tree.

    Pairs are oriented at random: `choice` is 1 where the response called first was chosen and
    `margin` is that of the first over the second; were the chosen response always first, every
    predictive check would be vacuous. With ties or grades `choice` is the outcome, from 0, the
    strongest preference against the first response; of a choice set it is the place of the chosen
    response, 0 being the one with the largest utility, and `num_responses` stands in place of
    `margin`. Groups:

    - `posterior`: `mean`, `cv`, thresholds and errors of margins where there are any, and
      `strength` (dim `annotator`) for panels whose draws were kept;
    - `strength_summary`: mean, sd and quantiles of each strength, in place of draws;
    - `prior` and `prior_predictive`, absent under `mean_anchor="free"`, which has no prior;
    - `posterior_predictive`: `choice`, replicated for the same annotators;
    - `observed_data`: `choice`; `constant_data`: `margin`, and `annotator_id` with ids;
    - `log_likelihood`: pointwise with the strength marginalised: `choice` (dim `pair`), or
      `choices` (dim `annotator`) for panels, whose unit is the annotator;
    - `log_prior`: log density of the priors of `mean` and `cv` and, on the real line, of
      thresholds, where they have one; the size of errors comes from more than the log-likelihood,
      which takes its median, and has none here;
    - `sample_stats`: those of the fit.

    For panels `loo` leaves out whole annotators. With `left_out="choice"` it leaves out single
    choices: `log_likelihood` then holds `choice` (dim `pair`) under the name of what was observed,
    as `plot_loo_pit` wants it, each given all other choices of its annotator. These do not add up
    to the likelihood, so that they say nothing about its sensitivity; `log_prior` is left out, by
    which `psense` refuses.

    Args:
        result: A fit.
        max_pairs: Pairs (and annotators, in the log-likelihood of panels) that are kept; of more,
            a random subset is, and the attributes of the root say so.
        seed: Seed of orientation, subset and replications.
        left_out: What a leave-one-out of panels leaves out, `"annotator"` or `"choice"`.

    Raises:
        ValueError: If `max_pairs` is not positive, or `left_out` is neither of the two.
    """
    import xarray as xr

    if max_pairs < 1:
        raise ValueError(f"Expected max_pairs >= 1, got {max_pairs}")
    if left_out not in get_args(LeftOut):
        raise ValueError(f"Expected left_out='annotator' or 'choice', got {left_out!r}")
    rng = np.random.default_rng(seed)
    choices, posterior = result.choices, result.posterior
    pair = random_subset(choices.num_choices, max_pairs, rng)
    annotator = random_subset(choices.num_annotators, max_pairs, rng)
    shown = _Shown.of(result, pair, rng)
    variables: dict[str, dict[str, np.ndarray]] = {
        "posterior_predictive": shown.replicated(_with_draws(result, pair, seed), seed),
    }
    if left_out == "choice" and choices.has_panels:
        variables["log_likelihood"] = _log_likelihood_given_others(result, pair)
    else:
        variables["log_likelihood"] = _log_likelihood(result, pair, annotator)
        variables |= _log_prior(result)
    if posterior.mean_anchor != "free":
        prior = _prior(result, rng)
        variables |= {
            "prior": prior.draws,
            "prior_predictive": shown.replicated(prior, seed + 1),
        }
    coords = {"pair": pair, "annotator": np.array(choices.labels)}
    subset = coords | {"annotator": coords["annotator"][annotator]}
    datasets = posterior.to_datasets() | {
        name: make_dataset(
            values, subset if name == "log_likelihood" else coords, posterior.num_chains
        )
        for name, values in variables.items()
    }
    datasets |= {
        "observed_data": make_dataset({"choice": shown.seen.astype(np.int8)}, coords),
        "constant_data": make_dataset(shown.constant, coords),
    }
    tree = xr.DataTree.from_dict(datasets)
    in_log_likelihood = datasets["log_likelihood"].sizes.get("annotator", 0)
    tree.attrs = posterior.attributes() | {
        "num_pairs_shown": len(pair),
        "num_annotators_in_log_likelihood": in_log_likelihood,
    }
    return tree


def to_inference_data(tree: "xr.DataTree") -> Any:
    """The same groups as an `InferenceData` of arviz 0.23; arviz 1.x works on the tree itself.

    Raises:
        MissingPackageError: If arviz is not installed, or is 1.x.
    """
    with extra_named("to_inference_data"):
        import arviz
    if not _takes_inference_data():
        raise MissingPackageError(
            "to_inference_data needs arviz 0.x, not 1.x: arviz 1.x takes the tree itself"
        )
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    return arviz.InferenceData(attrs=tree.attrs, **groups)


@dataclass(frozen=True)
class _Shown:
    """The choices that are kept, oriented at random where they are pairs.

    Attributes:
        choices: The choices, with the margins of the first over the second response.
        judged: The same with the margins of the chosen response.
        seen: What was done in each.
        constant: Variables of `constant_data`.
    """

    choices: Choices
    judged: Choices
    seen: np.ndarray
    constant: dict[str, np.ndarray]

    @classmethod
    def of(cls, result: Fit, pair: np.ndarray, rng: np.random.Generator) -> "_Shown":
        """The choices of these numbers."""
        choices = judged = select_choices(result.choices, pair)
        outcomes, constant = choices.outcomes, {}
        if outcomes is not None and outcomes.are_sets:
            constant["num_responses"] = outcomes.sizes
            seen = outcomes.seen(choices.margin)
        else:
            margin, is_first = orient_at_random(choices.margin, rng)
            constant["margin"] = margin
            seen = is_first
            if outcomes is not None:
                last = len(outcomes.observation.support()) - 1
                seen = np.where(is_first, outcomes.code, last - outcomes.code)
            choices = replace(choices, margin=margin)
        if choices.annotator is not None:
            ids = np.array(choices.labels)[choices.annotator]
            constant["annotator_id"] = choices.by_choice(ids)
        return cls(choices, judged, seen, constant)

    def replicated(self, posterior: Posterior, seed: int) -> dict[str, np.ndarray]:
        """Replications of what was done."""
        choices = self.choices
        if choices.outcomes is not None:
            value = replicate_outcomes(posterior, choices, seed=seed)
        else:
            ids = self.constant.get("annotator_id")
            error = draw_margin_errors(posterior, self.judged, np.random.default_rng((seed, 59)))
            value = replicate_choices(
                posterior, choices.margin, annotator=ids, error=error, seed=seed
            )
        return {"choice": value.astype(np.int8)}


def _with_draws(result: Fit, pair: np.ndarray, seed: int) -> Posterior:
    """The posterior with draws of those who judged these pairs, where it has only summaries."""
    posterior, choices = result.posterior, result.choices
    if not posterior.strength_summary:
        return posterior
    assert choices.annotator is not None
    owner = choices.by_choice(choices.annotator)
    shown = select_annotators(choices, np.unique(owner[pair]))
    table = tabulate(shown, posterior.family, posterior.flip_probability)
    point = torch.from_numpy(posterior.mean), torch.from_numpy(posterior.cv)
    strength = table.draw_strengths(*point, np.random.default_rng((seed, 1))).numpy()
    return replace(posterior, strength=strength, annotators=shown.labels)


def _prior(result: Fit, rng: np.random.Generator) -> Posterior:
    """Draws from the prior in place of the posterior's."""
    posterior = result.posterior
    shape = posterior.cv.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        mean = mean_prior(posterior.beta)(shape).double().numpy()
        cv = cv_prior()(shape).double().numpy()
    if posterior.mean_anchor == "fixed":
        mean = np.full(shape, posterior.beta)
    return replace(
        posterior, mean=mean, cv=cv, strength=None, strength_summary={}, annotators=(),
        parameters=prior_parameters(result.choices.outcomes, len(mean), rng)
        | draw_prior_errors(result, rng),
    )  # fmt: skip


def _log_likelihood(result: Fit, pair: np.ndarray, annotator: np.ndarray) -> dict[str, np.ndarray]:
    posterior, choices = result.posterior, result.choices
    mean, cv = posterior.mean, posterior.cv
    family, flip = posterior.family, posterior.flip_probability
    if not choices.has_panels:
        if choices.outcomes is None:
            return {"choice": pair_log_prob(choices.margin[pair], mean, cv, family, flip)}
        name, units = "choice", select_units(without_ids(choices), pair)
    else:
        name, units = "choices", select_annotators(choices, annotator)
    if family == "fixed":
        return {name: log_likelihood_at(torch.from_numpy(mean), units, flip).T.numpy()}
    table = tabulate(units, family, flip)
    per_unit = table.per_annotator(torch.from_numpy(mean), torch.from_numpy(cv))
    return {name: per_unit.T.numpy()}


def _log_likelihood_given_others(result: Fit, pair: np.ndarray) -> dict[str, np.ndarray]:
    """Of single choices, each given the others of its annotator."""
    posterior, choices = result.posterior, result.choices
    point = torch.from_numpy(posterior.mean), torch.from_numpy(posterior.cv)
    value = log_prob_given_others(
        choices, pair, *point, posterior.family, posterior.flip_probability
    )
    return {"choice": value.T.numpy()}


def _log_prior(result: Fit) -> dict[str, dict[str, np.ndarray]]:
    """The group `log_prior`, without what is fixed; empty where nothing has a prior."""
    posterior = result.posterior
    if posterior.mean_anchor == "free":
        return {}
    mean, cv = torch.from_numpy(posterior.mean), torch.from_numpy(posterior.cv)
    found = log_prior_of_parameters(result.choices.outcomes, posterior.parameters)
    if posterior.family != "fixed":
        found["cv"] = cv_prior().log_prob(cv).numpy()
    if posterior.mean_anchor == "prior":
        found["mean"] = mean_prior(posterior.beta).log_prob(mean).double().numpy()
    return {"log_prior": found} if found else {}
