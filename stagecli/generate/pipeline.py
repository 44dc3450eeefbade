"""A trained network with its codec and encoders: prompts -> audio, low-resolution audio -> full band."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagecli.codec import load_codec_state, make_codec
from stagecli.codec.base import Codec
from stagecli.condition.low import kept_band, level_gain, splice
from stagecli.condition.text import PretrainedText, byte_ids, text_encoder
from stagecli.data.cache import Count
from stagecli.data.examples import pad_texts, stream
from stagecli.errors import StageError
from stagecli.flow import sampler
from stagecli.model.dit import Conditioning
from stagecli.model.network import Network
from stagecli.recipe import load as recipes
from stagecli.runs import checkpoint
from stagecli.runs.directory import read_info
from stagecli.schema import Evaluate, Recipe

SAMPLE = 100  # random stream of sampling noise, apart from the training streams


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample; defaults come from the recipe's `[evaluate]` table."""

    sampler: str
    steps: int
    cfg_scale: float
    cfg_interval: tuple[float, float]
    batch_size: int

    @classmethod
    def of(cls, table: Evaluate, **changes: Any) -> SamplerSettings:
        given = {name: value for name, value in changes.items() if value is not None}
        base = {
            "sampler": table.sampler,
            "steps": table.steps,
            "cfg_scale": table.cfg_scale,
            "cfg_interval": table.cfg_interval,
            "batch_size": table.batch_size,
        }
        return cls(**{**base, **given})


