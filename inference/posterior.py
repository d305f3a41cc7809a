"""The posterior of the strength: draws, and everything needed to use them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from mixdpo_pyro.inference.methods.files import write_whole
from mixdpo_pyro.models import Family, mean_prior
from mixdpo_pyro.models.pyro_models import MeanAnchor

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["DIMS", "ERRORS", "Posterior", "format_interval", "make_dataset", "save_arviz"]

DIMS: dict[Any, Any] = {
    "strength": ["annotator"],
    "choices": ["annotator"],
    "choice": ["pair"],
    "margin": ["pair"],
    "annotator_id": ["pair"],
    "cut_points": ["grade"],
}
"""Dimensions of every variable that is written, beside chain and draw."""

ERRORS = ("pair_error", "response_error")
"""Parameters that are sizes of errors of the margins."""

_FIELDS = (
    "family", "mean_anchor", "beta", "flip_probability", "observation", "method", "seed"
)  # fmt: skip
"""Fields that are attributes of the file's root."""

_SHOWN_ANNOTATORS = 10


@dataclass(frozen=True, repr=False, eq=False)
class Posterior:
    """Draws of the strength's mean and cv, and what they were computed from.

    Every method makes one; prediction, checks and reports take nothing else.

    Attributes:
        mean: Draws of the mean strength, shape `(samples,)`.
        cv: Draws of the coefficient of variation, same shape.
        family: Family of the strength's distribution.
        mean_anchor: Anchoring of the mean.
        beta: Median of the mean's prior, or its fixed value.
        strength: Draws of every annotator's strength, or None.
        strength_summary: In place of draws, per annotator: `mean`, `sd`, `q05`, `q50`, `q95`, and
            `log_sd` and `p_not_positive`; or empty.
        annotators: Labels of the columns of `strength`, or of the entries of its summary.
        flip_probability: Probability that a label was flipped, as assumed.
        observation: What was observed: `"pairs"`, `"sets"`, `"rao-kupper"`, `"davidson"` or
            `"grades"`.
        parameters: Draws of the thresholds of ties or grades by name, and of a lapse rate: see
            :func:`~mixdpo_pyro.inference.outcomes.name_parameters`. Where errors of the margins
            are allowed for, of their standard deviation in nats: `pair_error`, of each pair's
            margin, or `response_error`, of the log-ratio of each response.
        method: How the draws were computed.
        seed: Seed of the draws.
        num_chains: Chains that the draws come from, in order; 1 where draws are independent.
        sample_stats: Per draw: `lp`, the log joint in unconstrained space, in nats; for NUTS,
            `diverging`.
        diagnostics: Diagnostics of the method, and what the draws were computed from.
    """

    mean: Float[np.ndarray, " samples"]
    cv: Float[np.ndarray, " samples"]
    family: Family
    mean_anchor: MeanAnchor = "prior"
    beta: float = 0.1
    strength: Float[np.ndarray, "samples annotators"] | None = None
    strength_summary: dict[str, np.ndarray] = field(default_factory=dict)
    annotators: tuple[str, ...] = ()
    flip_probability: float = 0.0
    observation: str = "pairs"
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    method: str = "laplace"
    seed: int = 0
    num_chains: int = 1
    sample_stats: dict[str, np.ndarray] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Number of draws."""
        return len(self.cv)

    @property
    def draws(self) -> dict[str, np.ndarray]:
        """Draws by name: `mean`, `cv`, `parameters` and, where it is known, `strength`."""
        found = {"mean": self.mean, "cv": self.cv, **self.parameters}
        return found if self.strength is None else {**found, "strength": self.strength}

    @property
    def thresholds(self) -> dict[str, np.ndarray]:
        """Those of `parameters` that the observation model has."""
        return {name: v for name, v in self.parameters.items() if name not in ERRORS}

    @property
    def margin_error(self) -> Float[np.ndarray, " samples"] | None:
        """Standard deviation of the margins' errors, in nats; None where they count as exact."""
        if "response_error" in self.parameters:  # of a difference of two responses
            return np.sqrt(2) * self.parameters["response_error"]
        return self.parameters.get("pair_error")

    @property
    def scalars(self) -> dict[str, np.ndarray]:
        """Draws of each threshold, rate or error by name, such as `cut_points[1]`."""
        found: dict[str, np.ndarray] = {}
        for name, value in self.parameters.items():
            columns = value.reshape(len(value), -1).T
            many = value.ndim > 1
            found |= {f"{name}[{k + 1}]" if many else name: v for k, v in enumerate(columns)}
        return found

    def take(self, rows: Int[np.ndarray, " rows"]) -> "Posterior":
        """The posterior with these draws only, as independent draws."""
        strength = None if self.strength is None else self.strength[rows]
        stats = {name: value[rows] for name, value in self.sample_stats.items()}
        parameters = {name: value[rows] for name, value in self.parameters.items()}
        return replace(
            self, mean=self.mean[rows], cv=self.cv[rows], strength=strength, sample_stats=stats,
            parameters=parameters, num_chains=1,
        )  # fmt: skip

    def first(self, num_samples: int) -> "Posterior":
        """The posterior with the first draws only."""
        return self.take(np.arange(min(num_samples, self.num_samples)))

    def at(self, mean: float, cv: float, num_samples: int = 1) -> "Posterior":
        """A point in place of the draws, repeated; annotators' strengths are dropped."""
        medians = {k: np.median(v, axis=0, keepdims=True) for k, v in self.parameters.items()}
        return replace(
            self, mean=np.full(num_samples, mean), cv=np.full(num_samples, cv), strength=None,
            strength_summary={}, annotators=(), sample_stats={}, num_chains=1,
            parameters={k: v.repeat(num_samples, 0) for k, v in medians.items()},
        )  # fmt: skip

    def columns(self, labels: Iterable[str]) -> Int[np.ndarray, " labels"]:
        """Column of each annotator in `strength`; -1 where the posterior does not know them.

        Raises:
            ValueError: If the posterior holds one of them as a summary only.
        """
        column = {label: k for k, label in enumerate(self.annotators)}
        found = np.array([column.get(label, -1) for label in labels], dtype=int)
        if self.strength is None and (found >= 0).any():
            raise ValueError(
                "Expected draws of the annotators' strengths, got a posterior with summaries of "
                "them; keep draws by fit(..., draw_strengths=True) or mixdpo diagnose "
                "--draw_strengths"
            )
        return found

    def validate(self) -> "Posterior":
        """This posterior, if its draws are draws of a strength.

        Raises:
            ValueError: Naming the variable and how many of its draws are out of its domain.
        """
        strength = self.draws.get("strength", np.ones(1))
        positive = {
            name: ("finite and > 0", ~(np.isfinite(value) & (value > 0)))
            for name, value in self.thresholds.items()
        } | {
            name: ("finite and >= 0", ~(np.isfinite(value) & (value >= 0)))
            for name, value in self.parameters.items()
            if name in ERRORS
        }
        bad = positive | {
            "mean": ("finite and > 0", ~(np.isfinite(self.mean) & (self.mean > 0))),
            "cv": ("finite and >= 0", ~(np.isfinite(self.cv) & (self.cv >= 0))),
            "strength": ("finite", ~np.isfinite(strength)),
        }
        for name, (domain, is_bad) in bad.items():
            if is_bad.any():
                first = self.draws[name][is_bad].flat[0]
                raise ValueError(
                    f"Expected every draw of {name} to be {domain}, got {first} "
                    f"({is_bad.sum():,} of {is_bad.size:,} draws)"
                )
        if self.num_samples == 0:
            raise ValueError("Expected at least one draw, got none")
        return self

    def interval(self, name: str = "cv") -> tuple[float, float]:
        """5% and 95% quantiles of the draws of `mean`, `cv` or a threshold."""
        low, high = np.quantile(self.draws[name], [0.05, 0.95])
        return float(low), float(high)

    def contraction(self) -> dict[str, float]:
        r"""How much the data narrowed the prior: :math:`1 - \mathrm{Var} / \mathrm{Var}_{prior}`.

        Of `cv`, whose half-normal prior has variance :math:`1 - 2/\pi`, and of `log_mean`, where
        it has a prior. Near 1 the data decide; at 0 or below the answer is the prior's. Not a
        number where a draw is not finite.
        """
        with np.errstate(invalid="ignore"):
            value = {"cv": 1 - float(self.cv.var()) / (1 - 2 / np.pi)}
            if self.mean_anchor == "prior":
                prior = float(mean_prior().base_dist.scale) ** 2
                value["log_mean"] = 1 - float(np.log(self.mean).var()) / prior
        return value

    def summary(self) -> "pd.DataFrame":
        """Mean, sd and the 5%, 50% and 95% quantiles of every parameter, one per row.

        Rows are `mean`, `cv`, thresholds such as `cut_points[1]`, and `strength[LABEL]`.
        """
        return self._summary(len(self.annotators))

    def save(self, path: str | Path) -> Path:
        """Write the draws, and what they were computed from, as NetCDF for ArviZ."""
        import xarray as xr

        tree = xr.DataTree.from_dict(self.to_datasets())
        tree.attrs = self.attributes()
        return save_arviz(tree, path)

    @classmethod
    def load(cls, path: str | Path) -> "Posterior":
        """Read the posterior of a file that `save` or `save_arviz` wrote.

        Raises:
            OSError, ValueError, RuntimeError or KeyError: If it is no such file, or lacks a part.
        """
        import xarray as xr

        with xr.open_datatree(path, engine="h5netcdf") as tree:
            group = tree["posterior"].to_dataset().load()
            attributes = {str(name): _plain(value) for name, value in tree.attrs.items()}
            summary = (
                tree["strength_summary"].to_dataset().load() if "strength_summary" in tree else {}
            )
            stats = tree["sample_stats"].to_dataset().load() if "sample_stats" in tree else {}
        draws = {str(k): _flat(v) for k, v in group.data_vars.items()}
        if missing := {"mean", "cv"} - draws.keys():
            raise ValueError(f"variable {min(missing)!r} of group 'posterior' is missing")
        holder = group if "strength" in draws else summary
        labels = (
            holder["annotator"].to_numpy().astype(str).tolist() if "annotator" in holder else ()
        )
        attributes.pop("inference_library"), attributes.pop("inference_library_version")
        known = {name: attributes.pop(name) for name in _FIELDS}
        return cls(
            mean=draws["mean"],
            cv=draws["cv"],
            strength=draws.get("strength"),
            parameters={k: v for k, v in draws.items() if k not in ("mean", "cv", "strength")},
            strength_summary={str(k): v.to_numpy() for k, v in summary.items()},
            annotators=tuple(labels),
            num_chains=group.sizes["chain"],
            sample_stats={str(k): _flat(stats[k]) for k in stats},
            diagnostics=attributes,
            **known,
        )

    def to_datasets(self) -> dict[str, "xr.Dataset"]:
        """The groups `posterior` and `sample_stats`, dims `chain` and `draw`.

        Where strengths are summarised also `strength_summary`, dim `annotator`.
        """
        import xarray as xr

        coords = {"annotator": np.array(self.annotators)}
        posterior = make_dataset(self.draws, coords, self.num_chains)
        datasets = {
            "posterior": posterior.assign_attrs(method=self.method),
            "sample_stats": make_dataset(self.sample_stats, coords, self.num_chains),
        }
        if self.strength_summary:
            summary = {k: ("annotator", v) for k, v in self.strength_summary.items()}
            datasets["strength_summary"] = xr.Dataset(summary, coords)
        return datasets

    def attributes(self) -> dict[str, Any]:
        """Attributes of the file's root."""
        return {
            "inference_library": "mixdpo-pyro",
            "inference_library_version": version("mixdpo-pyro"),
            **{name: getattr(self, name) for name in _FIELDS},
            **self.diagnostics,
        }

    def __repr__(self) -> str:
        words = f"mean {format_interval(self.mean)}, cv {format_interval(self.cv)}"
        named = (f", {k} {format_interval(v)}" for k, v in self.parameters.items() if v.ndim == 1)
        words += "".join(named)
        known = f", {len(self.annotators):,} annotators" if self.annotators else ""
        how = f"{self.family}, {self.num_samples:,} draws by {self.method}"
        return f"Posterior({how}: {words}{known})"

    def _repr_html_(self) -> str:
        more = len(self.annotators) - _SHOWN_ANNOTATORS
        table = self._summary(_SHOWN_ANNOTATORS).to_html(float_format=lambda x: f"{x:.3g}")
        return f"<p>{self!r}</p>{table}" + (f"<p>and {more:,} annotators</p>" if more > 0 else "")

    def _summary(self, num_annotators: int) -> "pd.DataFrame":
        import pandas as pd

        rows = {"mean": self.mean, "cv": self.cv, **self.scalars}
        shown = self.annotators[:num_annotators]
        for k, label in enumerate(shown if self.strength is not None else ()):
            rows[f"strength[{label}]"] = self.draws["strength"][:, k]
        columns = np.stack(list(rows.values()), axis=1)
        table = {"mean": columns.mean(0), "sd": columns.std(0, ddof=1)}
        for percent in (5, 50, 95):
            table[f"{percent}%"] = np.percentile(columns, percent, axis=0)
        found = pd.DataFrame(table, index=list(rows))
        if not self.strength_summary:
            return found
        names = {"mean": "mean", "sd": "sd", "q05": "5%", "q50": "50%", "q95": "95%"}
        renamed = {new: self.strength_summary[name] for name, new in names.items()}
        known = pd.DataFrame(renamed, index=[f"strength[{label}]" for label in self.annotators])
        return pd.concat([found, known[:num_annotators]])


