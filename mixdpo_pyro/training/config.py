"""The options of `MixDPOTrainer`, on top of `trl.DPOConfig`."""

from dataclasses import dataclass, field

import torch
from trl import DPOConfig

from mixdpo_pyro.config_fields import check_positive, check_range
from mixdpo_pyro.data.choice_kinds import NO_SETS
from mixdpo_pyro.models.pyro_models import MeanAnchor
from mixdpo_pyro.training.batches.columns import ChoiceColumns, TieModel, check_choices
from mixdpo_pyro.training.learned_strength import EstimatorName, Family, StrengthConfig
from mixdpo_pyro.training.losses.accepted import check_losses
from mixdpo_pyro.training.losses.baselines import BaselineName

__all__ = ["MixDPOConfig"]


@dataclass
class MixDPOConfig(DPOConfig):
    r"""Configuration of :class:`MixDPOTrainer`: everything of `trl.DPOConfig`, and the strength.

    Precision follows the device: where no accelerator is found, `bf16` and
    `gradient_checkpointing` default to off, since both only slow a CPU down.

    Args:
        family: Distribution of the strength: `lognormal`, `gamma`, or `fixed` (plain DPO).
        estimator: How its expectation is computed: `draws` (Monte Carlo, the paper's estimator
            for LogNormal), `quadrature`, `series` (Gamma only), or `auto`, the exact one.
        mean_anchor: What is assumed of the mean strength: `fixed` (the mean is `beta`, as in DPO,
            and only cv is learned), `prior` (log mean ~ Normal(log beta, 0.5), cv ~
            HalfNormal(1)), or `free` (both learned without a prior, as in the paper). Under the
            last two the mean trades off against the scale of the margins, and a prior, which
            counts once among all pairs, does not hold it.
        num_draws: Number of Monte Carlo draws a pair, for `estimator="draws"`.
        strength_learning_rate: Learning rate of the strength's parameters (log scale).
        strength_initial_cv: Coefficient of variation that training starts from.
        learn_cv: Whether cv is learned; otherwise it stays at `strength_initial_cv`, a control.
        annotator_column: Column with annotator ids. An annotator's pairs then share their
            strength, which is inferred from all of them, in whatever order they come; without ids
            every pair has its own. Not for `family="fixed"`, where there is nothing to share.
        annotator_block_size: Infer the strength from the pairs of one annotator that stand
            together in a batch, at most so many. Default: from all pairs; and from blocks of 8
            where that is not possible (streams, choice sets, ties, grades, `estimator="draws"`).
        choice_set_column: Column with ids of choice sets: rows of one set are one choice, its
            chosen response over each other one. The loss is the set's likelihood, a batch holds
            whole sets, and each response is run once. Sets of one row are pairs. `none` is as
            None, but keeps `mixdpo train` from looking for sets.
        rank_column: With sets: ranks of the rejected responses, 2, 3, ..., the chosen one being 1;
            a last rank that several share, or no value: not ranked further.
        outcome_column: Column with `win`, `tie` or `loss` of the first response (`chosen`).
        grade_column: Column with grades -k, ..., k of the first response over the second, 0 being
            a tie; not with an outcome_column.
        ties: Model of ties: `rao-kupper` (a threshold), `davidson`, or `drop`, which drops them.
        group_by_pair: Let judgements of one pair stand in one batch, which then runs its responses
            once; for data in which several people judge each pair.
        strength_warmup_steps: Steps during which the strength stays as it starts and only the
            policy learns.
        flip_probability: Probability in [0, 1/2) that a label was flipped, part of the likelihood;
            for `baseline="robust"` and `"conservative"`, their noise.
        baseline: Loss of another paper in place of the likelihood, with `family="fixed"`: `robust`
            (rDPO), `conservative` (cDPO) or `beta-dpo`, see
            :mod:`mixdpo_pyro.training.losses.baselines`.
        group_column: Column by which evaluation reports macro and worst-group metrics.
        bootstrap_samples: Resamples behind the intervals of evaluation metrics.
        strict: Refuse pairs that hold no preference (empty, identical or fully truncated
            completions) instead of dropping them.
        reference_cache_dir: Folder of cached reference log-probabilities, for
            `precompute_ref_log_probs`; default `~/.cache/mixdpo_pyro/reference`, `none` for no
            cache.
    """

    family: Family = field(
        default="lognormal", metadata={"help": "Distribution of the preference strength."}
    )
    estimator: EstimatorName = field(
        default="auto",
        metadata={
            "help": "Estimator of the expectation over the strength; 'series' is Gamma's, and "
            "'auto' takes the exact one."
        },
    )
    mean_anchor: MeanAnchor = field(
        default="fixed",
        metadata={
            "help": "Anchoring of the mean strength: fixed at `beta`, a prior around `beta`, or "
            "free (learned without a prior)."
        },
    )
    num_draws: int = field(
        default=16, metadata={"help": "Monte Carlo draws a pair, for estimator 'draws'."}
    )
    strength_learning_rate: float = field(
        default=0.05, metadata={"help": "Learning rate of the strength's parameters."}
    )
    strength_initial_cv: float = field(
        default=0.5, metadata={"help": "Coefficient of variation that training starts from."}
    )
    learn_cv: bool = field(
        default=True, metadata={"help": "Learn cv, or keep it at strength_initial_cv."}
    )
    annotator_column: str | None = field(
        default=None, metadata={"help": "Column with annotator ids."}
    )
    annotator_block_size: int | None = field(
        default=None,
        metadata={
            "help": "Pairs of one annotator that stand together in a batch and alone tell their "
            "strength. Default: all pairs of the annotator tell it."
        },
    )
    choice_set_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with ids of choice sets; rows of one set are one choice. Default: "
            "`choice_set` where there is one, or what the rows look like; `none` keeps them apart."
        },
    )
    rank_column: str | None = field(
        default=None, metadata={"help": "Column with ranks of a set's rejected responses."}
    )
    outcome_column: str | None = field(
        default=None, metadata={"help": "Column with win, tie or loss of the first response."}
    )
    grade_column: str | None = field(
        default=None, metadata={"help": "Column with grades -k to k of the first response."}
    )
    ties: TieModel = field(
        default="rao-kupper",
        metadata={"help": "Model of ties: 'rao-kupper', 'davidson', or 'drop' them."},
    )
    group_by_pair: bool = field(
        default=False,
        metadata={"help": "Let judgements of one pair stand in one batch, and run it once."},
    )
    strength_warmup_steps: int = field(
        default=0, metadata={"help": "Steps during which the strength stays as it starts."}
    )
    flip_probability: float = field(
        default=0.0, metadata={"help": "Probability that a label was flipped, below one half."}
    )
    baseline: BaselineName | None = field(
        default=None,
        metadata={
            "help": "Loss of another paper, with family 'fixed': 'robust' (rDPO), 'conservative' "
            "(cDPO) or 'beta-dpo'."
        },
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Column for macro and worst-group metrics of the evaluation."},
    )
    bootstrap_samples: int = field(
        default=500, metadata={"help": "Resamples behind intervals of evaluation metrics."}
    )
    strict: bool = field(
        default=False,
        metadata={"help": "Refuse pairs without a preference instead of dropping them."},
    )
    reference_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of cached reference log-probabilities, or 'none'. Default: "
            "~/.cache/mixdpo_pyro/reference"
        },
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "bfloat16 mixed precision. Default: on with an accelerator, off without."
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Trade compute for memory. Default: on with an accelerator, off without."
        },
    )

    def __post_init__(self) -> None:
        has_accelerator = torch.accelerator.is_available() and not self.use_cpu
        if self.gradient_checkpointing is None:
            self.gradient_checkpointing = has_accelerator
        if self.bf16 is None:
            self.bf16 = has_accelerator and not self.fp16
        super().__post_init__()
        self._check_strength()

    def strength_config(self) -> StrengthConfig:
        """The part of the configuration that describes the strength."""
        return StrengthConfig(
            family=self.family,
            mean_anchor=self.mean_anchor,
            beta=self.beta,
            estimator=self.estimator,
            num_draws=self.num_draws,
            initial_cv=self.strength_initial_cv,
            learn_cv=self.learn_cv,
            flip_probability=self.flip_probability,
            baseline=self.baseline,
        )

    def choice_columns(self) -> ChoiceColumns:
        """The columns that say what was done."""
        sets = None if self.choice_set_column == NO_SETS else self.choice_set_column
        return ChoiceColumns(
            sets, self.rank_column, self.outcome_column, self.grade_column,
            self.ties,
        )  # fmt: skip

    def _check_strength(self) -> None:
        self.strength_config()
        check_positive("strength_learning_rate", self.strength_learning_rate)
        at_least = {"annotator_block_size": 1, "strength_warmup_steps": 0, "bootstrap_samples": 2}
        for name, least in at_least.items():
            check_range(name, getattr(self, name), least)
        shares = self.annotator_column is not None and self.family != "fixed"
        check_losses(self, shares, self.baseline is not None)
        check_choices(self, self.choice_columns(), self.estimator, self.baseline)
