"""What reaches the screen: text as it is, and nothing that steers a terminal."""

import io
import logging
import os
import subprocess
import sys

import pytest
from rich.table import Table
from rich.text import Text

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.progress import abridged, printable, show_lines
from mixdpo_pyro.progress.screen import Screen, show_stage

STEERING = ["\x1b[2J", "\x9b31m", "\x07", "\r", "\x00", "\x7f", "\u202e", "\u2028", "\ud800"]


@pytest.mark.parametrize("text", STEERING)
def test_control_characters_are_escaped(text):
    shown = printable(f"a{text}b")
    assert text not in shown and shown.startswith("a\\") and shown.endswith("b")
    shown.encode()
    assert printable(shown) == shown


def test_letters_of_any_script_tabs_and_lines_stay():
    text = (
        "Ünïcødé, \u65e5\u672c\u8a9e\u3000\xa0, \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645, "
        "\U0001f468\u200d\U0001f469\u200d\U0001f467\tand\nlines"
    )
    assert printable(text) == text


def test_labels_are_one_short_line():
    assert abridged("ann") == "ann"
    assert abridged("a\nb\x1b[2J") == r"a\nb\x1b[2J"
    long = abridged("start" + "x" * 1_000 + "end", 30)
    assert len(long) == 30 and long.startswith("startx") and long.endswith("xend")


@pytest.mark.parametrize("title", ["[bold]runs[/nothing]", "[/x]", ":smile:", "[link=http://a]b"])
def test_stages_are_text_and_not_markup(title, capsys):
    show_stage(title)
    assert capsys.readouterr().err.strip() == title


@pytest.mark.parametrize("text", STEERING)
def test_nothing_on_a_screen_steers_it(text, capsys):
    show_stage(text)
    show_lines([text])
    screen = Screen()
    table = Table(text, title=text)
    table.add_row(Text(text))
    screen.print(table)
    screen.print(Text(text))
    screen.print(text)
    shown = capsys.readouterr()
    assert text.strip("\n") not in (shown.out + shown.err).replace("\r\n", "\n")


@pytest.mark.parametrize("name", ["[bold]x[/none].csv", "x\x1b[2J.csv", "x\ny.csv"])
def test_errors_show_paths_in_one_harmless_line(name, tmp_path, capsys):
    for command in (["doctor"], ["diagnose"], ["report"], ["train", "--config"]):
        assert main([*command, str(tmp_path / name)]) in (1, 2)
        error = capsys.readouterr().err
        assert error.startswith("mixdpo: error: ") and error.count("\n") == 1
        assert "\x1b" not in error
        assert name.split("\n")[0].replace("\x1b", r"\x1b") in error


def test_results_and_notes_show_paths_as_they_are(tmp_path, capsys):
    folder = tmp_path / "[bold]x[/none] :smile: \x1b[2J"
    folder.mkdir(parents=True)
    output = folder / "world"
    assert main(["simulate", "-o", str(output), "--num_annotators", "2"]) == 0
    assert str(output).replace("\x1b", r"\x1b") in capsys.readouterr().out
    assert main(["doctor", str(output / "pairs.parquet")]) == 0
    out = capsys.readouterr().out.replace("\n", "")  # lines end where the terminal does
    assert "[bold]x[/none] :smile:" in out and "\x1b" not in out


def test_long_values_are_cut(capsys):
    assert main(["doctor", "x" * 100_000 + ".csv"]) == 1
    assert len(capsys.readouterr().err) < 3_000


def test_warnings_of_the_package_are_escaped(monkeypatch):
    logger = logging.getLogger("mixdpo_pyro")
    monkeypatch.setattr(logger, "handlers", [])
    main(["--version"])
    main(["--version"])
    (handler,) = logger.handlers
    stream = io.StringIO()
    monkeypatch.setattr(handler, "stream", stream)
    logger.warning("%s: the reader dropped 3", "\x1b[2J")
    assert stream.getvalue() == "\\x1b[2J: the reader dropped 3\n"


@pytest.mark.parametrize("flags, stays", [([], False), (["--verbose"], True), (["--debug"], True)])
def test_bars_that_are_done_go_unless_they_are_asked_for(flags, stays):
    """As tqdm is imported by libraries afterwards."""
    code = f"""if True:
        from mixdpo_pyro.cli.main import main
        main(["--version", *{flags}])
        from tqdm.auto import tqdm
        with tqdm(total=1) as bar:
            print(bar.leave)"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TQDM_")}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
    assert found.stdout.split()[-1] == str(stays), found.stderr
