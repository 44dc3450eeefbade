"""Which files are audio, and under which spelling: one answer for data sets, scores and inputs."""

from __future__ import annotations

import json
import os
import types
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Result, read_rows, write_recipe

from stagecli.data.finding import existing_name, list_audio
from stagecli.data.folder import folder_entries
from stagecli.data.huggingface import read_dataset
from stagecli.data.manifest import manifest_entries
from stagecli.errors import StageError
from stagecli.schema import Data

RATE = 8000
FORMAT: dict[str, Any] = {"sample_rate": RATE, "seconds": 0.5}
Cli = Callable[..., Result]
COMPOSED = unicodedata.normalize("NFC", "café/Übung.wav")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def save(path: Path, seconds: float = 0.5, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))
    soundfile.write(path, noise, RATE)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good files, and those that macOS, Jupyter and other tools leave beside them."""
    root = tmp_path / "in"
    for number, name in enumerate(("a.wav", "sub/b.flac")):
        save(root / name, seed=number)
    (root / "._a.wav").write_bytes(b"resource fork")
    (root / ".ipynb_checkpoints").mkdir()
    (root / ".ipynb_checkpoints/a-checkpoint.wav").write_bytes(b"half a file")
    for name in ("c.mp4", "d.MP4", "e.mov"):
        (root / name).write_bytes(b"another format")
    (root / "notes.txt").write_text("no audio")
    return root


PASSED_OVER = ("1 .mov file is", "2 .mp4 files are", "2 hidden audio files are")


def test_the_finder_counts_what_it_passes_over(folder: Path) -> None:
    found = list_audio(folder)
    assert [file.as_posix() for file in found.files] == ["a.wav", "sub/b.flac"]
    assert [line.split(" passed ")[0] for line in found.passed_over] == list(PASSED_OVER)


def test_a_folder_without_usable_audio_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "c.mp4").write_bytes(b"another format")
    with pytest.raises(StageError, match="no audio files") as caught:
        list_audio(tmp_path)
    assert "1 .mp4 file is passed over" in str(caught.value)


def test_training_on_a_folder_says_what_it_passes_over(
    folder: Path, tmp_path: Path, cli: Cli
) -> None:
    for number in range(4):
        save(folder / "train" / f"{number}.wav", seed=number)
    save(folder / "valid/5.wav", seed=5)
    for name in ("a.wav", "sub"):
        os.rename(folder / name, folder / "train" / name)
    for file in list_audio(folder).files:
        (folder / file).with_suffix(".txt").write_text("a noise")
    data = {"data__source": "folder", "data__path": "in", "data__clips": None}
    recipe = write_recipe(tmp_path / "r.toml", train__steps=1, **data)
    dry = cli("train", recipe, "--dry-run")
    result = cli("train", recipe)
    assert (dry.code, result.code) == (0, 0), dry.stderr + result.stderr
    (event,) = [row for row in read_rows(tmp_path / "runs/r", "events") if "passed" in str(row)]
    for text in PASSED_OVER:
        assert text in " ".join(dry.stdout.split())
        assert text in result.stderr
        assert text in event["reason"]


def test_scores_and_inputs_take_the_same_files(
    folder: Path, runs: Path, tmp_path: Path, cli: Cli
) -> None:
    # Shorter than the model's Nyquist frequency allows: only the choice of files is of interest.
    sets = ("--steps", 1, "--cutoff", 2000)
    restored = cli("sample", runs / "sr", "--input", folder, "-o", tmp_path / "out", *sets)
    scored = cli(
        "evaluate", "--task", "sr", "--reference", folder, "--generated", folder, "--cutoff", 2000
    )
    for result in (restored, scored):
        assert result.code == 0, result.stderr
        for text in PASSED_OVER:
            assert text in result.stderr
    written = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.wav"))
    assert written == [Path("a.wav"), Path("sub/b.wav")]


def test_a_name_that_is_not_utf8_is_one_error(tmp_path: Path, cli: Cli) -> None:
    name = os.fsdecode("caf\xe9.wav".encode("latin-1"))
    (tmp_path / "in").mkdir()
    os.rename(save(tmp_path / "a.wav"), tmp_path / "in" / name)
    data = Data(source="folder", path="in", **FORMAT)
    (entry,), _ = folder_entries(data, tmp_path / "in", need_captions=False)
    assert "rename it" in str(entry.problem)
    result = cli("evaluate", "--task", "t2a", "--reference", "in", "--generated", "in")
    assert result.code == 2
    assert "rename it" in result.stderr


@pytest.mark.parametrize(("listed", "there"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_manifest_finds_a_file_under_the_other_unicode_spelling(
    listed: str, there: str, tmp_path: Path
) -> None:
    save(tmp_path / there)
    path = tmp_path / "m.jsonl"
    rows = [{"path": listed, "caption": caption, "split": "train"} for caption in ("a", "b")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (entry,) = manifest_entries(Data(source="manifest", **FORMAT), path, need_captions=True)
    assert entry.clip is not None
    assert entry.clip.key == listed
    assert entry.clip.captions == ("a", "b")
    assert entry.clip.path == tmp_path / there


def test_a_name_that_two_files_fit_is_not_guessed(tmp_path: Path) -> None:
    three_spellings = ("\u1ed9", "\u00f4\u0323", "o\u0302\u0323")
    for name in three_spellings[1:]:
        (tmp_path / name).touch()
    assert not existing_name(tmp_path, three_spellings[0]).exists()
    (tmp_path / three_spellings[1]).unlink()
    assert existing_name(tmp_path, three_spellings[0]).name == three_spellings[2]


def test_a_caption_beside_a_file_is_found_under_the_other_spelling(tmp_path: Path) -> None:
    save(tmp_path / unicodedata.normalize("NFD", "é.wav"))
    (tmp_path / unicodedata.normalize("NFC", "é.txt")).write_text("a dog")
    (entry,), _ = folder_entries(Data(source="folder", **FORMAT), tmp_path, need_captions=True)
    assert entry.clip is not None
    assert entry.clip.caption == "a dog"


def test_pairs_match_across_unicode_spellings(tmp_path: Path, cli: Cli) -> None:
    save(tmp_path / "reference" / COMPOSED)
    save(tmp_path / "generated" / DECOMPOSED)
    folders = ("--reference", "reference", "--generated", "generated")
    result = cli("evaluate", "--task", "sr", *folders, "--cutoff", 2000)
    assert result.code == 0, result.stderr


# -- data sets of Hugging Face


def fake_datasets(**functions: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(Audio=type("Audio", (), {}), **functions)


def opened(path: Path, monkeypatch: pytest.MonkeyPatch, fake: Any) -> StageError:
    monkeypatch.setitem(__import__("sys").modules, "datasets", fake)
    with pytest.raises(StageError) as caught:
        read_dataset(Data(source="huggingface", path=str(path), **FORMAT), path, True, ("train",))
    return caught.value


def test_one_table_written_by_save_to_disk_is_told_how_to_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state.json").write_text("{}")
    error = opened(tmp_path, monkeypatch, fake_datasets())
    assert "Dataset.save_to_disk" in str(error)
    assert "DatasetDict" in str(error.hint)


def test_a_missing_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> None:
        raise ImportError("To support decoding audio data, please install 'torchcodec'.")

    error = opened(tmp_path, monkeypatch, fake_datasets(load_dataset=fail))
    assert "install 'torchcodec'" in str(error)
    assert str(error.hint).startswith("install the package that it names")
