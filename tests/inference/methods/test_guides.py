import numpy as np
import pyro
import pytest
import torch
from scipy import stats

from mixdpo_pyro.inference.methods.guides import FoldedGuide


def _guide():
    guide = FoldedGuide(("mean", "cv"), (0.1, 0.2), (0.05, 0.3)).double()
    with torch.no_grad():
        guide.slope.fill_(1.5)
    return guide


def test_density_of_the_folded_guide_is_that_of_scipy():
    guide = _guide()
    latents, log_density = guide.rsample(50)
    mean, cv = (latents[name][:, 0].detach().numpy() for name in ("mean", "cv"))
    log_mean, centre = guide.loc.tolist()  # starts are rounded to float32
    across, spread = guide.log_scale.exp().tolist()
    assert (centre, across, spread) == pytest.approx((0.2, 0.05, 0.3))
    middle, end = np.log1p(centre**2), np.log1p((centre + spread) ** 2)
    bend = 1.5 * across * (np.log1p(cv**2) - middle) / (end - middle)
    exact = (
        stats.foldnorm(centre / spread, scale=spread).logpdf(cv)
        + stats.norm(log_mean + bend, across).logpdf(np.log(mean))
        - np.log(mean)
    )
    np.testing.assert_allclose(log_density.detach(), exact, rtol=1e-12)


def test_draws_of_the_folded_guide_follow_their_density(failure_rate):
    draws = _guide().draw(4_000)
    distribution = stats.foldnorm(0.2 / 0.3, scale=0.3)
    assert stats.kstest(draws["cv"].detach().numpy(), distribution.cdf).pvalue > failure_rate


@pytest.mark.parametrize("names", [("mean", "cv"), ("cv",)])
def test_pyro_sees_the_same_density(names):
    guide = FoldedGuide(names, (0.1, 0.2)[-len(names) :], (0.05, 0.3)[-len(names) :]).double()
    pyro.set_rng_seed(1)
    latents, log_density = guide.rsample()
    pyro.set_rng_seed(1)
    trace = pyro.poutine.trace(guide).get_trace()
    assert trace.log_prob_sum().item() == pytest.approx(log_density.item(), abs=1e-12)
    for name in names:
        assert torch.equal(trace.nodes[name]["value"], latents[name])
        assert latents[name].shape == ()


def test_gradient_reaches_every_parameter():
    guide = _guide()
    latents, log_density = guide.rsample(10)
    (log_density.sum() + sum(value.sum() for value in latents.values())).backward()
    assert all(p.grad.abs().min() > 0 for p in guide.parameters())
