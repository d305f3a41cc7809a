import numpy as np
import pytest
from scipy import stats

from mixdpo_pyro.inference import assess_heterogeneity, fit


def test_panel_of_different_people_is_heterogeneous(simulate):
    margin, annotator, _ = simulate(100, 30, 0.6)
    verdict = assess_heterogeneity(fit(margin, annotator=annotator, family="gamma"))
    assert verdict.value == "heterogeneous"
    assert verdict.cv_interval[0] < 0.6 < verdict.cv_interval[1]
    assert verdict.p_value < 1e-6
    assert verdict.reason.startswith("Strengths differ") and verdict.reason.endswith(".")


@pytest.mark.untyped
def test_panel_of_equal_people_is_homogeneous(simulate):
    margin, annotator, _ = simulate(200, 50, 0.0)
    verdict = assess_heterogeneity(fit(margin, annotator=annotator, family="gamma"))
    assert verdict.value == "homogeneous"
    assert verdict.cv_interval[1] < 0.25


def test_single_choices_are_inconclusive_unless_margins_are_exact(simulate):
    result = fit(simulate(10_000, 1, 0.6)[0], family="gamma")
    verdict = assess_heterogeneity(result)
    assert verdict.value == "inconclusive"
    assert verdict.p_value < 1e-6
    assert "If the margins were exact, strengths would differ" in verdict.reason
    assert assess_heterogeneity(result, margins_are_exact=True).value == "heterogeneous"


def test_few_choices_are_inconclusive(simulate):
    margin, annotator, _ = simulate(10, 3, 0.3)
    verdict = assess_heterogeneity(fit(margin, annotator=annotator, family="gamma"))
    assert verdict.value == "inconclusive"
    assert verdict.p_value > 0.05


def test_ratio_and_p_value_are_those_of_the_boundary_test(simulate):
    result = fit(simulate(3_000, 1, 0.4)[0], mean_anchor="free", family="gamma")
    verdict = assess_heterogeneity(result)
    ratio = 2 * (result.log_likelihood - result.null_log_likelihood)
    assert verdict.likelihood_ratio == pytest.approx(ratio, abs=1e-9)
    assert verdict.p_value == pytest.approx(stats.chi2.sf(ratio, 1) / 2, rel=1e-6)


def _false_alarms(simulate, num_datasets, **panel):
    data = (simulate(cv=0.0, seed=k, **panel) for k in range(num_datasets))
    fits = (
        fit(margin, annotator=annotator, family="gamma", num_samples=200, draw_strengths=False)
        for margin, annotator, _ in data
    )
    verdicts = [assess_heterogeneity(result, margins_are_exact=True) for result in fits]
    return sum(v.p_value < 0.05 for v in verdicts), verdicts


@pytest.mark.untyped
def test_equal_people_are_rarely_called_different(simulate, failure_rate):
    """The test may reject a true null in 5% of the datasets."""
    rejected, _ = _false_alarms(simulate, 20, num_annotators=30, choices_each=15)
    assert rejected <= stats.binom.isf(failure_rate, 20, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "panel",
    [{"num_annotators": 100, "choices_each": 30}, {"num_annotators": 5_000, "choices_each": 1}],
)
def test_equal_people_are_called_different_at_the_stated_rate(simulate, failure_rate, panel):
    rejected, verdicts = _false_alarms(simulate, 200, **panel)
    assert rejected <= stats.binom.isf(failure_rate, 200, 0.05)
    assert np.mean([v.value == "heterogeneous" for v in verdicts]) <= 0.05 + 0.05
