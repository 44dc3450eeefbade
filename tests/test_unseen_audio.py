"""Training for audio unlike the recordings: synth beside them, altered clips, narrow clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_cli, write_recipe
from helpers.clips import RATE, noise, resampled_up, write_clips, write_data_set
from helpers.resume import at_row, killed, same

from stagecli.codec import make_codec
from stagecli.data.examples import Collate, Examples
from stagecli.data.frames import to_frames
from stagecli.data.mixed import places
from stagecli.data.open import open_source
from stagecli.data.rows import is_synthesised
from stagecli.data.source import Source
from stagecli.errors import StageError
from stagecli.recipe.load import load_recipe
from stagecli.schema import Recipe

ALTERED: dict[str, Any] = {
    "augment__equaliser_db": 3.0,
    "augment__tilt_db": 3.0,
    "augment__gain_db": 6.0,
    "augment__resampled": 0.5,
    "augment__lossy": 0.3,
}
MIXED: dict[str, Any] = {"data__synth_share": 0.25, "data__clips": 5, "data__narrow": "mask"}


def recipe_in(folder: Path, **changes: Any) -> Recipe:
    """The tiny sr recipe on recordings of noise."""
    data = {"data__source": "manifest", "data__path": str(folder / "manifest.jsonl")}
    cache = {"data__cache_dir": str(folder / "cache")}
    return load_recipe(str(write_recipe(folder / "sr.toml", "sr", **data, **cache, **changes)))


def source_of(recipe: Recipe, folder: Path) -> Source:
    return open_source(recipe.data, need_captions=False, base=folder, splits=("train", "valid"))


def examples_of(recipe: Recipe, folder: Path) -> Examples:
    source = source_of(recipe, folder)
    samples = round(recipe.data.seconds * RATE)
    hop = recipe.codec.hop
    clips = source.clips("train")
    return Examples(recipe, source, clips, shape=(50, hop), crop_samples=samples, hop=hop)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """8 training and 3 validation clips of white noise."""
    write_data_set(tmp_path)
    return tmp_path


# --- synth beside recordings ----------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.2, 0.3, 0.75])
def test_examples_are_spread_evenly_and_each_number_comes_once(share: float) -> None:
    kinds = [places(index, share) for index in range(1000)]
    for wanted in (True, False):
        numbers = [number for synthetic, number in kinds if synthetic == wanted]
        assert numbers == list(range(len(numbers)))
    synthetic = np.cumsum([synthetic for synthetic, _ in kinds])
    assert np.all(np.abs(synthetic - share * np.arange(1, 1001)) <= 1)


def test_training_mixes_and_measurements_do_not(folder: Path) -> None:
    recipe = recipe_in(folder, **MIXED)
    source = source_of(recipe, folder)
    train = source.clips("train")
    assert [is_synthesised(clip) for clip in train] == [False] * 8 + [True] * 5
    assert not any(is_synthesised(clip) for clip in source.clips("valid"))
    hashes = source.content_hashes(train)
    assert hashes == [source.content_hash(clip) for clip in train]
    assert len(set(hashes)) == 13
    examples = examples_of(recipe, folder)
    kinds = [is_synthesised(examples.clip_of(index)) for index in range(400)]
    assert sum(kinds) == 100
    # Every recording once in each pass over the recordings.
    visited = [examples.clip_of(index).key for index in range(400) if not kinds[index]]
    for start in range(0, 296, 8):
        assert len(set(visited[start : start + 8])) == 8


def test_the_report_counts_synthesised_clips(folder: Path) -> None:
    recipe_in(folder, **MIXED)
    result = run_cli("train", folder / "sr.toml", "--dry-run", cwd=folder)
    assert result.code == 0, result.stderr
    lines = [*result.stdout.splitlines(), *result.stderr.splitlines()]
    (row,) = [line for line in lines if line.startswith("of them synthesised")]
    assert row.split()[-2:] == ["5", "0"]


# --- altered clips --------------------------------------------------------------------------------


def test_an_example_depends_on_its_index_alone(folder: Path) -> None:
    recipe = recipe_in(folder, **ALTERED, **MIXED)
    one = examples_of(recipe, folder)
    other = examples_of(recipe, folder)
    forward = [one[index] for index in range(12)]
    backward = [other[index] for index in reversed(range(12))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


def test_alterations_leave_noise_crops_and_measurements_alone(folder: Path) -> None:
    plain = examples_of(recipe_in(folder), folder)
    altered = examples_of(recipe_in(folder, **ALTERED), folder)
    assert torch.equal(plain.valid_item(2)["low"], altered.valid_item(2)["low"])
    assert torch.equal(plain[7]["noise"], altered[7]["noise"])
    assert not torch.equal(plain[7]["audio"], altered[7]["audio"])
    gain_only = examples_of(recipe_in(folder, augment__gain_db=20.0), folder)
    levels = [float(gain_only[i]["level"] - plain[i]["level"]) for i in range(20)]
    assert max(levels) > 0.5 and min(levels) < -0.5
    # The input is brought to one level, so that only `level` tells of it.
    for i in range(8):
        assert torch.allclose(gain_only[i]["low"], plain[i]["low"], atol=1e-5)


# --- narrow clips ---------------------------------------------------------------------------------


def test_what_lies_above_the_end_of_a_clip_has_no_weight(folder: Path) -> None:
    write_clips(folder, {"0.wav": resampled_up(noise(0, rate=RATE // 2), 2)})
    recipe = recipe_in(folder, data__narrow="mask")
    examples = examples_of(recipe, folder)
    keys = [examples.clip_of(index).key for index in range(8)]
    narrow = keys.index("0.wav")
    batch = Collate(1)([examples[index] for index in range(8)])
    ends = batch["content"] * RATE / 2
    assert ends[narrow] == pytest.approx(4000, rel=0.03)
    assert all(end == RATE / 2 for i, end in enumerate(ends.tolist()) if i != narrow)
    assert batch["cutoff"][narrow] * RATE / 2 < 0.95 * ends[narrow]

    codec = make_codec(recipe)
    weight = to_frames(batch, codec)["weight"][narrow, 0]
    hertz_C = codec.channel_hz
    assert isinstance(hertz_C, torch.Tensor)
    kept = hertz_C < 0.98 * batch["cutoff"][narrow] * RATE / 2
    assert not weight[kept].any()
    assert not weight[hertz_C > ends[narrow]].any()
    assert weight.any()
    full = to_frames(batch, codec)["weight"][1 - min(narrow, 1), 0]
    assert full[-1] == 1


# --- whole runs -----------------------------------------------------------------------------------


def test_kill_9_and_resume_with_everything_on(folder: Path) -> None:
    recipe_in(folder, **ALTERED, **MIXED, train__validate_every=4)
    whole = folder / "whole"
    again = folder / "again"
    whole.mkdir()
    again.mkdir()
    command = ("train", folder / "sr.toml")
    assert run_cli(*command, cwd=whole).code == 0
    killed(again, *command, arrange=at_row(6))
    assert run_cli(*command, "--set", "data.workers=2", cwd=again).code == 0
    same(again / "runs" / "sr", whole / "runs" / "sr")
    data = json.loads((whole / "runs" / "sr" / "data.json").read_text())
    assert "synth/train/4" in json.dumps(data)


# --- what contradicts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "where"),
    [
        ("t2a", {"augment__tilt_db": 3.0}, "augment.tilt_db"),
        ("t2a", {"data__narrow": "mask"}, "data.narrow"),
        ("sr", {"data__synth_share": 0.5}, "data.synth_share"),
        ("sr", {"data__synth_share": 1.0}, "data.synth_share"),
        ("sr", {"augment__lossy": 0.5, "data__sample_rate": 18000}, "augment.lossy"),
        ("sr", {"augment__resampled": 1.5}, "augment.resampled"),
    ],
)
def test_contradictions_are_refused(
    kind: str, changes: dict[str, Any], where: str, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path / "bad.toml", kind, **changes)
    with pytest.raises(StageError) as caught:
        load_recipe(str(path))
    assert any(where in f"{problem}" for problem in caught.value.problems), caught.value.problems


def test_a_libsndfile_without_a_codec_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecli.data.lossy.missing_codecs", lambda: ["mp3"])
    path = write_recipe(tmp_path / "sr.toml", "sr", augment__lossy=0.5)
    result = run_cli("train", path, cwd=tmp_path)
    assert result.code == 2
    assert "cannot write mp3" in result.stderr
    assert not (tmp_path / "runs").exists()
