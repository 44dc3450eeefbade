"""Neural codecs from `transformers` checkpoints, used through their continuous latents.

The frames are the encoder's output before quantisation, and the decoder reads frames directly, so
diffusion works in a continuous space and decoding stays differentiable. DAC: Kumar et al., 2023
(arXiv 2306.06546); EnCodec: Defossez et al., 2022 (arXiv 2210.13438).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stagecli.codec.base import Codec
from stagecli.errors import StageError
from stagecli.hub import DAMAGED, Checkpoint, explained, open_checkpoint

_CLASSES = {"dac": "DacModel", "encodec": "EncodecModel"}
"""model_type in config.json -> class of `transformers`."""


def load_neural_codec(source: str, *, sample_rate: int) -> NeuralCodec:
    """The codec of a DAC or EnCodec checkpoint.

    source: hub id (`descript/dac_44khz`) or local folder; sample_rate: the recipe's, Hz, which must
    be the model's. Raises StageError: folder missing, hub unreachable, unsupported model, wrong
    sample rate, incomplete weights.
    """
    checkpoint = open_checkpoint(source, "codec")
    # Values of another type in config.json lead to errors anywhere below.
    with explained(f"{checkpoint.name} cannot be used", DAMAGED):
        return _load(checkpoint, sample_rate)


def _load(checkpoint: Checkpoint, sample_rate: int) -> NeuralCodec:
    """The codec of a checkpoint. Raises StageError where it does not fit the recipe."""
    source = checkpoint.source
    model_class = _model_class(checkpoint)
    config = checkpoint.typed_config(model_class.config_class)
    rate = int(config.sampling_rate)
    if rate != sample_rate:
        raise StageError(
            f"codec {source} works at {rate} Hz, the recipe at {sample_rate} Hz",
            hint=f"set the recipe's sample rate to {rate}, or choose a {sample_rate} Hz checkpoint",
        )
    if getattr(config, "audio_channels", 1) != 1 or getattr(config, "normalize", False):
        # With `normalize` the loudness of every chunk travels beside the latents and would be lost.
        raise StageError(
            f"codec {source} is a stereo or loudness-normalising EnCodec, which is not supported",
            hint="use a mono checkpoint without normalisation, such as facebook/encodec_24khz",
        )
    return NeuralCodec(checkpoint.model(model_class, config), config)


def _model_class(checkpoint: Checkpoint) -> Any:
    """Class of `transformers` for a checkpoint. Raises StageError when it is no supported codec."""
    import transformers

    model_type = checkpoint.model_type
    if model_type not in _CLASSES:
        raise StageError(
            f"{checkpoint.name} is a model of type {model_type!r}, which is not supported",
            hint="use a DAC or an EnCodec checkpoint (model_type dac or encodec), "
            "or a spectral codec",
        )
    return getattr(transformers, _CLASSES[model_type])


class NeuralCodec(Codec):
    """Continuous latents of a frozen DAC or EnCodec model.

    model, config: of `transformers`. T = ceil(N / hop); hop and C come from the config. Gradients
    flow through both ways, never into the weights.
    """

    def __init__(self, model: nn.Module, config: Any) -> None:
        super().__init__(
            sample_rate=int(config.sampling_rate),
            hop=int(config.hop_length),
            channels=int(config.hidden_size),
            is_network=True,
        )
        self.model: Any = model.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> NeuralCodec:
        """Stay in evaluation mode whatever `mode` is: the codec is frozen."""
        super().train(False)
        for module in self.model.modules():
            # cuDNN has no backward pass for an LSTM in evaluation mode. EnCodec's LSTM has no
            # dropout, so its output is the same in both modes.
            if isinstance(module, nn.LSTM):
                module.train()
        return self

    def analyse(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> encoder output before quantisation [B, T, C]."""
        frames = self.frames(audio_BN.shape[1])
        padded_BN = nn.functional.pad(audio_BN, (0, frames * self.hop - audio_BN.shape[1]))
        latent_BCT = self.model.encoder(padded_BN[:, None])
        return latent_BCT[..., :frames].transpose(1, 2)

    def synthesise(self, raw_BTC: Tensor, draft: bool = False) -> Tensor:
        """Latents [B, T, C] -> audio [B, T * hop]."""
        audio_BN = self.model.decoder(raw_BTC.transpose(1, 2))[:, 0]
        samples = raw_BTC.shape[1] * self.hop
        # Transposed convolutions of odd stride (DAC at 16 and 24 kHz) end a few samples short.
        return nn.functional.pad(audio_BN[:, :samples], (0, max(0, samples - audio_BN.shape[1])))
