"""The feature cache: killed, shared, damaged and outdated, and the hashes of files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecli.data.cache import FeatureCache, canonical
from stagecli.data.file_index import content_hash, open_index, stamp_of

CONFIG = {
    "codec": {"kind": "mel", "hop": 256},
    "weights": "abc",
    "sample_rate": 16000,
    "seconds": 1.5,
    "seed": 0,
}
FILLER = """
import sys, time
from pathlib import Path
import numpy as np
from stagecli.data.cache import FeatureCache
root, pause = Path(sys.argv[1]), float(sys.argv[2])
def compute(keys):
    for key in keys:
        time.sleep(pause)
        yield np.full((50, 8), int(key), np.float32)
print(FeatureCache(root, "mel", {"seed": 0}).fill([str(i) for i in range(60)], compute, 4))
"""


def filler(root: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FILLER, str(root), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.npy"))


def test_put_and_get(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "mel", CONFIG)
    assert not cache.has("a")
    assert cache.get("a") is None
    for array in (np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros((0, 4)), np.float16(3.0)):
        cache.put("a/b ü", np.asarray(array))
        stored = cache.get("a/b ü")
        assert stored is not None
        assert stored.dtype == np.asarray(array).dtype
        assert np.array_equal(stored, array)
    cache.put("m", np.ones((4, 4), np.float32))
    mapped = cache.get("m")
    assert isinstance(mapped, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1
    config = json.loads((cache.path / "config.json").read_text())
    assert config["config"]["codec"]["hop"] == 256
    with pytest.raises(TypeError):
        cache.put("o", np.array([object()]))


def test_a_cache_touches_the_disk_with_its_first_array(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", "mel", CONFIG)
    assert not cache.has("a")
    assert not cache.path.parent.exists()
    cache.put("a", np.ones(1))
    assert cache.has("a")
    assert {p.suffix for p in cache.path.rglob("*") if p.is_file()} == {".json", ".npy"}


def test_fill_computes_only_what_is_missing(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "mel", CONFIG)
    calls: list[list[str]] = []
    seen: list[tuple[int, int]] = []

    def compute(keys: list[str]) -> Iterator[np.ndarray]:
        calls.append(keys)
        return (np.full(3, float(key)) for key in keys)

    assert cache.fill(["1", "2", "3", "2"], compute, 2) == 3
    assert cache.fill(["1", "2", "3", "4", "5"], compute, 8, lambda *count: seen.append(count)) == 2
    assert calls == [["1", "2"], ["3"], ["4", "5"]]
    assert seen == [(3, 5), (5, 5)]
    stored = cache.get("5")
    assert stored is not None
    assert np.array_equal(stored, [5, 5, 5])
    with pytest.raises(ValueError, match="zip"):
        cache.fill(["7", "8"], lambda keys: [np.zeros(1)], 2)


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "longer", "text"])
def test_damaged_files_count_as_absent(tmp_path: Path, damage: str) -> None:
    cache = FeatureCache(tmp_path, "mel", CONFIG)
    cache.put("k", np.arange(1000))
    path = cache.file_of("k")
    whole = path.read_bytes()
    broken = {
        "cut": whole[:-8],
        "empty": b"",
        "header": whole[:40],
        "longer": whole + b"x",
        "text": b"not an array",
    }
    path.write_bytes(broken[damage])
    assert not cache.has("k")
    assert not path.exists()
    assert cache.fill(["k"], lambda keys: [np.arange(1000) for _ in keys], 1) == 1
    assert path.read_bytes() == whole


def test_a_killed_fill_resumes(tmp_path: Path) -> None:
    process = filler(tmp_path, 0.02)
    deadline = time.monotonic() + 20
    while len(files(tmp_path)) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(files(tmp_path))
    assert 9 <= done < 60
    output, _ = filler(tmp_path, 0).communicate(timeout=30)
    assert int(output) == 60 - done
    cache = FeatureCache(tmp_path, "mel", {"seed": 0})
    for key in range(60):
        stored = cache.get(str(key))
        assert stored is not None
        assert (stored == key).all()


def test_two_processes_may_fill_at_once(tmp_path: Path) -> None:
    both = [filler(tmp_path, 0.005) for _ in range(2)]
    counts = [int(process.communicate(timeout=30)[0]) for process in both]
    assert all(process.returncode == 0 for process in both)
    assert sum(counts) >= 60
    assert len(files(tmp_path)) == 60
    assert not list(tmp_path.rglob("*.tmp"))
    cache = FeatureCache(tmp_path, "mel", {"seed": 0})
    assert all((cache.get(str(key)) == key).all() for key in range(60))  # type: ignore[union-attr]


def test_left_over_temporary_files_do_no_harm(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "mel", CONFIG)
    path = cache.file_of("k")
    path.parent.mkdir(parents=True)
    (path.parent / f".{path.name}.1.abcd.tmp").write_bytes(b"half")
    assert not cache.has("k")
    cache.put("k", np.ones(2))
    assert cache.has("k")


def test_another_config_is_another_cache(tmp_path: Path) -> None:
    path = FeatureCache(tmp_path, "mel", CONFIG).path
    changes: list[dict[str, Any]] = [
        {"weights": "abd"},
        {"sample_rate": 24000},
        {"seconds": 1.6},
        {"seed": 1},
        {"codec": {"kind": "mel", "hop": 128}},
    ]
    others = [FeatureCache(tmp_path, "mel", {**CONFIG, **change}).path for change in changes]
    assert len({path, *others, FeatureCache(tmp_path, "ssl", CONFIG).path}) == 7


def test_the_same_config_is_the_same_cache(tmp_path: Path) -> None:
    path = FeatureCache(tmp_path, "mel", CONFIG).path
    assert FeatureCache(tmp_path, "mel", dict(reversed(CONFIG.items()))).path == path
    assert (
        FeatureCache(tmp_path, "mel", {**CONFIG, "sample_rate": 16000.0, "seed": np.int64(0)}).path
        == path
    )
    assert canonical({"a": (1, 2)}) == canonical({"a": [1, 2.0]})
    assert canonical({"a": True}) != canonical({"a": 1})
    for bad in ({"a": float("nan")}, {"a": Path("x")}, {1: "a"}):
        with pytest.raises((TypeError, ValueError)):
            canonical(bad)  # type: ignore[arg-type]


def test_content_hash_is_of_the_content(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    index = open_index(tmp_path / "cache" / "hashes.jsonl")
    file.write_bytes(b"one")
    first = content_hash(file, index)
    assert index.get(str(file), stamp_of(file)) == first
    os.utime(file, ns=(1, 1))
    assert content_hash(file, index) == first
    moved = file.rename(tmp_path / "b.wav")
    assert content_hash(moved, index) == first == content_hash(moved)
    moved.write_bytes(b"two")
    assert content_hash(moved, index) != first


def test_the_index_spares_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(b"one")
    first = content_hash(file, open_index(tmp_path / "hashes.jsonl"))
    index = open_index(tmp_path / "hashes.jsonl")
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail("was read again"))
    assert content_hash(file, index) == first


def test_a_torn_or_foreign_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl"
    open_index(path).put("a", (1, 2), "A")
    with open(path, "a") as file:
        file.write('{"x": 1}\n[1]\n[["a"], 1, 2, 1, 0]\n["b", 1, 2, 1, "half')
    index = open_index(path)
    assert index.get("a", (1, 2)) == "A"
    assert index.get("a", (1, 3)) is None
    index.put("c", (3, 4), [1, None])
    again = open_index(path)
    assert again.get("c", (3, 4)) == [1, None]
    assert again.get("b", (1, 2)) is None
    assert open_index(path, version=2).get("a", (1, 2)) is None
