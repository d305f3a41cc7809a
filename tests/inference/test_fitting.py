import subprocess
import sys

import numpy as np
import pytest
import torch

from mixdpo_pyro.inference import assess_heterogeneity, fit


def test_summary_has_a_row_per_parameter(simulate):
    margin, annotator, _ = simulate(5, 30, 0.6)
    result = fit(margin, annotator=[f"p{k}" for k in annotator], family="gamma")
    table = result.summary()
    assert list(table.index) == ["mean", "cv", *(f"strength[p{k}]" for k in range(5))]
    assert list(table.columns) == ["mean", "sd", "5%", "50%", "95%"]
    assert table.loc["cv", "50%"] == pytest.approx(np.median(result.posterior.cv))
    assert (table["5%"] < table["50%"]).all() and (table["50%"] < table["95%"]).all()


@pytest.mark.untyped
def test_equal_seeds_give_equal_draws_and_the_global_generators_stay(simulate):
    margin, annotator, _ = simulate(10, 20, 0.6)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second, other = (
        fit(margin, annotator=annotator, seed=seed, family="gamma") for seed in (3, 3, 4)
    )
    for name in ("mean", "cv", "strength"):
        np.testing.assert_array_equal(first.posterior.draws[name], second.posterior.draws[name])
        assert not np.array_equal(first.posterior.draws[name], other.posterior.draws[name])
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_units_of_the_margin_scale_the_mean_alone(simulate, family):
    """The likelihood depends on mean times margin: margins in other units rescale the mean."""
    margin, annotator, _ = simulate(20, 30, 0.6)
    one, hundred = (
        fit(margin, annotator=annotator, family=family),
        fit(100 * margin, annotator=annotator, family=family, beta=0.001),
    )
    np.testing.assert_allclose(hundred.posterior.cv, one.posterior.cv, rtol=1e-3)
    np.testing.assert_allclose(100 * hundred.posterior.mean, one.posterior.mean, rtol=1e-3)
    assert hundred.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-4)


def test_order_of_pairs_does_not_matter(simulate):
    margin, annotator, _ = simulate(20, 30, 0.6)
    shuffle = np.random.default_rng(0).permutation(len(margin))
    one, two = (
        fit(margin, annotator=annotator, family="gamma"),
        fit(margin[shuffle], annotator=annotator[shuffle], family="gamma"),
    )
    np.testing.assert_allclose(one.posterior.cv, two.posterior.cv, rtol=1e-6)


def test_ids_that_never_repeat_change_nothing(simulate):
    margin = simulate(500, 1, 0.6)[0]
    without, with_ids = (
        fit(margin, family="gamma"),
        fit(margin, annotator=np.arange(500), family="gamma"),
    )
    np.testing.assert_array_equal(without.posterior.cv, with_ids.posterior.cv)
    assert with_ids.posterior.strength is None


@pytest.mark.untyped
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_panels_recover_the_distribution_and_the_annotators(simulate, family):
    margin, annotator, strength = simulate(200, 50, 0.6, family, seed=5)
    result, without = fit(margin, annotator=annotator, family=family), fit(margin, family=family)
    for name, truth in {"mean": 0.1, "cv": 0.6}.items():
        draws = result.posterior.draws[name]
        assert abs(draws.mean() - truth) < 4.5 * draws.std()
    posterior = result.posterior.strength
    assert np.corrcoef(posterior.mean(0), strength)[0, 1] > 0.8
    low, high = np.quantile(posterior, [0.05, 0.95], axis=0)
    # 200 intervals of 90%: 180 +- 4.2; six of these standard deviations either way.
    assert 155 <= ((low < strength) & (strength < high)).sum() <= 200
    assert result.posterior.cv.std() < without.posterior.cv.std()


