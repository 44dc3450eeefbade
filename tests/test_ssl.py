"""SSL encoders on tiny random checkpoints, through the same loading path as real ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from helpers.encoder_checkpoints import (
    clap_config,
    save_ast,
    save_clap,
    save_wave,
    save_whisper,
)

from stagecli.errors import StageError
from stagecli.ssl import check_monitor, make_encoder, same_checkpoint
from stagecli.ssl.base import Encoder, Grid
from stagecli.ssl.frontend import KaldiMel, fill

transformers = pytest.importorskip("transformers")
WAVE = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
RATE = 16000
EQUAL_WIDTH = (*WAVE, "ast", "whisper")
FAMILIES = (*EQUAL_WIDTH, "clap")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each family, three blocks of width 16 (CLAP: two stages of width 8 and 16)."""
    root = tmp_path_factory.mktemp("ssl")
    torch.manual_seed(0)
    for kind in WAVE:
        save_wave(root / kind, kind, do_normalize=kind != "wavlm")
    save_ast(root / "ast")
    save_whisper(root / "whisper")
    save_clap(root / "clap")
    return {kind: root / kind for kind in FAMILIES}


@pytest.fixture(scope="module")
def make(checkpoints: dict[str, Path]) -> Callable[..., Any]:
    cache: dict[Any, Encoder] = {}

    def call(family: str, layer: Any = -1) -> Encoder:
        key = family, repr(layer)
        if key not in cache:
            cache[key] = make_encoder("transformers", str(checkpoints[family]), layer)
        return cache[key]

    return call


def noise(samples: int, rows: int = 2, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed)) + 0.02


# --- shapes and rates -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_features_have_the_stated_shape_and_rate(family: str, make: Callable[..., Any]) -> None:
    encoder = make(family)
    assert encoder.dimension == 16 and encoder.sample_rate == (48000 if family == "clap" else RATE)
    assert encoder.name.startswith("transformers:") and encoder.name.endswith(family)
    assert encoder.label == f"{encoder.name}, layer {2 if family == 'clap' else 3}"
    first = encoder.receptive_field
    seconds = 0.5 if family in WAVE else 2.5  # others: more than two windows
    for samples in (first, first + 1, 3 * first + 17, int(seconds * encoder.sample_rate)):
        features_BLD = encoder(noise(samples))
        assert (
            features_BLD.shape == (2, encoder.frames(samples), 16)
            and features_BLD.dtype == torch.float32
        )
        assert features_BLD.isfinite().all()
        expected = samples / encoder.sample_rate * encoder.frame_rate
        assert abs(features_BLD.shape[1] - expected) <= 1 + first / encoder.grid.hop
    with pytest.raises(
        StageError, match=f"shorter than the receptive field .*, {first} samples"
    ) as caught:
        encoder(noise(first - 1))
    assert caught.value.hint


def test_band_frame_rate_and_receptive_field(make: Callable[..., Any]) -> None:
    numbers = {f: (make(f).band, make(f).frame_rate, make(f).receptive_field) for f in FAMILIES}
    assert all(numbers[f] == (8000, 1600, 20) for f in WAVE)
    assert numbers["ast"] == (8000, 10, 2800)
    assert numbers["whisper"] == (8000, 50, 320)
    assert numbers["clap"] == (14000, 32, 1500)
    with pytest.raises(ValueError, match=r"\[B, N\]"):
        make("hubert")(torch.zeros(2, 1, 400))


