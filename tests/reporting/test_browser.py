"""The pages in a real browser; skipped where there is none."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape

import numpy as np
import pandas as pd
import pytest
from scenarios import run_rate

from mixdpo_pyro.diagnosis.check_report import write_check_report
from mixdpo_pyro.diagnosis.config import CheckConfig
from mixdpo_pyro.diagnosis.diagnosing import write_diagnosis
from mixdpo_pyro.diagnosis.predictive_checks import check_predictions
from mixdpo_pyro.inference.diagnosis import diagnose_choices
from mixdpo_pyro.inference.robustness.checks import RobustnessCheck, RobustnessStatus
from mixdpo_pyro.margins.table import read_margins
from mixdpo_pyro.reporting.html import render_page, write_page
from mixdpo_pyro.reporting.run_report import write_report
from mixdpo_pyro.winrates.equal_kl import match_arms
from mixdpo_pyro.winrates.record import WinrateRecord
from mixdpo_pyro.workflows.winrates import write_winrates

NAMES = ("chromium", "chromium-browser", "google-chrome")

CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {NAMES} is there")

PHONE = 390

LOOK = """
function luminance(rgb) {
  const linear = rgb.slice(0, 3).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}
function numbers(color) { return color.match(/[0-9.]+/g).map(Number); }
function background(view, element) {
  for (; element; element = element.parentElement) {
    const rgb = numbers(view.getComputedStyle(element).backgroundColor);
    if (rgb.length < 4 || rgb[3] > 0) return rgb;
  }
  return [255, 255, 255];
}
function contrast(view, element) {
  const pair = [numbers(view.getComputedStyle(element).color), background(view, element)];
  const [low, high] = pair.map(luminance).sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
function look(frame) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const texts = [...page.body.querySelectorAll("*")].filter(
    each => [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  return {
    width: page.documentElement.scrollWidth,
    dark: luminance(background(view, page.body)) < 0.2,
    contrast: Math.min(...texts.map(each => contrast(view, each))),
    images: page.images.length,
    broken: [...page.images].filter(each => !each.naturalWidth).length,
    unnamed: [...page.images].filter(each => !each.alt.trim()).length,
  };
}
addEventListener("load", () => {
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
});
"""


DOT = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)

COMPARED = {
    "headings": 12 * ["heading"],
    "rows": 3 * [12 * ["a_run_with_a_long_name"]],
    "notes": ["How to read it."],
    "advice": "Cannot tell.",
    "figure": {"name": "cv", "title": "Intervals", "alt": "Intervals of cv", "data": DOT},
}
"""A wide table, as of many runs."""

RATES = [
    run_rate(arm, seed, kl, 50 + 10 * kl + more, run=f"sweep/runs/{arm}/seed-{seed}")
    for arm, more in (("dpo", 0.0), ("lognormal, with ids", 2.0))
    for seed in (0, 1, 2)
    for kl in (0.5, 2.0 + 0.2 * seed)
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, written_run):
    """Pages of a run, of a diagnosis, of a check, of a comparison and of win rates."""
    folder = tmp_path_factory.mktemp("pages")
    run = shutil.copytree(written_run, folder / "run")
    margins = pd.read_parquet(run / "margins.parquet")
    long = "an_id_without_a_place_to_break_" * 3
    margins["annotator"] = [f"{long}{k // 10}" for k in range(len(margins))]
    margins.to_csv(folder / "m.csv", index=False)
    found = diagnose_choices(
        margins["margin"], annotator=margins["annotator"], families=("lognormal",),
        thorough=False, num_permutations=99, num_samples=100,
    )  # fmt: skip
    more = RobustnessCheck("another explanation", "Words. " * 40, RobustnessStatus.INFORMATION)
    found = replace(found, checks=[*found.checks, *10 * [more]])
    (folder / "diagnosis").mkdir()
    write_diagnosis(
        found, read_margins(folder / "m.csv"), folder / "diagnosis", command="mixdpo " + 90 * "x"
    )
    (folder / "check").mkdir()
    posterior = folder / "diagnosis" / "posterior.nc"
    checked = check_predictions(folder / "m.csv", posterior, CheckConfig(num_replications=100))
    write_check_report(checked, folder / "check", ("m.csv", "posterior.nc"))
    (folder / "winrates").mkdir()
    by_prompt = np.array([np.full(500, rate.win_rate) for rate in RATES])
    arms, differences = match_arms(RATES, by_prompt, 2.0)
    rates = WinrateRecord(2.0, arms, differences, RATES, 500, 0.9, 0.4, "oracle", {})
    write_winrates(rates, pd.DataFrame({"run": ["r"]}), folder / "winrates")
    return [
        write_report(run),
        folder / "diagnosis" / "report.html",
        folder / "check" / "report.html",
        write_page(render_page("compare.html", **COMPARED), folder / "compare.html"),
        folder / "winrates" / "report.html",
    ]


def browse(folder, *options):
    """Run the browser once; what it wrote to its standard output and error."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--disable-gpu", "--no-sandbox", "--enable-logging=stderr",
         "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", *options],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


def look_at(folder, frames):
    """What frames as narrow as a phone show, and the log; no headless window is so narrow."""
    html = "".join(
        f'<iframe width={PHONE} height=844 style="border: 0; color-scheme: {scheme}" '
        f'src="{escape(page.as_uri())}"></iframe>'
        for page, scheme in frames
    )
    (folder / "frames.html").write_text(f"<body>{html}<script>{LOOK}</script></body>")
    shown, log = browse(folder, "--dump-dom", (folder / "frames.html").as_uri())
    title = re.search("<title>(.*?)</title>", shown, re.DOTALL)
    return json.loads(unescape(title[1])), log


def test_pages_fit_a_phone_and_can_be_read_in_both_modes(pages, tmp_path):
    frames = [(page, scheme) for page in pages for scheme in ("light", "dark")]
    looks, log = look_at(tmp_path, frames)
    assert "CONSOLE" not in log
    for (page, scheme), look in zip(frames, looks, strict=True):
        assert look["width"] <= PHONE, page
        assert look["dark"] == (scheme == "dark")
        assert look["contrast"] >= 4.5, page  # WCAG 2.2, level AA
        assert look["images"] > 0 and look["broken"] == look["unnamed"] == 0


def test_a_script_that_fails_and_a_wide_table_would_be_seen(tmp_path):
    """The tests above can fail: the console and the width are those of the page."""
    (tmp_path / "bad.html").write_text(
        "<body style='color: #999; background: #aaa'><img src='' alt=' '>text"
        "<div style='width: 900px'>wide</div><script>missing()</script></body>"
    )
    (look,), log = look_at(tmp_path, [(tmp_path / "bad.html", "light")])
    assert "CONSOLE" in log and "missing is not defined" in log
    assert look["width"] >= 900 and look["contrast"] < 1.5
    assert look["broken"] == look["unnamed"] == 1


def test_pages_print_on_four_pages_at_most(pages, tmp_path):
    for page in pages[:3]:
        paper = tmp_path / "paper.pdf"
        browse(tmp_path, f"--print-to-pdf={paper}", page.as_uri())
        assert 1 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", paper.read_bytes())) <= 4
