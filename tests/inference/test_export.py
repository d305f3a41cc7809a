import resource
import warnings

import numpy as np
import pytest
import torch
import xarray as xr

from mixdpo_pyro.inference import fit, save_arviz, to_arviz, to_inference_data
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.predictive import choice_probabilities


@pytest.fixture(scope="module")
def panel(simulate):
    """A panel whose LOO can be trusted.

    Leaving out one of 12 people moves the posterior so far that ArviZ warns of Pareto k in half of
    such panels, rightly (seeds 0, 3, 4 and 6 of the first eight); a warning fails a test here.
    """
    margin, annotator, _ = simulate(12, 30, 0.6, seed=1)
    return fit(margin, annotator=[f"p{k:02d}" for k in annotator], num_samples=300, family="gamma")


@pytest.fixture(scope="module")
def pairs(simulate):
    return fit(simulate(600, 1, 0.6)[0], num_samples=300, family="gamma")


def _import_arviz():
    with warnings.catch_warnings():
        # arviz 0.23 announces its 1.0 with a FutureWarning whenever it is imported.
        warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")
        import arviz
    return arviz


def test_panel_has_every_group_with_named_dims(panel):
    tree = to_arviz(panel)
    assert set(tree.children) == {
        "posterior", "prior", "posterior_predictive", "prior_predictive",
        "log_likelihood", "observed_data", "constant_data", "sample_stats",
    }  # fmt: skip
    assert tree.posterior.strength.dims == ("chain", "draw", "annotator")
    assert list(tree.posterior["annotator"].values) == [f"p{k:02d}" for k in range(12)]
    assert tree.log_likelihood["choices"].dims == ("chain", "draw", "annotator")
    assert tree.posterior_predictive["choice"].dims == ("chain", "draw", "pair")
    assert tree.observed_data["choice"].dims == ("pair",)
    assert tree.attrs["family"] == "gamma"
    np.testing.assert_array_equal(tree.posterior.cv.values[0], panel.posterior.cv)


def test_pairs_are_oriented_at_random_and_margins_with_them(pairs):
    tree = to_arviz(pairs)
    choice, margin = tree.observed_data["choice"].values, tree.constant_data["margin"].values
    assert 230 < choice.sum() < 370  # 300 +- 12
    np.testing.assert_allclose(np.where(choice == 1, margin, -margin), pairs.choices.margin)


def test_pointwise_log_likelihood_sums_to_that_of_the_fit(pairs, panel):
    from mixdpo_pyro.inference.likelihood.marginal import build_likelihood

    for result, name in ((pairs, "choice"), (panel, "choices")):
        pointwise = to_arviz(result).log_likelihood[name].values[0]
        total = build_likelihood(result.choices, "gamma")(
            *(torch.from_numpy(result.posterior.draws[name]) for name in ("mean", "cv"))
        )
        np.testing.assert_allclose(pointwise.sum(1), total, rtol=1e-8)


def test_large_data_are_cut_to_a_random_subset_that_the_attributes_name(panel, pairs):
    tree = to_arviz(pairs, max_pairs=50)
    rows = tree.observed_data["pair"].values
    assert len(rows) == 50 and len(set(rows)) == 50
    np.testing.assert_allclose(
        np.abs(tree.constant_data["margin"].values), np.abs(pairs.choices.margin[rows])
    )
    assert tree.attrs["num_pairs"] == 600 and tree.attrs["num_pairs_shown"] == 50
    few = to_arviz(panel, max_pairs=5)
    people = few.log_likelihood["annotator"].values
    whole = to_arviz(panel).log_likelihood["choices"].sel(annotator=people)
    np.testing.assert_allclose(few.log_likelihood["choices"].values, whole.values, rtol=1e-8)
    assert few.posterior.sizes["annotator"] == 12
    assert few.attrs["num_annotators_in_log_likelihood"] == 5


