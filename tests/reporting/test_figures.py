import numpy as np
import pytest
from scipy import integrate, stats

from mixdpo_pyro.data.simulation import Truth
from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.reporting.figures.annotators import (
    plot_annotator_intervals,
    plot_annotators,
    who_is_shown,
)
from mixdpo_pyro.reporting.figures.posterior import plot_cv, smooth_density
from mixdpo_pyro.reporting.figures.run import (
    _relative_density,
    plot_prior_to_posterior,
    plot_reliability,
    plot_strength_distribution,
    plot_training,
)
from mixdpo_pyro.reporting.html import encode_images


def lines_of(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines()}


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
@pytest.mark.parametrize("cv", [0.2, 0.7])
def test_relative_law_has_mean_one_and_the_cv(family, cv):
    def moment(power):
        return integrate.quad(
            lambda x: x**power * _relative_density(x, cv, family), 0, np.inf, limit=200
        )[0]

    assert moment(0) == pytest.approx(1, rel=1e-6)
    assert moment(1) == pytest.approx(1, rel=1e-6)
    assert moment(2) - 1 == pytest.approx(cv**2, rel=1e-5)


def truth(cv):
    return Truth("gamma", 1.0, cv, 0, "pairs", [], {})


def test_strength_law_shows_truth_and_training_only_where_there_are_any():
    draws = np.full(20, 0.5)
    both = lines_of(plot_strength_distribution(draws, "gamma", 0.3, truth(0.4)))
    assert {"truth", "learned in training"} <= set(both)
    plain = lines_of(plot_strength_distribution(draws, "gamma", 0.0, truth(0.0)))
    assert not {"truth", "learned in training"} & set(plain)


def test_strength_law_over_the_prior_is_the_median_of_its_laws():
    """At the mean itself the density falls with cv, so its median is that at the median cv."""
    figure = plot_strength_distribution(np.full(9, 0.5), "lognormal", 0.0, show_prior=True)
    prior = lines_of(figure)["prior, median"]
    at_mean = np.interp(1.0, prior.get_xdata(), prior.get_ydata())
    expected = _relative_density(np.array([1.0]), stats.halfnorm.ppf(0.5), "lognormal")[0]
    assert at_mean == pytest.approx(expected, rel=0.02)


def test_prior_to_posterior_marks_point_priors_contraction_and_truth():
    draws = {"cv": np.random.default_rng(0).gamma(9, 0.1, 200), "mean": np.linspace(0.1, 0.3, 200)}
    points = {"cv": np.full(5, 0.7), "mean": np.full(5, 0.2)}
    narrowed = {"cv": 0.75, "log_mean": -0.1}
    figure = plot_prior_to_posterior(draws, points, narrowed, 0.1, true_cv=0.9)
    assert {"learned in training (a point)", "truth"} <= set(lines_of(figure))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "variance narrowed by 75%", "variance (of the log) narrowed by 0%",
    ]  # fmt: skip
    priors = (stats.halfnorm(), stats.lognorm(0.5, scale=0.1))
    for axes, distribution in zip(figure.axes, priors, strict=True):
        prior = {line.get_label(): line for line in axes.get_lines()}["prior"]
        np.testing.assert_allclose(prior.get_ydata(), distribution.pdf(prior.get_xdata()))
    fixed = plot_prior_to_posterior(draws, draws, {"cv": 0.5}, None)
    assert len(fixed.axes) == 1
    assert not {"learned in training (a point)", "truth"} & set(lines_of(fixed))


def test_reliability_points_lie_on_the_diagonal_for_true_probabilities():
    """20,000 pairs in 10 bins: each frequency within 5 standard errors of its prediction."""
    rng = np.random.default_rng(0)
    probability = rng.random(20_000)
    figure = plot_reliability(probability, rng.random(20_000) < probability)
    points = figure.axes[0].get_lines()[-1]
    predicted, observed = points.get_xdata(), points.get_ydata()
    assert len(predicted) == 10
    assert np.all(np.abs(observed - predicted) < 5 * np.sqrt(predicted * (1 - predicted) / 2000))


def test_reliability_takes_fewer_pairs_than_bins():
    figure = plot_reliability(np.array([0.2, 0.8]), np.array([False, True]))
    assert len(figure.axes[0].get_lines()[-1].get_xdata()) == 2


def test_annotators_are_sorted_and_truth_is_on_the_same_scale():
    strengths = np.tile([3.0, 1.0, 2.0], (10, 1))
    truth = {"c": 30.0, "a": 10.0, "b": 20.0}
    figure = plot_annotators(strengths, ["c", "a", "b"], truth)
    lines = lines_of(figure)
    np.testing.assert_allclose(lines["posterior, 90%"].get_xdata(), [0.5, 1.0, 1.5])
    np.testing.assert_allclose(lines["truth"].get_xdata(), [0.5, 1.0, 1.5])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]


def test_many_annotators_are_thinned_from_weakest_to_strongest():
    strengths = np.random.default_rng(0).gamma(4, 1, (50, 300))
    figure = plot_annotators(strengths, [str(i) for i in range(300)])
    shown = lines_of(figure)["posterior, 90%"].get_xdata()
    assert len(shown) == 40
    assert np.all(np.diff(shown) >= 0)


