"""What is pushed is the policy alone, under the name of the finished run."""

from types import SimpleNamespace

import pytest
from scenarios import TRAINING_MARKS

from mixdpo_pyro.errors import ConfigError, OutputError
from mixdpo_pyro.workflows import hub
from mixdpo_pyro.workflows.hub import claim_repository, push_policy
from mixdpo_pyro.workflows.run_config import plan_from_values

pytestmark = TRAINING_MARKS


@pytest.fixture
def created(monkeypatch):
    names = []

    def create(name, **_):
        names.append(name)
        return SimpleNamespace(repo_id=name if "/" in name else f"me/{name}")

    monkeypatch.setattr(hub, "create_repo", create)
    return names


def plan(folder, **values):
    given = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": str(folder / "run")}
    return plan_from_values({**given, "report_to": "none", **values})


def test_without_a_push_nothing_is_created(tmp_path, created):
    assert claim_repository(plan(tmp_path)) is None
    assert created == []


@pytest.mark.parametrize(
    ("given", "name", "repository"), [(None, "run", "me/run"), ("us/best", "us/best", "us/best")]
)
def test_repository_has_the_final_name_or_the_one_that_was_given(
    tmp_path, created, given, name, repository
):
    asked = plan(tmp_path, push_to_hub=True, hub_model_id=given)
    assert claim_repository(asked) == repository
    assert created == [name]
    assert asked.training.hub_model_id == repository
    assert not asked.training.push_to_hub  # the Trainer would push all that is in its folder


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_pushes_during_training_are_refused(tmp_path, created, strategy):
    asked = plan(tmp_path, push_to_hub=True, hub_strategy=strategy)
    with pytest.raises(ConfigError, match=f"hub_strategy: .*expected 'end', got '{strategy}'"):
        claim_repository(asked)
    assert created == []


def test_hub_that_cannot_be_reached_is_said_before_and_after_the_training(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("offline\nand more")

    monkeypatch.setattr(hub, "create_repo", fail)
    monkeypatch.setattr(hub, "upload_folder", fail)
    asked = plan(tmp_path, push_to_hub=True)
    with pytest.raises(ConfigError, match=r"push_to_hub: no repository 'run' \(offline\)"):
        claim_repository(asked)
    with pytest.raises(OutputError, match=r"policy: is whole, but was not pushed to 'me/run'"):
        push_policy(tmp_path / "run", "me/run", asked.training)