def test_prior_predictive_comes_from_the_prior(pairs):
    tree = to_arviz(pairs)
    assert tree.prior["cv"].values.mean() == pytest.approx(0.8, abs=0.2)  # HalfNormal(1)
    assert tree.prior["mean"].values.std() > 2 * tree.posterior["mean"].values.std()


def test_free_mean_has_no_prior_groups(simulate):
    tree = to_arviz(fit(simulate(300, 1, 0.6)[0], mean_anchor="free", family="gamma"))
    assert "prior" not in tree.children and "prior_predictive" not in tree.children


def test_arviz_stats_takes_the_tree(panel, pairs):
    import arviz_stats

    for result in (panel, pairs):
        tree = to_arviz(result)
        loo = arviz_stats.loo(tree)
        size = 12 if result is panel else 600
        assert loo.n_data_points == size
        mean_log_likelihood = next(iter(tree.log_likelihood.data_vars.values())).mean() * size
        assert loo.elpd == pytest.approx(float(mean_log_likelihood), abs=5)


def test_saved_file_is_read_by_both_generations_of_arviz(panel, tmp_path):
    tree = to_arviz(panel)
    path = save_arviz(tree, tmp_path / "posterior.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["posterior.nc"]
    with xr.open_datatree(path, engine="h5netcdf") as read:
        xr.testing.assert_equal(read.load(), tree)
    data = _import_arviz().from_netcdf(path)
    assert set(data.groups()) == set(tree.children)
    np.testing.assert_array_equal(data.posterior.strength, tree.posterior.strength)


def test_failed_save_leaves_the_old_file(panel, tmp_path):
    path = save_arviz(to_arviz(panel), tmp_path / "posterior.nc")
    before = path.read_bytes()
    broken = to_arviz(panel)
    broken.attrs["cannot be stored"] = {"a": object()}
    with pytest.raises((TypeError, ValueError)):
        save_arviz(broken, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["posterior.nc"]


def test_full_disk_is_an_error_that_names_the_file_and_leaves_the_old_one(panel, tmp_path):
    """HDF5, writing to a disk that is full, ends the process in a segmentation fault."""
    path = save_arviz(to_arviz(panel), tmp_path / "posterior.nc")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large.*posterior\.nc"):
            save_arviz(to_arviz(panel), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["posterior.nc"]


def test_inference_data_of_arviz_023_has_the_same_groups(panel):
    _import_arviz()
    tree = to_arviz(panel)
    data = to_inference_data(tree)
    assert set(data.groups()) == set(tree.children)
    assert data.posterior.strength.dims == ("chain", "draw", "annotator")


def test_unusable_limit_raises(pairs):
    with pytest.raises(ValueError, match="max_pairs >= 1, got 0"):
        to_arviz(pairs, max_pairs=0)


def test_summaries_of_strengths_stand_for_their_draws_in_the_file(simulate, tmp_path):
    margin, annotator, _ = simulate(20, 10, 0.6)
    drawn = fit(margin, annotator=annotator, num_samples=400)
    result = fit(margin, annotator=annotator, num_samples=400, draw_strengths="summary")
    posterior = Posterior.load(save_arviz(to_arviz(result), tmp_path / "posterior.nc"))
    again = Posterior.load(posterior.save(tmp_path / "again.nc"))
    assert again.strength is None and again.annotators == drawn.posterior.annotators
    for name, value in result.posterior.strength_summary.items():
        np.testing.assert_array_equal(again.strength_summary[name], value)
    means = drawn.posterior.strength.mean(0)
    np.testing.assert_allclose(again.strength_summary["mean"], means, rtol=0.2)
    assert list(again.summary().index) == list(drawn.summary().index)
    assert to_arviz(result)["posterior_predictive"]["choice"].shape == (1, 400, 200)
    with pytest.raises(ValueError, match="draw_strengths=True"):
        choice_probabilities(again, [1.0], annotator=["3"])
    assert choice_probabilities(again, [1.0], annotator=["new"]).shape == (400, 1)