def test_named_annotators_are_shown_relative_to_all_and_others_are_refused():
    strengths, labels = np.tile([3.0, 1.0, 2.0, 6.0], (10, 1)), ["c", "a", "b", "d"]
    figure = plot_annotators(strengths, labels, show_annotators=["d", "a"])
    np.testing.assert_allclose(lines_of(figure)["posterior, 90%"].get_xdata(), [1 / 3, 2.0])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "d"]
    with pytest.raises(ConfigError, match="show_annotators: 'x' is no annotator of 4, such as"):
        plot_annotators(strengths, labels, show_annotators=["a", "x"])
    assert who_is_shown(99, ["a", "d"]).startswith("2 of 99 annotators, those that were named")


def test_training_figure_takes_the_logged_steps():
    history = [
        {
            "step": 1,
            "loss": 0.7,
            "rewards/accuracies": 0.4,
            "strength/mean": 0.1,
            "strength/cv": 1,
        },
        {
            "step": 2,
            "loss": 0.6,
            "rewards/accuracies": 0.5,
            "strength/mean": 0.2,
            "strength/cv": 2,
        },
        {"step": 2, "train_runtime": 1.0},
    ]
    figure = plot_training(history)
    assert [axes.get_lines()[0].get_ydata().tolist() for axes in figure.axes] == [
        [0.7, 0.6], [0.4, 0.5], [0.1, 0.2], [1.0, 2.0],
    ]  # fmt: skip
    assert [axes.get_ylabel() for axes in figure.axes][-1] == "cv of strength"


def test_training_figure_of_plain_dpo_and_of_few_columns_shows_what_there_is():
    plain = [{"step": s, "loss": 0.6, "strength/mean": 0.1, "strength/cv": 0.0} for s in (1, 2)]
    assert [axes.get_ylabel() for axes in plot_training(plain, loss_label="L").axes] == ["L"]
    shaded = plot_training([{"step": 1, "loss": 1.0, "strength/cv": 1.0}] * 2, 1, (0.5, 2))
    assert [len(axes.patches) for axes in shaded.axes] == [1, 2]


@pytest.mark.parametrize("label", [r"$\frac$", "$x$", r"\$a$b$", "$$", "<&>"])
def test_labels_of_the_data_are_shown_letter_by_letter(label):
    """As a formula the first cannot be drawn at all; the drawn text is the label itself."""
    figure = plot_annotators(np.random.default_rng(0).gamma(4, 1, (50, 2)), ["a", label])
    assert set(encode_images({"f": figure})) == {"f.png", "f.svg"}
    (axes,) = figure.axes
    shown = next(
        text for text in axes.get_yticklabels() if text.get_text().replace("\\$", "$") == label
    )
    assert shown._preprocess_math(shown.get_text()) == (label, False)


@pytest.mark.parametrize("name", ["half-normal", "gamma"])
def test_smooth_density_is_that_of_the_distribution_up_to_zero(name):
    """Within 0.05 of densities of height one, at zero too, where half of a kernel hangs over."""
    truth = {"half-normal": stats.halfnorm(), "gamma": stats.gamma(9, scale=0.1)}[name]
    grid = np.linspace(0, 6, 601)
    density = smooth_density(truth.ppf((np.arange(5_000) + 0.5) / 5_000), grid)
    assert integrate.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(density, truth.pdf(grid), atol=0.05)


def test_density_of_a_few_points_of_a_grid_has_one_peak():
    """Draws from quadrature take few values; a histogram of them has gaps."""
    points = np.linspace(0.2, 1.4, 25)
    weight = stats.norm.pdf(points, 0.8, 0.2)
    draws = np.random.default_rng(0).choice(points, 1_000, p=weight / weight.sum())
    density = smooth_density(draws, np.linspace(0, 2, 400))
    assert (np.diff(np.sign(np.diff(density))) < 0).sum() == 1


def test_cv_figure_shows_the_interval_of_the_verdict_and_the_truth():
    draws = np.random.default_rng(0).gamma(16, 0.05, 500)
    figure = plot_cv(draws, (0.4, 1.7), true_cv=0.8)
    (axes,) = figure.axes
    _, labels = axes.get_legend_handles_labels()
    assert {"given the choices", "before the data", "verdict's 90% interval", "truth"} < set(
        labels
    )
    assert axes.get_xlim()[1] > 1.7


def test_images_are_equal_whenever_they_are_drawn():
    figure = plot_cv(np.linspace(0.1, 1, 50))
    assert encode_images({"a": figure}) == encode_images({"a": figure})


def test_long_labels_leave_room_for_the_figure():
    low, middle, high = np.array([[0.5, 0.8], [1.0, 1.1], [1.5, 1.6]])
    figure = plot_annotator_intervals(low, middle, high, ["x" * 1_000, "ann"])
    figure.draw_without_rendering()
    assert figure.axes[0].get_position().width > 0.4
