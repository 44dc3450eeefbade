"""Everything that happens once before training: check data, fit the codec, cache what is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagecli.codec import load_first_codec_state, save_codec_state
from stagecli.codec.base import Codec
from stagecli.condition.text import PretrainedText
from stagecli.data.augment import is_active
from stagecli.data.cache import FeatureCache, Progress
from stagecli.data.examples import CROP, Examples, crop, evenly, stream
from stagecli.data.rows import Clip
from stagecli.data.source import Source
from stagecli.hub import weights_hash
from stagecli.schema import Recipe
from stagecli.train.data_check import DataCheck, compare, examine, open_training_data
from stagecli.train.encoders import Frozen, load_frozen
from stagecli.train.teacher_features import TargetFeatures, build_target_features

STATISTICS_CLIPS = 512  # clips that the codec's per-channel statistics are computed from
VISITS = 4  # at most so many examples for each of few clips that are altered


@dataclass(kw_only=True)
class Prepared:
    """The trainer's input: checked clips, a fitted codec, filled caches.

    data: the report on the clips; frozen: the networks, its codec fitted; frames_cache, text_cache,
    features: None where the recipe does not need them; rebuilt: what was damaged and has been
    computed again, and why.
    """

    recipe: Recipe
    source: Source
    train: Sequence[Clip]
    valid: Sequence[Clip]
    frozen: Frozen
    data: DataCheck
    frames_cache: FeatureCache | None = None
    text_cache: FeatureCache | None = None
    features: TargetFeatures | None = None
    rebuilt: list[str] = field(default_factory=list)

    @property
    def codec(self) -> Codec:
        """The codec."""
        return self.frozen.codec

    @property
    def text(self) -> PretrainedText | None:
        """The frozen text encoder; None where the recipe uses none."""
        return self.frozen.text

    @property
    def num_samples(self) -> int:
        """Audio samples per crop."""
        return round(self.recipe.data.seconds * self.recipe.data.sample_rate)

    @property
    def shape(self) -> tuple[int, int]:
        """(T, C) of one crop."""
        return self.codec.frames(self.num_samples), self.codec.channels

    @property
    def feature_width(self) -> int | None:
        """D of the teacher's features; None where no mechanism uses any."""
        return self.features.width if self.features is not None else None

    @property
    def left_out(self) -> list[str]:
        """Clips that `data.on_bad_file = "skip"` leaves out, each with the reason."""
        return [f"{problem.where}: {problem.what}" for problem in self.source.skipped]

    def examples(self, clips: Sequence[Clip], *, features: bool = False) -> Examples:
        """Examples of some clips; features: with features of the target, for training clips."""
        return Examples(
            self.recipe,
            self.source,
            clips,
            shape=self.shape,
            crop_samples=self.num_samples,
            hop=self.codec.hop,
            frames_cache=self.frames_cache,
            text_cache=self.text_cache,
            features=self.features if features else None,
        )


def prepare(
    recipe: Recipe,
    run_dir: Path | None,
    device: torch.device,
    progress: Progress,
    *,
    frozen: Frozen | None = None,
    start: Path | None = None,
    accept_data: bool = False,
    inherited: Sequence[Path] = (),
) -> Prepared:
    """Check the data, fit the codec, fill the caches.

    run_dir: where the codec's statistics are kept, so that a resume does not fit them again;
    frozen: from `load_frozen`; loaded now where it is None; start: the checkpoint that a resume
    continues from; accept_data: go on with other data than those of the run; inherited: copies of
    the codec's statistics that a new run starts with. Raises StageError with every problem of the
    data.
    """
    # The clips, all of them checked; but the networks first, as it costs no work if one is missing.
    frozen = frozen or load_frozen(recipe, device)
    source = open_training_data(recipe, progress)
    train = source.clips("train")
    data = examine(recipe, source, frozen.text, progress)
    if run_dir is not None:
        data = compare(data, run_dir, accept=accept_data)
    prepared = Prepared(
        recipe=recipe,
        source=source,
        train=train,
        valid=source.clips("valid"),
        frozen=frozen,
        data=data,
        rebuilt=list(source.notices),
    )

    # What frozen networks compute once: frames, caption embeddings, teacher features.
    if frozen.codec.is_network:
        prepared.frames_cache = cache_frames(prepared, device, progress)
    if frozen.text is not None:
        prepared.text_cache = cache_texts(prepared, frozen.text, progress)
    if frozen.teacher is not None:
        prepared.features = build_target_features(
            frozen.teacher,
            recipe=recipe,
            source=source,
            clips=train,
            device=device,
            progress=lambda done, total: progress("teacher features", done, total),
        )
        frozen.teacher = None  # frees its memory

    load_or_fit_codec(prepared, run_dir, start, device, progress, inherited=inherited)
    targets = prepared.features.cache if prepared.features is not None else None
    for cache in (prepared.frames_cache, prepared.text_cache, targets):
        if cache is not None:
            prepared.rebuilt += cache.damage_notice()
    return prepared


