"""The encoders in the package: they load, see the whole band, and separate real sounds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from stagecli.data.audio import read_mono
from stagecli.dsp.resample import resample, resample_tensor
from stagecli.errors import StageError
from stagecli.files import read_json_lines
from stagecli.ssl import make_encoder
from stagecli.ssl.base import Encoder
from stagecli.ssl.bundled import NETWORKS, RATE, WEIGHTS, BandMel, BundledEncoder

MODELS = ("teacher", "judge")


@pytest.fixture(scope="module", params=MODELS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return make_encoder("bundled", request.param)


def noise(seconds: float, batch: int = 1, level: float = 0.1) -> torch.Tensor:
    return level * torch.randn(
        batch, round(seconds * RATE), generator=torch.Generator().manual_seed(0)
    )


def cosine_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(1 - torch.cosine_similarity(one, other, dim=-1).mean())


def test_sees_the_whole_band_in_frames_of_40_ms(encoder: Encoder) -> None:
    assert (encoder.sample_rate, encoder.band) == (44100, 22050.0)
    assert encoder.frame_rate == 25.0
    assert encoder.name in ("bundled:teacher", "bundled:judge")


@pytest.mark.parametrize("seconds", [0.06, 0.1, 1.0, 2.1, 4.5])  # the judge reads windows of 2 s
def test_frames_is_the_number_of_features(encoder: Encoder, seconds: float) -> None:
    audio_BN = noise(seconds, batch=2)
    features_BLD = encoder(audio_BN)
    assert features_BLD.shape == (2, encoder.frames(audio_BN.shape[1]), encoder.dimension)
    assert features_BLD.dtype == torch.float32


def test_least_audio_gives_one_feature_and_less_is_refused(encoder: Encoder) -> None:
    assert encoder(noise(1)[:, : encoder.receptive_field]).shape[1] == 1
    assert encoder(noise(1)[:, : encoder.receptive_field + encoder.grid.hop - 1]).shape[1] == 1
    assert encoder(noise(1)[:, : encoder.receptive_field + encoder.grid.hop]).shape[1] == 2
    with pytest.raises(StageError, match="shorter than the receptive field"):
        encoder(noise(1)[:, : encoder.receptive_field - 1])


def test_audio_of_another_rate_is_resampled(encoder: Encoder) -> None:
    assert encoder(noise(1)[:, :8000], sample_rate=8000).shape[1] == encoder.frames(44100)


def test_a_clip_does_not_depend_on_its_neighbours_or_on_the_call(encoder: Encoder) -> None:
    audio_BN = noise(1.2, batch=3)
    together_BLD = encoder(audio_BN)
    assert torch.equal(together_BLD, encoder(audio_BN))
    torch.testing.assert_close(together_BLD[1:2], encoder(audio_BN[1:2]), rtol=1e-3, atol=1e-4)


def test_the_first_window_of_long_audio_is_read_as_if_alone() -> None:
    judge = make_encoder("bundled", "judge")
    audio_BN = noise(3)
    assert judge.grid.window is not None and judge.grid.chunk is not None
    alone_BLD = judge(audio_BN[:, : judge.grid.window])
    assert alone_BLD.shape[1] == judge.grid.chunk
    torch.testing.assert_close(judge(audio_BN)[:, : judge.grid.chunk], alone_BLD)


def test_two_loads_are_the_same_and_frozen(encoder: Encoder) -> None:
    again = make_encoder("bundled", encoder.name.partition(":")[2])
    assert again.fingerprint() == encoder.fingerprint()
    assert torch.equal(again(noise(0.5)), encoder(noise(0.5)))
    assert not encoder.train().training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert all(p.dtype == torch.float32 for p in encoder.parameters())


@pytest.mark.parametrize("level", [0.0, 1e-6, 0.1, 10.0])
def test_the_gradient_with_respect_to_the_audio_is_finite(encoder: Encoder, level: float) -> None:
    audio_BN = noise(0.5, level=level).requires_grad_()
    encoder(audio_BN).square().mean().backward()
    assert audio_BN.grad is not None
    assert torch.isfinite(audio_BN.grad).all()
    if level > 1e-3:
        assert audio_BN.grad.abs().max() > 0


def test_silence_between_sounds_keeps_the_gradient_finite(encoder: Encoder) -> None:
    audio_BN = noise(1)
    audio_BN[:, 15000:35000] = 0
    audio_BN.requires_grad_()
    features_BLD = encoder(audio_BN)
    features_BLD[..., 0].mean().backward()
    assert audio_BN.grad is not None
    assert torch.isfinite(features_BLD).all() and torch.isfinite(audio_BN.grad).all()


def test_missing_high_frequencies_change_the_features(encoder: Encoder) -> None:
    """Low-passing white noise at 8 kHz moves the features further than another noise does."""
    audio_BN, other_BN = noise(1, batch=2).split(1)
    low_BN = resample_tensor(resample_tensor(audio_BN, RATE, 16000), 16000, RATE)
    full_BLD = encoder(audio_BN)
    other_BLD = encoder(other_BN)
    low_BLD = encoder(low_BN[:, : audio_BN.shape[1]])
    change = (full_BLD - low_BLD).norm(dim=-1).mean()
    chance = (full_BLD - other_BLD).norm(dim=-1).mean()
    assert change > 1.2 * chance
    assert change > 0.2 * full_BLD.norm(dim=-1).mean()


def test_the_top_band_reaches_the_features(encoder: Encoder) -> None:
    """A tone at 20 kHz under noise up to 8 kHz."""
    low_BN = resample_tensor(noise(1)[:, :16000], 16000, RATE)
    tone_N = 0.1 * torch.sin(2 * torch.pi * 20000 * torch.arange(low_BN.shape[1]) / RATE)
    assert cosine_distance(encoder(low_BN), encoder(low_BN + tone_N)) > 0.01


def test_layers(encoder: Encoder) -> None:
    model = encoder.name.partition(":")[2]
    audio_BN = noise(0.5)
    depth = len(NETWORKS[model]().blocks)
    assert encoder.layers == (depth,)
    last_BLD = encoder(audio_BN)
    first_BLD = make_encoder("bundled", model, 1)(audio_BN)
    assert torch.equal(last_BLD, make_encoder("bundled", model, depth)(audio_BN))
    assert first_BLD.shape == last_BLD.shape and not torch.allclose(first_BLD, last_BLD)
    both_BLD = make_encoder("bundled", model, [1, depth])(audio_BN)
    torch.testing.assert_close(both_BLD, (first_BLD + last_BLD) / 2, rtol=1e-4, atol=1e-5)
    assert make_encoder("bundled", model, 0)(audio_BN).shape == last_BLD.shape
    assert make_encoder("bundled", model, 1).fingerprint() == encoder.fingerprint()
    with pytest.raises(StageError, match=f"layers 0 to {depth}"):
        make_encoder("bundled", model, depth + 1)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(StageError, match="'techer'") as caught:
        make_encoder("bundled", "techer")
    assert caught.value.hint == "did you mean teacher? Bundled: teacher, judge"
    with pytest.raises(StageError, match=r"'\.\./judge'"):
        make_encoder("bundled", "../judge")


def test_unreadable_weights_are_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagecli.ssl.bundled.WEIGHTS", tmp_path)
    with pytest.raises(StageError, match="cannot be read"):
        make_encoder("bundled", "teacher")
    (tmp_path / "teacher.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(StageError, match="cannot be read"):
        make_encoder("bundled", "teacher")


def test_teacher_and_judge_differ() -> None:
    teacher, judge = (make_encoder("bundled", model) for model in MODELS)
    assert teacher.fingerprint() != judge.fingerprint()


def test_the_weights_are_small_half_precision_and_documented() -> None:
    paths = [WEIGHTS / f"{model}.safetensors" for model in MODELS]
    assert sum(path.stat().st_size for path in paths) <= 12e6
    for path in paths:
        with safe_open(path, "pt") as file:
            assert {"objective", "data", "seed", "steps"} <= set(file.metadata())
            assert int(file.metadata()["steps"]) > 100
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118


def test_log_mel_of_silence_of_a_full_scale_sine_and_of_an_empty_band() -> None:
    mel = BandMel()
    time_N = torch.arange(RATE) / RATE
    assert torch.allclose(mel.power(torch.zeros(1, RATE)), torch.zeros(()))
    powers_BTC = mel.power(torch.sin(2 * torch.pi * 1000 * time_N)[None])
    assert 0.5 < float(powers_BTC.max()) < 2.0
    assert float(powers_BTC[..., -20:].max()) < mel.floor


@cache
def clips_of_digits(folder: Path, split: str, count: int) -> list[tuple[np.ndarray, str]]:
    """`count` clips of each digit at 44.1 kHz, strided over the manifest and so over speakers."""
    rows: list[dict[str, Any]] = [
        row
        for _, row in read_json_lines(folder / "fsdd" / "manifest.jsonl")
        if row["split"] == split
    ]
    clips = []
    for digit in sorted({row["label"] for row in rows}):
        same = [row for row in rows if row["label"] == digit]
        for row in same[:: max(1, len(same) // count)][:count]:
            audio_N = read_mono(folder / "fsdd" / row["path"], 8000)
            clips.append((resample(audio_N, 8000, RATE), digit))
    return clips


def nearest_centroid(encoder: Encoder, known: list[Any], unseen: list[Any]) -> float:
    def embed(clips: list[Any]) -> tuple[torch.Tensor, list[str]]:
        pieces = [encoder(torch.from_numpy(audio)[None])[0] for audio, _ in clips]
        return torch.stack([torch.cat([x.mean(0), x.std(0, correction=0)]) for x in pieces]), [
            d for _, d in clips
        ]

    (x, labels) = embed(known)
    (y, answers) = embed(unseen)
    mean = x.mean(0)
    deviation = x.std(0).clamp_min(1e-5)
    x = (x - mean) / deviation
    y = (y - mean) / deviation
    digits = sorted(set(labels))
    centroids = torch.stack([x[[label == digit for label in labels]].mean(0) for digit in digits])
    guesses = torch.cdist(y, centroids).argmin(1)
    return float(
        np.mean([digits[int(g)] == answer for g, answer in zip(guesses, answers, strict=True)])
    )


def test_features_separate_digits_better_than_those_of_a_random_network(
    data_dir: Path, encoder: Encoder
) -> None:
    model = encoder.name.partition(":")[2]
    known = clips_of_digits(data_dir, "train", 12)
    unseen = clips_of_digits(data_dir, "valid", 12)
    torch.manual_seed(0)
    twin = BundledEncoder(NETWORKS[model](), model, -1)
    with torch.no_grad():
        assert (
            nearest_centroid(encoder, known, unseen) > nearest_centroid(twin, known, unseen) + 0.1
        )
