"""A folder appears whole, whatever ends the process that writes it, and takes nobody's place."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.io import RUN_FILE, added_to_result, locked_output, staged_folder, written_whole

RECORD = ".mixdpo.json"


def names(folder):
    """What is in a folder, but for the record that the program keeps there."""
    return sorted(path.name for path in folder.iterdir() if path.name != RECORD)


def make_run(folder, content="old"):
    with staged_folder(folder) as partial:
        (partial / RUN_FILE).write_text("{}")
        (partial / "result").write_text(content)


def leave_partial(folder, **files):
    """What a block that failed leaves."""
    with pytest.raises(RuntimeError), staged_folder(folder) as partial:
        for name, content in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(content)
        raise RuntimeError


def test_failed_run_leaves_the_earlier_run(tmp_path):
    folder = tmp_path / "run"
    make_run(folder)
    with pytest.raises(RuntimeError), staged_folder(folder, overwrite=True) as partial:
        (partial / "result").write_text("half")
        raise RuntimeError
    assert (folder / "result").read_text() == "old"
    assert (tmp_path / "run.partial" / "result").read_text() == "half"


def test_failure_before_anything_is_written_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "run"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_finished_run_replaces_the_earlier_run_whole(tmp_path):
    folder = tmp_path / "run"
    make_run(folder)
    with staged_folder(folder, overwrite=True) as partial:
        (partial / "other").write_text("new")
    assert names(folder) == ["other"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_earlier_run_is_not_replaced_unasked(tmp_path):
    make_run(tmp_path / "run")
    with pytest.raises(OutputError, match="holds an earlier run; add --overwrite"):
        staged_folder(tmp_path / "run").__enter__()


def test_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files than a run"):
        staged_folder(tmp_path, overwrite=True).__enter__()
    with pytest.raises(OutputError, match="found a file"):
        staged_folder(tmp_path / "thesis.tex", overwrite=True).__enter__()


@pytest.mark.parametrize("note", ["notes.md", "policy/model.gguf", ".hidden"])
def test_run_that_holds_a_file_of_the_user_is_never_replaced(tmp_path, note):
    make_run(tmp_path / "run")
    (tmp_path / "run" / note).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / note).write_text("years of work")
    with pytest.raises(OutputError, match=f"holds '{note}', which mixdpo did not write; move it"):
        staged_folder(tmp_path / "run", overwrite=True).__enter__()
    assert (tmp_path / "run" / note).read_text() == "years of work"


def test_run_without_a_record_is_replaced_only_where_nothing_else_is(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_FILE).write_text("{}")
    (tmp_path / "run" / "policy.pt").write_text("whose?")
    with pytest.raises(OutputError, match=r"holds 'policy\.pt', which mixdpo did not write"):
        staged_folder(tmp_path / "run", overwrite=True).__enter__()
    (tmp_path / "run" / "policy.pt").unlink()
    with staged_folder(tmp_path / "run", overwrite=True) as partial:
        (partial / "result").write_text("new")
    assert names(tmp_path / "run") == ["result"]


def test_files_that_a_later_command_adds_are_ours(tmp_path):
    make_run(tmp_path / "run")
    with (
        added_to_result(tmp_path / "run"),
        written_whole(tmp_path / "run" / "report.html") as page,
    ):
        page.write_text("report")
    with staged_folder(tmp_path / "run", overwrite=True):
        pass
    assert names(tmp_path / "run") == []


def test_nothing_is_added_to_a_result_that_another_command_writes(tmp_path, monkeypatch):
    with staged_folder(tmp_path / "run") as folder:
        (folder / "run.json").write_text("{}")
    with locked_output(tmp_path / "run"):
        with pytest.raises(OutputError, match="run: is being written by process"):
            with added_to_result(tmp_path / "run"):
                raise AssertionError("the block began")
        monkeypatch.setattr(os, "access", lambda *_: False)  # nobody can replace it either
        with added_to_result(tmp_path / "run"):
            (tmp_path / "run" / "report.html").touch()
    monkeypatch.undo()
    with staged_folder(tmp_path / "run", overwrite=True) as folder:  # all of it is the program's
        (folder / "run.json").write_text("{}")
    assert not (tmp_path / "run" / "report.html").exists()


def test_what_appears_while_the_block_runs_is_not_replaced(tmp_path):
    folder = tmp_path / "run"
    with (
        pytest.raises(
            OutputError,
            match=r"holds other files than a run.*the new result is whole in '.*partial'",
        ),
        staged_folder(folder) as partial,
    ):
        (partial / RUN_FILE).write_text("{}")
        folder.mkdir()
        (folder / "notes.md").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files than a run"):
        staged_folder(folder).__enter__()
    (folder / "notes.md").rename(tmp_path / "notes.md")
    with pytest.raises(OutputError, match="holds an earlier run"):
        staged_folder(folder).__enter__()
    assert names(folder) == [RUN_FILE]
    assert names(tmp_path) == ["notes.md", "run"]


def test_checkpoints_are_removed_only_when_asked(tmp_path):
    leave_partial(tmp_path / "run", **{"checkpoint-5/state": ""})
    with pytest.raises(
        OutputError, match=r"holds checkpoints .* --resume to go on, or --overwrite"
    ):
        staged_folder(tmp_path / "run").__enter__()
    with staged_folder(tmp_path / "run", overwrite=True) as partial:
        assert names(partial) == []


def test_folder_of_the_user_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "run.previous").mkdir()
    (tmp_path / "run.previous" / "keep.txt").write_text("")
    with pytest.raises(OutputError, match=r"run\.previous: exists, and blocks"):
        staged_folder(tmp_path / "run").__enter__()
    assert (tmp_path / "run.previous" / "keep.txt").is_file()


@pytest.mark.parametrize("keep", [False, True])
def test_partial_folder_of_the_user_is_left_alone(tmp_path, keep):
    (tmp_path / "run.partial" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "run.partial" / "keep.txt").write_text("")
    with pytest.raises(OutputError, match=r"run\.partial: exists, and mixdpo did not"):
        staged_folder(tmp_path / "run", overwrite=True, keep=keep).__enter__()
    assert (tmp_path / "run.partial" / "keep.txt").is_file()
    shutil.rmtree(tmp_path / "run.partial")
    (tmp_path / "run.partial").write_text("")
    with pytest.raises(OutputError, match=r"run\.partial: exists, and mixdpo"):
        staged_folder(tmp_path / "run", overwrite=True, keep=keep).__enter__()
    assert (tmp_path / "run.partial").is_file()


def test_checkpoints_copied_from_another_machine_are_gone_on_from(tmp_path):
    (tmp_path / "run.partial" / "checkpoint-5").mkdir(parents=True)
    with staged_folder(tmp_path / "run", keep=True) as partial:
        assert names(partial) == ["checkpoint-5"]
    assert names(tmp_path / "run") == ["checkpoint-5"]


def test_interrupted_run_is_kept_only_when_asked(tmp_path):
    leave_partial(tmp_path / "run", checkpoint="")
    with staged_folder(tmp_path / "run", keep=True) as partial:
        assert (partial / "checkpoint").is_file()
    leave_partial(tmp_path / "other", checkpoint="")
    with staged_folder(tmp_path / "other") as partial:
        assert names(partial) == []


def test_symbolic_link_to_an_output_stays_and_is_written_through_again_and_again(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "disk" / "run")  # which is not there yet
    for content in ("first", "second"):
        with staged_folder(link, overwrite=True) as partial:
            (partial / RUN_FILE).write_text("{}")
            (partial / "result").write_text(content)
        assert link.is_symlink()
        assert (link / "result").read_text() == content
    assert names(tmp_path) == ["disk", "run"]
    assert names(tmp_path / "disk") == ["run"]


def test_everything_is_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    flushed, renamed = [], []
    flush, rename = os.fsync, os.rename

    def spy(descriptor):
        flushed.append(os.fstat(descriptor).st_ino)
        flush(descriptor)

    def spy_rename(source, target):
        renamed.append((str(target), set(flushed)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "rename", spy_rename)
    with staged_folder(tmp_path / "run") as partial:
        (partial / "policy").mkdir()
        (partial / "policy" / "weights").write_text("w")
        (partial / ".weights.0123abcd.partial").write_text("of a killed writer")
    ((target, before),) = renamed
    assert target == str(tmp_path / "run")
    inodes = {p.stat().st_ino for p in (tmp_path / "run").rglob("*") if p.name != RECORD}
    assert inodes <= before
    assert (tmp_path / "run").stat().st_ino in before
    assert tmp_path.stat().st_ino in flushed
    assert names(tmp_path / "run") == ["policy"]


# A kill at every step

SCRIPT = """
import os, signal, sys
from mixdpo_pyro.io import staged_folder

