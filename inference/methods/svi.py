"""Stochastic variational inference: state in, state out, exactly resumable."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mixdpo_pyro.errors import NonFiniteLossError
from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.inference.methods.files import write_whole
from mixdpo_pyro.inference.methods.objectives import Objective

__all__ = ["Optimizer", "SVIProgress", "SVIState", "minimise", "run_svi"]

Optimizer = torch.optim.Optimizer

_SLOWEST = 1 / 64
"""The run ends when the learning rate has been halved six times without gain."""


@dataclass(frozen=True)
class SVIProgress:
    """Where a run stands.

    Attributes:
        step: Steps taken.
        rate: Current learning rate, relative to the first.
        best: Lowest mean loss of a window.
        losses: Loss of every step, in nats per pair or annotator: the negative ELBO's trace.
    """

    step: int = 0
    rate: float = 1.0
    best: float = math.inf
    losses: tuple[float, ...] = ()

    @property
    def is_converged(self) -> bool:
        """Whether the stopping rule has ended the run."""
        return self.rate < _SLOWEST

    def after_window(self, window: int) -> "SVIProgress":
        """Halve the rate if the last window gained less than its standard error."""
        last = np.array(self.losses[-window:])
        mean, error = float(last.mean()), float(last.std() / math.sqrt(window))
        gained = mean < self.best - error
        rate = self.rate if gained else self.rate / 2
        return SVIProgress(self.step, rate, min(self.best, mean), self.losses)


@dataclass(frozen=True)
class SVIState:
    """Everything a run needs to go on: progress, parameters, optimiser.

    Attributes:
        progress: Where the run stands.
        parameters: State dict of the objective.
        optimizer: State dict of the optimiser.
    """

    progress: SVIProgress
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the state as one safetensors file, whole or not at all."""
        tensors = {f"parameters/{name}": value for name, value in self.parameters.items()}
        for index, slots in self.optimizer.get("state", {}).items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in slots.items()}
        metadata = {
            "progress": json.dumps(asdict(self.progress)),
            "groups": json.dumps(self.optimizer.get("param_groups", [])),
        }
        content = save({k: v.contiguous() for k, v in tensors.items()}, metadata)
        write_whole(content, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "SVIState":
        """Read a state that `save` wrote.

        Raises:
            ValueError: Naming the file, where it is cut or no such state.
        """
        try:
            return cls._read(path)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: is no whole state of SVI ({error})") from error

    @classmethod
    def _read(cls, path: str | Path) -> "SVIState":
        parameters: dict[str, Tensor] = {}
        slots: dict[int, dict[str, Tensor]] = {}
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():
                kind, name = key.split("/", 1)
                if kind == "parameters":
                    parameters[name] = file.get_tensor(key)
                else:
                    index, slot = name.split("/", 1)
                    slots.setdefault(int(index), {})[slot] = file.get_tensor(key)
        progress = json.loads(metadata["progress"])
        progress["losses"] = tuple(progress["losses"])
        optimizer = {"state": slots, "param_groups": json.loads(metadata["groups"])}
        return cls(SVIProgress(**progress), parameters, optimizer)


def run_svi(objective: Objective, choices: Choices, **options: Any) -> SVIState:
    """Minimise an objective over minibatches of choices, in place, until it gains no more.

    Args:
        objective: What is minimised.
        choices: The data; with panels, all choices of an annotator are in one batch.
        options: Those of :func:`minimise`.

    Returns:
        The state after the last step.

    Raises:
        ValueError: If `batch_size` is not within 1 and the number of pairs or annotators.
        NonFiniteLossError: If a loss is not finite; the message names the latent or the rows.
    """
    margin = torch.from_numpy(choices.margin)
    annotator = torch.from_numpy(choices.annotator) if choices.has_panels else None

    def loss(rows: Tensor) -> Tensor:
        ids = None if annotator is None else annotator[rows]
        return objective(margin[rows], ids, num_total=choices.num_units)

    def explain(rows: Tensor) -> str:
        return _why_not_finite(objective, margin[rows], rows)

    return minimise(objective, loss, choices, explain=explain, **options)


def minimise(
    module: torch.nn.Module,
    loss: Callable[[Tensor], Tensor],
    choices: Choices,
    *,
    explain: Callable[[Tensor], str] = lambda rows: "",
    batch_size: int | None = None,
    max_steps: int = 4000,
    window: int = 100,
    optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer] | None = None,
    seed: int = 0,
    state: SVIState | None = None,
    progress: bool = False,
) -> SVIState:
    """Minimise a loss of rows over a module's parameters, in place, until it gains no more.

    After every window of steps without a gain beyond its standard error the learning rate is
    halved; six halvings end the run. Batches and draws of a step follow from the seed and the
    number of the step alone, so a resumed run repeats the run that was not interrupted, bit by
    bit. The global generator is left as it was.

    Args:
        module: Its parameters are optimised.
        loss: Loss of some rows of the choices, in nats per unit.
        choices: What batches are cut from; with panels, all choices of an annotator are in one.
        explain: Why the loss of some rows is not finite, for the error's message.
        batch_size: Pairs (with panels: annotators) per step; default, all.
        max_steps: Steps in all, those before a resumption counted in.
        window: Steps between looks at the loss.
        optimizer: Builds an optimiser from parameters; default, Adam with a rate of 0.03.
        seed: Seed of batches and draws.
        state: State to go on from.
        progress: Show a progress bar.
    """
    from tqdm import tqdm

    batches = _Batches(choices, batch_size, seed)
    build = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=0.03))
    stepper = build(module.parameters())
    first_rates = [group["lr"] for group in stepper.param_groups]
    now = SVIProgress()
    if state is not None:
        now = state.progress
        module.load_state_dict(state.parameters)
        stepper.load_state_dict(state.optimizer)
    losses = list(now.losses)
    with (
        torch.inference_mode(False),
        tqdm(total=max_steps, initial=now.step, disable=not progress, desc="SVI") as bar,
    ):
        while now.step < max_steps and not now.is_converged:
            for group, rate in zip(stepper.param_groups, first_rates, strict=True):
                group["lr"] = rate * now.rate
            rows = batches.rows(now.step)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_step_seed(seed, now.step))
                losses.append(_take_step(stepper, loss, rows, explain))
            now = SVIProgress(now.step + 1, now.rate, now.best, tuple(losses))
            if now.step % window == 0:
                now = now.after_window(window)
                bar.set_postfix(loss=f"{now.best:.5f}", rate=now.rate)
            bar.update()
    return SVIState(now, _copied(module.state_dict()), stepper.state_dict())


