from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys

import pytest
import torch

from kifuse.errors import KifuseError
from kifuse.io import storage


def test_json_comes_back_as_written(tmp_path):
    value = {"näme": [1, 2.5, None, True], "nested": {"emoji": "😀"}}
    storage.write_json(tmp_path / "new" / "folder" / "record.json", value)
    assert storage.read_json(tmp_path / "new" / "folder" / "record.json") == value


def test_text_keeps_its_line_endings(tmp_path):
    storage.write_text(tmp_path / "a.txt", "one\r\ntwo\n")
    assert (tmp_path / "a.txt").read_bytes() == b"one\r\ntwo\n"


def test_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert storage.read_json(tmp_path / "a.json") == {"a": 1}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(KifuseError, match=r"a\.txt: cannot be written: No space left"):
        storage.write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are of POSIX systems")
def test_files_follow_the_umask(tmp_path):
    code = (
        "import os, sys; os.umask(0o027); from kifuse.io.storage import write_text; "
        "write_text(sys.argv[1], 'x')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=True)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.json:1: not valid JSON: the file is empty"),
        (b'{\n"a": 1,\n}', r"a\.json:3: not valid JSON"),
        (b'{"a":\n"\xff"}', r"a\.json:2: not UTF-8"),
        (b"[" * 200_000, r"a\.json:1: not readable JSON: nested too deeply"),
    ],
)
def test_malformed_json_names_file_and_line(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(KifuseError, match=message):
        storage.read_json(tmp_path / "a.json")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(KifuseError, match=r"gone\.json: no such file"):
        storage.read_json(tmp_path / "gone.json")


@pytest.mark.parametrize("value", [float("nan"), object(), "\ud800"])
def test_what_json_cannot_hold_is_refused_before_the_file_changes(tmp_path, value):
    storage.write_json(tmp_path / "a.json", {"ok": True})
    with pytest.raises(KifuseError, match="cannot be written as JSON"):
        storage.write_json(tmp_path / "a.json", {"value": value})
    assert storage.read_json(tmp_path / "a.json") == {"ok": True}


def test_hashes_are_sha256(tmp_path):
    (tmp_path / "a").write_bytes("ä".encode())
    expected = hashlib.sha256("ä".encode()).hexdigest()
    assert storage.sha256_file(tmp_path / "a") == storage.sha256_text("ä") == expected


def test_tensors_come_back_bit_by_bit(tmp_path):
    base = torch.randn(4, 6)
    tensors = {
        "view": base.t(),
        "same": base,
        "half": torch.randn(3).to(torch.bfloat16),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 2),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    storage.write_tensors(tmp_path / "state.safetensors", tensors, {"version": "1"})
    back, metadata = storage.read_tensors(tmp_path / "state.safetensors")
    assert metadata == {"version": "1"}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_tensors_without_metadata(tmp_path):
    storage.write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)}, None)
    assert storage.read_tensors(tmp_path / "a.safetensors")[1] == {}


def test_damaged_and_missing_tensor_files_are_named(tmp_path):
    with pytest.raises(KifuseError, match=r"a\.safetensors: no such file"):
        storage.read_tensors(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(KifuseError, match=r"a\.safetensors: not a readable safetensors file"):
        storage.read_tensors(tmp_path / "a.safetensors")


def test_data_modules_do_not_import_torch():
    code = (
        "import sys, kifuse.io.storage, kifuse.tasks, kifuse.benchmarks; "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