def test_labels_follow_the_columns(simulate):
    margin, annotator, strength = simulate(4, 400, 1.0, seed=1)
    names = np.array(["delta", "alpha", "charlie", "bravo"])
    result = fit(margin, annotator=names[annotator], family="gamma")
    assert result.posterior.annotators == ("alpha", "bravo", "charlie", "delta")
    estimate = dict(
        zip(result.posterior.annotators, result.posterior.strength.mean(0), strict=True)
    )
    for k in range(4):
        spread = result.posterior.strength[:, result.posterior.annotators.index(names[k])].std()
        assert abs(estimate[names[k]] - strength[k]) < 4.5 * spread


@pytest.mark.untyped
def test_flipped_labels_are_not_taken_for_heterogeneity(simulate, failure_rate):
    margin = simulate(30_000, 1, 0.0)[0]
    margin[np.random.default_rng(0).random(len(margin)) < 0.1] *= -1
    blind, aware = fit(margin, family="gamma"), fit(margin, flip_probability=0.1, family="gamma")
    assert np.quantile(blind.posterior.cv, 0.05) > 0.5
    assert assess_heterogeneity(blind).p_value < 1e-9
    assert assess_heterogeneity(aware).p_value > failure_rate


def test_opposed_annotators_have_negative_strengths_in_the_normal_family(simulate):
    margin, annotator, _ = simulate(20, 100, 0.3)
    opposed = annotator < 3
    result = fit(np.where(opposed, -margin, margin), annotator=annotator, family="normal")
    mean = result.posterior.strength.mean(0)
    assert (mean[:3] < 0).all() and (mean[3:] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"family": "weibull"},
            "family to be one of gamma, lognormal, normal, fixed, got 'weibull'",
        ),
        ({"family": "fixed", "method": "nuts"}, "method='laplace' for family='fixed', got 'nuts'"),
        ({"method": "mcmc"}, "method to be one of"),
        ({"mean_anchor": "none"}, "mean_anchor to be one of prior, fixed, free"),
        ({"beta": 0.0}, "beta > 0, got 0.0"),
        ({"num_samples": 1}, "num_samples >= 2, got 1"),
        ({"flip_probability": 0.5}, "flip_probability < 0.5, got 0.5"),
    ],
)
@pytest.mark.wrong_types
def test_unusable_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit([1.0, -2.0], **arguments)


def test_free_mean_needs_choices_on_both_sides():
    with pytest.raises(ValueError, match="every choice agrees with its margin"):
        fit([1.0, 2.0, 3.0], mean_anchor="free", family="gamma")
    assert np.isfinite(
        fit([1.0, 2.0, 3.0], mean_anchor="prior", family="gamma").posterior.mean
    ).all()


@pytest.mark.untyped
def test_import_is_light():
    """What is needed by reports only takes no memory of a training process: scipy.stats 22 MB."""
    code = (
        "import sys, mixdpo_pyro.inference, mixdpo_pyro.training.learned_strength;"
        "heavy = ('arviz', 'arviz_base', 'matplotlib', 'pandas', 'scipy.stats');"
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.untyped
def test_million_margins_do_not_need_a_million_evaluations(simulate, monkeypatch):
    """The model's likelihood sees a few hundred margins, however many pairs there are."""
    from mixdpo_pyro.inference.likelihood import pairs

    sizes = []
    exact = pairs.mixed_logit_log_prob
    monkeypatch.setattr(
        pairs,
        "mixed_logit_log_prob",
        lambda margin, *a, **k: sizes.append(len(margin)) or exact(margin, *a, **k),
    )
    fit(torch.from_numpy(simulate(1_000_000, 1, 0.6)[0]), family="gamma")
    assert max(sizes) < 1000


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("method", "options"),
    [("laplace", {}), ("svi", {"max_steps": 30}), ("nuts", {"num_warmup": 5})],
)
def test_every_method_works_in_whatever_mode_the_caller_is(simulate, method, options):
    margin, annotator, _ = simulate(10, 10, 0.6)
    settings = {"annotator": annotator, "method": method, "num_samples": 16} | options
    outside = fit(margin, **settings).posterior
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            inside = fit(margin, **settings).posterior
        np.testing.assert_array_equal(inside.cv, outside.cv)
