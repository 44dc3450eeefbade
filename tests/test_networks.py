"""Training on frozen networks: neural codecs and a text encoder, loaded, cached, then used."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Result, die_at, forked, losses_of, read_rows, run_cli, sha, write_recipe

Cli = Callable[..., Result]
RATE = 8000
CLIPS = 24 + 16  # training and validation clips of the synthetic source
TEXT = (
    "a an the loud soft deep high bell rain dog buzz click then and with at of volume pace fast "
    "slow"
)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny random DAC, EnCodec and T5 with a tokenizer of whole words."""
    transformers = pytest.importorskip("transformers")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    dac = transformers.DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=16,
        downsampling_ratios=[2, 5, 8],
        sampling_rate=RATE,
        n_codebooks=2,
        codebook_size=16,
        codebook_dim=4,
    )
    encodec = transformers.EncodecConfig(
        num_filters=4,
        hidden_size=16,
        upsampling_ratios=[8, 5, 2],
        sampling_rate=RATE,
        num_lstm_layers=1,
        codebook_size=16,
        target_bandwidths=[1.6],
    )
    t5 = transformers.T5Config(
        vocab_size=3 + len(TEXT.split()),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    transformers.DacModel(dac).save_pretrained(root / "dac")
    transformers.EncodecModel(encodec).save_pretrained(root / "encodec")
    transformers.T5EncoderModel(t5).save_pretrained(root / "t5")
    names = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *TEXT.split()])}
    words = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(root / "t5")
    return {name: root / name for name in ("dac", "encodec", "t5")}


def codec_recipe(folder: Path, networks: dict[str, Path], kind: str, **more: Any) -> Path:
    # The options of the mel codec are left out: a network brings its own.
    own = {f"codec__{name}": None for name in ("n_fft", "hop", "n_mels", "iterations")}
    changes = {
        **own,
        "codec__kind": kind,
        "codec__model": str(networks[kind]),
        "data__crops": 2,
        **more,
    }
    return write_recipe(
        folder / f"{kind}.toml", train__steps=3, train__checkpoint_every=3, **changes
    )


def text_recipe(folder: Path, networks: dict[str, Path]) -> Path:
    own = {f"condition__{name}": None for name in ("width", "depth")}
    changes = {**own, "condition__text": "transformers", "condition__model": str(networks["t5"])}
    return write_recipe(folder / "t5.toml", train__steps=3, train__checkpoint_every=3, **changes)


def cached(folder: Path, kind: str) -> dict[str, tuple[int, str]]:
    """Modification time and hash of every file of a feature cache."""
    files = sorted((folder / "runs" / ".cache").glob(f"{kind}-*/**/*.npy"))
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, sha(p)) for p in files}


def used(cli: Cli, folder: Path, name: str) -> None:
    """Sample and evaluate from a run."""
    sampled = cli(
        "sample",
        f"runs/{name}",
        "-p",
        "a loud bell",
        "-p",
        "rain",
        "-o",
        "out",
        "--cfg-scale",
        "2",
        "--json",
    )
    assert sampled.code == 0, sampled.stderr
    for row in json.loads(sampled.stdout):
        audio, rate = soundfile.read(folder / row["file"])
        assert (rate, audio.shape) == (RATE, (3200,))
        assert np.isfinite(audio).all() and np.any(audio)
    scored = cli("evaluate", f"runs/{name}", "--json")
    assert scored.code == 0, scored.stderr
    rows = json.loads(scored.stdout)["rows"]
    assert [row["n"] for row in rows] == [4, 4, 4, 4]
    assert all(np.isfinite(row["metrics"]["fd_log_mel"]["value"]) for row in rows[:3])


@pytest.mark.parametrize("kind", ["dac", "encodec"])
def test_a_neural_codec(kind: str, networks: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    from stagecli.codec.neural import NeuralCodec

    recipe = codec_recipe(tmp_path, networks, kind)
    first = cli("train", recipe)
    assert first.code == 0, first.stderr
    assert (
        len(losses_of(tmp_path / "runs" / kind)) == 3
        and np.isfinite(losses_of(tmp_path / "runs" / kind)).all()
    )
    before = cached(tmp_path, "frames")
    assert len(before) == CLIPS
    assert np.load(tmp_path / next(iter(before))).shape == (2, 40, 16 if kind == "encodec" else 32)

    def computed(*_: object) -> None:
        raise AssertionError("the codec recomputed cached frames")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NeuralCodec, "analyse", computed)
        again = cli("train", recipe, "--name", "again")
    assert again.code == 0, again.stderr
    assert cached(tmp_path, "frames") == before
    assert losses_of(tmp_path / "runs" / "again") == losses_of(tmp_path / "runs" / kind)
    used(cli, tmp_path, kind)


