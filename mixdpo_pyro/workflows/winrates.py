"""`mixdpo winrate`: completions of finished runs, their scores, and win rates at equal KL."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jaxtyping import Float

from mixdpo_pyro.data.tables import check_has_columns, read_table
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.io import RUN_FILE, write_csv, written_whole
from mixdpo_pyro.margins.config import MarginsConfig
from mixdpo_pyro.margins.language_models import ADAPTER_OFF, LanguageModels
from mixdpo_pyro.progress.screen import show_stage
from mixdpo_pyro.reporting.figures.winrates import plot_frontier
from mixdpo_pyro.reporting.html import (
    PageFigure,
    embed_figures,
    render_page,
    write_images,
    write_page,
)
from mixdpo_pyro.reporting.records import read_record, write_record
from mixdpo_pyro.reporting.run_record import RunRecord
from mixdpo_pyro.reporting.sweep_record import find_swept, short_names
from mixdpo_pyro.winrates.completions import complete_prompts
from mixdpo_pyro.winrates.config import WINRATE_FILE, WinrateConfig
from mixdpo_pyro.winrates.equal_kl import common_divergence, match_arms, ways_to_reach
from mixdpo_pyro.winrates.judging import ORACLE, Judge, load_judge
from mixdpo_pyro.winrates.oracle import parse_response
from mixdpo_pyro.winrates.rates import compare_scores, length_controlled, rate_prompts
from mixdpo_pyro.winrates.recommendation import doubts, recommend_arm
from mixdpo_pyro.winrates.record import ArmRate, RunRate, WinrateRecord

__all__ = ["compare_runs", "winrate_lines", "write_winrates"]

_REFERENCE = "reference"


def compare_runs(
    runs: Sequence[str], config: WinrateConfig, folder: Path, judge: Judge | None = None
) -> WinrateRecord:
    """Generate from every run, judge, and write everything into `folder`.

    Args:
        runs: Folders of finished runs.
        config: Options.
        folder: An existing folder; completions that are there already are taken from it.
        judge: A judge in place of that of `config.judge`.

    Raises:
        ConfigError: Naming the key.
        DataError: Naming the file and column of the prompts.
    """
    records = [read_record(RunRecord, Path(run) / RUN_FILE) for run in runs]
    _refuse_twins(runs, records)
    prompts = _read_prompts(Path(config.prompts), config)
    (folder / "completions").mkdir(exist_ok=True)
    first = _load(runs[0], config)
    judge = judge or load_judge(config.judge, first.device)
    base: dict[str, pd.DataFrame] = {}
    rates, by_prompt, tables = [], [], []
    names = short_names([Path(run) for run in runs])
    for number, run in enumerate(runs):
        models = first if number == 0 else _load(run, config)
        digest = models.reference_digest
        if digest not in base:
            twin = replace(models, policy=models.reference, policy_digest=digest)
            base[digest] = _score(
                _completions(twin, prompts, config, folder, _REFERENCE), prompts, judge
            )
        for weight in config.decoding_weights:
            written = _completions(models, prompts, config, folder, names[number], weight)
            scored = _score(written, prompts, judge)
            rates.append(_rate(run, records[number], weight, scored, base[digest], config))
            by_prompt.append(_by_prompt(scored, base[digest], len(prompts)))
            tables.append(scored.assign(run=run, weight=weight))
    references = pd.concat(base.values())
    record = _match(rates, np.array(by_prompt), references, config)
    write_winrates(record, pd.concat([*tables, references.assign(run=_REFERENCE)]), folder)
    return record


def _load(run: str, config: WinrateConfig) -> LanguageModels:
    settings = yaml.safe_load((Path(run) / "config.yaml").read_text())
    given = config.reference
    reference = settings["model_name_or_path"] if given in (None, ADAPTER_OFF) else given
    margins = MarginsConfig(dtype=config.dtype, device=config.device)
    return LanguageModels.load(str(Path(run) / "policy"), reference, margins)


def _refuse_twins(runs: Sequence[str], records: Sequence[RunRecord]) -> None:
    """Runs of one arm differ in seed or beta: two that do not are no curve, and no two seeds."""
    seen: dict[tuple[str, int, float], str] = {}
    for run, record in zip(runs, records, strict=True):
        key = _arm(run, record), record.seed, record.beta
        if key in seen:
            raise ConfigError(
                f"runs: {seen[key]} and {run} are both '{key[0]}' of seed {key[1]} and beta "
                f"{key[2]:g}; give one of them"
            )
        seen[key] = run


def _read_prompts(path: Path, config: WinrateConfig) -> list[Any]:
    """Different prompts of a table, in its order."""
    table = read_table(path, ["prompt"])
    if table.problems:
        raise DataError(f"{path}: cannot be read as a table: {table.problems[0]}")
    check_has_columns(table.all_names, ["prompt"], path)
    values = table.values("prompt")
    for row, value in zip(table.rows, values, strict=True):
        if not value or not isinstance(value, str | list):
            raise DataError(f"{path}: row {row} has no text and no messages in column 'prompt'")
    prompts = list({json.dumps(value): value for value in values}.values())
    if config.max_prompts is not None and config.max_prompts < len(prompts):
        rng = np.random.default_rng(config.seed)
        kept = np.sort(rng.permutation(len(prompts))[: config.max_prompts])
        prompts = [prompts[k] for k in kept]
    if len(prompts) < 2:
        raise DataError(f"{path}: expected at least two different prompts, got {len(prompts)}")
    return prompts


def _completions(
    models: LanguageModels,
    prompts: list[Any],
    config: WinrateConfig,
    folder: Path,
    name: str,
    weight: float = 1.0,
) -> pd.DataFrame:
    """Completions of a policy, or those that an earlier call wrote with the same inputs."""
    asked = {
        key: getattr(config, key)
        for key in ("num_completions", "max_new_tokens", "temperature", "batch_size", "seed")
    }
    facts = [models.policy_digest, models.reference_digest, asked, prompts, weight]
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
    path = folder / "completions" / f"{digest}.parquet"
    if path.is_file():
        return pd.read_parquet(path)
    where = "" if weight == 1 else f" at weight {weight:g}"
    show_stage(f"Completing {len(prompts):,} prompts: {name}{where}")
    table = complete_prompts(models, prompts, config, name, weight)
    with written_whole(path) as temporary:
        table.to_parquet(temporary, index=False)
    return table


def _score(table: pd.DataFrame, prompts: list[Any], judge: Judge) -> pd.DataFrame:
    asked = [prompts[k] for k in table["prompt"]]
    scores = judge(asked, table["completion"].tolist())
    return table.assign(score=np.array([np.nan if s is None else s for s in scores], dtype=float))


def _rate(
    run: str,
    record: RunRecord,
    weight: float,
    scored: pd.DataFrame,
    base: pd.DataFrame,
    config: WinrateConfig,
) -> RunRate:
    score, other = scored["score"].to_numpy(), base["score"].to_numpy()
    rate = compare_scores(score, other, scored["prompt"].to_numpy())
    return RunRate(
        run=run, arm=_arm(run, record), beta=record.beta, seed=record.seed,
        weight=weight, kl=float(scored["kl"].mean()), reward=float(np.nanmean(score)),
        win_rate=rate.rate, win_rate_low=rate.low, win_rate_high=rate.high,
        length_controlled_winrate=length_controlled(
            score, other, scored["tokens"].to_numpy(), base["tokens"].to_numpy()
        ),
        n_wins=rate.wins, n_wins_base=rate.losses, n_draws=rate.ties,
        avg_length=float(scored["tokens"].mean()), finished=float(scored["finished"].mean()),
        in_grammar=_share_in_grammar(scored, config), failures=int(np.isnan(score).sum()),
    )  # fmt: skip


def _by_prompt(scored: pd.DataFrame, base: pd.DataFrame, num_prompts: int) -> np.ndarray:
    score, other = scored["score"].to_numpy(), base["score"].to_numpy()
    return rate_prompts(score, other, scored["prompt"].to_numpy(), num_prompts)


def _share_in_grammar(table: pd.DataFrame, config: WinrateConfig) -> float | None:
    """Share of completions that the simulated world could have drawn; None for other judges."""
    if config.judge != ORACLE:
        return None
    return float(np.mean([parse_response(text).is_in_grammar for text in table["completion"]]))


def _arm(run: str, record: RunRecord) -> str:
    """What was trained, in words; in a sweep, its arm."""
    swept = find_swept(run)
    if swept is not None:
        return swept.arm
    if record.family == "fixed":
        return "dpo" if record.baseline is None else record.baseline
    words = [record.family]
    if record.data.annotator_column is not None:
        words.append("with ids")
    if not record.learn_cv:
        words.append("cv fixed")
    return ", ".join(words)


def _match(
    rates: list[RunRate],
    by_prompt: Float[np.ndarray, "runs prompts"],
    references: pd.DataFrame,
    config: WinrateConfig,
) -> WinrateRecord:
    """Every arm at one KL: that which was asked for, or the largest that all curves reach."""
    target = config.kl if config.kl is not None else common_divergence(rates)
    arms, differences = match_arms(rates, by_prompt, target)
    return WinrateRecord(
        kl=target, arms=arms, differences=differences, runs=rates, prompts=by_prompt.shape[1],
        reference_in_grammar=_share_in_grammar(references, config),
        reference_finished=float(references["finished"].mean()), judge=config.judge,
        config=asdict(config),
    )  # fmt: skip


def write_winrates(record: WinrateRecord, completions: pd.DataFrame, folder: Path) -> None:
    """Write the record, its page and its tables into a folder.

    Args:
        record: What was found.
        completions: All completions with their scores.
        folder: An existing folder.
    """
    runs = pd.DataFrame([asdict(rate) for rate in record.runs])
    write_csv(runs, folder / "winrates.csv")
    with written_whole(folder / "completions.parquet") as temporary:
        completions.to_parquet(temporary, index=False)
    frontier = PageFigure(
        "Win rate against the reference over the KL to it",
        "Win rate against the reference over the KL to it, by arm.",
        plot_frontier(runs, record.kl),
        "A point a run, a line a seed; bars are 95% intervals over prompts. The dashed line is "
        "the KL at which arms are compared.",
    )
    (figure,), images = embed_figures({"frontier": frontier})
    page = render_page(
        "winrate.html", record=record, headline=_headline(record), figure=figure,
        advice=" ".join([*doubts(record), recommend_arm(record)]), notes=_notes(record),
    )  # fmt: skip
    write_images(images, folder)
    write_page(page, folder / "report.html")
    write_record(record, folder / WINRATE_FILE)


def _headline(record: WinrateRecord) -> list[str]:
    """The arms in sentences: at equal KL, or why they are not."""
    if record.kl is None:
        return [
            "No win rate at equal KL: it takes runs of each arm at several betas, with the same "
            "seed, or several decoding_weights, whose KL to the reference overlap. Rates of "
            "single runs below differ in KL, and a policy that goes further wins more whatever it "
            "was trained with."
        ]
    lines = [f"Win rate against the reference at a KL of {record.kl:.2f} nats per response:"]
    return lines + [f"  {_arm_line(arm, record)}" for arm in record.arms]


def _arm_line(arm: ArmRate, record: WinrateRecord) -> str:
    if arm.rate is None:
        ways = ways_to_reach([rate for rate in record.runs if rate.arm == arm.arm], record.kl)
        return f"{arm.arm}: cannot tell, no seed reaches it on both sides; {ways}"
    if arm.low is None or arm.high is None:
        return f"{arm.arm}: {arm.rate:.1f}%, one seed: no interval, and no claim of a win"
    return f"{arm.arm}: {arm.rate:.1f}% [{arm.low:.1f}, {arm.high:.1f}] over {arm.seeds} seeds"


def winrate_lines(record: WinrateRecord) -> list[str]:
    """The result in a few lines of text."""
    columns = f"{'run':32}{'arm':22}beta    weight  KL     win rate, 95%        LC"
    lines = [*doubts(record), f"what to do: {recommend_arm(record)}", "", *_headline(record), ""]
    lines.append(columns)
    runs = list(dict.fromkeys(rate.run for rate in record.runs))
    names = dict(zip(runs, short_names([Path(run) for run in runs]), strict=True))
    for rate in record.runs:
        interval = f"{rate.win_rate:.1f} [{rate.win_rate_low:.1f}, {rate.win_rate_high:.1f}]"
        lines.append(
            f"{names[rate.run][-30:]:32}{rate.arm:22}{rate.beta:<8.3g}{rate.weight:<8.3g}"
            f"{rate.kl:<7.2f}"
            f"{interval:21}{rate.length_controlled_winrate:.1f}"
        )
    return [*lines, *_notes(record)]


def _notes(record: WinrateRecord) -> list[str]:
    """How to read the differences, and what is missing."""
    notes = []
    if record.differences:
        notes.append(
            "Differences from the first arm are paired: the same seeds, the same prompts. Their "
            "95% intervals count both as samples, and hold together."
        )
    if lost := sum(rate.failures for rate in record.runs):
        notes.append(f"{lost:,} completions were not scored by the judge.")
    return notes