def test_grid_of_the_published_waveform_encoder() -> None:
    grid = Grid.of_convolutions((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
    assert (grid.first, grid.hop) == (400, 320)
    assert [grid.count(n) for n in (399, 400, 719, 720, 16000)] == [0, 1, 1, 2, 49]


@pytest.mark.parametrize("family", ["ast", "whisper", "clap"])
def test_long_audio_is_read_window_by_window_on_one_grid(
    family: str, make: Callable[..., Any]
) -> None:
    encoder = make(family)
    grid = encoder.grid
    audio_BN = noise(grid.window * 2 + 1000, rows=1)
    whole_BLD = encoder(audio_BN)
    second_BLD = encoder(audio_BN[:, grid.chunk * grid.hop : grid.chunk * grid.hop + grid.window])
    assert second_BLD.shape[1] == grid.chunk
    assert torch.allclose(whole_BLD[:, grid.chunk : 2 * grid.chunk], second_BLD, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_does_not_depend_on_its_neighbours(family: str, make: Callable[..., Any]) -> None:
    encoder = make(family)
    audio_BN = noise(encoder.sample_rate // 2, rows=3)
    audio_BN[1] *= 20
    alone_BLD = encoder(audio_BN[:1])
    assert torch.allclose(encoder(audio_BN)[:1], alone_BLD, atol=1e-4)


@pytest.mark.parametrize("family", ["hubert", "clap"])
def test_audio_at_another_rate_is_resampled(family: str, make: Callable[..., Any]) -> None:
    encoder = make(family)
    audio_BN = noise(22050).requires_grad_()
    resampled_BN = torchaudio.functional.resample(audio_BN, 44100, encoder.sample_rate)
    features_BLD = encoder(audio_BN, 44100)
    assert torch.equal(features_BLD, encoder(resampled_BN))
    features_BLD.square().sum().backward()
    assert audio_BN.grad.isfinite().all() and audio_BN.grad.abs().max() > 0


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EQUAL_WIDTH)
def test_layers_and_their_average(family: str, make: Callable[..., Any]) -> None:
    audio_BN = noise(RATE // 2)
    one, two, last = (make(family, k)(audio_BN) for k in (1, 2, 3))
    assert torch.equal(make(family, -1)(audio_BN), last) and make(family, -1).layers == (3,)
    assert torch.allclose(make(family, [2, 1])(audio_BN), (one + two) / 2, atol=1e-5)
    assert torch.allclose(make(family, "mean")(audio_BN), (one + two + last) / 3, atol=1e-5)
    assert make(family, 0)(audio_BN).shape == one.shape
    for a, b in ((make(family, 0)(audio_BN), one), (one, two), (two, last)):
        assert (a - b).abs().max() > 1e-3
    # Blocks above the highest layer are not kept; the hash is that of the whole checkpoint.
    assert sum(p.numel() for p in make(family, 1).parameters()) < sum(
        p.numel() for p in make(family, 3).parameters()
    )
    assert make(family, 1).fingerprint() == make(family, "mean").fingerprint()


@pytest.mark.parametrize(
    ("family", "stable"),
    [
        *((family, False) for family in WAVE),
        *((family, True) for family in WAVE if family != "data2vec-audio"),
    ],
)
def test_layers_are_the_hidden_states_of_transformers(
    family: str, stable: bool, tmp_path: Path
) -> None:
    """The two arrangements of norms: that of the base and that of the large models."""
    changes = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"} if stable else {}
    torch.manual_seed(1)
    save_wave(tmp_path, family, **changes)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    audio_BN = noise(1000)
    inputs = extractor(list(audio_BN.numpy()), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        theirs = model(inputs["input_values"], output_hidden_states=True)
    for k in range(3):
        encoder = make_encoder("transformers", str(tmp_path), k)
        assert torch.allclose(encoder(audio_BN), theirs.hidden_states[k], atol=1e-5)
    assert torch.allclose(
        make_encoder("transformers", str(tmp_path))(audio_BN), theirs.last_hidden_state, atol=1e-5
    )


def test_layers_of_clap_are_its_stages(make: Callable[..., Any]) -> None:
    widths = [(make("clap", k).dimension, make("clap", k).frame_rate) for k in range(3)]
    assert widths == [(8, 64), (8, 64), (16, 32)]
    for k in range(3):
        assert make("clap", k)(noise(24000)).shape == (
            2,
            make("clap", k).frames(24000),
            widths[k][0],
        )
    with pytest.raises(StageError, match="cannot be averaged") as caught:
        make("clap", "mean")
    assert "one layer" in caught.value.hint


def test_last_layer_of_clap_is_what_the_model_returns(make: Callable[..., Any]) -> None:
    encoder = make("clap")
    audio_BN = noise(encoder.grid.window)
    longer_B1 = torch.zeros(2, 1, dtype=torch.bool)
    out = encoder.network.audio_encoder(encoder.prepare(audio_BN), is_longer=longer_B1)
    assert torch.allclose(
        encoder(audio_BN), out.last_hidden_state.mean(2).transpose(1, 2), atol=1e-5
    )


def test_patches_of_ast_are_averaged_over_frequency_in_the_right_order(
    make: Callable[..., Any],
) -> None:
    encoder = make("ast", 0)
    audio_BN = noise(encoder.grid.window, rows=1)
    embeddings = encoder.network.embeddings
    tokens_BDFT = embeddings.patch_embeddings.projection(
        encoder.prepare(audio_BN).unsqueeze(1).transpose(2, 3)
    )
    positions_BTD = (
        embeddings.position_embeddings[:, 2:].unflatten(1, tokens_BDFT.shape[2:]).mean(1)
    )
    assert torch.allclose(
        encoder(audio_BN), tokens_BDFT.mean(2).transpose(1, 2) + positions_BTD, atol=1e-5
    )


@pytest.mark.parametrize("layer", [4, -5, [1, 9], [], "middle", True, [1.5]])
def test_no_such_layer(layer: Any, checkpoints: dict[str, Path]) -> None:
    with pytest.raises(StageError, match=r"has no layer|is not a choice of layers") as caught:
        make_encoder("transformers", str(checkpoints["hubert"]), layer)
    assert "to 3" in caught.value.hint


# --- input normalisation --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_normalisation_is_that_of_the_feature_extractor(
    family: str, make: Callable[..., Any], checkpoints: dict[str, Path]
) -> None:
    encoder = make(family)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(checkpoints[family])
    for samples in (
        encoder.receptive_field + 100,
        encoder.sample_rate // 3,
        (encoder.grid.window or RATE) - 7,
    ):
        audio_BN = noise(samples)
        audio_BN[1, samples // 2 :] = 0.0
        out = extractor(
            list(audio_BN.numpy()), sampling_rate=encoder.sample_rate, return_tensors="np"
        )
        theirs = np.asarray(out["input_values" if "input_values" in out else "input_features"])
        ours = encoder.prepare(audio_BN)
        assert ours.shape == theirs.shape
        # Decibels run to -100; the other inputs are of order one.
        assert np.abs(ours.numpy() - theirs).max() < (2e-2 if family == "clap" else 1e-3)


def test_filter_banks_are_those_of_kaldi() -> None:
    audio_BN = noise(5000)
    theirs = [
        torchaudio.compliance.kaldi.fbank(
            row[None], sample_frequency=16000.0, window_type="hanning", num_mel_bins=128
        )
        for row in audio_BN
    ]
    assert torch.allclose(
        KaldiMel(sample_rate=RATE, n_mels=128)(audio_BN), torch.stack(theirs), atol=1e-4
    )


def test_fill() -> None:
    audio_BN = torch.tensor([[1.0, 2.0, 3.0]])
    assert fill(audio_BN, 8, "repeatpad").tolist() == [[1, 2, 3, 1, 2, 3, 0, 0]]
    assert fill(audio_BN, 8, "repeat").tolist() == [[1, 2, 3, 1, 2, 3, 1, 2]]
    assert fill(audio_BN, 8, "pad").tolist() == [[1, 2, 3, 0, 0, 0, 0, 0]]


def test_fused_clap_uses_its_filters_and_its_global_branch(tmp_path: Path) -> None:
    save_clap(tmp_path, truncation="fusion", enable_fusion=True, fusion_type=None)
    encoder: Any = make_encoder("transformers", str(tmp_path))
    extractor = transformers.ClapFeatureExtractor.from_pretrained(tmp_path)
    audio_BN = noise(20000)
    theirs = extractor(list(audio_BN.numpy()), sampling_rate=48000, return_tensors="np")[
        "input_features"
    ]
    assert np.abs(encoder.prepare(audio_BN).numpy() - theirs).max() < 2e-2
    features_BLD = encoder(audio_BN)
    assert features_BLD.shape == (2, 13, 16) and torch.equal(features_BLD, encoder(audio_BN))


@pytest.mark.parametrize("class_name", ["ClapAudioModel", "ClapAudioModelWithProjection"])
def test_audio_tower_of_clap_saved_alone(class_name: str, tmp_path: Path) -> None:
    model = getattr(transformers, class_name)(clap_config())
    model.save_pretrained(tmp_path)
    transformers.ClapFeatureExtractor(feature_size=16, max_length_s=1).save_pretrained(tmp_path)
    assert make_encoder("transformers", str(tmp_path))(noise(6000)).shape == (2, 4, 16)


# --- frozen, differentiable, float32 --------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_audio_and_no_weight(family: str, make: Callable[..., Any]) -> None:
    encoder = make(family)
    assert not encoder.train().training and not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    audio_BN = noise(encoder.sample_rate // 3)
    audio_BN[1] = 0.0  # digital silence
    audio_BN.requires_grad_()
    weights_D = torch.linspace(-1, 1, 16)
    (encoder(audio_BN) * weights_D).sum().backward()
    assert audio_BN.grad.isfinite().all() and audio_BN.grad[0].abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_under_autocast(family: str, make: Callable[..., Any]) -> None:
    encoder = make(family)
    audio_BN = noise(encoder.sample_rate // 3)
    plain_BLD = encoder(audio_BN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(audio_BN), plain_BLD)
    assert encoder(audio_BN.double()).dtype == torch.float32


# --- loading --------------------------------------------------------------------------------------


def test_weights_come_from_the_folder(
    make: Callable[..., Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    again = make_encoder("transformers", str(checkpoints["hubert"]))
    assert again.fingerprint() == make("hubert").fingerprint() and len(again.fingerprint()) == 16
    save_wave(tmp_path, "hubert")  # other random weights
    assert make_encoder("transformers", str(tmp_path)).fingerprint() != again.fingerprint()
    assert len({make(f).fingerprint() for f in FAMILIES}) == len(FAMILIES)


def test_weights_in_the_older_format(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = checkpoints["wavlm"]
    for file in ("config.json", "preprocessor_config.json"):
        shutil.copy(source / file, tmp_path)
    tensors = load_file(source / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    expected = make_encoder("transformers", str(source))
    assert make_encoder("transformers", str(tmp_path)).fingerprint() == expected.fingerprint()
    torch.save(
        {**tensors, "code": Path("x")}, tmp_path / "pytorch_model.bin"
    )  # an object, not a tensor
    with pytest.raises(StageError, match="weights cannot be loaded"):
        make_encoder("transformers", str(tmp_path))


def test_hub_id(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []

    def snapshot(source: str, allow_patterns: list[str]) -> str:
        downloads.append(source)
        assert "pytorch_model.bin" not in allow_patterns and not any(
            "*.py" in p for p in allow_patterns
        )
        return str(checkpoints["hubert"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    encoder = make_encoder("transformers", "facebook/hubert-base-ls960", 2)
    assert encoder.name == "transformers:facebook/hubert-base-ls960" and downloads == [
        "facebook/hubert-base-ls960"
    ]


def test_an_unreachable_hub_hints_at_a_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        StageError, match="encoder nobody/nothing cannot be fetched from the model hub"
    ) as caught:
        make_encoder("transformers", "nobody/nothing")
    assert "local folder" in caught.value.hint


def test_folder_missing_empty_or_of_another_model(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="does not exist") as caught:
        make_encoder("transformers", str(tmp_path / "nothing"))
    assert "local folder" in caught.value.hint
    with pytest.raises(StageError, match=r"no config\.json"):
        make_encoder("transformers", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(StageError, match="'bert', which is not supported") as caught:
        make_encoder("transformers", str(tmp_path))
    assert "wavlm" in caught.value.hint
    shutil.copy(checkpoints["hubert"] / "config.json", tmp_path)
    with pytest.raises(StageError, match="input normalisation is unknown") as caught:
        make_encoder("transformers", str(tmp_path))
    assert "preprocessor_config.json" in caught.value.hint
    shutil.copy(checkpoints["hubert"] / "preprocessor_config.json", tmp_path)
    with pytest.raises(StageError, match="has no weights"):
        make_encoder("transformers", str(tmp_path))


def test_missing_tensors(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoints["wav2vec2"], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    mask = tensors.pop(
        "masked_spec_embed"
    )  # not used here: its absence is fine, its random stand-in is not hashed
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    first, second = (make_encoder("transformers", str(tmp_path)).fingerprint() for _ in range(2))
    assert first == second and mask is not None
    name = next(n for n in sorted(tensors) if "encoder.layers.1" in n)
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=f"lacks 1 tensor, first {name}") as caught:
        make_encoder("transformers", str(tmp_path))
    assert "random encoder" in caught.value.hint


def test_feature_extractor_of_another_length(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for family, extractor in (
        ("whisper", transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2)),
        (
            "clap",
            transformers.ClapFeatureExtractor(feature_size=16, max_length_s=1, sampling_rate=44100),
        ),
    ):
        folder = tmp_path / family
        shutil.copytree(checkpoints[family], folder)
        extractor.save_pretrained(folder)
        with pytest.raises(StageError, match=family) as caught:
            make_encoder("transformers", str(folder))
        assert "preprocessor_config.json" in caught.value.hint


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(StageError, match="unknown kind 'magic'") as caught:
        make_encoder("magic", "x")
    assert "transformers" in caught.value.hint and "torchaudio" in caught.value.hint


# --- torchaudio bundles ---------------------------------------------------------------------------


def tiny_bundle_model(**changes: Any) -> torch.nn.Module:
    torch.manual_seed(2)
    return torchaudio.models.wav2vec2_model(
        **{
            "extractor_mode": "group_norm",
            "extractor_conv_layer_config": [(8, 10, 5), (8, 3, 2)],
            "extractor_conv_bias": False,
            "encoder_embed_dim": 16,
            "encoder_projection_dropout": 0.1,
            "encoder_pos_conv_kernel": 4,
            "encoder_pos_conv_groups": 2,
            "encoder_num_layers": 3,
            "encoder_num_heads": 2,
            "encoder_attention_dropout": 0.1,
            "encoder_ff_interm_features": 32,
            "encoder_ff_interm_dropout": 0.1,
            "encoder_dropout": 0.1,
            "encoder_layer_norm_first": False,
            "encoder_layer_drop": 0.1,
            "aux_num_out": None,
            **changes,
        }
    )


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`bundle(layer, wrap=False, ...)`: HUBERT_BASE with a tiny random network as its download."""

    def call(layer: Any = -1, wrap: bool = False, **changes: Any) -> Any:
        model = tiny_bundle_model(**changes)
        if wrap:
            model = torchaudio.pipelines._wav2vec2.utils._extend_model(
                model, normalize_waveform=True
            )
        monkeypatch.setattr(
            torchaudio.pipelines.Wav2Vec2Bundle, "get_model", lambda self: model.eval()
        )
        return make_encoder("torchaudio", "HUBERT_BASE", layer)

    return call


@pytest.mark.parametrize("first", [False, True])
def test_bundle(bundle: Callable[..., Any], first: bool) -> None:
    audio_BN = noise(1000).requires_grad_()
    model: Any = tiny_bundle_model(encoder_layer_norm_first=first).eval()
    theirs, _ = model.extract_features(audio_BN)
    features = {k: bundle(k, encoder_layer_norm_first=first)(audio_BN) for k in (0, 1, 2, 3)}
    assert features[0].shape == (2, 99, 16)
    assert all(torch.allclose(features[k], theirs[k - 1], atol=1e-5) for k in (1, 2))
    assert torch.allclose(features[3], model(audio_BN)[0], atol=1e-5)
    encoder = bundle([1, 2], encoder_layer_norm_first=first)
    assert torch.allclose(encoder(audio_BN), (features[1] + features[2]) / 2, atol=1e-5)
    assert (encoder.name, encoder.sample_rate, encoder.band) == (
        "torchaudio:HUBERT_BASE",
        16000,
        8000,
    )
    assert (encoder.dimension, encoder.frame_rate, encoder.receptive_field) == (16, 1600, 20)
    assert encoder.fingerprint() == bundle(encoder_layer_norm_first=first).fingerprint()
    features[3].square().sum().backward()
    assert audio_BN.grad.isfinite().all() and audio_BN.grad.abs().max() > 0


def test_normalising_bundle_treats_each_clip_alone(bundle: Callable[..., Any]) -> None:
    audio_BN = noise(1000)
    audio_BN[1] *= 50
    encoder = bundle(wrap=True, extractor_mode="layer_norm")
    plain = bundle(extractor_mode="layer_norm")
    theirs = plain(torch.nn.functional.layer_norm(audio_BN[:1], (1, 1000)))
    assert torch.allclose(encoder(audio_BN)[:1], theirs, atol=1e-5)


def test_bundle_errors(
    bundle: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="no SSL bundle 'hubert_base'") as caught:
        make_encoder("torchaudio", "hubert_base")
    assert "did you mean HUBERT_BASE" in caught.value.hint and "CONVTASNET" not in caught.value.hint
    with pytest.raises(StageError, match="has no layer 4: it has layers 0 to 3"):
        bundle(4)
    monkeypatch.undo()

    def offline(*args: Any, **keywords: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchaudio.pipelines._wav2vec2.utils.load_state_dict_from_url", offline)
    with pytest.raises(
        StageError, match=r"weights of the torchaudio bundle WAV2VEC2_BASE \(no route to host\)"
    ) as caught:
        make_encoder("torchaudio", "WAV2VEC2_BASE")
    assert "local folder" in caught.value.hint


# --- what a monitor must be able to do ------------------------------------------------------------


def check(encoder: Encoder, **changes: Any) -> None:
    keywords: dict[str, Any] = {
        "task": "sr",
        "sample_rate": 16000,
        "restored_band": (2000.0, 8000.0),
        "clip_seconds": 1.0,
        "judge_name": "bundled:judge",
    }
    check_monitor(encoder, **{**keywords, **changes})


def test_monitor_that_fits(make: Callable[..., Any]) -> None:
    check(make("hubert"))
    check(make("hubert"), restored_band=(2000.0, 24000.0))  # nothing there above Nyquist
    check(make("hubert"), task="t2a", sample_rate=44100, restored_band=None, judge_name=None)
    check(make("clap"), sample_rate=48000, restored_band=(4000.0, 14000.0))


def test_monitor_that_does_not_see_the_restored_band(make: Callable[..., Any]) -> None:
    with pytest.raises(
        StageError, match="sees up to 8000 Hz, but task sr restores 4000 to 22050 Hz"
    ) as caught:
        check(make("hubert"), sample_rate=44100, restored_band=(4000.0, 22050.0))
    assert "full-band" in caught.value.hint


def test_monitor_with_clips_too_short(make: Callable[..., Any]) -> None:
    with pytest.raises(
        StageError, match=r"needs 0\.175 s of audio, the clips have 0\.1 s"
    ) as caught:
        check(make("ast"), clip_seconds=0.1)
    assert "data.seconds" in caught.value.hint
    check(make("ast"), clip_seconds=0.175)


def test_monitor_that_is_the_judge(make: Callable[..., Any], checkpoints: dict[str, Path]) -> None:
    encoder = make("hubert", 2)
    root = checkpoints["hubert"].parent
    spelled = f"transformers:{root}/../{root.name}/hubert/"
    for changes in (
        {"judge_name": encoder.name},
        {"judge_name": spelled},
        {"judge_name": "transformers:copy", "judge_fingerprint": make("hubert").fingerprint()},
    ):
        with pytest.raises(StageError, match="also the judge") as caught:
            check(encoder, **changes)
        assert "another encoder" in caught.value.hint
    assert not same_checkpoint("bundled:judge", "bundled:teacher") and not same_checkpoint(
        "a:x", "b:x"
    )