def test_mechanisms_on_cached_frames_decode_no_audio_per_step(
    networks: dict[str, Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes read the audio behind the frames; guidance gets a crop's start without decoding."""
    from stagecli.data.memory import Memory

    probed = codec_recipe(tmp_path, networks, "dac", stage__regime__every=1, stage__regime__clips=4)
    trained = cli("train", probed, "--name", "probed")
    assert trained.code == 0, trained.stderr
    assert [row["step"] for row in read_rows(tmp_path / "runs" / "probed", "probes")] == [1, 2, 3]

    original = Memory.read

    def read(memory: Memory, clip: Any) -> np.ndarray:
        assert memory.load.__name__ != "read", "audio was decoded although its frames are cached"  # type: ignore[attr-defined]
        return original(memory, clip)  # the features'

    monkeypatch.setattr(Memory, "read", read)
    guided = cli(
        "train",
        codec_recipe(tmp_path, networks, "dac", stage__guidance__schedule="constant"),
        "--name",
        "guided",
    )
    assert guided.code == 0, guided.stderr
    rows = [row for row in read_rows(tmp_path / "runs" / "guided") if "train/loss" in row]
    assert all(np.isfinite(row["stage/guidance/cosine_block1"]) for row in rows)


def test_kill_9_while_the_cache_is_filled(
    networks: dict[str, Path], cli: Cli, tmp_path: Path
) -> None:
    """Frames computed before the kill are kept, and the losses equal an uninterrupted run's."""
    recipe = codec_recipe(tmp_path, networks, "dac")

    def work() -> None:
        from stagecli.data import cache

        count = 0

        def seventh(*_: object, **__: object) -> bool:
            nonlocal count
            count += 1
            return count == 7

        die_at(cache.FeatureCache, "put", seventh)
        run_cli("train", recipe, cwd=tmp_path)

    process = forked(work)
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    kept = cached(tmp_path, "frames")
    assert len(kept) == 6
    result = cli("train", recipe)
    assert result.code == 0, result.stderr
    full = cached(tmp_path, "frames")
    assert len(full) == CLIPS
    assert {name: full[name] for name in kept} == kept, "computed again"
    whole = cli("train", recipe, "--name", "whole", "--set", 'data.cache_dir="other"')
    assert whole.code == 0
    assert losses_of(tmp_path / "runs" / "dac") == losses_of(tmp_path / "runs" / "whole")


def test_other_weights_are_other_features(
    networks: dict[str, Path], cli: Cli, tmp_path: Path
) -> None:
    """The cache identifies a codec by its weights, not by its folder."""
    import torch
    import transformers

    recipe = codec_recipe(tmp_path, networks, "dac", codec__model=str(tmp_path / "mine"))
    config = transformers.DacConfig.from_pretrained(networks["dac"])
    for seed in (1, 2):
        torch.manual_seed(seed)
        transformers.DacModel(config).save_pretrained(tmp_path / "mine")
        assert cli("train", recipe, "--prepare-only").code == 0
        assert len(cached(tmp_path, "frames")) == seed * CLIPS


def test_a_frozen_text_encoder(networks: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    from stagecli.condition.text import LONG_CAPTION, PretrainedText

    recipe = text_recipe(tmp_path, networks)
    first = cli("train", recipe)
    assert first.code == 0, first.stderr
    before = cached(tmp_path, "text")
    assert before

    embedded: list[str] = []
    embed = PretrainedText.embed

    def counted(encoder: PretrainedText, captions: list[str]) -> Any:
        embedded.extend(captions)
        return embed(encoder, captions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainedText, "embed", counted)
        again = cli("train", recipe, "--name", "again", "--set", "train.samples=0")
    assert again.code == 0, again.stderr
    assert embedded == [LONG_CAPTION]  # the check at the start; captions come from the cache
    assert cached(tmp_path, "text") == before
    assert losses_of(tmp_path / "runs" / "again") == losses_of(tmp_path / "runs" / "t5")
    used(cli, tmp_path, "t5")
    # The caption reaches the audio: another prompt with the same noise gives another clip.
    for prompt in ("a loud bell", "soft rain"):
        assert (
            cli(
                "sample", "runs/t5", "-p", prompt, "-o", f"{prompt[0]}.wav", "--checkpoint", "3"
            ).code
            == 0
        )
    assert sha(tmp_path / "a.wav") != sha(tmp_path / "s.wav")


def test_a_network_that_cannot_be_loaded_is_refused_before_any_step(
    networks: dict[str, Path], cli: Cli, tmp_path: Path
) -> None:
    codec = cli(
        "train", codec_recipe(tmp_path, networks, "dac", codec__model=str(tmp_path / "gone"))
    )
    assert (
        codec.code == 2
        and str(tmp_path / "gone") in codec.stderr
        and "Traceback" not in codec.stderr
    )
    os.mkdir(tmp_path / "empty")
    text = cli("train", text_recipe(tmp_path, {"t5": tmp_path / "empty"}))
    assert text.code == 2 and "empty" in text.stderr and "Traceback" not in text.stderr
    rate = cli(
        "train", codec_recipe(tmp_path, networks, "dac", data__sample_rate=16000), "--name", "rate"
    )
    assert rate.code == 2 and "8000 Hz, the recipe at 16000 Hz" in rate.stderr
    assert not list(tmp_path.glob("runs/*/metrics.jsonl"))
    # The corrected recipe takes the same name.
    assert cli("train", codec_recipe(tmp_path, networks, "dac")).code == 0
