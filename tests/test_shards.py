"""Tar shards: the same clips, order and splits as a manifest; damage is found before training."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import write_recipe

from stagecli.data.open import open_source
from stagecli.data.shard_names import expanded
from stagecli.data.source import Source
from stagecli.errors import StageError
from stagecli.recipe.load import load_recipe
from stagecli.schema import Data

RATE = 16000


def flac(seed: int) -> bytes:
    audio = (0.1 * np.random.default_rng(seed).standard_normal(3200)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, audio, RATE, format="FLAC")
    return file.getvalue()


def pack(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def clip(key: str, seed: int, **labels: Any) -> dict[str, bytes | str]:
    return {
        f"{key}.flac": flac(seed),
        f"{key}.json": json.dumps({"caption": f"sound {key}", **labels}),
    }


def opened(folder: Path, path: Any = ".", **keys: Any) -> Source:
    need_captions = keys.pop("need_captions", True)
    keys = {"source": "shards", "sample_rate": RATE, "seconds": 0.2, **keys}
    data = Data(path=path, cache_dir=str(folder / "cache"), **keys)
    return open_source(data, need_captions=need_captions, base=folder)


def refused(folder: Path, path: Any = ".", **keys: Any) -> dict[str, str]:
    with pytest.raises(StageError) as caught:
        opened(folder, path, **keys)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return {p.where.removeprefix(f"{folder}/"): p.what for p in caught.value.problems}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(2):
        first = 3 * number
        members: dict[str, bytes | str] = {"readme.md": "x"}
        for seed in range(first, first + 3):
            members |= clip(f"{seed:06d}", seed, label=seed)
        pack(tmp_path / f"train-{number:03d}.tar", members)
    pack(tmp_path / "valid-000.tar", {"a.flac": flac(10), "a.txt": "one", "b.b.flac": b"x"})
    pack(tmp_path / "test-000.tar", clip("z", 11))
    return tmp_path


def test_shards_by_name(shards: Path) -> None:
    source = opened(shards)
    train = source.clips("train")
    assert [c.key for c in train] == [f"train-{n // 3:03d}.tar/{n:06d}" for n in range(6)]
    assert train[4].caption == "sound 000004"
    assert train[4].labels == {"label": 4}
    assert train[4].seconds == pytest.approx(0.2)
    expected, _ = soundfile.read(io.BytesIO(flac(4)), dtype="float32")
    np.testing.assert_array_equal(source.read(train[4]), expected)
    assert [c.caption for c in source.clips("valid")] == ["one"]
    assert any("(.md)" in line for line in source.passed_over)
    assert any("(.b.flac)" in line for line in source.passed_over)

    # Again, from the index in the cache, and with other words for the same shards.
    again = opened(shards, ["train-{000..001}.tar", "valid-000.tar", "test-*.tar"])
    assert again.clips("train") == train
    assert again.content_hash(again.clips("train")[0]) == source.content_hash(train[0])


def test_variables_in_a_list_of_shards(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(shards))
    paths = ["${PLACE}/train-{000..001}.tar", "${PLACE}/valid-000.tar"]
    recipe = load_recipe(write_recipe(shards / "r.toml", data__source="shards", data__path=paths))
    assert recipe.data.path == f"{shards}/train-{{000..001}}.tar::{shards}/valid-000.tar"


def test_patterns() -> None:
    assert expanded("{a,b}-{08..10}.tar") == [
        f"{word}-{number}.tar" for word in "ab" for number in ("08", "09", "10")
    ]


def test_split_of_the_json_and_by_hash(tmp_path: Path) -> None:
    pack(
        tmp_path / "a.tar",
        {
            **clip("1", 1, split="train"),
            **clip("2", 2, split="valid"),
            **clip("3", 3, split="test"),
        },
    )
    source = opened(tmp_path, "a.tar")
    assert source.clips("valid")[0].key == "a.tar/2"
    assert source.clips("valid")[0].labels == {}
    pack(tmp_path / "a.tar", {**clip("1", 1, split="train"), **clip("2", 2, split="dev")})
    assert refused(tmp_path)["a.tar/2"] == (
        "unknown split 'dev' (the recipe has train, valid, test)"
    )


def test_every_damaged_shard_is_listed(shards: Path) -> None:
    whole = (shards / "train-000.tar").read_bytes()
    (shards / "a.tar").write_bytes(whole[:4000])  # in the middle of a member
    (shards / "b.tar").write_bytes(whole[:-10240].rstrip(b"\0"))
    (shards / "c.tar").write_bytes(b"\x1f\x8b" + whole)
    (shards / "d.tar").write_bytes(b"")
    (shards / "e.tar").write_bytes(b"RIFF" * 500)
    (shards / "f.tar").write_bytes(whole + whole)
    (shards / "g.tar").write_bytes(whole[:1024] + b"x" * 512 + whole[1536:])
    pack(shards / "h.tar", {"readme.md": "x"})
    problems = refused(shards)
    assert list(problems) == [f"{name}.tar" for name in "abcdefgh"]
    assert "is cut short: 000000.flac ends beyond" in problems["a.tar"]
    assert "is cut short" in problems["b.tar"]
    assert "compressed (gzip)" in problems["c.tar"]
    assert problems["d.tar"] == "file is empty"
    assert problems["e.tar"] == "is not a tar archive"
    assert "several archives" in problems["f.tar"]
    assert "is damaged at byte" in problems["g.tar"]
    assert problems["h.tar"] == "holds no clips"


def test_members_that_are_no_clip(tmp_path: Path) -> None:
    members = {
        **clip("good", 1),
        "alone.flac": flac(2),
        "silent.json": "{}",
        **clip("two", 3),
        "two.wav": flac(4),
        "broken.flac": flac(5),
        "broken.json": "{",
        "latin.flac": flac(6),
        "latin.txt": b"\xff\xfe",
        "noise.flac": b"no audio",
        "noise.txt": "noise",
    }
    pack(tmp_path / "train.tar", members)
    pack(tmp_path / "valid.tar", clip("v", 7))
    problems = refused(tmp_path)
    assert problems["train.tar/alone"] == "no caption: neither alone.txt nor alone.json has one"
    assert "without an audio member" in problems["train.tar/silent"]
    assert "several members of one kind" in problems["train.tar/two"]
    assert "is not JSON" in problems["train.tar/broken"]
    assert "is not UTF-8" in problems["train.tar/latin"]
    assert "is not audio" in problems["train.tar/noise"]
    assert len(problems) == 6


def test_names_of_shards(shards: Path) -> None:
    problems = refused(shards, ["train-{000..003}.tar", "none-*.tar", "train-000.tar", "runs"])
    assert problems["train-002.tar"] == "is missing"
    assert problems["train-003.tar"] == "is missing"
    assert problems["none-*.tar"] == "matches no file"
    assert problems["train-000.tar"] == "is named twice"
    assert problems["runs"] == "is missing"
    (shards / "x.tar.gz").write_bytes(b"")
    assert "compressed" in next(iter(refused(shards).values()))
    with pytest.raises(StageError, match="cannot be meant"):
        opened(shards, "train-{9..1}.tar")


def test_a_shard_that_is_replaced_is_indexed_again(shards: Path) -> None:
    before = opened(shards).clips("train")
    source = opened(shards)
    pack(shards / "train-000.tar", clip("new", 20))
    with pytest.raises(StageError, match="changed while they are in use"):
        source.read(before[0])
    assert opened(shards).clips("train")[0].key == "train-000.tar/new"


def wds2idx(tar: Path) -> str:
    """What DALI's tool writes for a tar."""
    with tarfile.open(tar) as archive:
        members = [(m.name, m.offset_data, m.size) for m in archive]
    lines: dict[str, list[str]] = {}
    for name, start, size in members:
        key, _, ending = name.partition(".")
        lines.setdefault(key, []).append(f"{ending} {start} {size} {name}")
    return "\n".join([f"v1.2 {len(lines)}", *(" ".join(line) for line in lines.values())]) + "\n"


