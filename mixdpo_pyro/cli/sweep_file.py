"""The file of `mixdpo sweep`: a training, and its arms, betas and seeds."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from mixdpo_pyro.cli.train_arguments import TrainParser, check_inputs
from mixdpo_pyro.cli.yaml_file import FileValue, convert, read_yaml
from mixdpo_pyro.config_fields import check_positive, check_range, check_seed
from mixdpo_pyro.errors import ConfigError, MixDPOError
from mixdpo_pyro.workflows.run_config import did_you_mean
from mixdpo_pyro.workflows.sweep.plan import CONTROLS, PlannedRun, SweepPlan
from mixdpo_pyro.workflows.training_values import check_training_values

__all__ = ["read_sweep"]

_KEYS: dict[str, Any] = {
    "base": str, "arms": list[str], "betas": list[float], "seeds": list[int], "devices": int,
    "accelerate": str,
}  # fmt: skip

_OWN = {
    "beta": "betas names it", "seed": "seeds names it", "output_dir": "-o names it",
    "resume": "a sweep always resumes", "overwrite": "a sweep overwrites no run",
}  # fmt: skip
"""Keys of a training that the sweep sets: passed over in its base, refused in an arm."""

_ARM = re.compile(r"\w[\w.-]*")

_BETA, _SEED = 0.1, 42
"""Defaults of trl.DPOConfig."""


def read_sweep(path: str) -> SweepPlan:
    """Read a sweep's file, and look at what each arm would train on.

    Raises:
        ConfigError: Naming the file and the key.
        DataError: If the pairs of an arm are not there.
    """
    values = read_yaml(path, nested={"base": 1, "arms": 2})
    for key, entry in values.items():
        if key not in _KEYS:
            raise ConfigError(f"{entry.place}: unknown key '{key}'{did_you_mean(key, _KEYS)}")
    for key in ("base", "arms"):
        if key not in values:
            raise ConfigError(f"{path}: {key}: is missing; see mixdpo sweep --help")
    parser = TrainParser("train", "")
    base = _read_base(values["base"], parser)
    arms = _read_arms(values["arms"], parser)
    betas = _read_list(values, "betas") or [float(base.get("beta", _BETA))]
    seeds = _read_list(values, "seeds") or [int(base.get("seed", _SEED))]
    common = {key: value for key, value in base.items() if key not in _OWN}
    runs = [
        _plan(path, arm, beta, seed, {"disable_tqdm": True, **common, **options})
        for seed in seeds
        for arm, options in arms.items()
        for beta in betas
    ]
    for arm in arms:
        _check_arm(path, next(run for run in runs if run.arm == arm))
    devices = _read_number(values, "devices")
    return SweepPlan(path, runs, devices, _read_accelerate(values, devices))


def _plan(path: str, arm: str, beta: float, seed: int, values: dict[str, Any]) -> PlannedRun:
    if values.get("push_to_hub"):
        raise ConfigError(
            f"{path}: arm '{arm}': push_to_hub: the runs of a sweep would push over each other"
        )
    return PlannedRun(arm, beta, seed, {**values, "beta": beta, "seed": seed})


def _check_arm(path: str, run: PlannedRun) -> None:
    """What `mixdpo train` would refuse before it loads anything."""
    try:
        check_training_values({**run.values, "output_dir": run.name})
        check_inputs(run.values)
    except MixDPOError as error:
        raise type(error)(f"{path}: arm '{run.arm}': {error}") from error


def _read_base(entry: FileValue, parser: TrainParser) -> dict[str, Any]:
    """The training that is repeated: keys that stand there, or the name of their file."""
    if isinstance(entry.value, dict):
        return parser.from_file(entry.value)
    if isinstance(entry.value, str):
        try:
            return parser.from_file(read_yaml(entry.value))
        except ConfigError as error:
            raise ConfigError(f"{entry.place}: base: {error}") from error
    raise ConfigError(
        f"{entry.place}: base: expected the keys of a training, or the name of their file"
    )


def _read_arms(entry: FileValue, parser: TrainParser) -> dict[str, dict[str, Any]]:
    given = entry.value
    if isinstance(given, list):  # names of controls
        if not given or len({*map(str, given)}) < len(given):
            raise ConfigError(f"{entry.place}: arms: expected different names")
        given = {str(name): FileValue(entry.place, None) for name in given}
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{entry.place}: arms: expected names of arms with their options")
    return {name: _read_arm(name, value, parser) for name, value in given.items()}


def _read_arm(name: str, entry: FileValue, parser: TrainParser) -> dict[str, Any]:
    """Options of an arm: those that stand there, over those of a control."""
    where = f"{entry.place}: arms: {name}"
    if not _ARM.fullmatch(name):
        raise ConfigError(f"{where}: expected a name of letters, digits, '_', '-' and '.'")
    if entry.value is None:
        return _find_control(where, name)
    if isinstance(entry.value, str):
        return _find_control(where, entry.value)
    if not isinstance(entry.value, dict):
        raise ConfigError(f"{where}: expected options of a training, or the name of a control")
    given = dict(entry.value)
    control = given.pop("control", None)
    for key, why in _OWN.items():
        if key in given:
            raise ConfigError(
                f"{given[key].place}: arms: {name}: '{key}' has no place here; {why}"
            )
    options = {} if control is None else _find_control(where, str(control.value))
    return {**options, **parser.from_file(given)}


def _find_control(where: str, name: str) -> dict[str, Any]:
    if name not in CONTROLS:
        hint = did_you_mean(name, CONTROLS)
        raise ConfigError(
            f"{where}: '{name}' is no control{hint or ''}; there are {', '.join(CONTROLS)}"
        )
    return CONTROLS[name]


def _read_list(values: Mapping[str, FileValue], key: str) -> list[Any]:
    if key not in values:
        return []
    entry = values[key]
    try:
        found = convert(entry.value, _KEYS[key])
        if not found:
            raise ConfigError(f"{key}: expected at least one, got none")
        for value in found:
            check_seed(value, key) if key == "seeds" else check_positive(key, value)
            if found.count(value) > 1:
                raise ConfigError(f"{key}: {value:g} stands there twice")
    except ConfigError as error:
        raise ConfigError(f"{entry.place}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{entry.place}: {key}: {error}") from error
    return found


def _read_number(values: Mapping[str, FileValue], key: str, default: int = 1) -> int:
    if key not in values:
        return default
    place = values[key].place
    try:
        found = int(convert(values[key].value, int))
    except ValueError as error:
        raise ConfigError(f"{place}: {key}: {error}") from error
    try:
        check_range(key, found, 1)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    return found


def _read_accelerate(values: Mapping[str, FileValue], devices: int) -> list[str] | None:
    """Options of `accelerate launch`: a process for each device, each launch on its own port."""
    entry = values.get("accelerate")
    if entry is None and devices == 1:
        return None
    own = ["--num_processes", str(devices), "--main_process_port", "0"]
    if entry is None or entry.value is None:
        return own
    if not isinstance(entry.value, str):
        raise ConfigError(f"{entry.place}: accelerate: expected options in one line of text")
    return [*own, *shlex.split(entry.value)]
