"""Tiny random checkpoints of SSL encoders, saved in the layout that is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")


def save_wave(folder: Path, kind: str, do_normalize: bool = True, **changes: Any) -> None:
    names = {
        "wav2vec2": "Wav2Vec2",
        "hubert": "Hubert",
        "wavlm": "WavLM",
        "data2vec-audio": "Data2VecAudio",
    }
    config = getattr(transformers, f"{names[kind]}Config")(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[8, 8],
        conv_kernel=[10, 3],
        conv_stride=[5, 2],
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2,
        vocab_size=8,
        **({"conv_pos_kernel_size": 3} if kind == "data2vec-audio" else {}),
        **changes,
    )
    getattr(transformers, f"{names[kind]}Model")(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)


def save_ast(folder: Path) -> None:
    config = transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_length=64,
        num_mel_bins=32,
    )
    # As published: the classifier's checkpoint, its encoder under a prefix.
    transformers.ASTForAudioClassification(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(folder)


def save_whisper(folder: Path) -> None:
    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=3,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        vocab_size=16,
        num_mel_bins=16,
        max_source_positions=50,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)


def clap_config(**changes: Any) -> Any:
    return transformers.ClapAudioConfig(
        spec_size=64,
        num_mel_bins=16,
        patch_size=4,
        patch_stride=[4, 4],
        depths=[2, 1],
        num_attention_heads=[2, 2],
        window_size=4,
        patch_embeds_hidden_size=8,
        hidden_size=16,
        **changes,
    )


def save_clap(folder: Path, truncation: str = "rand_trunc", **changes: Any) -> None:
    text = transformers.ClapTextConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    # A whole CLAP, both towers, as published.
    config = transformers.ClapConfig(
        text_config=text.to_dict(),
        audio_config=clap_config(**changes).to_dict(),
        projection_dim=8,
        hidden_size=16,
    )
    model = transformers.ClapModel(config)
    model.audio_model.audio_encoder.batch_norm.running_mean.fill_(-40.0)
    model.audio_model.audio_encoder.batch_norm.running_var.fill_(400.0)
    model.save_pretrained(folder)
    transformers.ClapFeatureExtractor(
        feature_size=16, max_length_s=1, truncation=truncation
    ).save_pretrained(folder)
