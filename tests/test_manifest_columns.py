"""Manifests as they come: names of columns, tabs, several captions; and data without splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from helpers.clips import noise, write_clips

from stagecli.data.examples import caption_at
from stagecli.data.file_source import FileSource
from stagecli.data.open import open_source
from stagecli.data.rows import Split, hash_split, read_captions, valid_share_for
from stagecli.errors import StageError
from stagecli.schema import Data

NAMES: dict[str, Any] = {
    "path_column": "file_name",
    "caption_column": "text",
    "split_column": "subset",
}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    write_clips(tmp_path, {f"{k}.wav": noise(k, 0.1) for k in range(4)})
    return tmp_path


def opened(folder: Path, name: str, **keys: Any) -> FileSource:
    data = Data(
        source="manifest",
        path=name,
        sample_rate=16000,
        seconds=0.1,
        cache_dir=str(folder / "cache"),
        **keys,
    )
    splits: tuple[Split, ...] = ("train", "valid")
    source = open_source(data, need_captions=True, base=folder, splits=splits)
    assert isinstance(source, FileSource)
    return source


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "file_name,text,subset\n0.wav,a dog,train\n1.wav,a cat,valid\n"),
        ("m.tsv", "subset\tfile_name\ttext\ntrain\t0.wav\ta dog\nvalid\t1.wav\ta cat\n"),
        (
            "m.jsonl",
            '{"file_name": "0.wav", "text": "a dog", "subset": "train"}\n'
            '{"file_name": "1.wav", "text": "a cat", "subset": "valid", "path": "a label"}\n',
        ),
    ],
)
def test_columns_have_the_names_of_the_recipe(name: str, text: str, clips: Path) -> None:
    (clips / name).write_text(text)
    source = opened(clips, name, **NAMES)
    assert [(clip.key, clip.caption) for clip in source.clips("train")] == [("0.wav", "a dog")]
    (valid,) = source.clips("valid")
    assert valid.labels == ({"path": "a label"} if name == "m.jsonl" else {})


def test_a_column_that_names_audio_is_suggested(clips: Path) -> None:
    (clips / "m.csv").write_text("id,file_name,caption\n1,0.wav,a dog\n")
    with pytest.raises(StageError, match="no column `path`") as caught:
        opened(clips, "m.csv")
    assert caught.value.hint == "`file_name` names audio files: --set data.path_column=file_name"
    (clips / "m.jsonl").write_text('{"file_name": "0.wav", "caption": "a dog"}\n')
    with pytest.raises(StageError) as caught:
        opened(clips, "m.jsonl")
    assert "`file_name` names a file: set data.path_column" in caught.value.problems[0].what


def test_a_stray_quotation_mark_is_found_in_any_column_order(clips: Path) -> None:
    (clips / "m.csv").write_text('text,file_name\n"a dog,0.wav\na cat,1.wav\na cow,2.wav\n')
    with pytest.raises(StageError) as caught:
        opened(clips, "m.csv", **NAMES)
    assert [problem.where.rsplit(":")[-1] for problem in caught.value.problems] == ["2"]


# --- several captions of one clip -----------------------------------------------------------------

TEXTS = [f"caption {k}" for k in range(1, 6)]


def test_captions_in_five_columns_and_in_five_rows_are_the_same(clips: Path) -> None:
    """The forms of Clotho and of the test split of AudioCaps."""
    head = "path,split," + ",".join(f"caption_{k}" for k in range(1, 6))
    lines = [f"{k}.wav,{'train' if k else 'valid'}," + ",".join(TEXTS) for k in range(2)]
    (clips / "columns.csv").write_text("\n".join([head, *lines]) + "\n")
    rows = [f"{line.rsplit(',', 5)[0]},{text}" for line in lines for text in TEXTS]
    (clips / "rows.csv").write_text("\n".join(["path,split,caption", *rows]) + "\n")
    columns = opened(clips, "columns.csv", caption_column="caption_*")
    of_rows = opened(clips, "rows.csv")
    splits: tuple[Split, ...] = ("train", "valid")
    for split in splits:
        assert columns.clips(split) == of_rows.clips(split)
        assert [list(clip.captions) for clip in columns.clips(split)] == [TEXTS]
    (clip,) = columns.clips("train")
    drawn = [caption_at(0, clip, index) for index in range(400)]
    assert drawn == [caption_at(0, clip, index) for index in range(400)]
    assert min(Counter(drawn)[text] for text in TEXTS) > 50


def test_of_several_columns_one_is_enough() -> None:
    columns = {"caption_1": "a dog", "caption_2": "", "caption_3": None, "note": "x"}
    assert read_captions(columns, "caption_*", True) == (["a dog"], None)
    assert read_captions({"caption_1": "", "caption_2": ""}, "caption_*", True)[1]
    assert read_captions({"a*": "star", "ab": "letters"}, "a*", True) == (["star"], None)


# --- data without splits --------------------------------------------------------------------------


def test_a_larger_share_adds_to_the_validation_split_and_new_files_move_nothing() -> None:
    keys = [f"{k}.wav" for k in range(2000)]
    small = {key for key in keys if hash_split(key) == "valid"}
    large = {key for key in keys if hash_split(key, 0.2) == "valid"}
    assert small < large
    assert len(small) == pytest.approx(100, abs=30)
    assert len(large) == pytest.approx(400, abs=60)
    test = [key for key in keys if hash_split(key) == "test"]
    assert test == [key for key in keys if hash_split(key, 0.2) == "test"]
    share = valid_share_for(keys[:40])
    assert sum(hash_split(key, share) == "valid" for key in keys[:40]) >= 10
    assert sum(hash_split(key, share - 0.01) == "valid" for key in keys[:40]) < 10


def test_an_empty_validation_split_is_told_the_share_that_fills_it(
    cli: Callable[..., Result], clips: Path, t2a_recipe: Callable[..., Path]
) -> None:
    (clips / "2.wav").unlink()
    names = [f"{k}.wav" for k in (0, 1, 3)]
    assert "valid" not in map(hash_split, names)
    for name in names:
        (clips / name).with_suffix(".txt").write_text("noise")
    data = {"data__source": "folder", "data__path": str(clips), "data__clips": None}
    refused = cli("train", t2a_recipe(**data), "--dry-run")
    assert refused.code == 2
    share = valid_share_for(names)
    assert f"--set data.valid_share={share}" in refused.stderr
    accepted = cli("train", t2a_recipe(**data), "--dry-run", "--set", f"data.valid_share={share}")
    assert accepted.code == 0, accepted.stderr
