"""`data pack`: the clips of a manifest as shards, the same bytes each time, with their checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Result, run_cli, write_recipe

from stagecli.data import checking
from stagecli.data.open import open_source
from stagecli.data.pack import parse_size
from stagecli.data.source import Source
from stagecli.errors import StageError
from stagecli.schema import Data

RATE = 16000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for number in range(12):
        audio = 0.1 * np.random.default_rng(number).standard_normal(1600)
        name = f"é{number}.{'wav' if number % 2 else 'flac'}"
        soundfile.write(tmp_path / name, audio, RATE)
        split = ("train", "train", "train", "valid", "test")[number % 5]
        row: dict[str, Any] = {"path": name, "caption": f"sound {number}", "split": split}
        row |= {"fold": number, "words": ["a", 1.5]}
        rows.append(row)
    rows.append({**rows[0], "caption": "another"})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "m.jsonl").write_text(text)
    return tmp_path


def packed(folder: Path, *arguments: object) -> Result:
    return run_cli("data", "pack", "m.jsonl", *arguments, cwd=folder)


def opened(folder: Path, source: str, path: str) -> Source:
    data = Data(
        source=source, path=path, sample_rate=RATE, seconds=0.1, cache_dir=str(folder / "cache")
    )
    return open_source(data, need_captions=True, base=folder)


def test_shards_hold_what_the_manifest_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = packed(folder, "shards", "--shard-size", "20kB")
    assert result.code == 0, result.stderr
    assert "12 clips in" in result.stderr
    names = sorted(path.name for path in (folder / "shards").glob("*.tar"))
    assert "train-000001.tar" in names
    assert all((folder / "shards" / name).stat().st_size <= 30_000 for name in names)

    # The index holds the checks: the first start decodes and hashes nothing.
    expected = opened(folder, "manifest", "m.jsonl")
    monkeypatch.setattr(checking, "check_content", lambda *_: pytest.fail("audio is read"))
    source = opened(folder, "shards", "shards")
    for split in ("train", "valid", "test"):
        clips = list(source.clips(split))
        wanted = list(expected.clips(split))
        assert [(c.captions, c.labels, c.seconds) for c in clips] == [
            (c.captions, c.labels, c.seconds) for c in wanted
        ]
        assert source.content_hashes(clips) == expected.content_hashes(wanted)
        assert [source.info(c) for c in clips] == [expected.info(c) for c in wanted]
        for clip, other in zip(clips, wanted, strict=True):
            np.testing.assert_array_equal(source.read(clip), expected.read(other))


def test_the_same_clips_make_the_same_bytes(folder: Path) -> None:
    packed(folder, "one", "--shard-size", "20kB")
    packed(folder, "two", "--shard-size", "20kB")
    files = {path.name: path.read_bytes() for path in (folder / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (folder / "two").iterdir()}
    for line in files["SHA256SUMS"].decode().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256(files[name]).hexdigest() == digest


def test_audio_that_differs_from_its_index(folder: Path) -> None:
    packed(folder, "shards")
    tar = folder / "shards" / "valid-000000.tar"
    content = bytearray(tar.read_bytes())
    content[1000] ^= 1
    tar.write_bytes(content)
    source = opened(folder, "shards", "shards")
    source.content_hashes(source.clips("valid"))
    with pytest.raises(StageError, match="other audio than its index says"):
        source.read(source.clips("valid")[0])


def _bad_file(folder: Path) -> None:
    (folder / "é1.wav").write_bytes(b"no audio")


def _bad_label(folder: Path) -> None:
    text = (folder / "m.jsonl").read_text()
    text = text.replace('"split"', '"part"').replace('"fold"', '"split"')
    (folder / "m.jsonl").write_text(text)


def _other_shards(folder: Path) -> None:
    (folder / "shards").mkdir()
    (folder / "shards" / "train-000077.tar").write_bytes(b"")


def _nothing(folder: Path) -> None:
    (folder / "m.jsonl").write_text("")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_bad_file, "m.jsonl:2"),
        (_bad_label, "has a label `split`"),
        (_other_shards, "train-000077.tar  would stay beside the new ones"),
        (_nothing, "no clips to pack"),
    ],
)
def test_nothing_is_written_for_bad_input(
    folder: Path, change: Callable[[Path], None], words: str
) -> None:
    change(folder)
    before = sorted((folder / "shards").glob("*"))
    named = ["--set", 'data.split_column="part"'] if change is _bad_label else []
    result = packed(folder, "shards", *named)
    assert result.code == 2
    assert words in result.stderr
    assert sorted((folder / "shards").glob("*")) == before


def test_sizes() -> None:
    assert [parse_size(text) for text in ("4096", "500MB", "1.5 gb", "2k")] == [
        4096,
        500_000_000,
        1_500_000_000,
        2000,
    ]
    for text in ("", "many", "-1GB", "12", "3PB"):
        with pytest.raises(StageError, match="no size of a shard"):
            parse_size(text)


def test_data_check_reads_shards(folder: Path) -> None:
    packed(folder, "shards")
    result = run_cli("data", "check", "shards", "--json", cwd=folder)
    document = json.loads(result.stdout)
    assert (document["source"], document["task"]) == ("shards", "t2a")
    assert {name: split["clips"] for name, split in document["splits"].items()} == {
        "train": 8,
        "valid": 2,
        "test": 2,
    }
    assert not (folder / "runs").exists()
    assert "tar shards" in run_cli("data", "check", "shards", cwd=folder).stdout


def test_training_is_the_same_as_on_the_manifest(tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        audio = 0.1 * np.random.default_rng(number).standard_normal(4000)
        soundfile.write(tmp_path / f"{number}.wav", audio, 8000)
        split = "valid" if number > 8 else "train"
        rows.append({"path": f"{number}.wav", "caption": f"sound {number}", "split": split})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert packed(tmp_path, "shards", "--shard-size", "30kB").code == 0

    losses = []
    for source, path in (("manifest", "m.jsonl"), ("shards", "shards")):
        keys: dict[str, Any] = {"data__source": source, "data__path": path, "train__steps": 4}
        workers = {"data__workers": 2 if source == "shards" else 0}
        recipe = write_recipe(tmp_path / f"{source}.toml", **keys, **workers)
        result = run_cli("train", recipe, "--name", source, cwd=tmp_path)
        assert result.code == 0, result.stderr
        text = (tmp_path / "runs" / source / "metrics.jsonl").read_text()
        losses.append([json.loads(line).get("train/loss") for line in text.splitlines()])
    assert losses[0] == losses[1]
    assert len(losses[0]) >= 4