def test_an_index_beside_the_tar(shards: Path) -> None:
    expected = opened(shards).clips("train")
    (shards / "train-000.idx").write_text(wds2idx(shards / "train-000.tar"))
    data = {"cache_dir": str(shards / "other")}
    keys = {"source": "shards", "sample_rate": RATE, "seconds": 0.2, "path": ".", **data}
    source = open_source(Data(**keys), need_captions=True, base=shards)
    assert source.clips("train") == expected


def test_an_index_that_does_not_match(shards: Path) -> None:
    good = wds2idx(shards / "train-000.tar")
    lines = good.splitlines()
    wrong = {
        "train-000": good.replace(" 1536 ", " 2048 "),
        "train-001": good + "flac 1000000 10 000009.flac\n",
        "valid-000": good.replace("v1.2", "v1.1"),
        "test-000": "\n".join([lines[0], lines[1] + " 3", *lines[2:]]),
    }
    for name, text in wrong.items():
        (shards / f"{name}.idx").write_text(text)
    problems = refused(shards)
    assert "train-000.idx does not match its tar" in problems["train-000.tar"]
    assert "does not match its tar" in problems["train-001.tar"]
    assert "version v1.1" in problems["valid-000.tar"]
    assert "no list of members" in problems["test-000.tar"]