def format_interval(draws: np.ndarray) -> str:
    """Median and 90% interval; a point where all draws are equal."""
    if not np.isfinite(draws).all():
        return "not finite"
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
    return f"{middle:.3g}" if low == high else f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def make_dataset(
    variables: dict[str, np.ndarray], coords: dict[str, np.ndarray], num_chains: int | None = None
) -> "xr.Dataset":
    """Variables as a dataset; with chains, the first axis holds their draws chain by chain."""
    from arviz_base import dict_to_dataset

    used = {dim for name in variables for dim in DIMS.get(name, ())}
    sample_dims = ["chain", "draw"] if num_chains else []
    if num_chains:
        variables = {k: v.reshape(num_chains, -1, *v.shape[1:]) for k, v in variables.items()}
    return dict_to_dataset(
        variables,
        coords={dim: values for dim, values in coords.items() if dim in used},
        dims=DIMS,
        sample_dims=sample_dims,
    )


def save_arviz(data: Any, path: str | Path) -> Path:
    """Write a tree, or an `InferenceData`, as NetCDF, whole or not at all.

    `arviz.from_netcdf` of arviz 0.23 reads the file as an `InferenceData`, and
    `xarray.open_datatree` as a tree.

    Raises:
        OSError: Naming the file, such as for a full disk.
    """
    from arviz_base import convert_to_datatree

    path, tree = Path(path), convert_to_datatree(data)
    tree.attrs = dict(data.attrs)  # which the conversion of an `InferenceData` loses
    # To memory first: HDF5 ends the process where the disk is full. And copied, since
    # Python 3.13 complains of a buffer that goes while an error still holds a view of it.
    write_whole(bytes(tree.to_netcdf(engine="h5netcdf")), path)
    return path


def _flat(variable: "xr.DataArray") -> np.ndarray:
    """Draws of all chains, one after another, on the first axis."""
    value = variable.transpose("chain", "draw", ...).to_numpy()
    return value.reshape(-1, *value.shape[2:])


def _plain(value: Any) -> Any:
    """An attribute as Python has it; arrays stay arrays."""
    return value.item() if isinstance(value, np.generic) else value
