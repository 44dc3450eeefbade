"""SSL encoders from the bundles of `torchaudio.pipelines`, by name (WAV2VEC2_BASE, HUBERT_BASE, WAVLM_BASE, ...)."""

from __future__ import annotations

import difflib
from typing import Any

import torch.nn.functional as F
import torchaudio
from torch import Tensor

from stagecli.errors import StageError
from stagecli.hub import reason
from stagecli.ssl.base import Encoder, Grid, Layer, average, choose_layers, recorded


def bundle_names() -> list[str]:
    """Names of the bundles that are SSL encoders, fine-tuned ones included."""
    names = torchaudio.pipelines.__all__
    return [
        n
        for n in names
        if isinstance(getattr(torchaudio.pipelines, n), torchaudio.pipelines.Wav2Vec2Bundle)
    ]


def load(model: str, layer: Layer = -1) -> Encoder:
    """A frozen encoder by the name of its bundle; its weights are downloaded once and kept by torch.hub.

    layer: see `choose_layers`. Raises StageError: no such bundle, weights out of reach, no such layer.
    """
    names = bundle_names()
    if model not in names:
        near = difflib.get_close_matches(model.upper(), names, 1) or ["WAV2VEC2_BASE"]
        raise StageError(
            f"torchaudio has no SSL bundle {model!r}",
            hint=f"did you mean {near[0]}? Bundles: {', '.join(names)}",
        )
    bundle = getattr(torchaudio.pipelines, model)
    try:
        network = bundle.get_model()
    except (
        Exception
    ) as error:  # no network, a proxy, a broken file, a read-only cache: all different classes
        raise StageError(
            f"the weights of the torchaudio bundle {model} cannot be had ({reason(error)})",
            hint="copy $TORCH_HOME/hub/checkpoints (by default ~/.cache/torch/hub/checkpoints) from a machine "
            'with access, or use kind "transformers" with a local folder',
        ) from error
    return BundleEncoder(network, int(bundle.sample_rate), f"torchaudio:{model}", layer)


class BundleEncoder(Encoder):
    """A `Wav2Vec2Model` of torchaudio: waveform in, one feature per 20 ms in the published ones."""

    def __init__(self, network: Any, sample_rate: int, name: str, layer: Layer) -> None:
        # Large models come wrapped in a layer norm over the whole batch, so that a clip's features would
        # depend on its neighbours: unwrap, and normalise clip by clip as for a batch of one.
        standardised = bool(getattr(network, "normalize_waveform", False))
        network = getattr(network, "model", network)
        blocks = network.encoder.transformer.layers
        convolutions = network.feature_extractor.conv_layers
        layers = choose_layers(layer, len(blocks), name)
        super().__init__(
            network,
            name=name,
            sample_rate=sample_rate,
            band=sample_rate / 2,
            dimension=int(network.encoder.transformer.layer_norm.normalized_shape[0]),
            layers=layers,
            grid=Grid.of_convolutions(
                [c.kernel_size for c in convolutions], [c.stride for c in convolutions]
            ),
        )
        self.standardised = standardised
        self.depth = len(blocks)
        del blocks[max(layers[-1], 1) :]

    def encode(self, audio_BN: Tensor) -> Tensor:
        if self.standardised:
            audio_BN = F.layer_norm(audio_BN, audio_BN.shape[-1:])
        network: Any = self.network
        with recorded(network.encoder.transformer.layers) as states:
            # Without `aux`, the word classifier of fine-tuned models.
            out_BLD = network.encoder(network.feature_extractor(audio_BN, None)[0])
        if self.layers[-1] == self.depth:
            states[self.depth] = out_BLD
        return average(states, self.layers)
