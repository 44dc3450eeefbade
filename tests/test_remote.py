"""Data at addresses: read in ranges, kept up to a limit, tried again; one error where it fails."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from conftest import run_cli, write_recipe
from fsspec.implementations.memory import MemoryFileSystem

from stagecli.data import remote
from stagecli.data.open import open_source
from stagecli.data.range_cache import RangeCache
from stagecli.data.source import Source
from stagecli.errors import StageError
from stagecli.schema import Data

RATE = 8000
CLIPS = 12


class Flaky(MemoryFileSystem):
    """Files in memory, on a server that fails as often as it is told to."""

    protocol = "flaky"
    failures = 0
    error: Exception = ConnectionError("the line is cut")
    reads = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://", 1))

    def unstrip_protocol(self, name: str) -> str:
        return f"flaky://{name.lstrip('/')}"

    def cat_file(self, path: str, start: Any = None, end: Any = None, **keys: Any) -> bytes:
        Flaky.reads += 1
        if Flaky.failures > 0:
            Flaky.failures -= 1
            raise Flaky.error
        return super().cat_file(path, start=start, end=end, **keys)


def flac(seed: int) -> bytes:
    file = io.BytesIO()
    audio = 0.1 * np.random.default_rng(seed).standard_normal(4000)
    soundfile.write(file, audio, RATE, format="FLAC")
    return file.getvalue()


def tar(first: int, last: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for seed in range(first, last):
            for name, content in (
                (f"{seed:04d}.flac", flac(seed)),
                (f"{seed:04d}.json", json.dumps({"caption": f"sound {seed}"}).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shards and a manifest on the server, which works."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(Flaky, "failures", 0)
    monkeypatch.setattr(Flaky, "error", ConnectionError("the line is cut"))
    files = {
        "train-000.tar": tar(0, 6),
        "train-001.tar": tar(6, CLIPS),
        "valid-000.tar": tar(20, 24),
    }
    rows = []
    for seed, split in ((0, "train"), (1, "train"), (2, "valid")):
        files[f"audio/{seed}.flac"] = flac(seed)
        rows.append({"path": f"audio/{seed}.flac", "caption": f"{seed}", "split": split})
    files["m.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    memory = fsspec.filesystem("memory")
    for name, content in files.items():
        memory.pipe_file(f"/bucket/{name}", content)
    yield
    memory.rm("/bucket", recursive=True)


def opened(folder: Path, path: Any, source: str = "shards", **keys: Any) -> Source:
    keys = {"source": source, "path": path, "sample_rate": RATE, "seconds": 0.5, **keys}
    data = Data(cache_dir=str(folder / "cache"), **keys)
    return open_source(data, need_captions=True, base=folder, splits=("train", "valid"))


@pytest.mark.parametrize(
    "path",
    [
        "memory://bucket",
        "memory://bucket/*.tar",
        ["flaky://bucket/train-{000..001}.tar", "flaky://bucket/valid-000.tar"],
        "file://{folder}",
    ],
)
def test_shards_at_an_address(tmp_path: Path, path: Any) -> None:
    if path == "file://{folder}":
        for name in ("train-000.tar", "train-001.tar", "valid-000.tar"):
            (tmp_path / name).write_bytes(fsspec.filesystem("memory").cat_file(f"/bucket/{name}"))
        path = f"file://{tmp_path}"
    source = opened(tmp_path, path)
    train = source.clips("train")
    assert [clip.key for clip in train][5:7] == ["train-000.tar/0005", "train-001.tar/0006"]
    expected, _ = soundfile.read(io.BytesIO(flac(7)), dtype="float32")
    np.testing.assert_array_equal(source.read(train[7]), expected)
    assert len(source.clips("valid")) == 4


def test_what_was_read_is_kept(tmp_path: Path) -> None:
    opened(tmp_path, "flaky://bucket")
    source = opened(tmp_path, "flaky://bucket")
    Flaky.reads = 0
    for clip in source.clips("train"):
        source.read(clip)
    assert Flaky.reads == 0
    source = opened(tmp_path, "flaky://bucket", remote_cache_gb=0)
    source.read(source.clips("train")[0])
    assert Flaky.reads == 1


def test_a_manifest_at_an_address(tmp_path: Path) -> None:
    source = opened(tmp_path, "memory://bucket/m.jsonl", "manifest")
    assert [clip.key for clip in source.clips("train")] == ["audio/0.flac", "audio/1.flac"]
    expected, _ = soundfile.read(io.BytesIO(flac(1)), dtype="float32")
    np.testing.assert_array_equal(source.read(source.clips("train")[1]), expected)
    fsspec.filesystem("memory").rm("/bucket/audio/1.flac")
    with pytest.raises(StageError) as caught:
        opened(tmp_path, "memory://bucket/m.jsonl", "manifest")
    (problem,) = caught.value.problems
    assert problem.where == "memory://bucket/m.jsonl:2"
    assert "file is missing" in problem.what


def test_a_short_failure_is_tried_again(tmp_path: Path) -> None:
    Flaky.failures = remote.TRIES - 1
    assert len(opened(tmp_path, "flaky://bucket").clips("train")) == CLIPS


def test_a_long_failure_is_one_error(tmp_path: Path) -> None:
    Flaky.failures = 10**6
    with pytest.raises(StageError, match=f"tried {remote.TRIES} times") as caught:
        opened(tmp_path, "flaky://bucket")
    assert "the line is cut" in caught.value.problems[0].what
    assert caught.value.exit_code == 1


def test_missing_credentials(tmp_path: Path) -> None:
    class NoCredentialsError(Exception):
        pass

    Flaky.failures = 10**6
    Flaky.error = NoCredentialsError("Unable to locate credentials")
    with pytest.raises(StageError, match=r"no access to flaky://bucket\n") as caught:
        opened(tmp_path, "flaky://bucket")
    assert len(caught.value.problems) == 1
    assert "credentials" in str(caught.value.hint)


def test_addresses_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="cannot be meant"):
        opened(tmp_path, "nowhere://bucket")
    with pytest.raises(StageError) as caught:
        opened(tmp_path, ["memory://bucket/none/*.tar", "memory://bucket/empty"])
    assert [p.what for p in caught.value.problems] == ["matches no file", "is missing"]
    with pytest.raises(StageError) as caught:
        opened(tmp_path, "memory://bucket/train-{000..002}.tar")
    assert [(p.where, p.what) for p in caught.value.problems] == [
        ("memory://bucket/train-002.tar", "file is missing")
    ]


def test_training_ends_with_its_last_checkpoint_and_resumes(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "r.toml",
        data__source="shards",
        data__path="flaky://bucket",
        data__memory_mb=0,
        data__remote_cache_gb=0,
        train__checkpoint_every=2,
        train__steps=6,
    )
    whole = run_cli("train", recipe, "--name", "whole", cwd=tmp_path)
    assert whole.code == 0, whole.stderr

    run = tmp_path / "runs" / "broken"

    class Breaks(Flaky):
        """Fails for good once there is a checkpoint."""

        def cat_file(self, path: str, start: Any = None, end: Any = None, **keys: Any) -> bytes:
            if (run / "checkpoints" / "latest").exists():
                Flaky.failures = 10**6
            return super().cat_file(path, start, end, **keys)

    fsspec.register_implementation("flaky", Breaks, clobber=True)
    remote.forget_connections()
    broken = run_cli("train", recipe, "--name", "broken", cwd=tmp_path)
    assert broken.code == 1
    assert "the line is cut" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert (run / "checkpoints" / "latest").read_text().strip() == "step_00000002"

    fsspec.register_implementation("flaky", Flaky, clobber=True)
    remote.forget_connections()
    Flaky.failures = 0
    resumed = run_cli("train", recipe, "--name", "broken", cwd=tmp_path)
    assert resumed.code == 0, resumed.stderr

    def losses(name: str) -> dict[int, float]:
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}

    assert losses("broken") == losses("whole")


def test_the_cache_has_a_limit(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 10_000)
    for number in range(40):
        cache.put("a", (1, 1), number, bytes([number]) * 500)
    used = sum(file.stat().st_size for file in tmp_path.glob("??/*"))
    assert 5_000 < used <= 11_000
    assert cache.get("a", (1, 1), 39, 500) == bytes([39]) * 500
    assert cache.get("a", (1, 1), 0, 500) is None
    assert cache.get("a", (2, 1), 39, 500) is None
    cache.put("a", (1, 1), 99, bytes(5_000))  # larger than a tenth of the limit
    assert cache.get("a", (1, 1), 99, 5_000) is None
    for file in tmp_path.glob("??/*"):
        file.write_bytes(b"damaged" * 72)
    assert cache.get("a", (1, 1), 39, 500) is None
