"""Prompt accuracy by a network that is trained on real clips: learnt, kept, and independent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from cli_results import Cli, document
from conftest import run_cli, write_recipe

from stagecli.data.open import open_source
from stagecli.data.source import Source
from stagecli.evaluate import label_training
from stagecli.evaluate.label_limits import MIN_CLIPS_PER_CLASS
from stagecli.evaluate.label_training import LabelClassifier, open_label_network
from stagecli.recipe.load import load_recipe
from stagecli.study.schema import Score
from stagecli.study.scoring import open_clips

RATE = 8000
LENGTH = 3200  # samples of a crop
PITCHES = {"low": 1100.0, "high": 3000.0}
CLIPS = {"train": MIN_CLIPS_PER_CLASS, "valid": 3, "test": 6}  # of each pitch


def tone(hertz: float, seed: int, length: int = LENGTH) -> np.ndarray:
    """A tone near a frequency, at any phase and level, with a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(length) / RATE
    wave = np.sin(2 * np.pi * (hertz * rng.uniform(0.98, 1.02) * time + rng.uniform()))
    noisy = wave + 0.01 * rng.standard_normal(length)
    return (rng.uniform(0.05, 0.5) * noisy).astype(np.float32)


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tones of two pitches, a manifest and a recipe whose codec drops the high one.

    Besides the pitch, each clip has a label with too few clips of a kind.
    """
    folder = tmp_path_factory.mktemp("tones")
    lines = []
    for split, count in CLIPS.items():
        for number in range(count):
            for pitch, hertz in PITCHES.items():
                name = f"{split}_{pitch}_{number}.wav"
                seed = sum(map(ord, name)) * 1000 + number
                soundfile.write(folder / name, tone(hertz, seed), RATE)
                take = f"take {number % 3}"
                caption = f"a {pitch} tone, {take}"
                row = {"path": name, "caption": caption, "split": split}
                lines.append(json.dumps({**row, "pitch": pitch, "take": take}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    write_recipe(
        folder / "tones.toml",
        data__source="manifest",
        data__path=str(folder / "manifest.jsonl"),
        data__clips=None,
        data__cache_dir=str(folder / "cache"),
        codec__f_max=2000,
        train__steps=2,
        evaluate__samples=12,
    )
    return folder


@pytest.fixture(scope="module")
def source(tones: Path) -> Source:
    return open_source(
        load_recipe(tones / "tones.toml").data,
        need_captions=True,
        base=tones,
        splits=["train", "valid", "test"],
        seed=0,
    )


def opened(
    source: Source, cache: Path, columns: tuple[str, ...] = ("pitch", "take")
) -> tuple[LabelClassifier | None, list[str], list[str]]:
    """The network, what it reported as progress, and its notes."""
    activities: list[str] = []
    notes: list[str] = []
    network = open_label_network(
        source,
        columns,
        num_samples=LENGTH,
        cache_dir=cache,
        progress=lambda activity, done, total: activities.append(activity),
        note=notes.append,
    )
    return network, activities, notes


def test_it_learns_labels_once_and_the_same_every_time(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    network, activities, _ = opened(source, tmp_path / "a")
    assert network and list(network.classes) == ["pitch"], "take has too few clips of a kind"
    assert any("training" in activity for activity in activities)
    assert torch.equal(torch.random.get_rng_state(), before)

    # Clips it has never seen, at any level.
    audio_BN = torch.stack([torch.from_numpy(tone(PITCHES[p], 10**6)) for p in PITCHES])
    for level in (0.01, 10.0):
        predicted = network.predict(network.logits(level * audio_BN), "pitch")
        assert predicted == list(PITCHES)

    # From the cache, and trained anew: the same weights.
    again, activities, _ = opened(source, tmp_path / "a")
    assert again and again.digest == network.digest
    assert not activities
    anew, _, _ = opened(source, tmp_path / "b")
    assert anew and anew.digest == network.digest

    # A damaged file is reported and trained again; another version is another network.
    (file,) = (tmp_path / "a").glob("label_network-*/*/*.npy")
    file.write_bytes(file.read_bytes()[:-7])
    repaired, activities, notes = opened(source, tmp_path / "a")
    assert repaired and repaired.digest == network.digest
    assert activities and "damaged" in notes[0]
    monkeypatch.setattr(label_training, "VERSION", 10**6)
    _, activities, _ = opened(source, tmp_path / "a")
    assert activities


def test_columns_with_few_clips_have_no_network(source: Source, tmp_path: Path) -> None:
    network, activities, _ = opened(source, tmp_path, ("take",))
    assert network is None or "take" in network.classes
    network, activities, _ = opened(source, tmp_path, ())
    assert network is None and not activities


def test_evaluate_and_study_share_one_network(
    tones: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_cli("train", tones / "tones.toml", cwd=tones)
    assert result.code == 0, result.stderr
    result = run_cli("evaluate", "runs/tones", "--json", cwd=tones)
    rows = {row["system"]: row["metrics"] for row in document(result)["rows"]}
    conventions = document(result)["conventions"]

    # The network recognises real clips; the codec, which ends at 2 kHz, loses half of them.
    assert rows["real, test split"]["prompt_accuracy:pitch"]["value"] == 1.0
    assert rows["codec round trip"]["prompt_accuracy:pitch"]["value"] < 0.9
    assert "the codec limits prompt_accuracy:pitch" in result.stderr
    assert "small CNN" in conventions["prompt_accuracy:pitch"]
    assert "logistic regression" in conventions["kl"]

    # A study of the same data trains nothing.
    monkeypatch.chdir(tones)
    activities: list[str] = []
    clips = open_clips(
        load_recipe(tones / "tones.toml"),
        Score(steps=(2,), clips=12, primary="kad"),
        torch.device("cpu"),
        progress=lambda activity, done, total: activities.append(activity),
        note=lambda line: None,
    )
    assert "prompt_accuracy:pitch" in clips.names
    assert not any("label network" in activity for activity in activities)
