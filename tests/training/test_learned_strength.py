import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from mixdpo_pyro.errors import ConfigError, OutputError
from mixdpo_pyro.models import strength_distribution
from mixdpo_pyro.training.learned_strength import Strength, StrengthConfig, strength_quantile


def moved_strength(**config):
    """A strength whose parameters are not the initial ones."""
    strength = Strength(StrengthConfig(**config))
    with torch.no_grad():
        for parameter in strength.objective.parameters():
            parameter += 0.3
    return strength


@pytest.mark.parametrize("family", ["lognormal", "gamma", "fixed"])
@pytest.mark.parametrize("mean", ["prior", "fixed", "free"])
def test_saved_strength_comes_back_whole(tmp_path, family, mean):
    strength = moved_strength(family=family, mean_anchor=mean, beta=0.2)
    strength.save(tmp_path)
    loaded = Strength.from_pretrained(tmp_path)
    assert loaded.config == strength.config
    assert loaded.summary() == strength.summary()
    for name, draws in strength.draw(10, seed=3).items():
        assert torch.equal(loaded.draw(10, seed=3)[name], draws)
    assert {p.name for p in tmp_path.iterdir()} == {"strength.json", "strength.safetensors"}
    assert json.loads((tmp_path / "strength.json").read_text())["learned"] == strength.summary()


def test_quantiles_of_draws_are_those_of_the_normal_in_log_space():
    """Fails for one seed in 50,000 (Kolmogorov-Smirnov)."""
    strength = moved_strength(mean_anchor="fixed")
    log_cv = strength.draw(5000)["cv"].log().numpy()
    location = float(strength.objective.guide.loc.detach())
    scale = float(strength.objective.guide.log_scale.exp().detach())
    assert stats.kstest(log_cv, stats.norm(location, scale).cdf).pvalue > 2e-5


def test_drawing_leaves_the_global_generator_alone():
    strength = Strength(StrengthConfig())
    state = torch.get_rng_state()
    strength.draw(5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
@pytest.mark.parametrize("cv", [0.05, 0.6, 2.0])
@pytest.mark.parametrize("probability", [0.05, 0.5, 0.95])
def test_strength_quantile_inverts_the_distribution_of_the_models(family, cv, probability):
    mean, spread = (torch.tensor(v, dtype=torch.float64) for v in (0.3, cv))
    distribution = strength_distribution(mean, spread, family)
    quantile = torch.tensor(strength_quantile(probability, 0.3, cv, family), dtype=torch.float64)
    assert distribution.cdf(quantile).item() == pytest.approx(probability, abs=1e-6)


def test_distribution_without_spread_is_a_point():
    assert strength_quantile(0.05, 0.3, 0.0, "gamma") == 0.3
    assert strength_quantile(0.95, 0.3, 0.0, "fixed") == 0.3


def test_damaged_or_foreign_files_say_so(tmp_path):
    with pytest.raises(OutputError, match=r"strength\.json: cannot be read"):
        Strength.from_pretrained(tmp_path)
    moved_strength().save(tmp_path)
    tensors = tmp_path / "strength.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[: len(content) // 2])
    with pytest.raises(OutputError, match=r"strength\.safetensors: cannot be read"):
        Strength.from_pretrained(tmp_path)
    moved_strength(family="gamma").save(tmp_path)
    with pytest.raises(OutputError, match=r"family='gamma'.*expected .*family='lognormal'"):
        Strength(StrengthConfig(family="lognormal")).load(tmp_path)


def test_estimator_must_fit_the_family():
    with pytest.raises(
        ConfigError, match="'series' is for family 'gamma', got family 'lognormal'"
    ):
        StrengthConfig(family="lognormal", estimator="series")
    StrengthConfig(family="fixed", estimator="series").build()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_strength_that_is_not_finite_is_refused_and_leaves_what_was_there(tmp_path, value):
    moved_strength().save(tmp_path)
    path = tmp_path / "strength.safetensors"
    tensors = load_file(path)
    tensors["guide.loc"][0] = value
    save_file(tensors, path)
    strength = Strength(StrengthConfig())
    before = strength.summary()
    with pytest.raises(OutputError, match=r"tensor 'guide\.loc' is not finite"):
        strength.load(tmp_path)
    assert strength.summary() == before