def load_or_fit_codec(
    prepared: Prepared,
    run_dir: Path | None,
    start: Path | None,
    device: torch.device,
    progress: Progress,
    *,
    inherited: Sequence[Path] = (),
) -> None:
    """The codec's statistics: of this run, of the checkpoint it continues from, of the model that
    it starts from, or computed now.
    """
    kept = [folder / "codec.safetensors" for folder in (run_dir, start) if folder is not None]
    kept = [path for path in (*kept, *inherited) if path.exists()]
    loaded, problems = load_first_codec_state(prepared.codec, kept)
    prepared.rebuilt += [f"{problem.where}: {problem.what}" for problem in problems]
    if loaded is None:
        fit_codec(prepared, device, progress)
    if run_dir is not None and loaded != run_dir / "codec.safetensors":
        save_codec_state(prepared.codec, run_dir / "codec.safetensors")


def fit_codec(prepared: Prepared, device: torch.device, progress: Progress) -> None:
    """Per-channel statistics over crops of evenly spaced training clips.

    Where clips are altered or mixed in training, over the first examples of training instead.
    """
    recipe = prepared.recipe
    as_trained = is_active(recipe.augment) or recipe.data.synth_share > 0
    clips = prepared.train if as_trained else evenly(prepared.train, STATISTICS_CLIPS)
    examples = prepared.examples(clips)
    count = min(STATISTICS_CLIPS, VISITS * len(clips)) if as_trained else len(examples)

    def inputs() -> Iterable[Tensor]:
        for i in range(count):
            item = examples[i] if as_trained else examples.valid_item(i)
            yield (item["raw"] if "raw" in item else item["audio"])[None].to(device)
            progress("codec statistics", i + 1, count)

    prepared.codec.fit(inputs(), raw=prepared.frames_cache is not None)


def cache_frames(prepared: Prepared, device: torch.device, progress: Progress) -> FeatureCache:
    """Raw frames [crops, T, C] of every training and validation clip through a network codec."""
    # The cache: everything that the frames depend on is in its configuration.
    recipe = prepared.recipe
    codec = prepared.codec
    source = prepared.source
    config = {
        "codec": recipe.codec.model_dump(mode="json"),
        "weights": weights_hash(codec),
        "sample_rate": recipe.data.sample_rate,
        "seconds": recipe.data.seconds,
        "crops": recipe.data.crops,
        "seed": recipe.train.seed,
    }
    cache = FeatureCache(Path(recipe.data.cache_dir), "frames", config)
    clips = {source.content_hash(clip): clip for clip in [*prepared.train, *prepared.valid]}

    @torch.no_grad()
    def compute(keys: list[str]) -> Iterable[np.ndarray]:
        for key in keys:
            audio = source.read(clips[key])
            streams = [stream(recipe.train.seed, CROP, k) for k in range(recipe.data.crops)]
            crops = [crop(audio, prepared.num_samples, rng)[0] for rng in streams]
            yield codec.analyse(torch.from_numpy(np.stack(crops)).to(device)).float().cpu().numpy()

    # One clip at a time, so that its frames do not depend on the others.
    cache.fill(
        list(clips),
        compute,
        batch=1,
        progress=lambda done, total: progress("filling cache", done, total),
    )
    return cache


def cache_texts(prepared: Prepared, text: PretrainedText, progress: Progress) -> FeatureCache:
    """Embeddings [L, D] of every caption, and of the empty one, which replaces dropped captions."""
    config = {
        "text": prepared.recipe.condition.model_dump(include={"max_length"}),
        "weights": weights_hash(text.network),
        "tokenizer": text.tokenizer_hash(),
    }
    cache = FeatureCache(Path(prepared.recipe.data.cache_dir), "text", config)
    clips = [*prepared.train, *prepared.valid]
    captions = sorted({"", *(caption for clip in clips for caption in clip.captions)})
    cache.fill(
        captions,
        lambda keys: [embedding.numpy() for embedding in text.embed(keys)],
        batch=32,
        progress=lambda done, total: progress("embedding captions", done, total),
    )
    return cache
