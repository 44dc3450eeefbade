"""CLAP score: how well a clip fits its prompt, by a CLAP checkpoint of `transformers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagecli import hub
from stagecli.condition.text import LONG_CAPTION, check_vocabulary
from stagecli.data.cache import FeatureCache, Progress
from stagecli.dsp.resample import resample_tensor
from stagecli.errors import StageError
from stagecli.evaluate.embed import ClipSet, cached_rows
from stagecli.metrics.classes import clap_scores
from stagecli.ssl.huggingface import CLAPEncoder, load_extractor

PROMPTS_AT_ONCE = 64
MAX_TOKENS = 77


@dataclass(frozen=True, kw_only=True)
class Clap:
    """Both towers of a CLAP checkpoint.

    Clips longer than the checkpoint's window (10 s) are cut into windows whose embeddings are
    averaged; the feature extractor would pick one window at random. Of a fused checkpoint the
    global branch is used, as in `ssl`.
    """

    model: Any
    tokenizer: Any
    front: CLAPEncoder
    rate: int
    window: int
    device: torch.device
    fingerprint: str
    convention: str

    @torch.no_grad()
    def audio(self, audio_N: np.ndarray, rate: int) -> Tensor:
        """Embedding [D] of one clip, of length 1."""
        audio_1N = torch.from_numpy(np.ascontiguousarray(audio_N, dtype=np.float32))[None].to(
            self.device
        )
        audio_1N = resample_tensor(audio_1N, rate, self.rate)
        # A remainder shorter than half a window is dropped, unless it is all there is.
        windows = [
            window
            for window in audio_1N.split(self.window, dim=1)
            if window.shape[1] * 2 > self.window
        ]
        embeddings = []
        for window in windows or [audio_1N[:, : self.window]]:
            longer = torch.zeros(1, 1, dtype=torch.bool, device=self.device)
            pooled = self.model.audio_model(
                input_features=self.front.prepare(window), is_longer=longer
            ).pooler_output
            projected = self.model.audio_projection(pooled)
            embeddings.append(torch.nn.functional.normalize(projected, dim=-1)[0])
        mean = torch.stack(embeddings).mean(0)
        return torch.nn.functional.normalize(mean, dim=-1).double().cpu()

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [N, D] of prompts, each of length 1."""
        embeddings = []
        for first in range(0, len(prompts), PROMPTS_AT_ONCE):
            tokens = self.tokenizer(
                list(prompts[first : first + PROMPTS_AT_ONCE]),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            ).to(self.device)
            pooled = self.model.text_model(**tokens).pooler_output
            projected = self.model.text_projection(pooled)
            embeddings.append(torch.nn.functional.normalize(projected, dim=-1))
        return torch.cat(embeddings).double().cpu()

    def scores(
        self,
        clips: ClipSet,
        prompts: Sequence[str],
        *,
        rate: int,
        cache_dir: Path,
        progress: Progress,
        note: Callable[[str], None],
    ) -> list[float]:
        """Cosine of each clip at `rate` Hz with its prompt; audio embeddings are cached."""
        cache = FeatureCache(cache_dir, "clap", {"weights": self.fingerprint, "sample_rate": rate})
        audio_ND = cached_rows(
            cache,
            clips,
            lambda audio, name: self.audio(audio, rate).numpy(),
            progress=lambda done, total: progress(f"{clips.title}: CLAP", done, total),
            note=note,
        )
        return clap_scores(audio_ND, self.text(prompts)).tolist()


def open_clap(source: str, device: torch.device | None = None) -> Clap:
    """Load a CLAP checkpoint from a hub id or a folder.

    Raises StageError: no such checkpoint, not a CLAP, weights or tokenizer missing.
    """
    from transformers import ClapModel

    # Check that it is a whole CLAP before its weights are read.
    checkpoint = hub.open_checkpoint(source, "CLAP", pickled=True, tokenizer=True)
    if checkpoint.model_type != "clap":
        raise StageError(
            f"CLAP {source} is a model of type {checkpoint.model_type!r}",
            hint='a CLAP with both towers is needed, such as "laion/clap-htsat-unfused"',
        )
    extractor = load_extractor(checkpoint, "ClapFeatureExtractor")
    tokenizer = checkpoint.tokenizer()

    # Both towers, frozen.
    device = device or torch.device("cpu")
    model: Any = checkpoint.model(ClapModel).eval().requires_grad_(False).to(device)
    check_vocabulary(checkpoint, tokenizer, model.text_model)
    front = CLAPEncoder(model.audio_model, extractor, f"transformers:{source}", -1).to(device)
    fingerprint = hub.weights_hash(model)
    clap = Clap(
        model=model,
        tokenizer=tokenizer,
        front=front,
        rate=int(extractor.sampling_rate),
        window=int(extractor.nb_max_samples),
        device=device,
        fingerprint=fingerprint,
        convention=f"CLAP {source} (weights {fingerprint[:12]})",
    )
    hint = f"use a CLAP whose text tower reads {MAX_TOKENS} tokens"
    with hub.explained(f"{checkpoint.name} cannot embed a caption of {MAX_TOKENS} tokens", hint):
        clap.text([LONG_CAPTION])
    return clap
