"""Neural codecs from `transformers` checkpoints, used through their continuous latents.

The frames are the encoder's output before quantisation and the decoder is fed with frames directly, so
diffusion works on a continuous space and decoding stays differentiable. DAC: Kumar et al. 2023
(arXiv 2306.06546); EnCodec: Defossez et al. 2022 (arXiv 2210.13438).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stagecli.codec.base import Codec
from stagecli.errors import StageError

_CLASSES = {"dac": "DacModel", "encodec": "EncodecModel"}  # model_type in config.json -> transformers class
_LOCAL_HINT = (
    "name a local folder with config.json and model.safetensors (made by save_pretrained, or by "
    "`hf download ID --local-dir FOLDER` on a machine with access)"
)


def _looks_local(source: str) -> bool:
    """Whether a name that does not exist on disk was meant as a path: a hub id is `name` or `owner/name`."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith("/")


def _locate(source: str) -> tuple[str, bool]:
    """Name in the recipe -> (name for transformers, is it a folder).

    Raises StageError where a folder is missing or has no config.json.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise StageError(f"codec folder {source} has no config.json", hint=_LOCAL_HINT)
        return str(folder), True
    if folder.exists():
        raise StageError(f"codec {source} is a file, not a folder", hint=_LOCAL_HINT)
    if _looks_local(source):
        raise StageError(f"codec folder {source} does not exist", hint=_LOCAL_HINT)
    return source, False


def _reason(error: Exception) -> str:
    """First line of an error of the hub client or of transformers."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load_config(source: str, local: bool) -> Any:
    """Config of a checkpoint; StageError where it cannot be read or is no codec we know."""
    from transformers import PretrainedConfig

    try:
        # Only the plain dictionary: an unknown architecture then gets our message, and no remote
        # code can come into play.
        plain, _ = PretrainedConfig.get_config_dict(source, local_files_only=local)
    except Exception as error:  # the hub client raises a different class for each way to be unreachable
        what = "config.json cannot be read" if local else "cannot be fetched from the model hub"
        raise StageError(f"codec {source}: {what} ({_reason(error)})", hint=_LOCAL_HINT) from error
    model_type = plain.get("model_type") if plain else None
    if not plain:
        raise StageError(f"codec {source} cannot be fetched from the model hub", hint=_LOCAL_HINT)
    if model_type not in _CLASSES:
        raise StageError(
            f"codec {source} is a model of type {model_type!r}, which is not supported",
            hint="use a DAC or an EnCodec checkpoint (model_type dac or encodec), or a spectral codec",
        )
    import transformers

    try:
        return getattr(transformers, _CLASSES[model_type]).config_class.from_dict(plain)
    except Exception as error:  # config validation has its own exception classes
        raise StageError(f"codec {source}: config.json is not valid ({_reason(error)})") from error


def _load_model(source: str, local: bool, config: Any) -> nn.Module:
    """Weights of a checkpoint in float32; StageError where they are missing or do not fit the config."""
    import transformers

    model_class = getattr(transformers, _CLASSES[config.model_type])
    try:
        model, info = model_class.from_pretrained(
            source,
            config=config,
            local_files_only=local,
            use_safetensors=True,  # the other format is a pickle
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # see `_load_config`; mismatched shapes are a RuntimeError
        raise StageError(
            f"codec {source}: the weights cannot be loaded ({_reason(error)})", hint=_LOCAL_HINT
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise StageError(
            f"codec {source}: the checkpoint lacks {len(missing)} tensors, first {missing[0]}",
            hint="download or save the checkpoint again; a random codec would train without a warning",
        )
    return model


class NeuralCodec(Codec):
    """Continuous latents of a frozen DAC or EnCodec checkpoint.

    source: hub id (`descript/dac_44khz`) or a local folder; sample_rate: the recipe's, Hz, which must
    be the model's. T = ceil(N / hop), hop and C come from the model's config. Gradients flow
    through both ways, never into the weights.

    Raises StageError: folder missing, hub out of reach, unsupported model, wrong sample rate, incomplete
    weights.
    """

    def __init__(self, source: str, *, sample_rate: int) -> None:
        name, local = _locate(str(source))
        config = _load_config(name, local)
        rate = int(config.sampling_rate)
        if rate != sample_rate:
            raise StageError(
                f"codec {source} works at {rate} Hz, the recipe says {sample_rate} Hz",
                hint=f"set the recipe's sample rate to {rate}, or choose a {sample_rate} Hz checkpoint",
            )
        if getattr(config, "audio_channels", 1) != 1 or getattr(config, "normalize", False):
            # With `normalize` the loudness of every chunk travels beside the latents and would be lost.
            raise StageError(
                f"codec {source} is a stereo or loudness-normalising EnCodec, which is not supported",
                hint="use a mono checkpoint without normalisation, such as facebook/encodec_24khz",
            )
        super().__init__(
            sample_rate=rate, hop=int(config.hop_length), channels=int(config.hidden_size), is_network=True
        )
        self.source = str(source)
        self.model: Any = _load_model(name, local, config).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> NeuralCodec:
        """Stay in evaluation mode whatever the caller asks: the codec is frozen."""
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

    def synthesise(self, raw_BTC: Tensor) -> Tensor:
        """Latents [B, T, C] -> audio [B, T * hop]."""
        audio_BN = self.model.decoder(raw_BTC.transpose(1, 2))[:, 0]
        samples = raw_BTC.shape[1] * self.hop
        # Transposed convolutions of odd stride (DAC at 16 and 24 kHz) end a few samples short.
        return nn.functional.pad(audio_BN[:, :samples], (0, max(0, samples - audio_BN.shape[1])))
