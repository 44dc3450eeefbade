"""SSL encoders from the bundles of `torchaudio.pipelines`, such as WAV2VEC2_BASE."""

from __future__ import annotations

import difflib
from typing import Any

import torch.nn.functional as F
import torchaudio
from torch import Tensor

from stagecli.errors import StageError
from stagecli.hub import explained
from stagecli.ssl.base import Encoder, Grid, Layer, choose_layers, mean_of_layers, recorded


def bundle_names() -> list[str]:
    """Names of the bundles that are SSL encoders, fine-tuned ones included."""
    pipelines = torchaudio.pipelines
    return [
        name
        for name in pipelines.__all__
        if isinstance(getattr(pipelines, name), pipelines.Wav2Vec2Bundle)
    ]


def load_encoder(model: str, layer: Layer = -1) -> Encoder:
    """A frozen encoder by the name of its bundle; torch.hub downloads the weights once.

    layer: see `choose_layers`. Raises StageError: unknown bundle, weights out of reach, no such
    layer.
    """
    names = bundle_names()
    if model not in names:
        near = difflib.get_close_matches(model.upper(), names, 1) or ["WAV2VEC2_BASE"]
        raise StageError(
            f"torchaudio has no SSL bundle {model!r}",
            hint=f"did you mean {near[0]}? Bundles: {', '.join(names)}",
        )
    bundle = getattr(torchaudio.pipelines, model)
    message = f"could not obtain the weights of the torchaudio bundle {model}"
    hint = (
        "copy $TORCH_HOME/hub/checkpoints (by default ~/.cache/torch/hub/checkpoints) from a "
        'machine with access, or use kind "transformers" with a local folder'
    )
    with explained(message, hint):  # no network, a broken file, a read-only cache
        network = bundle.get_model()
    return BundleEncoder(network, int(bundle.sample_rate), f"torchaudio:{model}", layer)


class BundleEncoder(Encoder):
    """A `Wav2Vec2Model` of torchaudio: reads the waveform, one feature per 20 ms as published."""

    def __init__(self, network: Any, sample_rate: int, name: str, layer: Layer) -> None:
        # Large models come wrapped in a layer norm over the whole batch, so that a clip's features
        # would depend on its neighbours: unwrap, and normalise each clip as a batch of one.
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
            last_BLD = network.encoder(network.feature_extractor(audio_BN, None)[0])
        if self.layers[-1] == self.depth:
            states[self.depth] = last_BLD
        return mean_of_layers(states, self.layers)
