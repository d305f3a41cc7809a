import numpy as np
import pyro
import pytest
import torch

from mixdpo_pyro.inference import fit, to_arviz


@pytest.mark.untyped
def test_nuts_agrees_with_the_exact_posterior_and_says_how_well_it_mixed(simulate):
    margin, annotator, _ = simulate(40, 15, 0.6)
    state = torch.get_rng_state()
    nuts = fit(
        margin,
        annotator=annotator,
        method="nuts",
        num_samples=400,
        num_chains=2,
        num_warmup=150,
        family="gamma",
        draw_strengths=False,
    )
    options = {"num_samples": 4_000, "draw_strengths": False}
    exact = fit(margin, annotator=annotator, family="gamma", **options)
    for name in ("mean", "cv"):
        draws, truth = np.log(nuts.posterior.draws[name]), np.log(exact.posterior.draws[name])
        ess = nuts.posterior.diagnostics[f"ess_{name}"]
        assert ess > 60 and nuts.posterior.diagnostics[f"r_hat_{name}"] < 1.06
        # Four and a half Monte Carlo standard errors: fails once in 1e5.
        assert abs(draws.mean() - truth.mean()) < 4.5 * truth.std() / np.sqrt(ess)
        assert draws.std() == pytest.approx(truth.std(), rel=4.5 / np.sqrt(2 * ess))
    assert nuts.posterior.num_chains == 2
    assert to_arviz(nuts).posterior.sizes["chain"] == 2
    assert nuts.posterior.sample_stats["diverging"].shape == (400,)
    assert torch.equal(torch.get_rng_state(), state)
    assert not pyro.get_param_store()


def test_fixed_mean_leaves_one_latent_and_seeds_repeat(simulate):
    margin, annotator, _ = simulate(10, 5, 0.6)
    options = {"method": "nuts", "mean_anchor": "fixed", "num_samples": 20, "num_warmup": 20}
    first, second = (
        fit(margin, annotator=annotator, num_chains=2, family="gamma", **options) for _ in range(2)
    )
    np.testing.assert_array_equal(first.posterior.cv, second.posterior.cv)
    np.testing.assert_array_equal(first.posterior.mean, 0.1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_chains": 1}, "num_chains >= 2, got 1"),
        ({"num_samples": 12}, "num_samples >= 4 per chain, got 12"),
    ],
)
def test_too_few_chains_or_draws_are_refused(simulate, options, match):
    with pytest.raises(ValueError, match=match):
        fit(simulate(20, 1, 0.6)[0], method="nuts", family="gamma", **options)
