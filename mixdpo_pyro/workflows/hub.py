"""The policy on the hub: what `policy/` holds, pushed once the run is whole."""

from pathlib import Path

from huggingface_hub import create_repo, upload_folder

from mixdpo_pyro.data.tokenization import first_line
from mixdpo_pyro.errors import ConfigError, OutputError
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.workflows.run_config import TrainPlan

__all__ = ["claim_repository", "push_policy"]


def claim_repository(plan: TrainPlan) -> str | None:
    """Create the repository that `push_to_hub` asks for, before anything is trained.

    From here on the Trainer does not push by itself: it would name the repository after its
    working folder, and upload all that the folder holds, annotator ids among it.

    Returns:
        Id of the repository; None where nothing is to be pushed, or another process does.

    Raises:
        ConfigError: If the repository cannot be created, or a push during training is asked for.
    """
    training = plan.training
    if not training.push_to_hub:
        return None
    training.push_to_hub = False
    strategy = str(plan.given.get("hub_strategy", "end"))
    if strategy != "end":
        raise ConfigError(
            f"hub_strategy: the finished policy is pushed, so expected 'end', got {strategy!r}"
        )
    if training.process_index != 0:
        return None
    name = training.hub_model_id or Path(training.output_dir).absolute().name
    try:
        created = create_repo(
            name, token=training.hub_token, private=training.hub_private_repo, exist_ok=True
        )
    except Exception as error:  # the network has many
        raise ConfigError(f"push_to_hub: no repository '{name}' ({first_line(error)})") from error
    training.hub_model_id = created.repo_id
    return training.hub_model_id


def push_policy(run: Path, repository: str, training: MixDPOConfig) -> str:
    """Upload the content of a run's `policy/`, which holds no annotator ids, and nothing else.

    Returns:
        Address of the commit.

    Raises:
        OutputError: If that fails; the run itself is whole.
    """
    folder = run / "policy"
    try:
        return str(
            upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message="End of training",
                token=training.hub_token,
                revision=training.hub_revision,
            )
        )
    except Exception as error:  # the network has many
        raise OutputError(
            f"{folder}: is whole, but was not pushed to '{repository}' ({first_line(error)}); "
            f"'hf upload {repository} {folder}' tries again"
        ) from error
