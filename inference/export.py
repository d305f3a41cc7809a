"""A fit as an ArviZ object: named groups, dims and coords, written against the 1.x API."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mixdpo_pyro.inference.choices import Choices, orient_at_random, random_subset
from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.likelihood.pairs import pair_log_prob
from mixdpo_pyro.inference.likelihood.panels import tabulate
from mixdpo_pyro.inference.methods.files import write_whole
from mixdpo_pyro.inference.predictive import replicate_choices
from mixdpo_pyro.models import cv_prior, mean_prior

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["read_draws", "save_arviz", "to_arviz", "to_inference_data"]

_DIMS: dict[Any, Any] = {
    "strength": ["annotator"],
    "choices": ["annotator"],
    "choice": ["pair"],
    "margin": ["pair"],
    "annotator_id": ["pair"],
}


def to_arviz(result: Fit, max_pairs: int = 2000, seed: int = 0) -> "xr.DataTree":
    """Everything ArviZ needs for diagnosis, comparison and predictive checks.

    Pairs are oriented at random: `choice` is 1 where the response called first was chosen and
    `margin` is that of the first over the second; were the chosen response always first, every
    predictive check would be vacuous. Groups:

    - `posterior`: `mean`, `cv`, and `strength` (dim `annotator`) for panels;
    - `prior` and `prior_predictive`, absent under `mean="free"`, which has no prior;
    - `posterior_predictive`: `choice`, replicated for the same people;
    - `observed_data`: `choice`; `constant_data`: `margin`, and `annotator_id` with ids;
    - `log_likelihood`: pointwise with the strength marginalised: `choice` (dim `pair`), or
      `choices` (dim `annotator`) for panels, whose unit is the person;
    - `sample_stats`: those of the fit.

    Args:
        result: A fit.
        max_pairs: Pairs (and people, in the log-likelihood of panels) that are kept; of more, a
            random subset is, and the attributes of the root say so.
        seed: Seed of orientation, subset and replications.

    Raises:
        ValueError: If `max_pairs` is not positive.
    """
    import xarray as xr

    if max_pairs < 1:
        raise ValueError(f"Expected max_pairs >= 1, got {max_pairs}")
    rng = np.random.default_rng(seed)
    choices = result.choices
    pair = random_subset(choices.num_pairs, max_pairs, rng)
    person = random_subset(choices.num_annotators, max_pairs, rng)
    margin, is_first = orient_at_random(choices.margin[pair], rng)
    ids = None if choices.annotator is None else np.array(choices.labels)[choices.annotator[pair]]
    variables: dict[str, dict[str, np.ndarray]] = {
        "posterior": result.posterior,
        "sample_stats": result.sample_stats,
        "posterior_predictive": _replicated(result, margin, ids, seed),
        "log_likelihood": _log_likelihood(result, pair, person),
    }
    if result.mean != "free":
        prior = _prior(result, rng)
        variables |= {
            "prior": prior.posterior,
            "prior_predictive": _replicated(prior, margin, ids, seed + 1),
        }
    coords = {"pair": pair, "annotator": np.array(choices.labels)}
    subset = coords | {"annotator": coords["annotator"][person]}
    datasets = {
        name: _dataset(values, subset if name == "log_likelihood" else coords, result.num_chains)
        for name, values in variables.items()
    }
    constant = {"margin": margin} | ({} if ids is None else {"annotator_id": ids})
    datasets |= {
        "observed_data": _dataset({"choice": is_first.astype(np.int8)}, coords),
        "constant_data": _dataset(constant, coords),
    }
    tree = xr.DataTree.from_dict(datasets)
    tree.attrs = _attributes(result, len(pair), len(person))
    return tree


def to_inference_data(tree: "xr.DataTree") -> Any:
    """The same groups as an `InferenceData` of arviz 0.23; arviz 1.x works on the tree itself."""
    import arviz

    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    return arviz.InferenceData(attrs=tree.attrs, **groups)


def save_arviz(tree: "xr.DataTree", path: str | Path) -> Path:
    """Write the tree as NetCDF, whole or not at all.

    `arviz.from_netcdf` of arviz 0.23 reads the file as an `InferenceData`, and
    `xarray.open_datatree` as a tree.

    Raises:
        OSError: Naming the file, such as for a full disk.
    """
    path = Path(path)
    # To memory first: HDF5 ends the process where the disk that it writes to is full.
    write_whole(tree.to_netcdf(engine="h5netcdf"), path)
    return path


def read_draws(
    path: str | Path,
) -> tuple[dict[str, np.ndarray], list[str], dict[str, Any]]:
    """Posterior draws of a file that `save_arviz` wrote.

    Returns:
        Name -> draws, samples first; labels of the annotators, the columns of `strength`, if
        there are; attributes of the root and arrays of `sample_stats`.

    Raises:
        OSError, ValueError, RuntimeError or KeyError: If it is no such file.
    """
    import xarray as xr

    with xr.open_datatree(path, engine="h5netcdf") as tree:
        group = tree["posterior"].to_dataset().stack(sample=("chain", "draw")).load()
        diagnostics = {str(name): value for name, value in tree.attrs.items()}
        if "sample_stats" in tree.children:
            found = tree["sample_stats"].to_dataset().load().data_vars
            diagnostics |= {str(name): value.to_numpy() for name, value in found.items()}
    draws = {str(k): v.transpose("sample", ...).to_numpy() for k, v in group.data_vars.items()}
    labels = group["annotator"].to_numpy().astype(str).tolist() if "strength" in draws else []
    return draws, labels, diagnostics


def _dataset(
    variables: dict[str, np.ndarray], coords: dict[str, np.ndarray], num_chains: int | None = None
) -> "xr.Dataset":
    """Variables as a dataset; with chains, the first axis holds their draws chain by chain."""
    from arviz_base import dict_to_dataset

    used = {dim for name in variables for dim in _DIMS.get(name, ())}
    sample_dims = ["chain", "draw"] if num_chains else []
    if num_chains:
        variables = {k: v.reshape(num_chains, -1, *v.shape[1:]) for k, v in variables.items()}
    return dict_to_dataset(
        variables,
        coords={dim: values for dim, values in coords.items() if dim in used},
        dims=_DIMS,
        sample_dims=sample_dims,
    )


def _replicated(result: Fit, margin: np.ndarray, ids: np.ndarray | None, seed: int) -> dict:
    return {"choice": replicate_choices(result, margin, ids, seed).astype(np.int8)}


def _prior(result: Fit, rng: np.random.Generator) -> Fit:
    """The fit with draws from the prior in place of the posterior's."""
    shape = result.posterior["cv"].shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        draws = {"mean": mean_prior(result.beta)(shape).double().numpy()}
        draws["cv"] = cv_prior()(shape).double().numpy()
    if result.mean == "fixed":
        draws["mean"] = np.full(shape, result.beta)
    return replace(result, posterior=draws)


