import pytest

from mixdpo_pyro.models import Draws, Quadrature, Series
from mixdpo_pyro.models.estimators import resolve_estimator


def test_auto_is_the_exact_method_of_each_family():
    assert resolve_estimator("auto", "gamma", panel=False) == Series()
    assert resolve_estimator("auto", "gamma", panel=True) == Quadrature()
    assert resolve_estimator("auto", "lognormal", panel=False) == Quadrature()
    assert repr(Draws(8, "sobol")) == "Draws(num_draws=8, kind='sobol', shared=False, seed=None)"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Quadrature(1), "2 <= num_nodes, got 1"),
        (lambda: Draws(0), "1 <= num_draws, got 0"),
        (lambda: Draws(4, "latin"), "kind to be one of plain, antithetic, sobol, got 'latin'"),
    ],
)
@pytest.mark.wrong_types
def test_wrong_options_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