class Pipeline:
    """Codec, network and text encoder of a run, on one device, for generation only."""

    def __init__(
        self,
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
        self.samples = round(recipe.data.seconds * recipe.data.sample_rate)

    def conditioning(self, captions: Sequence[str]) -> Conditioning:
        """Encoded captions, one row each; recipes without text get an empty condition."""
        if self.recipe.condition.text == "none":
            return Conditioning()
        if self.text is not None:
            text, mask = pad_texts(self.text.embed(captions))
            return self.network.condition(
                {"text": text.to(self.device), "text_mask": mask.to(self.device)}
            )
        ids = byte_ids(captions, self.recipe.condition.max_length)
        return self.network.condition({"text_ids": ids.to(self.device)})

    def noise(self, shape: tuple[int, int], seed: int, index: int) -> Tensor:
        """[T, C] from (seed, index) alone: the same sample in any batch."""
        drawn = stream(seed, SAMPLE, index).standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(drawn).to(self.device)

    def _solve(
        self, velocity: sampler.Velocity, x_BTC: Tensor, settings: SamplerSettings
    ) -> Tensor:
        return sampler.SAMPLERS[settings.sampler](velocity, x_BTC, sampler.times(settings.steps))

    def _velocity(self, condition: Conditioning, x_BTC: Tensor, t: float) -> Tensor:
        t_B = torch.full((x_BTC.shape[0],), t, device=x_BTC.device)
        with self.autocast():
            return self.network(x_BTC, t_B, condition).velocity_BTC.float()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int,
        settings: SamplerSettings,
        seconds: float | None = None,
        indices: Sequence[int] | None = None,
        progress: Count | None = None,
    ) -> list[np.ndarray]:
        """One clip [N] per prompt; sample i depends on (seed, i) and its prompt, not on the batch.

        indices: their i, where these prompts are some of many (default: 0, 1, ...).
        """
        samples = self.samples if seconds is None else round(seconds * self.sample_rate)
        shape = (self.codec.frames(samples), self.codec.channels)
        done: list[np.ndarray] = []
        self.network.eval()
        for start in range(0, len(prompts), settings.batch_size):
            texts = prompts[start : start + settings.batch_size]
            known, empty = self.conditioning(texts), self.conditioning([""] * len(texts))
            velocity = sampler.classifier_free(
                partial(self._velocity, known),
                partial(self._velocity, empty),
                settings.cfg_scale,
                settings.cfg_interval,
            )
            places = (
                indices[start : start + len(texts)] if indices else range(start, start + len(texts))
            )
            noise = torch.stack([self.noise(shape, seed, i) for i in places])
            frames = self._solve(velocity, noise, settings)
            done += list(self.codec.decode(frames, samples).float().cpu().numpy())
            if progress:
                progress(len(done), len(prompts))
        return done

    def restore(
        self,
        low_N: np.ndarray,
        cutoff: float,
        *,
        seed: int,
        settings: SamplerSettings,
        index: int = 0,
        prompt: str = "",
    ) -> np.ndarray:
        """Audio [N] at the model's rate, empty above `cutoff` Hz -> full band [N], same level and length.

        Any length: windows of the training length overlap by half and share one state. The band
        below the cutoff is the input's.
        """
        return self.restore_many(
            [low_N], cutoff, seed=seed, settings=settings, indices=[index], prompts=[prompt]
        )[0]

    def restored_at_once(self, samples: int, settings: SamplerSettings) -> int:
        """How many clips of `samples` samples fill one batch of windows."""
        frames, window, hop = self._windows(samples)
        return max(1, settings.batch_size // len(sampler.window_starts(frames, window, hop)))

    def _windows(self, samples: int) -> tuple[int, int, int]:
        """(frames of the audio, of a window, between windows)."""
        window = self.codec.frames(self.samples)
        return self.codec.frames(samples), window, max(1, window // 2)

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
    ) -> list[np.ndarray]:
        """`restore` of several clips of one length; clip i has the noise of `indices[i]` and its prompt.

        ValueError where the lengths differ.
        """
        if len({len(low) for low in lows}) != 1 or not len(lows) == len(prompts) == len(indices):
            raise ValueError(
                "clips that are restored together must have one length, and an index and a prompt each"
            )
        gains = [level_gain(low) for low in lows]
        scaled = np.stack([low * gain for low, gain in zip(lows, gains, strict=True)]).astype(
            np.float32
        )
        low_BTC = self.codec.encode(torch.from_numpy(scaled).to(self.device))
        share = 2 * cutoff / self.sample_rate
        frames, window, hop = self._windows(scaled.shape[1])
        starts = sampler.window_starts(frames, window, hop)
        low_WTC = sampler.windows(low_BTC, starts, window)
        text = self.conditioning(prompts)
        level_B = torch.tensor([math.log10(gain) for gain in gains], device=self.device)
        assert isinstance(self.codec.channel_hz, Tensor)
        band = kept_band(
            self.codec.channel_hz, torch.tensor([share], device=self.device), self.sample_rate
        )

        def part(x_BTC: Tensor, t: float, which: slice) -> Tensor:
            count = x_BTC.shape[0]
            clip_B = torch.arange(which.start, which.stop, device=self.device) // len(starts)
            condition = Conditioning(
                low_BTC=low_WTC[which],
                cutoff_B=torch.full((count,), share, device=self.device),
                level_B=level_B[clip_B],
                band_BC=band.expand(count, -1),
            )
            if text.text_BLD is not None and text.text_mask_BL is not None:
                condition.text_BLD = text.text_BLD[clip_B]
                condition.text_mask_BL = text.text_mask_BL[clip_B]
            return self._velocity(condition, x_BTC, t)

        self.network.eval()
        velocity = sampler.windowed(part, frames, window, hop, settings.batch_size)
        velocity = sampler.keep_band(velocity, low_BTC, band)
        noise = torch.stack([self.noise((frames, self.codec.channels), seed, i) for i in indices])
        decoded_BN = (
            self.codec.decode(self._solve(velocity, noise, settings), scaled.shape[1])
            .float()
            .cpu()
            .numpy()
        )
        return [
            splice(low, made / gain, cutoff, self.sample_rate)
            for low, made, gain in zip(lows, decoded_BN, gains, strict=True)
        ]


def default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_pipeline(
    run_dir: Path, which: str = "latest", *, weights: str = "ema"
) -> tuple[Pipeline, Path]:
    """A run's pipeline from one of its checkpoints (EMA weights by default), and the checkpoint's path.

    `which`: latest, best, or a step. Raises StageError.
    """
    info = read_info(run_dir)
    recipe = recipes.load_from_run(run_dir / "recipe.toml")
    if which == "best":
        if not info.get("best"):
            raise StageError(
                f"{run_dir} has no best checkpoint yet", hint="use --checkpoint latest"
            )
        which = str(info["best"]["step"])
    path = checkpoint.resolve(run_dir / "checkpoints", which)
    device = default_device()
    codec = make_codec(recipe).to(device).eval()
    load_codec_state(codec, run_dir / "codec.safetensors")
    text = text_encoder(recipe, device)
    network = Network(recipe, channels=codec.channels, text_width=text.width if text else None).to(
        device
    )
    network.load_state_dict(checkpoint.load_weights(path, weights))
    return Pipeline(recipe, codec, network.eval(), text, device), path
