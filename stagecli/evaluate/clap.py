"""CLAP: how well a clip fits its prompt, by a whole CLAP checkpoint of `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagecli import hub
from stagecli.data.cache import FeatureCache, Progress
from stagecli.dsp.resample import resample_tensor
from stagecli.errors import StageError
from stagecli.evaluate.hear import Clips, remembered
from stagecli.metrics.classes import clap_scores
from stagecli.ssl.huggingface import CLAPEncoder, load_extractor


class Clap:
    """Both towers of a CLAP checkpoint, hub id or folder.

    Clips longer than the checkpoint's window (10 s) are cut into windows, whose embeddings are averaged: the feature
    extractor would take one by chance. Of a fused checkpoint the global branch is used, as in `ssl`.
    Raises StageError: no such checkpoint, not a CLAP, weights or tokenizer missing.
    """

    def __init__(self, source: str, device: torch.device | None = None) -> None:
        from transformers import AutoTokenizer, ClapModel

        folder = hub.fetch(source, "CLAP", pickled=True)
        plain = hub.read_config(folder, source, "CLAP")
        if plain.get("model_type") != "clap":
            raise StageError(
                f"CLAP {source} is a model of type {plain.get('model_type')!r}",
                hint='a whole CLAP with both towers is needed, such as "laion/clap-htsat-unfused"',
            )
        extractor = load_extractor(folder, source, "ClapFeatureExtractor")
        if not any(any(folder.glob(pattern)) for pattern in ("tokenizer*", "vocab*")):
            raise StageError(
                f"CLAP {source} has no tokenizer",
                hint="save it beside the weights with save_pretrained",
            )
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        config = hub.make_config(ClapModel, plain, source, "CLAP")
        self.device = device or torch.device("cpu")
        self.model: Any = hub.load_weights(ClapModel, config, folder, source, "CLAP", pickled=True)
        self.model = self.model.eval().requires_grad_(False).to(self.device)
        self.rate = int(extractor.sampling_rate)
        self.window = int(extractor.nb_max_samples)
        self.front = CLAPEncoder(
            self.model.audio_model, extractor, f"transformers:{source}", -1
        ).to(self.device)
        self.fingerprint = hub.weights_hash(self.model)
        self.convention = f"CLAP {source} (weights {self.fingerprint[:12]})"

    @torch.no_grad()
    def audio(self, audio_N: np.ndarray, rate: int) -> Tensor:
        """One clip -> its embedding [D], of length 1."""
        audio_1N = torch.from_numpy(np.ascontiguousarray(audio_N, dtype=np.float32))[None].to(
            self.device
        )
        audio_1N = resample_tensor(audio_1N, rate, self.rate)
        parts = [
            part for part in audio_1N.split(self.window, dim=1) if part.shape[1] * 2 > self.window
        ]
        rows = []
        for part in parts or [audio_1N[:, : self.window]]:
            longer = torch.zeros(1, 1, dtype=torch.bool, device=self.device)
            pooled = self.model.audio_model(
                input_features=self.front.prepare(part), is_longer=longer
            ).pooler_output
            rows.append(
                torch.nn.functional.normalize(self.model.audio_projection(pooled), dim=-1)[0]
            )
        return torch.nn.functional.normalize(torch.stack(rows).mean(0), dim=-1).double().cpu()

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> embeddings [N, D], of length 1."""
        rows = []
        for first in range(0, len(prompts), 64):
            tokens = self.tokenizer(
                list(prompts[first : first + 64]),
                padding=True,
                truncation=True,
                max_length=77,
                return_tensors="pt",
            ).to(self.device)
            tokens.pop("token_type_ids", None)
            pooled = self.model.text_model(**tokens).pooler_output
            rows.append(torch.nn.functional.normalize(self.model.text_projection(pooled), dim=-1))
        return torch.cat(rows).double().cpu()

    def scores(
        self, clips: Clips, prompts: Sequence[str], rate: int, cache_dir: Path, progress: Progress
    ) -> list[float]:
        """Cosine of each clip at `rate` Hz with its prompt; embeddings of clips are remembered in `cache_dir`."""
        cache = FeatureCache(cache_dir, "clap", {"weights": self.fingerprint, "sample_rate": rate})
        audio_ND = remembered(
            cache,
            clips,
            lambda audio, name: self.audio(audio, rate).numpy(),
            lambda done, total: progress(f"{clips.name}: CLAP", done, total),
        )
        return clap_scores(audio_ND, self.text(prompts)).tolist()
