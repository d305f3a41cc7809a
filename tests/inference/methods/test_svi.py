import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

from mixdpo_pyro.inference import (
    Choices,
    StrengthObjective,
    SVIState,
    build_strength_guide,
    fit,
    read_choices,
    run_svi,
    save_arviz,
    to_arviz,
)
from mixdpo_pyro.models import PreferenceModel


def _objective(initial_cv=0.5, seed_model="gamma"):
    model = PreferenceModel(seed_model)
    return StrengthObjective(model, build_strength_guide(model, initial_cv).double())


@pytest.fixture
def panel(simulate):
    margin, annotator, _ = simulate(40, 8, 0.6)
    return read_choices(margin, annotator)


@pytest.mark.untyped
def test_svi_agrees_with_the_exact_posterior(simulate, tmp_path):
    """Means within 0.2 posterior sd and sds within 15% of the exact posterior's."""
    margin, annotator, _ = simulate(40, 20, 0.6)
    options = {"num_samples": 4_000, "draw_strengths": False}
    svi, exact = (
        fit(margin, annotator=annotator, method=m, family="gamma", **options)
        for m in ("svi", "laplace")
    )
    for name in ("mean", "cv"):
        approximate, truth = np.log(svi.posterior.draws[name]), np.log(exact.posterior.draws[name])
        assert abs(approximate.mean() - truth.mean()) < 0.2 * truth.std()
        assert approximate.std() == pytest.approx(truth.std(), rel=0.15)
    assert svi.posterior.diagnostics["converged"] == 1
    assert svi.posterior.diagnostics["seed_disagreement_in_sd"] < 0.2
    saved = xr.open_datatree(save_arviz(to_arviz(svi), tmp_path / "svi.nc"), engine="h5netcdf")
    with saved:
        trace = saved.attrs["elbo_trace"]
    assert len(trace) == svi.posterior.diagnostics["num_steps"]
    assert trace[-100:].mean() > trace[:20].mean()


@pytest.mark.slow  # its short siblings: the batches below, and their average in test_objectives.py
def test_minibatches_find_the_posterior_of_all_data(simulate):
    margin, annotator, _ = simulate(60, 20, 0.6)
    exact = fit(margin, annotator=annotator, family="gamma")
    svi = fit(
        margin,
        annotator=annotator,
        method="svi",
        batch_size=20,
        num_particles=4,
        max_steps=700,
        family="gamma",
    )
    for name in ("mean", "cv"):
        approximate, truth = np.log(svi.posterior.draws[name]), np.log(exact.posterior.draws[name])
        assert abs(approximate.mean() - truth.mean()) < 0.3 * truth.std()
        assert approximate.std() == pytest.approx(truth.std(), rel=0.3)


def test_batches_hold_whole_people_and_every_epoch_everybody(panel):
    from mixdpo_pyro.inference.methods.svi import _Batches

    batches = _Batches(panel, 10, seed=0)
    epochs = [[batches.rows(step) for step in range(4 * e, 4 * e + 4)] for e in range(2)]
    for epoch in epochs:
        for rows in epoch:
            people = panel.annotator[rows.numpy()]
            assert len(set(people)) == 10 and len(people) == 80
        assert sorted(torch.cat(epoch).tolist()) == list(range(320))
    assert not torch.equal(epochs[0][0], epochs[1][0])


def test_resumed_run_equals_the_uninterrupted_one_bit_by_bit(panel, tmp_path):
    whole = run_svi(_objective(), panel, batch_size=10, max_steps=60, window=20, seed=3)
    half = run_svi(_objective(), panel, batch_size=10, max_steps=30, window=20, seed=3)
    half.save(tmp_path / "state.safetensors")
    state = SVIState.load(tmp_path / "state.safetensors")
    resumed = run_svi(
        _objective(0.9), panel, batch_size=10, max_steps=60, window=20, seed=3, state=state
    )
    assert resumed.progress == whole.progress
    for name, value in whole.parameters.items():
        assert torch.equal(value, resumed.parameters[name])
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_cut_or_foreign_state_is_named(panel, tmp_path):
    path = tmp_path / "state.safetensors"
    run_svi(_objective(), panel, max_steps=2, window=10).save(path)
    content = path.read_bytes()
    for keep in (0, 100, len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(ValueError, match=r"state\.safetensors: is no whole state of SVI"):
            SVIState.load(path)
    save_file({"parameters/a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"state\.safetensors: is no whole state of SVI"):
        SVIState.load(path)
    with pytest.raises(OSError, match="none"):
        SVIState.load(tmp_path / "none")


def test_runs_depend_on_the_seed_alone(panel):
    state = torch.get_rng_state()
    first, second, other = (run_svi(_objective(), panel, max_steps=20, seed=s) for s in (1, 1, 2))
    assert first.progress.losses == second.progress.losses != other.progress.losses
    assert torch.equal(torch.get_rng_state(), state)
    assert not pyro.get_param_store()


def test_rate_is_halved_and_the_run_ends_when_nothing_is_gained(panel):
    state = run_svi(_objective(), panel, max_steps=4_000, window=10)
    assert state.progress.is_converged
    assert state.progress.step < 4_000
    assert state.progress.rate == 2.0**-7


@pytest.mark.parametrize("build", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW])
def test_any_torch_optimizer_lowers_the_loss(panel, build):
    state = run_svi(
        _objective(2.5), panel, max_steps=150, optimizer=lambda p: build(p, lr=0.02), seed=0
    )
    losses = state.progress.losses
    assert np.mean(losses[-20:]) < np.mean(losses[:20])


def test_rows_that_are_not_finite_are_named():
    choices = Choices(np.array([1.0, 2.0, float("nan"), -1.0]))
    with pytest.raises(FloatingPointError, match=r"site choice, rows \[2\]"):
        run_svi(_objective(), choices, max_steps=1)


def test_latents_that_are_not_finite_are_named(panel):
    objective = _objective()
    with torch.no_grad():
        objective.guide.loc[1] = 1e4
    with pytest.raises((FloatingPointError, ValueError), match="cv"):
        run_svi(objective, panel, max_steps=1)


@pytest.mark.parametrize("size", [0, 41])
def test_unusable_batch_size_raises(panel, size):
    with pytest.raises(ValueError, match=f"1 <= batch_size <= 40, got {size}"):
        run_svi(_objective(), panel, batch_size=size)


def test_free_mean_has_no_guide_to_draw_from(simulate):
    with pytest.raises(ValueError, match="its guide is a point"):
        fit(simulate(100, 1, 0.6)[0], method="svi", mean_anchor="free", family="gamma")
