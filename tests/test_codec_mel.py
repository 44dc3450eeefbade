"""The log-mel codec: shapes, determinism, gradients, Griffin-Lim and a vocoder loaded from disk."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from stagecli.codec.mel import MelCodec
from stagecli.codec.vocoder import load_vocoder
from stagecli.errors import StageError

RATE = 8000


def small(**changes: object) -> MelCodec:
    settings = {
        "sample_rate": RATE,
        "n_fft": 256,
        "hop": 64,
        "n_mels": 32,
        "f_min": 50.0,
        **changes,
    }
    return MelCodec(**settings)


def tone(hz: float, samples: int = 4000) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hz * torch.arange(samples) / RATE)[None]


@pytest.mark.parametrize("samples", [1, 63, 64, 65, 1000, 4096])
def test_frames_is_what_encode_gives_and_decode_has_the_length_asked(samples: int) -> None:
    codec = small(iterations=1)
    frames_BTC = codec.encode(torch.randn(2, samples))
    assert frames_BTC.shape == (2, codec.frames(samples), 32)
    assert codec.decode(frames_BTC).shape == (2, codec.frames(samples) * 64)
    assert codec.decode(frames_BTC, samples).shape == (2, samples)


def test_decoding_repeats_and_does_not_depend_on_the_batch_or_the_global_seed() -> None:
    codec = small(iterations=8)
    raw_BTC = codec.analyse(torch.cat([tone(300), tone(900)]))
    first_BN = codec.synthesise(raw_BTC)
    torch.manual_seed(1234)
    assert torch.equal(codec.synthesise(raw_BTC), first_BN)
    torch.testing.assert_close(codec.synthesise(raw_BTC[1:]), first_BN[1:], atol=1e-3, rtol=0)


def test_padding_behind_a_clip_leaves_the_frames_before_it_alone() -> None:
    codec = small()
    audio_BN = torch.randn(1, 1024)
    longer_BN = torch.cat([audio_BN, torch.zeros(1, 512)], 1)
    torch.testing.assert_close(codec.analyse(longer_BN)[:, :16], codec.analyse(audio_BN))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_analysis_has_finite_gradients_even_in_digital_silence(power: float) -> None:
    codec = small(power=power)
    audio_BN = torch.cat([tone(440, 1000), torch.zeros(1, 1000)]).requires_grad_()
    codec.encode(audio_BN).sum().backward()
    assert audio_BN.grad is not None and torch.isfinite(audio_BN.grad).all()
    assert audio_BN.grad[0].abs().sum() > 0


def test_the_last_synthesis_carries_a_gradient() -> None:
    codec = small(iterations=2)
    raw_BTC = codec.analyse(tone(440, 1000)).requires_grad_()
    codec.synthesise(raw_BTC).square().sum().backward()
    assert (
        raw_BTC.grad is not None
        and torch.isfinite(raw_BTC.grad).all()
        and raw_BTC.grad.abs().sum() > 0
    )


def test_log_base_10_is_the_natural_logarithm_scaled() -> None:
    audio_BN = tone(700)
    torch.testing.assert_close(
        small(log_base="10").analyse(audio_BN) * math.log(10),
        small().analyse(audio_BN),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize(("power", "log_base"), [(1.0, "e"), (2.0, "10")])
def test_griffin_lim_keeps_the_pitch_the_level_and_the_mel_frames(
    power: float, log_base: str
) -> None:
    codec = small(power=power, log_base=log_base)
    audio_BN = tone(440)
    raw_BTC = codec.analyse(audio_BN)
    back_BN = codec.synthesise(raw_BTC)[:, : audio_BN.shape[1]]
    inner_N = back_BN[0, 500:3500]
    peak_hz = torch.fft.rfft(inner_N * torch.hann_window(3000)).abs().argmax() * RATE / 3000
    assert abs(peak_hz - 440) < 35  # half the distance between two mel filters
    assert 0.5 < (inner_N.square().mean() / audio_BN[0, 500:3500].square().mean()).sqrt() < 1.5
    inner_BTC = raw_BTC[:, 8:-8]
    back_BTC = codec.analyse(back_BN)[:, 8:-8]
    loud_BTC = inner_BTC > inner_BTC.max() - 3 * codec.scale
    assert (back_BTC - inner_BTC)[loud_BTC].abs().mean() / codec.scale < 0.5


def test_multiplicative_updates_bring_the_inverted_mel_closer() -> None:
    audio_BN = torch.randn(1, 2048, generator=torch.Generator().manual_seed(0))

    def error(steps: int) -> float:
        codec = small(inversion_steps=steps)
        raw_BTC = codec.analyse(audio_BN)
        return (codec.invert_mel(raw_BTC) @ codec.filters_FC - raw_BTC.exp()).square().mean().item()

    assert error(32) < 0.5 * error(0)


def test_filters_have_unit_area_and_an_empty_one_is_refused() -> None:
    filters_FC = small(n_fft=4096, n_mels=20, f_min=0.0).filters_FC
    torch.testing.assert_close(filters_FC.sum(0) * RATE / 4096, torch.ones(20), atol=0.02, rtol=0)
    with pytest.raises(StageError, match="no frequency bin"):
        small(n_fft=128, hop=32, n_mels=80)


def test_impossible_settings_are_listed_together() -> None:
    with pytest.raises(StageError) as caught:
        small(hop=200, f_max=5000.0, floor=0.0, log_base="2")
    places = {problem.where for problem in caught.value.problems}
    assert places == {f"codec.{key}" for key in ("hop", "f_max", "floor", "log_base")}


@pytest.fixture(scope="module")
def vocoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocoder")
    config = SpeechT5HifiGanConfig(
        model_in_dim=32,
        sampling_rate=RATE,
        upsample_initial_channel=16,
        upsample_rates=[8, 8],
        upsample_kernel_sizes=[16, 16],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    torch.manual_seed(0)
    SpeechT5HifiGan(config).save_pretrained(folder)
    return folder


def test_a_vocoder_folder_is_loaded_frozen_and_decodes(vocoder_folder: Path) -> None:
    codec = small(vocoder=load_vocoder(str(vocoder_folder)))
    again = small(vocoder=load_vocoder(str(vocoder_folder)))
    frames_BTC = codec.encode(tone(440, 1000)).requires_grad_()
    audio_BN = codec.decode(frames_BTC, 1000)
    assert audio_BN.shape == (1, 1000)
    assert torch.equal(audio_BN, again.decode(frames_BTC, 1000))
    assert codec.vocoder is not None and not any(
        p.requires_grad for p in codec.vocoder.parameters()
    )
    audio_BN.square().sum().backward()
    assert frames_BTC.grad is not None and frames_BTC.grad.abs().sum() > 0


def test_a_vocoder_that_does_not_fit_is_refused_with_every_difference(vocoder_folder: Path) -> None:
    vocoder = load_vocoder(str(vocoder_folder))
    with pytest.raises(StageError, match="does not fit the codec") as caught:
        MelCodec(sample_rate=16000, n_fft=512, hop=128, n_mels=40, vocoder=vocoder)
    assert str(vocoder_folder) in caught.value.message
    assert {p.where for p in caught.value.problems} == {
        "codec.sample_rate",
        "codec.n_mels",
        "codec.hop",
    }
    assert "8000" in str(caught.value) and caught.value.hint


def test_a_missing_vocoder_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source in (str(tmp_path / "absent"), "nobody/no-such-vocoder"):
        with pytest.raises(StageError, match="vocoder") as caught:
            load_vocoder(source)
        assert caught.value.hint and "save_pretrained" in caught.value.hint
