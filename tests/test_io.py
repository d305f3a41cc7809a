"""Files are whole or absent, and never in another's place."""

import errno
import json
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.io import check_output, locked_output, staged_folder, write_json, written_whole
from mixdpo_pyro.io.integrity import find_fault, find_model_fault


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def file_size_limit(size):
    """What a full disk does, without one: no file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


def test_content_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, monkeypatch):
    calls = []
    flush, replace = os.fsync, os.replace

    def spy(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append("names" if is_folder else "content")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("rename"), replace(*a)))
    write_json([1], tmp_path / "f.json")
    assert calls == ["content", "rename", "names"]


def test_writers_of_one_file_do_not_meet(tmp_path):
    """With one temporary name for all, some lose theirs to another's rename."""
    path, start = tmp_path / "f.json", threading.Barrier(8)

    def write(number):
        start.wait()
        for _ in range(25):
            write_json([number] * 500, path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(set(json.loads(path.read_text()))) == 1
    assert names(tmp_path) == ["f.json"]


def test_symbolic_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "disk" / "f.json")
    write_json([1], tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "disk" / "f.json").read_text() == "[\n  1\n]\n"


def test_file_that_cannot_be_written_is_one_line_with_its_name(tmp_path):
    path = tmp_path / "f.json"
    write_json([1], path)
    with (
        file_size_limit(100),
        pytest.raises(OutputError, match=r"f\.json: cannot be written \(File too large\)"),
    ):
        write_json(["x" * 1000], path)
    assert json.loads(path.read_text()) == [1]
    assert names(tmp_path) == ["f.json"]
    with pytest.raises(OutputError, match=r"no/f\.json: cannot be written \(No such file"):
        write_json([1], tmp_path / "no" / "f.json")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(os.devnull)])
def test_devices_and_pipes_are_never_replaced(tmp_path, make):
    path = tmp_path / "out"
    make(path)
    before = path.stat()
    with pytest.raises(OutputError, match="expected a regular file to write to"):
        write_json([1], path)
    with pytest.raises(OutputError, match="expected a regular file to write to"):
        check_output(path, overwrite=True)
    assert path.stat().st_ino == before.st_ino
    assert names(tmp_path) == ["out"]


# What a command may write to


def test_output_that_is_an_input_is_refused_under_every_name(tmp_path):
    data, link, hard = tmp_path / "p.jsonl", tmp_path / "l.jsonl", tmp_path / "h.jsonl"
    data.write_text("precious")
    link.symlink_to(data)
    os.link(data, hard)
    (tmp_path / "sub").mkdir()
    for output in (data, link, hard, tmp_path / "sub" / ".." / "p.jsonl"):
        with pytest.raises(OutputError, match="is an input of this command"):
            check_output(output, ["some/hub-name", None, data], overwrite=True)
    with pytest.raises(OutputError, match="is an input of this command"):
        check_output(data, [link], overwrite=True)
    assert data.read_text() == "precious"


def test_output_around_or_inside_of_an_input_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "margins.parquet").write_text("margins")
    inside = tmp_path / "run" / "margins.parquet"
    with pytest.raises(OutputError, match=r"is part of the input '.*run'"):
        check_output(inside, [tmp_path / "run"], overwrite=True)
    assert check_output(tmp_path / "run" / "new.parquet", [tmp_path / "run"])
    (tmp_path / "run" / "run.json").write_text("{}")
    with (
        pytest.raises(OutputError, match=r"run: holds the input '.*margins\.parquet'"),
        staged_folder(tmp_path / "run", overwrite=True, inputs=[inside]),
    ):
        pass
    assert inside.read_text() == "margins"


def test_file_that_is_there_is_replaced_when_asked_or_when_this_command_wrote_it(tmp_path):
    path = tmp_path / "found.json"
    path.write_text("my notes")
    with pytest.raises(OutputError, match=r"found\.json: exists; add --overwrite"):
        check_output(path, signature='"ready"')
    assert check_output(path, overwrite=True) == path
    path.write_text('{"ready": true}')
    assert check_output(path, signature='"ready"') == path


def test_output_without_a_folder_or_in_one_that_is_read_only_is_refused(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="there is no folder"):
        check_output(tmp_path / "no" / "f.json")
    with pytest.raises(OutputError, match="expected a file to write to, found a folder"):
        check_output(tmp_path)
    with pytest.raises(OutputError, match="is no path"):
        check_output("a\0b")
    monkeypatch.setattr(os, "access", lambda *a: False)  # root may write everywhere
    with pytest.raises(OutputError, match=r"f\.json: the folder '.*' cannot be written to"):
        check_output(tmp_path / "f.json")


# Two commands on one output

