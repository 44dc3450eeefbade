"""Neural codecs on tiny random checkpoints, through the same loading path as real ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from stagecli.codec.neural import NeuralCodec, load_neural_codec
from stagecli.errors import StageError

transformers = pytest.importorskip("transformers")
RATE = 16000


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a DAC (with an odd stride) and of an EnCodec, both with 40 samples per frame."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    dac = transformers.DacConfig(
        encoder_hidden_size=8,
        decoder_hidden_size=32,
        downsampling_ratios=[2, 5, 4],
        sampling_rate=RATE,
        n_codebooks=2,
        codebook_size=16,
        codebook_dim=4,
    )
    encodec = transformers.EncodecConfig(
        num_filters=4,
        hidden_size=16,
        upsampling_ratios=[4, 5, 2],
        sampling_rate=RATE,
        num_lstm_layers=1,
        codebook_size=16,
        target_bandwidths=[1.6],
    )
    transformers.DacModel(dac).save_pretrained(root / "dac")
    transformers.EncodecModel(encodec).save_pretrained(root / "encodec")
    return {"dac": root / "dac", "encodec": root / "encodec"}


@pytest.fixture(params=["dac", "encodec"])
def codec(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> NeuralCodec:
    return load_neural_codec(str(checkpoints[request.param]), sample_rate=RATE)


@pytest.mark.parametrize("samples", [1, 39, 40, 41, 1003])
def test_shapes(codec: NeuralCodec, samples: int) -> None:
    frames_BTC = codec.encode(torch.randn(2, samples))
    assert frames_BTC.shape == (2, codec.frames(samples), codec.channels)
    assert codec.hop == 40 and codec.is_network and codec.sample_rate == RATE
    assert codec.decode(frames_BTC).shape == (2, frames_BTC.shape[1] * codec.hop)
    assert codec.decode(frames_BTC, samples).shape == (2, samples)


def test_frames_are_the_encoder_output_and_decoding_skips_the_quantiser(codec: NeuralCodec) -> None:
    audio_BN = torch.randn(1, 800)
    latent_BCT = codec.model.encoder(audio_BN[:, None])
    assert torch.equal(codec.analyse(audio_BN), latent_BCT.transpose(1, 2))
    samples = codec.model.decoder(latent_BCT)[:, 0]
    assert torch.equal(codec.synthesise(latent_BCT.transpose(1, 2))[:, : samples.shape[1]], samples)


def test_weights_come_from_the_folder_and_loading_is_repeatable(
    checkpoints: dict[str, Path],
) -> None:
    audio_BN = torch.randn(1, 400)
    first, second = (load_neural_codec(str(checkpoints["dac"]), sample_rate=RATE) for _ in range(2))
    assert torch.equal(first.encode(audio_BN), second.encode(audio_BN))
    saved = transformers.DacModel.from_pretrained(checkpoints["dac"])
    for name, value in saved.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name]), name


def test_frozen_in_evaluation_mode_and_still_differentiable(codec: NeuralCodec) -> None:
    codec.train()
    assert not codec.training
    assert not any(m.training for m in codec.modules() if not isinstance(m, nn.LSTM))
    assert not any(p.requires_grad for p in codec.parameters())
    audio_BN = torch.randn(1, 400, requires_grad=True)
    frames_BTC = codec.encode(audio_BN)
    codec.decode(frames_BTC).square().sum().backward()
    assert audio_BN.grad.isfinite().all() and audio_BN.grad.abs().max() > 0


def test_statistics_are_applied(codec: NeuralCodec) -> None:
    audio_BN = torch.randn(4, 2000)
    before_BN = codec.decode(codec.encode(audio_BN))
    codec.fit([audio_BN])
    frames_BTC = codec.encode(audio_BN)
    assert frames_BTC.mean((0, 1)).abs().max() < 1e-2
    assert torch.allclose(codec.decode(frames_BTC), before_BN, atol=1e-4)


def test_wrong_sample_rate(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(StageError, match="16000 Hz, the recipe at 44100 Hz") as caught:
        load_neural_codec(str(checkpoints["dac"]), sample_rate=44100)
    assert "sample rate" in caught.value.hint


def test_missing_folder_and_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="does not exist") as caught:
        load_neural_codec(str(tmp_path / "nothing"), sample_rate=RATE)
    assert "local folder" in caught.value.hint
    with pytest.raises(StageError, match=r"no config\.json"):
        load_neural_codec(str(tmp_path), sample_rate=RATE)


def test_unreachable_hub_says_to_name_a_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StageError, match="model hub") as caught:
        load_neural_codec("nobody/no-such-codec", sample_rate=RATE)
    assert "local folder" in caught.value.hint


def test_unsupported_models(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(StageError, match="'bert', which is not supported"):
        load_neural_codec(str(tmp_path), sample_rate=RATE)
    transformers.EncodecConfig(
        audio_channels=2, normalize=True, sampling_rate=RATE
    ).save_pretrained(tmp_path)
    with pytest.raises(StageError, match="stereo"):
        load_neural_codec(str(tmp_path), sample_rate=RATE)


def test_weights_missing_incomplete_or_pickled(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copy(checkpoints["dac"] / "config.json", tmp_path)
    with pytest.raises(StageError, match="has no weights"):
        load_neural_codec(str(tmp_path), sample_rate=RATE)
    tensors = load_file(checkpoints["dac"] / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(StageError, match="has only pickled weights"):
        load_neural_codec(str(tmp_path), sample_rate=RATE)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=f"lacks 1 tensor, first {name}"):
        load_neural_codec(str(tmp_path), sample_rate=RATE)
