"""One sentence says what follows from win rates, and claims no more than they do."""

import numpy as np
import pandas as pd
import pytest
from scenarios import run_rate

from mixdpo_pyro.winrates.equal_kl import match_arms
from mixdpo_pyro.winrates.recommendation import doubts, join_words, recommend_arm
from mixdpo_pyro.winrates.record import WinrateRecord
from mixdpo_pyro.workflows.winrates import write_winrates


def record(rates, by_prompt, kl=1.0, finished=1.0):
    arms, differences = match_arms(rates, by_prompt, kl)
    return WinrateRecord(
        kl, arms, differences, rates, by_prompt.shape[1], 1.0, finished, "oracle", {}
    )


def compared(arms, num_prompts=2000, **values):
    """Arms of runs at a KL of 1, by their win rates beyond 50% of every seed."""
    rates = [
        run_rate(arm, seed, 1.0, 50 + more, **values)
        for arm, of in arms.items()
        for seed, more in enumerate(of)
    ]
    return record(rates, np.array([np.full(num_prompts, rate.win_rate) for rate in rates]))


@pytest.mark.parametrize(
    ("arms", "starts", "says"),
    [
        (
            {"dpo": [0, 1, 0], "mix": [3, 4.2, 2.9]}, "Use mix: ",
            "over 3 seeds and 2,000 prompts, mix wins 3.0 points more than dpo [+2.7, +3.4].",
        ),
        ({"dpo": [0, 0], "a b": [3, 3], "c": [4, 4]}, "Use c or 'a b': ", "'a b' wins 3.0 points"),
        ({"dpo": [0, 1, 0], "mix": [-3, -2.2, -2.9]}, "Keep dpo: ", "3.0 points fewer than dpo"),
        ({"dpo": [0, 1, 2], "mix": [0, 1, 2]}, "Use whichever is simpler: ", "less than a point"),
        ({"dpo": [0, 1, 0], "mix": [1, 3, -1]}, "No difference shown: ", "more seeds of each arm"),
        ({"dpo": [0], "mix": [30]}, "Cannot tell: train at least three seeds", "no claim."),
        ({"dpo": [0, 0]}, "Add runs of another arm", "nothing but the reference."),
        ({"dpo": [0, 1, 0], "mix": [3, 4, 3], "b": [9]}, "Use mix: ", "b cannot be compared"),
    ],
)  # fmt: skip
def test_every_outcome_has_one_sentence(arms, starts, says):
    sentence = recommend_arm(compared(arms))
    assert sentence.startswith(starts) and says in sentence
    assert ". " not in sentence and sentence.endswith(".")


def test_the_page_holds_every_difference_from_the_first_arm(tmp_path):
    found = compared({"dpo": [0, 1, 0], "mix": [3, 4.2, 2.9], "worse": [-8, 9, 0]})
    write_winrates(found, pd.DataFrame({"run": ["x"]}), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Against dpo, at equal KL" in page
    assert "<td>+3.0 [+2.5, +3.6]</td><td>3</td>" in page  # wider than that of one difference
    assert page.count("<td>more than 100</td>") == 1


def test_few_prompts_support_no_claim():
    """Every seed wins every prompt: of ten comparisons that is no difference."""
    found = compared({"dpo": [0, 0], "mix": [20, 20]}, num_prompts=5)
    assert recommend_arm(found).startswith("No difference shown")
    assert "16 seeds on 20 prompts would show a difference of 1 point" in recommend_arm(found)


def test_arms_that_are_not_at_equal_kl_are_told_how_to_get_there():
    rates = [
        run_rate(arm, seed, kl) for arm, kl in (("dpo", 1.0), ("mix", 4.0)) for seed in (0, 1)
    ]
    sentence = recommend_arm(record(rates, np.full((4, 9), 50.0), kl=None))
    assert sentence.startswith("No comparison yet, since nothing is at equal KL: decode at")
    assert "--decoding_weights 0.45 1)" in sentence and "train mix at beta 0.22" in sentence
    sentence = recommend_arm(record(rates, np.full((4, 9), 50.0), kl=1.0))
    assert sentence.startswith("Cannot tell: fewer than two seeds") and "0.45 1)" in sentence


def test_what_must_be_mended_comes_first_and_no_arm_is_recommended():
    arms = {"dpo": [0, 1, 0], "mix": [3, 4.2, 2.9]}
    cut = compared(arms, finished=0.2)
    (doubt,) = doubts(cut)
    assert doubt.startswith("Raise --max_new_tokens first: most completions of dpo of beta 0.1")
    assert "and 5 more were cut off (80% at worst)" in doubt
    assert recommend_arm(cut).startswith("As judged so far: ")
    left = compared(arms, in_grammar=0.21)
    (doubt,) = doubts(left)
    assert "left the language of the simulated world (79% at worst; the reference's: 0%)" in doubt
    assert recommend_arm(left).startswith("As judged so far: ")
    assert doubts(compared(arms, in_grammar=0.99)) == []
    assert (
        "the reference" in doubts(record([run_rate("a", 0, 1.0)], np.zeros((1, 2)), 1.0, 0.3))[0]
    )


def test_words_are_joined():
    assert join_words(["a"]) == "a" and join_words(["a", "b"], "or") == "a or b"