def _log_likelihood(result: Fit, pair: np.ndarray, person: np.ndarray) -> dict[str, np.ndarray]:
    mean, cv = result.posterior["mean"], result.posterior["cv"]
    if not result.choices.has_panels:
        margin = result.choices.margin[pair]
        value = pair_log_prob(margin, mean, cv, result.family, result.flip_probability)
        return {"choice": value}
    table = tabulate(_of_people(result.choices, person), result.family, result.flip_probability)
    per_person = table.per_annotator(torch.from_numpy(mean), torch.from_numpy(cv))
    return {"choices": per_person.T.numpy()}


def _of_people(choices: Choices, person: np.ndarray) -> Choices:
    """The choices of some people."""
    new_index = np.full(choices.num_annotators, -1)
    new_index[person] = np.arange(len(person))
    index = new_index[choices.annotator]
    labels = tuple(choices.labels[k] for k in person)
    return Choices(choices.margin[index >= 0], index[index >= 0], labels)


def _attributes(result: Fit, num_pairs: int, num_people: int) -> dict[str, Any]:
    return {
        "inference_library": "mixdpo-pyro",
        "inference_library_version": version("mixdpo-pyro"),
        "family": result.family,
        "method": result.method,
        "mean_anchor": result.mean,
        "beta": result.beta,
        "flip_probability": result.flip_probability,
        "seed": result.seed,
        "log_likelihood_maximum": result.log_likelihood,
        "log_likelihood_null": result.null_log_likelihood,
        "num_pairs": result.choices.num_pairs,
        "num_annotators": result.choices.num_annotators,
        "num_pairs_shown": num_pairs,
        "num_annotators_in_log_likelihood": num_people if result.choices.has_panels else 0,
        **result.attributes,
    }
