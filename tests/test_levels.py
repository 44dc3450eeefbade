"""`model.levels`: what a transformer reads of how loud each band is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import run_cli, write_recipe

from stagecli.codec import make_codec
from stagecli.dsp.channels import band_levels, level_bands, mdct_hz, stft_hz
from stagecli.model.network import Network, meta_network
from stagecli.recipe.load import load_recipe

RATE = 16000


@pytest.mark.parametrize(("kind", "channels"), [("mdct", 64), ("stft", 128)])
def test_codecs_and_network_agree_on_the_frequencies_of_channels(
    kind: str, channels: int, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path / "a.toml", "sr", codec__kind=kind, codec__n_fft=128)
    codec = make_codec(load_recipe(str(path)))
    hz_C = mdct_hz(64, RATE) if kind == "mdct" else stft_hz(128, RATE)
    assert codec.channels == channels
    assert torch.equal(codec.get_buffer("channel_hz"), hz_C.float())


def test_every_channel_is_in_one_band_and_each_band_is_a_mean() -> None:
    for hz_C in (mdct_hz(64, RATE), stft_hz(2048, 44100), stft_hz(128, RATE)):
        bands_CK = level_bands(hz_C, 32)
        assert torch.all((bands_CK > 0).sum(1) == 1)
        assert torch.allclose(bands_CK.sum(0), torch.ones(bands_CK.shape[1]))
        # Rising frequencies lie in rising bands.
        order = torch.argsort(hz_C)
        assert torch.all(torch.diff(bands_CK[order].argmax(1)) >= 0)


def test_levels_follow_the_power_of_a_band_whatever_its_phases() -> None:
    hz_C = stft_hz(2048, 44100)
    bands_CK = level_bands(hz_C, 32)
    generator = torch.Generator().manual_seed(0)
    frames_BTC = torch.randn(2, 4, 2048, generator=generator)
    quiet_BTC = torch.where(hz_C > 8000, 0.1 * frames_BTC, frames_BTC)
    change_BTK = band_levels(quiet_BTC, bands_CK) - band_levels(frames_BTC, bands_CK)
    highest = hz_C[bands_CK.argmax(0)]
    assert torch.allclose(change_BTK[..., -1], torch.tensor(-2 / 3), atol=1e-3)
    assert torch.allclose(change_BTK[..., :10], torch.zeros(()), atol=1e-3)
    assert highest[-1] > 8000
    silence_BTC = torch.zeros(1, 1, 2048)
    assert torch.allclose(band_levels(silence_BTC, bands_CK), torch.tensor(-4 / 3))


def test_a_network_with_levels_trains_resumes_and_restores(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "sr.toml", "sr", model__levels=True, train__steps=4)
    assert run_cli("train", path, cwd=tmp_path).code == 0
    more = run_cli("train", path, "--set", "train.steps=6", cwd=tmp_path)
    assert more.code == 0, more.stderr
    scores = run_cli("evaluate", "runs/sr", "--samples", "2", "--json", cwd=tmp_path)
    assert scores.code == 0, scores.stderr
    recipe = load_recipe(str(path))
    network = Network(recipe, channels=64)
    assert network.dit.input.in_features > 128
    assert "bands_CK" not in network.state_dict()
    assert meta_network(recipe, channels=64).dit.input.weight.device.type == "meta"


def test_levels_are_for_super_resolution(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "t2a.toml", "t2a", model__levels=True)
    result = run_cli("train", path, cwd=tmp_path)
    assert result.code == 2
    assert "model.levels" in result.stderr
