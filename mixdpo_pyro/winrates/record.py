"""What `mixdpo winrate` finds: of every run, of every arm at equal KL, and between arms."""

from dataclasses import dataclass
from typing import Any

from mixdpo_pyro.winrates.differences import ArmDifference

__all__ = ["ArmRate", "RunRate", "WinrateRecord"]


@dataclass(frozen=True)
class RunRate:
    """One run against the reference; the names of AlpacaEval's columns where it has them.

    Attributes:
        run: Folder of the run.
        arm: What was trained: runs of one arm differ in beta, seed and weight only.
        beta: DPO's beta.
        seed: Seed of the training.
        weight: Where it was decoded between the reference (0) and the policy (1), or beyond.
        kl: KL to the reference in nats per response.
        reward: Mean score.
        win_rate: Against the reference, in percent, ties as one half.
        win_rate_low: End of its 95% interval over prompts.
        win_rate_high: The other end.
        length_controlled_winrate: The win rate at equal lengths.
        n_wins: Comparisons won.
        n_wins_base: Comparisons lost.
        n_draws: Ties.
        avg_length: Mean number of tokens.
        finished: Share of completions that ended by themselves.
        in_grammar: Share that stays in the simulated world's grammar; None for other judges.
        failures: Completions that the judge did not score.
    """

    run: str
    arm: str
    beta: float
    seed: int
    weight: float
    kl: float
    reward: float
    win_rate: float
    win_rate_low: float
    win_rate_high: float
    length_controlled_winrate: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    avg_length: float
    finished: float
    in_grammar: float | None
    failures: int


@dataclass(frozen=True)
class ArmRate:
    """An arm at the KL at which all are compared.

    Attributes:
        arm: What was trained.
        runs: Number of its runs.
        rate: Win rate against the reference there, in percent.
        low: End of the 95% interval over seeds; None for fewer than two seeds.
        high: The other end.
        seeds: Seeds whose runs reach this KL on both sides.
    """

    arm: str
    runs: int
    rate: float | None
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class WinrateRecord:
    """Content of `winrate.json`.

    Attributes:
        kl: KL in nats per response at which arms are compared; None where no arm has two betas.
        arms: The arms there.
        differences: The other arms against the first, where they share two seeds or more.
        runs: Every run by itself, once for each decoding weight.
        prompts: Number of prompts.
        reference_in_grammar: Share of the reference's completions in the simulated world's
            grammar; None for other judges.
        reference_finished: Share of the reference's completions that ended by themselves.
        judge: Who judged.
        config: Options.
    """

    kl: float | None
    arms: list[ArmRate]
    differences: list[ArmDifference]
    runs: list[RunRate]
    prompts: int
    reference_in_grammar: float | None
    reference_finished: float
    judge: str
    config: dict[str, Any]
