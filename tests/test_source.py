"""Sources of clips: every problem is found before training, with its line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.tables import Table, fake_datasets

from stagecli.data.audio import read_mono, write_wav
from stagecli.data.open import open_source
from stagecli.data.rows import Split, hash_split
from stagecli.data.source import Source
from stagecli.errors import StageError
from stagecli.schema import Data

RATE = 16000


def tone(seconds: float = 0.2, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(
        np.float32
    )


def save(path: Path, audio: np.ndarray | None = None, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone() if audio is None else audio, rate)
    return path


def cut(path: Path, share: float = 0.6) -> Path:
    save(path, tone(1.0))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def lines(folder: Path, *entries: Any) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries))
    return path


def entry(path: str, split: str = "train", **more: Any) -> dict[str, Any]:
    return {"path": path, "caption": f"sound of {path}", "split": split, **more}


def opened(folder: Path, path: str = "manifest.jsonl", **keys: Any) -> Source:
    need_captions = keys.pop("need_captions", True)
    arguments = {name: keys.pop(name) for name in ("splits", "progress") if name in keys}
    keys = {"source": "manifest", "sample_rate": RATE, "seconds": 1.0, **keys}
    data = Data(path=path, cache_dir=str(folder / "cache"), **keys)
    return open_source(data, need_captions=need_captions, base=folder, **arguments)


def refused(folder: Path, **keys: Any) -> dict[str, str]:
    with pytest.raises(StageError) as caught:
        opened(folder, **keys)
    assert caught.value.exit_code == 2
    return {p.where.removeprefix(f"{folder}/"): p.what for p in caught.value.problems}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.flac", "c.ogg"):
        save(tmp_path / "audio" / name)
    first = entry("audio/a.wav", label="dog", fold=1)
    lines(tmp_path, first, "", entry("audio/b.flac", "valid"), entry("audio/c.ogg", "test"))
    return tmp_path


def test_a_good_manifest(good: Path) -> None:
    seen: list[tuple[int, ...]] = []
    source = opened(good, progress=lambda *count: seen.append(count))
    (clip,) = source.clips("train")
    assert (clip.key, clip.caption, clip.split) == ("audio/a.wav", "sound of audio/a.wav", "train")
    assert clip.labels == {"label": "dog", "fold": 1}
    assert clip.seconds == pytest.approx(0.2)
    assert source.sample_rate == RATE
    assert source.skipped == []
    audio_N = source.read(clip)
    assert audio_N.dtype == np.float32
    assert audio_N.shape == (3200,)
    assert [len(source.clips(s)) for s in ("valid", "test")] == [1, 1]
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert pickle.loads(pickle.dumps(source)).clips("train") == [clip]
    assert {clip: 1}[clip] == 1


def test_csv_and_other_names(good: Path) -> None:
    (good / "m.csv").write_text(
        "\ufeffpath,text,split,label\n"
        'audio/a.wav,"a dog,\nbarking",tr,x\n'
        "audio/b.flac,b,va,\n"
        "audio/c.ogg,c,dev,y\n"
        "audio/c.ogg,,te,y\n"
        "a,b,c,d,e\n"
    )
    names = {"train_split": "tr", "valid_split": "va", "test_split": "te", "caption_column": "text"}
    problems = refused(good, path="m.csv", **names)
    assert problems["m.csv:5"] == "unknown split 'dev' (the recipe has tr, va, te)"
    assert "line 5 already" in problems["m.csv:6"]
    assert problems["m.csv:7"].startswith("has 5 fields, but the header 4")
    (good / "m.csv").write_text(
        "path,text,split,label\naudio/a.wav,a dog,tr,x\naudio/b.flac,b,va,\n"
    )
    source = opened(good, path="m.csv", splits=("train", "valid"), **names)
    assert source.clips("train")[0].caption == "a dog"
    assert source.clips("train")[0].labels == {"label": "x"}
    (good / "m.csv").write_text("file,text\na,b\n")
    assert "m.csv:1" in refused(good, path="m.csv")


def test_every_bad_line_is_listed_with_its_line(good: Path) -> None:
    lines(
        good,
        entry("audio/a.wav"),
        '{"path": "audio/b.flac", "caption"',
        '["audio/b.flac"]',
        {"caption": "x", "split": "train"},
        {"path": "audio/b.flac", "split": "valid"},
        {"path": "audio/c.ogg", "caption": "  ", "split": "test"},
        {"path": "audio/d.ogg", "caption": 3, "split": "test"},
        entry("audio/e.wav", "dev"),
        {"path": "audio/f.wav", "caption": "x"},
        entry("audio/../audio/a.wav"),
    )
    problems = refused(good)
    assert problems == {
        "manifest.jsonl:2": "is not JSON: Expecting ':' delimiter",
        "manifest.jsonl:3": "is not a JSON object",
        "manifest.jsonl:4": 'no path (key "path")',
        "manifest.jsonl:5": 'no caption (key "caption")',
        "manifest.jsonl:6": 'caption (key "caption") is empty',
        "manifest.jsonl:7": 'caption (key "caption") is not text: 3',
        "manifest.jsonl:8": "unknown split 'dev' (the recipe has train, valid, test)",
        "manifest.jsonl:9": "no split",
        "manifest.jsonl:10": "audio/../audio/a.wav is on line 1 already",
    }


def test_captions_are_asked_for_only_where_needed(good: Path) -> None:
    lines(
        good,
        *({"path": f"audio/{n}", "split": s} for n, s in (("a.wav", "train"), ("b.flac", "valid"))),
    )
    assert len(refused(good, splits=("train", "valid"))) == 2
    assert (
        opened(good, splits=("train", "valid"), need_captions=False).clips("train")[0].caption == ""
    )


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing.wav": (lambda p: None, "file is missing"),
    "empty.wav": (lambda p: p.touch(), "file is empty"),
    "text.wav": (lambda p: p.write_text("this is no audio at all"), "is not audio"),
    "cut.wav": (cut, "is truncated"),
    "cut.aiff": (cut, "is truncated"),
    "cut.ogg": (cut, "is truncated"),
    "cut.flac": (cut, "is damaged|is truncated"),
    "cut.mp3": (cut, "is truncated"),
    "header.wav": (lambda p: (save(p), p.write_bytes(p.read_bytes()[:30])), "is truncated"),
    "none.wav": (lambda p: save(p, np.zeros(0)), "holds no samples"),
    "silent.wav": (lambda p: save(p, np.zeros(4000)), "is silent"),
    "antiphase.wav": (lambda p: save(p, np.stack([tone(), -tone()], 1)), "is silent"),
    "nan.wav": (lambda p: write_raw(p, np.nan), "NaN or infinite"),
    "inf.wav": (lambda p: write_raw(p, np.inf), "NaN or infinite"),
    "low.wav": (lambda p: save(p, rate=8000), "sample rate 8000 Hz is below the recipe's 16000 Hz"),
}


def write_raw(path: Path, value: float) -> None:
    audio = tone()
    audio[1000] = value
    soundfile.write(path, audio, RATE, subtype="FLOAT")


@pytest.fixture
def bad(good: Path) -> Path:
    for name, (make, _) in BAD.items():
        make(good / "audio" / name)
    first = (good / "manifest.jsonl").read_text().split("\n")[:-1]
    lines(good, *first, *(entry(f"audio/{name}") for name in BAD))
    return good


def test_every_bad_file_is_listed_with_its_line(bad: Path) -> None:
    for _ in range(2):  # found, then remembered
        problems = refused(bad)
        assert list(problems) == [f"manifest.jsonl:{line}" for line in range(5, 5 + len(BAD))]
        for (name, (_, reason)), what in zip(BAD.items(), problems.values(), strict=True):
            assert what.startswith(f"audio/{name}: ")
            assert any(part in what for part in reason.split("|")), what


def test_bad_files_can_be_left_out(bad: Path) -> None:
    source = opened(bad, on_bad_file="skip")
    assert [clip.key for clip in source.clips("train")] == ["audio/a.wav"]
    assert len(source.skipped) == len(BAD)
    assert source.skipped[0].where == f"{bad}/manifest.jsonl:5"
    lines(
        bad,
        entry("audio/a.wav"),
        "{",
        entry("audio/b.flac", "valid"),
        entry("audio/cut.wav", "test"),
    )
    source = opened(bad, on_bad_file="skip", splits=("train", "valid"))
    assert [p.what[:11] for p in source.skipped] == ["is not JSON"]
    with pytest.raises(StageError, match="no usable clips in split test") as caught:
        opened(bad, on_bad_file="skip")
    assert "cut.wav" in str(caught.value)


def test_a_long_list_is_capped(good: Path) -> None:
    lines(good, *("{" for _ in range(80)))
    with pytest.raises(StageError, match="80 of its entries") as caught:
        opened(good)
    assert len(caught.value.problems) == 51
    assert caught.value.problems[-1].what == "and 30 more"


def test_checks_are_remembered_until_the_file_changes(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(good)
    monkeypatch.setattr(
        "stagecli.data.checking.check_content",
        lambda path: pytest.fail(f"{path} was checked again"),
    )
    opened(good)
    monkeypatch.undo()
    (good / "audio" / "b.flac").write_bytes(b"changed")
    assert list(refused(good)) == ["manifest.jsonl:3"]
    save(good / "audio" / "b.flac")
    opened(good)


def test_the_recipes_rate_is_not_remembered(good: Path) -> None:
    opened(good)
    assert len(refused(good, sample_rate=24000)) == 3
    assert opened(good, sample_rate=8000).read(opened(good).clips("train")[0]).shape == (1600,)


def test_content_hash_survives_moving_and_touching(good: Path) -> None:
    source = opened(good)
    first = source.content_hash(source.clips("train")[0])
    os.utime(good / "audio" / "a.wav", ns=(1, 1))
    (good / "audio").rename(good / "moved")
    text = (good / "manifest.jsonl").read_text().replace('"path": "audio/', '"path": "moved/')
    (good / "manifest.jsonl").write_text(text)
    source = opened(good)
    assert source.content_hash(source.clips("train")[0]) == first
    save(good / "moved" / "a.wav", tone(seed=1))
    source = opened(good)
    assert source.content_hash(source.clips("train")[0]) != first


def test_problems_of_the_manifest_itself(good: Path) -> None:
    assert refused(good, path="none.jsonl") == {"none.jsonl": "file is missing"}
    (good / "latin.jsonl").write_bytes(b'{"path": "a"}\n{"path": "\xe9"}\n')
    assert refused(good, path="latin.jsonl") == {"latin.jsonl:2": "is not UTF-8"}
    with pytest.raises(StageError, match="is a folder"):
        opened(good, path="audio")
    with pytest.raises(StageError, match="path is empty"):
        opened(good, path="")
    with pytest.raises(StageError, match="must differ"):
        opened(good, test_split="valid")


def test_folder_with_split_folders(tmp_path: Path) -> None:
    for split, name in (
        ("train", "x/a.wav"),
        ("train", "b.flac"),
        ("valid", "c.ogg"),
        ("test", "d.wav"),
    ):
        save(tmp_path / split / name)
    save(tmp_path / "train" / "._b.wav")
    (tmp_path / "train/x/a.txt").write_text("a dog\n")
    (tmp_path / "train/b.json").write_text('{"caption": "a cat", "label": "cat"}')
    (tmp_path / "valid/c.json").write_text('{"label": "cow"}')
    (tmp_path / "test/d.json").write_text("{")
    problems = refused(tmp_path, source="folder", path=".")
    assert "no caption: neither c.txt nor c.json has one" in problems["valid/c.ogg"]
    assert problems["test/d.wav"].startswith("d.json cannot be read")
    assert len(problems) == 2
    (tmp_path / "valid/c.txt").write_text("a cow")
    (tmp_path / "test/d.json").write_text('{"caption": "a duck"}')
    source = opened(tmp_path, source="folder", path=".")
    clips = {clip.key: clip for clip in source.clips("train")}
    assert {key: clip.caption for key, clip in clips.items()} == {
        "train/b.flac": "a cat",
        "train/x/a.wav": "a dog",
    }
    assert clips["train/b.flac"].labels == {"label": "cat"}
    assert source.clips("valid")[0].labels == {"label": "cow"}
    save(tmp_path / "stray.wav")
    assert (
        "is not in a folder named"
        in refused(tmp_path, source="folder", path=".", need_captions=False)["stray.wav"]
    )
    cut(tmp_path / "stray.wav").rename(tmp_path / "test" / "e.wav")
    problems = refused(tmp_path, source="folder", path=".", need_captions=False)
    assert problems["test/e.wav"].startswith("is truncated")


def test_folder_without_split_folders_is_split_by_hash(tmp_path: Path) -> None:
    write_wav(tmp_path / "0.wav", tone(0.05), RATE)
    for number in range(1, 100):
        os.link(tmp_path / "0.wav", tmp_path / f"{number}.wav")
    source = opened(tmp_path, source="folder", path=".", need_captions=False)
    sizes = [len(source.clips(s)) for s in ("train", "valid", "test")]
    assert sum(sizes) == 100
    assert sizes[0] > 80
    assert min(sizes) > 0
    assert all(hash_split(clip.key) == "valid" for clip in source.clips("valid"))
    with pytest.raises(StageError, match="no audio files"):
        opened(tmp_path, source="folder", path="cache")
    with pytest.raises(StageError, match="cannot read the folder"):
        opened(tmp_path, source="folder", path="nowhere")


def test_without_datasets_the_hint_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StageError, match="datasets") as caught:
        opened(tmp_path, source="huggingface", path="owner/name")
    assert caught.value.hint == "pip install 'stagecli[datasets]'"


def test_huggingface_rows(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (good / "audio/b.flac").read_bytes()
    row = {"audio": {"bytes": content, "path": "x.flac"}, "caption": "b", "label": 1}
    by_path = {
        "audio": {"bytes": None, "path": str(good / "audio/a.wav")},
        "caption": "a",
        "label": 2,
    }
    damaged = {"audio": {"bytes": content[:3000], "path": None}, "caption": "b", "label": 3}
    tables = {"train": Table([row, by_path]), "validation": Table([row])}
    fake = fake_datasets(tables)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    keys: dict[str, Any] = {
        "source": "huggingface",
        "path": "owner/name",
        "splits": ("train", "valid"),
    }
    assert "it has train, validation" in refused(good, **keys)["owner/name"]
    keys["valid_split"] = "validation"
    source = opened(good, **keys)
    first, second = source.clips("train")
    assert (first.key, first.caption, first.labels) == ("train/0", "b", {"label": 1})
    assert first.seconds == pytest.approx(0.2)
    assert np.array_equal(source.read(first), read_mono(good / "audio/b.flac", RATE))
    assert np.array_equal(source.read(second), read_mono(good / "audio/a.wav", RATE))
    assert source.content_hash(first) == source.content_hash(source.clips("valid")[0])
    tables["train"] = Table([row, damaged, {**row, "caption": ""}])
    tables["train"]._fingerprint = "f1"
    problems = refused(good, **keys)
    assert list(problems) == ["owner/name:train/1", "owner/name:train/2"]
    assert "no column 'sound'" in refused(good, audio_column="sound", **keys)["owner/name"]


def test_huggingface_for_real(good: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    rows = {"audio": [str(good / "audio/a.wav")], "caption": ["a"]}
    table = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    # A second column of audio is no label, and reading it would need a decoder.
    table = table.add_column("other", rows["audio"]).cast_column("other", datasets.Audio())
    datasets.DatasetDict({"train": table, "valid": table}).save_to_disk(str(good / "saved"))
    source = opened(good, source="huggingface", path="saved", splits=("train", "valid"))
    assert source.read(source.clips("train")[0]).shape == (3200,)
    table.save_to_disk(str(good / "table"))
    assert "save_to_disk" in refused(good, source="huggingface", path="table")["table"]


def test_a_second_start_takes_a_fraction_of_the_first(tmp_path: Path) -> None:
    write_wav(tmp_path / "0.wav", tone(0.5), RATE)
    for number in range(1, 3000):
        os.link(tmp_path / "0.wav", tmp_path / f"{number}.wav")
    start = time.process_time()
    opened(tmp_path, source="folder", path=".", need_captions=False)
    first = time.process_time() - start
    opened(tmp_path, source="folder", path=".", need_captions=False)
    second = time.process_time() - start - first
    assert second < first / 2  # CPU seconds: 2 and 0.3


@pytest.mark.parametrize(("name", "count"), [("esc10", 160), ("fsdd", 480)])
def test_real_manifests_open(tmp_path: Path, name: str, count: int) -> None:
    root = os.environ.get("STAGECLI_DATA")
    if not root:
        pytest.skip("STAGECLI_DATA is not set")
    # Every line is checked, and the audio of these splits.
    splits: tuple[Split, ...] = ("valid", "test")
    source = opened(tmp_path, path=f"{root}/{name}/manifest.jsonl", sample_rate=8000, splits=splits)
    clips = [clip for split in splits for clip in source.clips(split)]
    assert len(clips) == count
    assert source.skipped == []
    audio_N = source.read(clips[0])
    assert len(audio_N) == pytest.approx(clips[0].seconds * 8000, abs=1)


def test_the_modules_need_no_torch() -> None:
    modules = "audio, audio_checks, cache, degrade, open, rows, source, huggingface"
    code = f"import sys; from stagecli.data import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
