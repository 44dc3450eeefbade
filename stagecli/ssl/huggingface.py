"""SSL encoders from `transformers` checkpoints: hub id or local folder.

wav2vec 2.0, HuBERT, WavLM and data2vec-audio read the waveform; AST, CLAP's audio tower and
Whisper's encoder read mel frames. Each gets its own input normalisation, from the checkpoint's
preprocessor_config.json.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecli.errors import StageError
from stagecli.hub import DAMAGED, Checkpoint, explained, open_checkpoint
from stagecli.ssl.base import Encoder, Grid, Layer, choose_layers, mean_of_layers, recorded
from stagecli.ssl.frontend import KaldiMel, LogMel, fill, standardise, whisper_range

# model_type in config.json -> class of the model, class of its feature extractor.
_WAVE = {
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2FeatureExtractor"),
    "hubert": ("HubertModel", "Wav2Vec2FeatureExtractor"),
    "wavlm": ("WavLMModel", "Wav2Vec2FeatureExtractor"),
    "data2vec-audio": ("Data2VecAudioModel", "Wav2Vec2FeatureExtractor"),
}
_MEL = {
    "audio-spectrogram-transformer": ("ASTModel", "ASTFeatureExtractor"),
    "clap": ("ClapAudioModelWithProjection", "ClapFeatureExtractor"),
    "clap_audio_model": ("ClapAudioModelWithProjection", "ClapFeatureExtractor"),
    "whisper": ("WhisperModel", "WhisperFeatureExtractor"),
}
_FAMILIES = _WAVE | _MEL
MODEL_TYPES = tuple(_FAMILIES)


def load_encoder(model: str, layer: Layer = -1) -> Encoder:
    """A frozen encoder from a hub id or a folder.

    layer: see `choose_layers`. Raises StageError: folder missing, hub unreachable, unsupported
    model type, no feature extractor, no such layer, weights missing or incomplete.
    """
    # WavLM and HuBERT are published as .bin only.
    checkpoint = open_checkpoint(model, "encoder", pickled=True)
    kind = checkpoint.model_type
    if kind not in _FAMILIES:
        raise StageError(
            f"encoder {model} is a model of type {kind!r}, which is not supported",
            hint=f"use a checkpoint of one of these types: {', '.join(MODEL_TYPES)}",
        )
    # Values of another type or size in its configs lead to errors anywhere below.
    with explained(f"{checkpoint.name} cannot be used", DAMAGED):
        extractor = load_extractor(checkpoint, _FAMILIES[kind][1])
        network = _load_network(checkpoint)
        return _CLASSES.get(kind, WaveEncoder)(network, extractor, f"transformers:{model}", layer)


def load_extractor(checkpoint: Checkpoint, class_name: str) -> Any:
    """The numpy feature extractor, for its settings and filters.

    Raises StageError when the checkpoint has none.
    """
    import transformers

    extractor_class = getattr(transformers, class_name)
    message = (
        f"{checkpoint.name}: preprocessor_config.json cannot be read, "
        "so its input normalisation is unknown"
    )
    hint = (
        "put the checkpoint's own preprocessor_config.json beside its config.json "
        f"({class_name}.save_pretrained writes it)"
    )
    with explained(message, hint):
        folder = str(checkpoint.folder)
        plain, _ = extractor_class.get_feature_extractor_dict(folder, local_files_only=True)
        return extractor_class.from_dict(plain)


def _load_network(checkpoint: Checkpoint) -> Any:
    """The part of a checkpoint that encodes audio, with its weights.

    Raises StageError when weights are missing or do not fit the config.
    """
    import transformers

    kind = checkpoint.model_type
    plain = checkpoint.config
    class_name = _FAMILIES[kind][0]
    if kind == "clap":
        # A whole CLAP: the audio tower has a config of its own and the same tensor names.
        plain = {
            **plain.get("audio_config", {}),
            "projection_dim": plain.get("projection_dim", 512),
        }
    elif kind == "clap_audio_model" and plain.get("architectures") == ["ClapAudioModel"]:
        class_name = "ClapAudioModel"
    model_class = getattr(transformers, class_name)
    config = checkpoint.typed_config(model_class.config_class, plain)
    if getattr(config, "add_adapter", False):
        # Layers after the last block that shorten its output, for speech translation.
        config.add_adapter = False

    def needed(name: str) -> bool:
        # The mask token is for pre-training only; of Whisper only the encoder is kept.
        return "masked_spec_embed" not in name and (
            kind != "whisper" or name.startswith("encoder.")
        )

    model = checkpoint.model(model_class, config, needed=needed)
    if kind == "whisper":
        return model.encoder
    return model.audio_model if class_name == "ClapAudioModelWithProjection" else model


def _blocks(network: Any) -> nn.ModuleList:
    """The transformer blocks, wherever the installed release of `transformers` keeps them."""
    if hasattr(network, "audio_encoder"):
        return network.audio_encoder.layers
    owner = network.encoder if hasattr(network, "encoder") else network
    return owner.layers if hasattr(owner, "layers") else owner.layer


class _Transformer(Encoder):
    """An encoder of equally wide blocks; those above the highest layer returned are dropped."""

    def __init__(
        self,
        network: Any,
        *,
        name: str,
        layer: Layer,
        sample_rate: int,
        band: float,
        grid: Grid,
    ) -> None:
        blocks = _blocks(network)
        layers = choose_layers(layer, len(blocks), name)
        super().__init__(
            network,
            name=name,
            sample_rate=sample_rate,
            band=band,
            dimension=int(network.config.hidden_size),
            layers=layers,
            grid=grid,
        )
        self.depth = len(blocks)
        del blocks[max(layers[-1], 1) :]

    def hidden(self, inputs: Tensor) -> Tensor:
        """The network's input -> the chosen layer, or the mean of several, [B, L, D]."""
        blocks = _blocks(self.network)
        with recorded(blocks) as states:
            last_BLD = self.network(inputs).last_hidden_state
        if self.layers[-1] == self.depth:
            states[self.depth] = last_BLD
        return mean_of_layers(states, self.layers)


