"""Large data sets: a start that finds nothing changed reads neither the manifest nor the audio."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from stagecli.data import checking, open, snapshot
from stagecli.data.fingerprint import differences, fingerprint, split_hash
from stagecli.data.open import open_source
from stagecli.data.source import Source
from stagecli.errors import StageError
from stagecli.schema import Data

RATE = 8000
SPLITS = ("train", "valid")


@pytest.fixture(autouse=True)
def _any_size_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "SMALLEST", 1)


def save(path: Path, seed: int, level: float = 0.1) -> None:
    audio = level * np.random.default_rng(seed).standard_normal(800)
    soundfile.write(path, audio.astype(np.float32), RATE)


def row(number: int, **more: Any) -> dict[str, Any]:
    split = "valid" if number % 5 == 4 else "train"
    return {"path": f"{number}.wav", "caption": f"sound {number}", "split": split, **more}


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(10):
        save(tmp_path / f"{number}.wav", number)
    write(tmp_path, [row(n, fold=n, mark="é") for n in range(10)])
    return tmp_path


def opened(folder: Path, **keys: Any) -> Source:
    keys = {"source": "manifest", "path": "m.jsonl", "sample_rate": RATE, "seconds": 0.1, **keys}
    data = Data(cache_dir=str(folder / "cache"), **keys)
    return open_source(data, need_captions=True, base=folder, splits=SPLITS)


def started(folder: Path, **keys: Any) -> tuple[Source, Any]:
    source = opened(folder, **keys)
    return source, fingerprint(source, SPLITS, with_captions=True)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open, "manifest_entries", lambda *_: pytest.fail("the manifest is read"))
    monkeypatch.setattr(checking, "check_content", lambda *_: pytest.fail("audio is read"))
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("audio is hashed"))


def test_a_second_start_reads_nothing_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, before = started(folder)
    forbid_reading(monkeypatch)
    second, now = started(folder)
    for split in SPLITS:
        clips = second.clips(split)
        assert clips == first.clips(split)
        assert list(now[split]) == list(before[split])
        assert split_hash(now[split]) == split_hash(list(now[split]))
        assert [second.info(c) for c in clips] == [first.info(c) for c in first.clips(split)]
        assert list(second.content_hashes(clips)) == list(first.content_hashes(first.clips(split)))
    assert second.clips("train")[3].labels == {"fold": 3, "mark": "é"}
    assert not differences(before, now)
    assert pickle.loads(pickle.dumps(second)).clips("train") == first.clips("train")
    assert first.bandwidth(first.clips("train")[0]) == second.bandwidth(second.clips("train")[0])


@pytest.mark.parametrize("change", ["manifest", "audio", "removed", "damage", "recipe"])
def test_what_has_changed_is_found(folder: Path, change: str) -> None:
    _, before = started(folder)
    keys: dict[str, Any] = {}
    if change == "manifest":
        write(folder, [row(n, fold=n) for n in range(9)])
    elif change == "audio":
        save(folder / "3.wav", 99)
    elif change == "removed":
        os.remove(folder / "9.wav")
        with pytest.raises(StageError) as caught:
            opened(folder)
        assert [p.where for p in caught.value.problems] == [f"{folder}/m.jsonl:10"]
        return
    elif change == "damage":
        files = sorted((folder / "cache").glob("data-*/*/*.npy"))
        for file in files:
            file.write_bytes(file.read_bytes()[:-9] + b"damaged!!")
    else:
        keys["valid_split"] = "train"
        keys["train_split"] = "valid"
    source, now = started(folder, **keys)
    changes = [d.text() for d in differences(before, now)]
    if change == "manifest":
        assert changes == ["1 clip removed: 9.wav"]
    elif change == "audio":
        assert changes == ["1 clip with other audio: 3.wav"]
    elif change == "damage":
        assert not changes
        assert any("damaged files made again" in notice for notice in source.notices)
    else:
        assert len(source.clips("train")) == 2


def test_a_clip_left_out_is_found_when_it_is_back(folder: Path) -> None:
    os.remove(folder / "2.wav")
    (folder / "3.wav").write_bytes(b"no audio")
    source, _ = started(folder, on_bad_file="skip")
    assert [p.where.rsplit(":", 1)[1] for p in source.skipped] == ["3", "4"]
    again, _ = started(folder, on_bad_file="skip")
    assert again.skipped == source.skipped
    save(folder / "2.wav", 2)
    assert len(opened(folder, on_bad_file="skip").clips("train")) == len(source.clips("train")) + 1
