import numpy as np
import pyro
import pytest
import torch
from scipy.special import expit

from mixdpo_pyro.inference import fit, read_choices, sample_differences

PEOPLE, EACH = 10, 12


@pytest.fixture(scope="module")
def choices():
    rng = np.random.default_rng(1)
    person, pair = np.repeat(np.arange(PEOPLE), EACH), np.tile(np.arange(EACH), PEOPLE)
    difference = rng.normal(0, 2, EACH)[pair]
    strength = rng.lognormal(-0.2, 0.6, PEOPLE)[person]
    is_first = rng.random(len(person)) < expit(strength * difference)
    margin = np.where(is_first, difference, -difference)
    return read_choices(margin, [f"p{k}" for k in person], pair=pair)


@pytest.mark.slow
def test_nuts_agrees_with_the_likelihood_of_panels(choices):
    """Strengths as latents, against strengths that are integrated out: one posterior of cv."""
    exact = fit(choices, beta=1.0, num_samples=4_000, draw_strengths=False).posterior
    state = torch.get_rng_state()
    tree = sample_differences(choices, parts={"strength"}, num_samples=300, num_warmup=120, seed=2)
    found, ess = tree.posterior["cv"].to_numpy().ravel(), tree.attrs["ess"]
    assert ess > 50 and tree.attrs["r_hat"] < 1.06
    # Four and a half Monte Carlo standard errors: fails once in 1e5.
    assert abs(found.mean() - exact.cv.mean()) < 4.5 * exact.cv.std() / np.sqrt(ess)
    assert found.std() == pytest.approx(exact.cv.std(), rel=4.5 / np.sqrt(2 * ess))
    assert set(tree.posterior.data_vars) == {"mean", "cv", "strength"}
    assert torch.equal(torch.get_rng_state(), state)
    assert not pyro.get_param_store()


def test_every_part_has_named_dimensions(choices):
    length = np.random.default_rng(0).normal(size=len(choices.margin))
    tree = sample_differences(
        choices, {"length": length}, method="svi", num_samples=40, num_steps=60
    )
    posterior = tree.posterior
    assert posterior["strength"].dims == ("chain", "draw", "annotator")
    assert posterior["taste"].dims == ("chain", "draw", "annotator", "attribute")
    assert posterior["error"].dims == ("chain", "draw", "pair")
    assert posterior["lapse_rate"].dims == ("chain", "draw", "annotator")
    assert posterior["annotator"].to_numpy().tolist() == list(choices.labels)
    assert posterior["attribute"].to_numpy().tolist() == ["length"]
    assert dict(posterior.sizes) == {
        "chain": 1, "draw": 40, "annotator": PEOPLE, "attribute": 1, "pair": EACH,
    }  # fmt: skip
    assert (tree.constant_data["margin"] >= 0).all()
    assert tree.observed_data["choice"].dims == ("row",)
    assert not pyro.get_param_store()


def test_svi_finds_the_mean_strength(choices):
    """One strength for all has a posterior that is normal in the log, as the guide is."""
    exact = fit(choices, family="fixed", beta=1.0, num_samples=4_000).posterior.mean
    tree = sample_differences(choices, parts=(), method="svi", num_samples=500, num_steps=1_000)
    found = np.log(tree.posterior["mean"].to_numpy())
    assert found.mean() == pytest.approx(np.log(exact).mean(), abs=0.05)
    assert found.std() == pytest.approx(np.log(exact).std(), rel=0.25)


def test_equal_seeds_give_equal_draws(choices):
    options = {"parts": {"care"}, "method": "svi", "num_samples": 10, "num_steps": 20, "seed": 5}
    first, second = (sample_differences(choices, **options).posterior for _ in range(2))
    np.testing.assert_array_equal(first["lapse_rate"], second["lapse_rate"])


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "vi"}, "method 'nuts' or 'svi', got 'vi'"),
        ({"num_chains": 1}, "num_chains >= 2, got 1"),
        ({"num_samples": 7}, "num_samples >= 4 per chain, got 7"),
        ({"parts": {"mood"}}, "got 'mood'"),
    ],
)
def test_impossible_arguments_are_refused(choices, options, match):
    with pytest.raises(ValueError, match=match):
        sample_differences(choices, **options)


def test_other_choices_are_refused():
    ties = read_choices([1.0, 2.0, -1.0], ["a", "a", "b"], outcome=["win", "tie", "loss"])
    with pytest.raises(ValueError, match="plain pairs, and annotators with several choices"):
        sample_differences(ties)