folder, countdown = sys.argv[1], int(sys.argv[2])

def deadly(function):
    def call(*args, **kwargs):
        global countdown
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
    setattr(os, name, deadly(getattr(os, name)))
with staged_folder(folder, overwrite=True) as partial:
    os.mkdir(partial / "checkpoint-1")
    for name in ("run.json", "result", "checkpoint-1/state"):
        (partial / name).write_text("new")
"""


def overwrite_and_kill(folder, step):
    words = [sys.executable, "-c", SCRIPT, str(folder), str(step)]
    return subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode


def killed_at_every_step(tmp_path):
    """Folders as a command leaves them that overwrites a run and is killed at its n-th step."""
    for step in range(1, 100):
        place = tmp_path / f"step-{step}"
        make_run(place / "run")
        code = overwrite_and_kill(place / "run", step)
        if code == 0:
            assert step > 8
            return
        assert code == -signal.SIGKILL
        yield place


def test_kill_at_any_step_neither_blocks_nor_loses_a_result(tmp_path):
    """The next command restores or completes, then does its own work, asked for nothing else."""
    seen = []
    for place in killed_at_every_step(tmp_path):
        with pytest.raises(OutputError, match="run: holds an earlier run; add --overwrite"):
            staged_folder(place / "run").__enter__()
        seen.append((place / "run" / "result").read_text())
        assert not (place / "run.previous").exists()
        if seen[-1] == "new":
            assert names(place) == ["run"]
            assert names(place / "run") == ["checkpoint-1", "result", "run.json"]
        with staged_folder(place / "run", overwrite=True) as partial:
            assert names(partial) == []
            (partial / "result").write_text("third")
        assert (place / "run" / "result").read_text() == "third"
        assert [p.name for p in place.iterdir()] == ["run"]
    assert seen == sorted(seen, reverse=True)  # the old one until a step, the new one from there
    assert set(seen) == {"old", "new"}


def test_kill_at_any_step_can_be_resumed_with_the_earlier_result_in_place(tmp_path):
    for place in killed_at_every_step(tmp_path):
        with staged_folder(place / "run", overwrite=True, keep=True) as partial:
            assert (place / "run" / "result").read_text() in ("old", "new")
            (partial / "run.json").write_text("{}")
            (partial / "result").write_text("resumed")
        assert (place / "run" / "result").read_text() == "resumed"
        assert [p.name for p in place.iterdir()] == ["run"]


def test_second_kill_while_the_first_is_mended_neither_blocks_nor_loses_a_result(tmp_path):
    for number, place in enumerate(killed_at_every_step(tmp_path)):
        assert overwrite_and_kill(place / "run", 2 + 5 * number % 17) == -signal.SIGKILL
        with pytest.raises(OutputError, match="run: holds an earlier run; add --overwrite"):
            staged_folder(place / "run").__enter__()
        assert (place / "run" / "result").read_text() in ("old", "new")
        with staged_folder(place / "run", overwrite=True) as partial:
            (partial / "result").write_text("third")
        assert [p.name for p in place.iterdir()] == ["run"]


def test_result_that_was_whole_replaces_the_run_that_is_there_by_now(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    make_run(folder)
    with monkeypatch.context() as patch:
        patch.setattr("mixdpo_pyro.io.staging._Stage._publish", lambda stage: None)
        with staged_folder(folder, overwrite=True) as partial:
            (partial / RUN_FILE).write_text("{}")
            (partial / "result").write_text("new")
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    with pytest.raises(OutputError, match="holds an earlier run"):
        staged_folder(folder).__enter__()
    assert (folder / "result").read_text() == "new"
    assert names(tmp_path) == ["run"]


def test_copy_of_a_finished_run_is_no_partial_folder(tmp_path):
    make_run(tmp_path / "run.partial", "precious")
    with pytest.raises(OutputError, match=r"run\.partial: exists, and mixdpo"):
        staged_folder(tmp_path / "run", overwrite=True).__enter__()
    assert (tmp_path / "run.partial" / "result").read_text() == "precious"


@pytest.mark.parametrize("record", ["[]", '{"step": 3, "files": 7}', '{"step": "done"}', "{"])
def test_damaged_record_costs_nobody_a_file(tmp_path, record):
    make_run(tmp_path / "run")
    (tmp_path / "run" / RECORD).write_text(record)
    with pytest.raises(OutputError, match="holds 'result', which mixdpo did not write"):
        staged_folder(tmp_path / "run", overwrite=True).__enter__()


def test_folder_that_only_looks_like_a_replaced_result_is_never_removed(tmp_path):
    """Killed before the replaced run was removed; then the user keeps another run in its place."""
    make_run(tmp_path / "run")
    record = tmp_path / "run" / RECORD
    record.write_text(record.read_text().replace('"done"', '"whole"'))
    make_run(tmp_path / "backup", "precious")
    (tmp_path / "backup").rename(tmp_path / "run.previous")
    with pytest.raises(OutputError, match=r"run\.previous: exists, and blocks"):
        staged_folder(tmp_path / "run", overwrite=True).__enter__()
    assert (tmp_path / "run.previous" / "result").read_text() == "precious"
