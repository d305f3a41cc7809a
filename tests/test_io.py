import json

import pytest

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.io import RUN_FILE, staged_folder, write_json, written_whole


def make_run(folder, content="old"):
    folder.mkdir()
    (folder / RUN_FILE).write_text("{}")
    (folder / "result").write_text(content)


def test_failed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "f.json"
    write_json({"a": 1}, path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"a": float("nan")}, path)
    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


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
    assert [p.name for p in folder.iterdir()] == ["other"]
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


def test_checkpoints_are_removed_only_when_asked(tmp_path):
    (tmp_path / "run.partial" / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(
        OutputError, match=r"holds checkpoints .* --resume to go on, or --overwrite"
    ):
        staged_folder(tmp_path / "run").__enter__()
    with staged_folder(tmp_path / "run", overwrite=True) as partial:
        assert list(partial.iterdir()) == []


def test_folder_of_the_user_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "run.previous").mkdir()
    (tmp_path / "run.previous" / "keep.txt").write_text("")
    with pytest.raises(OutputError, match=r"run\.previous: is in the way"):
        staged_folder(tmp_path / "run").__enter__()
    assert (tmp_path / "run.previous" / "keep.txt").is_file()


def test_interrupted_run_is_kept_only_when_asked(tmp_path):
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "checkpoint").write_text("")
    with staged_folder(tmp_path / "run", keep=True) as partial:
        assert (partial / "checkpoint").is_file()
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "checkpoint").write_text("")
    with staged_folder(tmp_path / "other") as partial:
        assert list(partial.iterdir()) == []