class WaveEncoder(_Transformer):
    """wav2vec 2.0, HuBERT, WavLM, data2vec-audio: waveform in, 20 ms per feature as published."""

    def __init__(self, network: Any, extractor: Any, name: str, layer: Layer) -> None:
        rate = int(extractor.sampling_rate)
        grid = Grid.of_convolutions(network.config.conv_kernel, network.config.conv_stride)
        super().__init__(
            network, name=name, layer=layer, sample_rate=rate, band=rate / 2, grid=grid
        )
        self.standardised = bool(extractor.do_normalize)

    def prepare(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> the network's input [B, N]."""
        return standardise(audio_BN) if self.standardised else audio_BN

    def encode(self, audio_BN: Tensor) -> Tensor:
        return self.hidden(self.prepare(audio_BN))


class ASTEncoder(_Transformer):
    """Audio Spectrogram Transformer: patches of filter banks, averaged over frequency.

    One feature per time stride of the patches (100 ms as published); a window is 10.24 s.
    """

    def __init__(self, network: Any, extractor: Any, name: str, layer: Layer) -> None:
        config = network.config
        rate = int(extractor.sampling_rate)
        mel = KaldiMel(sample_rate=rate, n_mels=config.num_mel_bins)
        chunk = (config.max_length - config.patch_size) // config.time_stride + 1
        grid = Grid(
            first=mel.length + (config.patch_size - 1) * mel.hop,
            hop=config.time_stride * mel.hop,
            chunk=chunk,
            window=mel.length + (config.max_length - 1) * mel.hop,
        )
        super().__init__(
            network, name=name, layer=layer, sample_rate=rate, band=rate / 2, grid=grid
        )
        self.mel = mel
        self.length = int(config.max_length)
        self.times = chunk
        normalised = bool(extractor.do_normalize)
        self.mean = float(extractor.mean) if normalised else 0.0
        self.std = float(extractor.std) if normalised else 0.5

    def prepare(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N], at most one window -> filter banks [B, T, C], padded to a whole window."""
        mel_BTC = self.mel(audio_BN)
        # Zeros go in before the normalisation, as in training.
        mel_BTC = F.pad(mel_BTC, (0, 0, 0, self.length - mel_BTC.shape[1]))
        return (mel_BTC - self.mean) / (2 * self.std)

    def encode(self, audio_BN: Tensor) -> Tensor:
        # Two class tokens, then the patches, frequency by frequency.
        patches_BPD = self.hidden(self.prepare(audio_BN))[:, 2:]
        return patches_BPD.unflatten(1, (-1, self.times)).mean(1)


class WhisperEncoder(_Transformer):
    """Encoder of Whisper: audio is padded to 30 s, its features cropped to the real length."""

    def __init__(self, network: Any, extractor: Any, name: str, layer: Layer) -> None:
        rate = int(extractor.sampling_rate)
        chunk = int(network.config.max_source_positions)
        hop = 2 * int(extractor.hop_length)  # the second convolution has stride 2
        if chunk * hop != extractor.n_samples:
            raise StageError(
                f"encoder {name}: its feature extractor returns {extractor.n_samples} samples, "
                f"its network reads {chunk * hop}",
                hint="use the preprocessor_config.json that belongs to the checkpoint",
            )
        grid = Grid(first=hop, hop=hop, chunk=chunk, window=chunk * hop)
        # Whisper's filters end at 8 kHz whatever the rate.
        super().__init__(
            network,
            name=name,
            layer=layer,
            sample_rate=rate,
            band=min(8000.0, rate / 2),
            grid=grid,
        )
        filters_FC = torch.from_numpy(extractor.mel_filters)
        self.mel = LogMel(filters_FC, n_fft=int(extractor.n_fft), hop=int(extractor.hop_length))
        self.length = int(extractor.n_samples)

    def prepare(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N], at most 30 s -> log-mel [B, C, T] of 30 s."""
        log_BTC = self.mel(F.pad(audio_BN, (0, self.length - audio_BN.shape[1])))[:, :-1]
        return whisper_range(log_BTC).transpose(1, 2)

    def encode(self, audio_BN: Tensor) -> Tensor:
        return self.hidden(self.prepare(audio_BN))


class CLAPEncoder(Encoder):
    """Audio tower of CLAP (HTSAT, a Swin transformer), averaged over frequency; a window is 10 s.

    Layer k is the output of stage k before downsampling; each stage has twice the width and half
    the frame rate of the one before, so layers cannot be averaged. A "fused" checkpoint is used
    through its global branch, because the feature extractor sends one random clip of each batch
    through the other one.
    """

    def __init__(self, network: Any, extractor: Any, name: str, layer: Layer) -> None:
        # One layer: those of a Swin transformer differ in shape.
        config = network.config
        rate = int(extractor.sampling_rate)
        blocks = _blocks(network)
        layers = choose_layers(layer, len(blocks), name)
        if len(layers) > 1:
            raise StageError(
                f"encoder {name}: the layers of CLAP differ in width and frame rate "
                "and cannot be averaged",
                hint=f"choose one layer from 0 to {len(blocks)}",
            )

        # Time of one feature at that layer.
        stage = max(layers[0] - 1, 0)
        ratio = int(config.spec_size // config.num_mel_bins)
        side = int(network.audio_encoder.input_resolutions[stage][0])
        chunk = ratio * side  # the image is `ratio` stretches of time, stacked in frequency
        length = int(extractor.nb_max_samples)
        if length % chunk:
            raise StageError(
                f"encoder {name}: its window of {length} samples is not a multiple "
                f"of its {chunk} features",
                hint="use the preprocessor_config.json that belongs to the checkpoint",
            )
        hop = length // chunk
        super().__init__(
            network,
            name=name,
            sample_rate=rate,
            band=min(float(extractor.frequency_max), rate / 2),
            dimension=int(config.patch_embeds_hidden_size * 2**stage),
            layers=layers,
            grid=Grid(first=hop, hop=hop, chunk=chunk, window=length),
        )

        # The extractor's front end, rebuilt for batches on any device.
        self.ratio = ratio
        self.side = side
        fused = extractor.truncation == "fusion"
        filters_FC = torch.from_numpy(
            extractor.mel_filters if fused else extractor.mel_filters_slaney
        )
        self.mel = LogMel(
            filters_FC, n_fft=int(extractor.fft_window_size), hop=int(extractor.hop_length)
        )
        self.length = length
        self.padding = str(extractor.padding)
        self.copies = 4 if config.enable_fusion else 1
        self.is_last = layers[0] == len(blocks)

    def prepare(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N], at most 10 s -> mel in decibels [B, 1 or 4, T, C] of 10 s."""
        decibels_BTC = 10 * self.mel(fill(audio_BN, self.length, self.padding))
        return decibels_BTC[:, None].expand(-1, self.copies, -1, -1)

    def encode(self, audio_BN: Tensor) -> Tensor:
        mel_BKTC = self.prepare(audio_BN)
        tower: Any = self.network.audio_encoder
        longer_B1 = torch.zeros(len(mel_BKTC), 1, dtype=torch.bool, device=mel_BKTC.device)
        with recorded(tower.layers, item=1) as states:
            tower(mel_BKTC, is_longer=longer_B1)
        tokens_BPD = states[self.layers[0]]
        if self.is_last:
            tokens_BPD = tower.norm(tokens_BPD)
        # Rows of the image: stretch of time, then frequency; columns: time.
        image_BSFTD = tokens_BPD.unflatten(1, (self.ratio, self.side // self.ratio, self.side))
        return image_BSFTD.mean(2).flatten(1, 2)


_CLASSES: dict[str, Any] = {
    "audio-spectrogram-transformer": ASTEncoder,
    "clap": CLAPEncoder,
    "clap_audio_model": CLAPEncoder,
    "whisper": WhisperEncoder,
}
"""model_type -> encoder, of those that read mel frames."""