HOLD = """
import sys
from mixdpo_pyro.io import locked_output
with locked_output(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_command_on_an_output_is_refused_and_told_who_holds_it(tmp_path, holder):
    message = rf"run: is being written by process {holder.pid}; wait"
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for name in ("run", "link"):
        with pytest.raises(OutputError, match=message), staged_folder(tmp_path / name):
            pass
    with locked_output(tmp_path / "other"):
        assert (tmp_path / ".run.lock").exists()


def test_killed_command_leaves_no_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    with staged_folder(tmp_path / "run") as partial:
        (partial / "run.json").write_text("{}")
    assert names(tmp_path) == ["run"]


def test_lock_leaves_nothing_and_removes_what_a_killed_writer_left(tmp_path):
    (tmp_path / ".f.parquet.0123abcd.partial").write_text("half")
    (tmp_path / ".g.parquet.0123abcd.partial").write_text("of another")
    with (
        locked_output(tmp_path / "f.parquet"),
        pytest.raises(OutputError, match=f"by process {os.getpid()}"),
        locked_output(tmp_path / "f.parquet"),
    ):
        pass
    assert names(tmp_path) == [".g.parquet.0123abcd.partial"]


def test_locks_exclude_while_their_files_come_and_go(tmp_path):
    """Every holder removes the file; none may hold a file that has lost its name."""
    inside, most, refused = [], [], []

    def work(_):
        for _ in range(20):
            try:
                with locked_output(tmp_path / "run"):
                    inside.append(1)
                    time.sleep(0.001)
                    most.append(len(inside))
                    inside.pop()
            except OutputError:
                refused.append(1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert set(most) == {1}
    assert len(most) + len(refused) == 80


# Is a file whole?


def damaged(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    return path


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_cut_tensors_and_archives_are_found(tmp_path, keep):
    tensors = {"weight": torch.ones(50)}
    save_file(tensors, tmp_path / "t.safetensors")
    torch.save(tensors, tmp_path / "t.pt")
    for name in ("t.safetensors", "t.pt"):
        path = tmp_path / name
        assert find_fault(path) is None
        size = len(path.read_bytes()[:keep])
        fault = find_fault(damaged(path, keep))
        assert fault.startswith(f"{path}: is damaged (")
        assert fault.endswith(f", {size:,} bytes)")
    assert find_fault(tmp_path / "none.pt").endswith("is damaged (No such file or directory)")


def test_zeros_where_the_content_was_lost_are_found(tmp_path):
    for name in ("t.safetensors", "t.pt"):
        (tmp_path / name).write_bytes(bytes(1000))
        assert find_fault(tmp_path / name)


def test_model_folder_names_the_file_that_is_wrong(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "model-1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    write_json({"weight_map": {"a": "model-1.safetensors"}}, index)
    write_json({"model_type": "llama"}, tmp_path / "config.json")
    assert find_model_fault(tmp_path) is None
    assert find_model_fault(tmp_path / "no-such-folder") is None
    write_json({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}, index)
    assert find_model_fault(tmp_path) == (
        f"{tmp_path / 'model-2.safetensors'}: is missing, and {index.name} names it"
    )
    write_json({"weight_map": 3}, index)
    assert "index.json: key 'weight_map'" in find_model_fault(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    assert "config.json: is damaged (expected keys and values, got list)" in find_model_fault(
        tmp_path
    )
    (tmp_path / "config.json").write_text('{"a": ')
    assert "line 1 column 7" in find_model_fault(tmp_path)


def test_adapter_configuration_names_the_key_that_is_wrong(tmp_path):
    path = tmp_path / "adapter_config.json"
    write_json({"peft_type": "LORA"}, path)
    assert find_model_fault(tmp_path) == (
        f"{path}: key 'base_model_name_or_path': expected text, got None"
    )
    write_json({"peft_type": 1, "base_model_name_or_path": "m"}, path)
    assert find_model_fault(tmp_path) == f"{path}: key 'peft_type': expected text, got 1"


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one MiB; skipped where nobody may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def noise():
    return pd.DataFrame({"a": np.random.default_rng(0).normal(size=300_000)})


def fill_with(writer):
    def write(folder):
        writer({"a": torch.zeros(1_000_000)}, folder / "big")

    return write


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (fill_with(save_file), "No space left on device"),
        (fill_with(torch.save), "is the disk full"),
        (lambda folder: noise().to_parquet(folder / "a.parquet"), "No space left|errno 28"),
        (lambda folder: noise().to_csv(folder / "a.csv"), "No space left on device"),
        (lambda folder: write_json(["x" * 2_000_000], folder / "a.json"), "No space left"),
    ],
)
def test_full_disk_is_one_line_that_names_the_folder(small_disk, write, reason):
    with (
        pytest.raises(OutputError, match=rf"run\.partial.*cannot be written \(.*({reason})"),
        staged_folder(small_disk / "run") as partial,
    ):
        write(partial)


def test_read_only_disk_is_refused_before_the_block(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with (
        pytest.raises(OutputError, match=r"run: cannot be written \(Read-only file system\)"),
        staged_folder(small_disk / "run"),
    ):
        raise AssertionError("the block ran")
    with pytest.raises(OutputError, match="cannot be written to"):
        check_output(small_disk / "f.json")


def test_mounted_disk_is_not_replaced(small_disk):
    with pytest.raises(OutputError, match="where a disk is mounted"), staged_folder(small_disk):
        pass


def test_other_errors_of_the_block_stay_as_they_are(tmp_path):
    missing = FileNotFoundError(errno.ENOENT, "No such file", "data")
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "run"):
        raise missing