class _Batches:
    """Batches of whole units (choices, or annotators), reshuffled every epoch."""

    def __init__(self, choices: Choices, batch_size: int | None, seed: int) -> None:
        self.num_units = choices.num_units
        self.num_pairs = choices.num_pairs
        self.batch_size = self.num_units if batch_size is None else batch_size
        self.seed = seed
        if not 1 <= self.batch_size <= self.num_units:
            raise ValueError(f"Expected 1 <= batch_size <= {self.num_units}, got {batch_size}")
        self._rows_of = None
        if self.num_units < self.num_pairs:
            unit = torch.from_numpy(choices.unit)
            order = unit.argsort(stable=True)
            self._rows_of = order.split(unit.bincount().tolist())

    def rows(self, step: int) -> Int[Tensor, " rows"]:
        """Rows of the data in the batch of this step; the remainder of an epoch waits."""
        if self.batch_size == self.num_units:
            return torch.arange(self.num_pairs)
        epoch, position = divmod(step, self.num_units // self.batch_size)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_units)
        units = order[position * self.batch_size :][: self.batch_size]
        if self._rows_of is None:
            return torch.from_numpy(units)
        return torch.cat([self._rows_of[k] for k in units])


def _take_step(
    optimizer: Optimizer,
    loss: Callable[[Tensor], Tensor],
    rows: Tensor,
    explain: Callable[[Tensor], str],
) -> float:
    optimizer.zero_grad()
    try:
        value = loss(rows)
    except ValueError as error:  # the likelihood's checks see a parameter that is not finite first
        raise NonFiniteLossError(f"The loss is not finite{explain(rows)}") from error
    if not torch.isfinite(value):
        raise NonFiniteLossError(f"The loss is not finite{explain(rows)}")
    value.backward()
    optimizer.step()
    return value.item()


def _why_not_finite(objective: Objective, margin: Tensor, rows: Tensor) -> str:
    for name, value in objective.location().items():
        if not torch.isfinite(value):
            return f": the latent {name} is {value.item()}"
    log_prob = objective.log_prob(margin)
    bad = rows[~torch.isfinite(log_prob)] if log_prob.shape == rows.shape else rows[:0]
    if len(bad):
        return f" at the site choice, rows {bad[:10].tolist()}"
    return ", though every latent and every choice is"


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}
