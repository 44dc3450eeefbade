"""A trained network with its codec and encoders: prompts -> audio, low resolution -> full band."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagecli.codec import load_first_codec_state, make_codec
from stagecli.codec.base import Codec
from stagecli.condition.low import kept_band, level_gain, splice
from stagecli.condition.text import PretrainedText, byte_ids, text_encoder
from stagecli.data.cache import Count
from stagecli.data.examples import pad_texts, stream
from stagecli.errors import StageError
from stagecli.flow import sampler
from stagecli.generate.edit import Edit
from stagecli.generate.settings import SamplerSettings
from stagecli.generate.trained import Trained, find_trained
from stagecli.generate.windows import velocity_of_windows
from stagecli.model.dit import Conditioning
from stagecli.model.network import Network
from stagecli.runs import checkpoint
from stagecli.runs.integrity import Warn
from stagecli.schema import Recipe

NOISE_STREAM = 100  # number of the random stream of sampling noise; training uses others


class Pipeline:
    """Codec, network and text encoder of a run, on one device, for generation only."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        codec: Codec,
        network: Network,
        text: PretrainedText | None,
        device: torch.device,
        autocast: Callable[[], Any] = nullcontext,
    ) -> None:
        self.recipe = recipe
        self.codec = codec
        self.network = network
        self.text = text
        self.device = device
        self.autocast = autocast
        self.sample_rate = recipe.data.sample_rate
        self.num_samples = round(recipe.data.seconds * recipe.data.sample_rate)

    def conditioning(self, captions: Sequence[str]) -> Conditioning:
        """Encoded captions, one row each; an empty condition for recipes without text."""
        if self.recipe.condition.text == "none":
            return Conditioning()
        if self.text is not None:
            text, mask = pad_texts(self.text.embed(captions))
            return self.network.encode_condition(
                {"text": text.to(self.device), "text_mask": mask.to(self.device)}
            )
        ids = byte_ids(captions, self.recipe.condition.max_length)
        return self.network.encode_condition({"text_ids": ids.to(self.device)})

    def noise(self, shape: tuple[int, int], seed: int, index: int) -> Tensor:
        """Noise [T, C] that depends on (seed, index) alone, so that batching has no effect."""
        values = stream(seed, NOISE_STREAM, index).standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(values).to(self.device)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int,
        settings: SamplerSettings,
        seconds: float | None = None,
        indices: Sequence[int] | None = None,
        negative_prompt: str = "",
        progress: Count | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> list[np.ndarray]:
        """One clip [N] per prompt; clip i depends on (seed, i) and its prompt, not on the batch.

        seconds: length, default: that of training; indices: the i of each prompt, if the prompts
        are a subset of a longer list (default: 0, 1, ...); progress: counts clips; negative_prompt,
        after_step: as in `generate_from`.
        """
        length = self.clip_length(seconds)
        shape = (self.codec.frames(length), self.codec.channels)
        indices = indices or range(len(prompts))
        clips: list[np.ndarray] = []
        for start in range(0, len(prompts), settings.batch_size):
            batch = slice(start, start + settings.batch_size)
            clips += self.generate_from(
                torch.stack([self.noise(shape, seed, i) for i in indices[batch]]),
                prompts[batch],
                length,
                settings=settings,
                negative_prompt=negative_prompt,
                after_step=after_step,
            )
            if progress:
                progress(len(clips), len(prompts))
        return clips

    def clip_length(self, seconds: float | None = None) -> int:
        """Audio samples of a generated clip; default: the length of training."""
        return self.num_samples if seconds is None else round(seconds * self.sample_rate)

    @torch.no_grad()
    def generate_from(
        self,
        noise_BTC: Tensor,
        prompts: Sequence[str],
        length: int,
        *,
        settings: SamplerSettings,
        negative_prompt: str = "",
        edit: Edit | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> list[np.ndarray]:
        """One clip [length] per prompt from given noise, all in one batch.

        negative_prompt: what classifier-free guidance leads away from, in place of no prompt; edit:
        the audio to start from; after_step: called with the number of the sampler's steps done.
        """
        self.network.eval()
        velocity = sampler.classifier_free(
            partial(self._velocity, self.conditioning(prompts)),
            partial(self._velocity, self.conditioning([negative_prompt] * len(prompts))),
            settings.cfg_scale,
            settings.cfg_interval,
        )
        x_BTC = noise_BTC
        start = 1.0
        if edit is not None:
            velocity = edit.constrained(velocity)
            x_BTC = edit.noised(noise_BTC)
            start = edit.strength
        frames_BTC = _solve(velocity, x_BTC, settings, after_step, start)
        decoded_BN = self.codec.decode(self.codec.limit(frames_BTC), length)
        return list(decoded_BN.float().cpu().numpy())

    def restore(
        self,
        low_N: np.ndarray,
        cutoff: float,
        *,
        seed: int,
        settings: SamplerSettings,
        index: int = 0,
        prompt: str = "",
        advance: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Full-band audio [N] from audio [N] at the model's rate that is empty above `cutoff` Hz.

        The level and the band below the cutoff are those of the input. Inputs of any length:
        windows of the training length overlap by half and share one diffusion state. advance:
        called with a number of windows, `restore_windows` of them in all.
        """
        return self.restore_many(
            [low_N],
            cutoff,
            seed=seed,
            settings=settings,
            indices=[index],
            prompts=[prompt],
            advance=advance,
        )[0]

    def restore_windows(self, length: int, settings: SamplerSettings) -> int:
        """Number of windows that go through the network to restore `length` audio samples."""
        calls = sampler.velocity_calls(settings.sampler, settings.steps)
        return calls * len(sampler.window_starts(*self._window_grid(length)))

    def restored_at_once(self, length: int, settings: SamplerSettings) -> int:
        """Number of clips of `length` audio samples whose windows fill one batch."""
        return max(1, settings.batch_size // len(sampler.window_starts(*self._window_grid(length))))

    @torch.no_grad()
    def restore_many(
        self,
        lows: Sequence[np.ndarray],
        cutoff: float,
        *,
        seed: int,
        settings: SamplerSettings,
        indices: Sequence[int],
        prompts: Sequence[str],
        advance: Callable[[int], None] | None = None,
    ) -> list[np.ndarray]:
        """`restore` for several clips of one length, each with its own index and prompt.

        Raises ValueError if the lengths differ.
        """
        if len({len(low) for low in lows}) != 1 or not len(lows) == len(prompts) == len(indices):
            raise ValueError(
                "clips restored together must have one length, and an index and a prompt each"
            )
        shape = (self.codec.frames(len(lows[0])), self.codec.channels)
        return self.restore_from(
            torch.stack([self.noise(shape, seed, i) for i in indices]),
            lows,
            cutoff,
            gains=[level_gain(low) for low in lows],
            settings=settings,
            prompts=prompts,
            advance=advance,
        )

    @torch.no_grad()
    def restore_from(
        self,
        noise_BTC: Tensor,
        lows: Sequence[np.ndarray],
        cutoff: float,
        *,
        gains: Sequence[float],
        settings: SamplerSettings,
        prompts: Sequence[str],
        advance: Callable[[int], None] | None = None,
    ) -> list[np.ndarray]:
        """`restore_many` from given noise; gains: what scales each input to LEVEL."""
        # Encode the inputs at a common level.
        leveled = np.stack([low * gain for low, gain in zip(lows, gains, strict=True)])
        leveled_BN = torch.from_numpy(leveled.astype(np.float32)).to(self.device)
        low_BTC = self.codec.encode(leveled_BN)

        # The velocity of overlapping windows; in the kept band it leads to the input.
        length = leveled_BN.shape[1]
        frames, window, hop = self._window_grid(length)
        share = 2 * cutoff / self.sample_rate
        assert isinstance(self.codec.channel_hz, Tensor)
        band_BC = kept_band(
            self.codec.channel_hz, torch.tensor([share], device=self.device), self.sample_rate
        )
        level_B = torch.tensor([math.log10(gain) for gain in gains], device=self.device)
        of_windows = velocity_of_windows(
            self._velocity,
            low_BTC,
            share,
            band_BC=band_BC,
            level_B=level_B,
            text=self.conditioning(prompts),
            grid=(window, hop),
            advance=advance,
        )
        self.network.eval()
        velocity = sampler.windowed(of_windows, frames, window, hop, settings.batch_size)
        velocity = sampler.keep_band(velocity, low_BTC, band_BC)

        # Solve, decode, and return to the level of the input.
        decoded_BN = self.codec.decode(_solve(velocity, noise_BTC, settings), length)
        full_BN = decoded_BN.float().cpu().numpy()
        return [
            splice(low_N, full_N / gain, cutoff, self.sample_rate)
            for low_N, full_N, gain in zip(lows, full_BN, gains, strict=True)
        ]

    def _window_grid(self, length: int) -> tuple[int, int, int]:
        """(frames of `length` audio samples, frames of a window, frames between windows)."""
        window = self.codec.frames(self.num_samples)
        return self.codec.frames(length), window, max(1, window // 2)

    def _velocity(self, condition: Conditioning, x_BTC: Tensor, t: float) -> Tensor:
        t_B = torch.full((x_BTC.shape[0],), t, device=x_BTC.device)
        with self.autocast():
            return self.network(x_BTC, t_B, condition).velocity_BTC.float()


def _solve(
    velocity: sampler.Velocity,
    x_BTC: Tensor,
    settings: SamplerSettings,
    after_step: Callable[[int], None] | None = None,
    start: float = 1.0,
) -> Tensor:
    """Frames at t = 0 from x at t = start; after_step: called with the number of steps done."""

    def callback(step: int, _t: float, _x_BTC: Tensor) -> None:
        if after_step:
            after_step(step + 1)

    solve = sampler.SAMPLERS[settings.sampler]
    return solve(velocity, x_BTC, sampler.times(settings.steps, start=start), callback)


def default_device() -> torch.device:
    """CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_pipeline(
    home: Path,
    which: str = "latest",
    *,
    weights: str = "ema",
    warn: Warn | None = None,
    device: torch.device | None = None,
) -> tuple[Pipeline, Trained]:
    """Build the pipeline of a run or export; also returns the weights that it has.

    which: latest, best, or a step; weights: `ema` or `model`; warn: receives what is damaged and
    what is used instead; device: default: the best there is. Raises StageError.
    """
    # The weights, and the recipe that they were trained with.
    trained = find_trained(home, which, weights=weights, warn=warn)
    recipe = trained.recipe
    device = device or default_device()

    # The codec, and the network with its weights.
    codec = make_codec(recipe).to(device).eval()
    loaded, problems = load_first_codec_state(codec, trained.codecs)
    if loaded is None:
        raise StageError(
            "the codec statistics of the run cannot be used",
            problems=problems,
            hint="the same `stagecli train` command computes them again",
        )
    doubts = [*trained.doubts, *(f"{problem.where}: {problem.what}" for problem in problems)]
    for doubt in doubts:
        if warn is not None:
            warn(f"{doubt}; using that of {trained.name}")
    text = text_encoder(recipe, device)
    network = Network(recipe, channels=codec.channels, text_width=text.width if text else None)
    network = network.to(device)
    try:
        network.load_state_dict(checkpoint.load_weights(trained.path, weights))
    except RuntimeError as error:
        raise checkpoint.damaged(
            trained.path, f"its weights do not fit the recipe: {error}"
        ) from error
    pipeline = Pipeline(
        recipe=recipe, codec=codec, network=network.eval(), text=text, device=device
    )
    return pipeline, trained
