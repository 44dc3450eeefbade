"""Builds the probe set: its monitor, its clips, their targets, and the scale of its distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stagecli.codec.base import Codec
from stagecli.data.cache import Progress
from stagecli.data.examples import Collate, Examples, evenly
from stagecli.data.frames import to_device, to_frames
from stagecli.errors import Problem, StageError
from stagecli.model.ema import EMA
from stagecli.model.network import Network
from stagecli.stage import registry
from stagecli.stage.base import ProbeSettings
from stagecli.train.prepare import Prepared
from stagecli.train.probe import AT_ONCE, FeatureDistance, ProbeSet, Targets, feature_count

if TYPE_CHECKING:
    from accelerate import Accelerator

    from stagecli.ssl.base import Encoder

CENTRE_CLIPS = 128  # training clips whose mean feature is the centre
PLANNED_CENTRE = 16  # training clips, and
PLANNED_CANDIDATES = 64  # candidates from which a plan estimates the size of the probe set (sr)
CANDIDATES = 4  # candidates per clip of the probe set (sr)
LEAST_GAP = 0.02  # between ceiling and reference; a smaller gap cannot be normalised by
FEWEST = 2  # clips of a probe set
UPDATES = 10  # of the followed EMA per probe interval, at most


@dataclass(frozen=True, kw_only=True)
class ProbeClips:
    """Some clips with all that a probe needs of them.

    indices: into the examples they come from; items: their validation examples; audio_BN: the true
    audio; targets: its features.
    """

    indices: list[int]
    items: list[dict[str, Any]]
    audio_BN: Tensor
    targets: Targets


def build_probes(
    settings: ProbeSettings,
    prepared: Prepared,
    network: Network,
    accelerator: Accelerator,
    progress: Progress = lambda what, done, total: None,
) -> ProbeSet:
    """Choose the clips of the valid split, and compute their targets and the scale once.

    prepared: of a recipe that asks for probes. Raises StageError where the monitor cannot tell the
    reference from the codec's round trip.
    """
    recipe = prepared.recipe
    device = accelerator.device
    codec = prepared.codec
    sample_rate = recipe.data.sample_rate

    # The distance: features of the monitor, centred on their mean over the training set.
    monitor = monitor_of(prepared).to(device)
    centre_D = mean_feature(monitor, prepared, device, progress)
    distance = FeatureDistance(monitor, centre_D, sample_rate)

    # The clips, and d of what holds no information beyond the condition.
    progress("probe set", 0, 1)
    if recipe.task.kind == "sr":
        examples = prepared.examples(evenly(prepared.valid, settings.clips * CANDIDATES))
        indices = evenly(restorable(examples, distance), settings.clips)
    else:
        examples = prepared.examples(evenly(prepared.valid, settings.clips))
        indices = list(range(len(examples)))
    check_count(len(indices), settings.clips)
    clips = load_clips(examples, indices, distance)
    if recipe.task.kind == "sr":
        reference_B = input_distance(clips, distance)
    else:
        reference_B = mismatch_distance(clips.targets, [clip.caption for clip in examples.clips])

    # The scale starts at what the codec itself loses.
    batch = Collate(recipe.condition.max_length)(clips.items)
    frames = to_frames(to_device(batch, device), codec)
    decoded_BN = round_trip(codec, clips.audio_BN, device)
    ceiling_B = distance.to_targets(decoded_BN, clips.targets)
    progress("probe set", 1, 1)
    hold = max(1, settings.every // UPDATES)
    probes = ProbeSet(
        settings=settings,
        clips=clips.indices,
        frames=frames,
        targets=clips.targets,
        distance=distance,
        codec=codec,
        num_samples=prepared.num_samples,
        ceiling_B=ceiling_B,
        reference_B=reference_B,
        ema=EMA(network, 0.5 ** (hold / (settings.every / 2))),
        hold=hold,
        accelerator=accelerator,
    )
    check_scale(probes)
    return probes


def count_probe_clips(
    settings: ProbeSettings, prepared: Prepared, device: torch.device, progress: Progress
) -> int:
    """Clips that the probe set will hold; for sr an estimate from some of the candidates.

    Raises StageError where they are too few.
    """
    recipe = prepared.recipe
    count = min(settings.clips, len(prepared.valid))
    if recipe.task.kind == "sr":
        monitor = monitor_of(prepared).to(device)
        centre_D = mean_feature(monitor, prepared, device, progress, PLANNED_CENTRE)
        distance = FeatureDistance(monitor, centre_D, recipe.data.sample_rate)
        candidates = min(settings.clips * CANDIDATES, len(prepared.valid))
        examples = prepared.examples(evenly(prepared.valid, min(candidates, PLANNED_CANDIDATES)))
        usable = len(restorable(examples, distance))
        count = min(settings.clips, round(candidates * usable / len(examples)))
    check_count(count, settings.clips)
    return count


def monitor_of(prepared: Prepared) -> Encoder:
    """The monitor, which is loaded for a recipe that asks for probes."""
    assert prepared.frozen.monitor is not None
    return prepared.frozen.monitor


def check_count(count: int, asked: int) -> None:
    """Raises StageError where the probe set has nothing to compare its only clip with."""
    if count >= FEWEST:
        return
    problem = f"asks for {asked}, and the valid split has {count} that can be measured"
    raise StageError(
        "the probe set has a single clip and nothing to compare it with",
        problems=[Problem(f"stage.{registry.REGIME}.clips", problem)],
        hint="give the valid split at least two clips (sr: with content above the cutoffs)",
    )


def check_scale(probes: ProbeSet) -> None:
    """Raises StageError where ceiling and reference are too close at a noise level."""
    ceilings = probes.by_level(probes.measured(probes.ceiling_B))
    references = probes.by_level(probes.measured(probes.reference_B))
    closest = min(ceilings, key=lambda t: references[t] - ceilings[t])
    ceiling, reference = ceilings[closest], references[closest]
    if reference - ceiling >= LEAST_GAP:
        return
    raise StageError(
        f"monitor {probes.distance.monitor.label} cannot measure this run: to it, audio of which "
        f"nothing was learnt is hardly further from the original (distance {reference:.4f}) than "
        f"audio that only went through the codec ({ceiling:.4f})",
        problems=[
            Problem(
                f"stage.{registry.REGIME}.monitor",
                f"the two distances must differ by at least {LEAST_GAP}",
            )
        ],
        hint="use another monitor or layer, or a codec that keeps more",
    )


# -- the clips -----------------------------------------------------------------------------------


def true_audio(examples: Examples, index: int, item: dict[str, Any]) -> tuple[np.ndarray, int]:
    """The audio [N] that the network learns to produce for an example, and its length in samples.

    item: the validation example itself. In sr its audio is at the level of the network's input;
    frames from the cache come without audio. What follows after the length is padding.
    """
    audio_N, length = examples.valid_audio(index)
    if "audio" in item:
        audio_N = item["audio"].numpy()
    return audio_N, length


def load_clips(examples: Examples, indices: Sequence[int], distance: FeatureDistance) -> ProbeClips:
    """Examples by index, with their true audio and its features."""
    items = [examples.valid_item(index) for index in indices]
    pairs = [true_audio(examples, index, item) for index, item in zip(indices, items, strict=True)]
    audio_BN = torch.from_numpy(np.stack([audio_N for audio_N, _ in pairs]))
    return ProbeClips(
        indices=list(indices),
        items=items,
        audio_BN=audio_BN,
        targets=distance.targets(audio_BN, [length for _, length in pairs]),
    )


def restorable(examples: Examples, distance: FeatureDistance) -> list[int]:
    """The examples whose missing band changes the monitor's features (sr).

    The others cost as much and measure nothing. All count where there is no such example.
    """
    gaps: list[float] = []
    for first in range(0, len(examples), AT_ONCE):
        rows = range(first, min(first + AT_ONCE, len(examples)))
        gaps += input_distance(load_clips(examples, rows, distance), distance).tolist()
    audible = [index for index, gap in enumerate(gaps) if gap >= LEAST_GAP]
    return audible or list(range(len(gaps)))


# -- the scale -----------------------------------------------------------------------------------


@torch.no_grad()
def mean_feature(
    monitor: Encoder,
    prepared: Prepared,
    device: torch.device,
    progress: Progress,
    count: int = CENTRE_CLIPS,
) -> Tensor:
    """Mean feature [D] over `count` clips of the training set, without padding."""
    sample_rate = prepared.recipe.data.sample_rate
    examples = prepared.examples(evenly(prepared.train, count))
    total_D = torch.zeros(monitor.dimension, dtype=torch.float64, device=device)
    frames = 0
    for index in range(len(examples)):
        audio_N, length = true_audio(examples, index, examples.valid_item(index))
        features_BLD = monitor(torch.from_numpy(audio_N)[None].to(device), sample_rate)
        features_LD = features_BLD[0, : feature_count(monitor, length, sample_rate)]
        total_D += features_LD.double().sum(0)
        frames += features_LD.shape[0]
        progress("features of the training set", index + 1, len(examples))
    return (total_D / frames).float()


@torch.no_grad()
def round_trip(codec: Codec, audio_BN: Tensor, device: torch.device) -> Tensor:
    """Audio [B, N] through the codec and back."""
    parts = [part_BN.to(device) for part_BN in audio_BN.split(AT_ONCE)]
    return torch.cat(
        [codec.decode(codec.encode(part_BN), part_BN.shape[1], draft=True) for part_BN in parts]
    )


def input_distance(clips: ProbeClips, distance: FeatureDistance) -> Tensor:
    """d [B] of the upsampled low-resolution input: what the condition alone holds (sr)."""
    low_BN = torch.stack([item["low"] for item in clips.items])
    return distance.to_targets(low_BN, clips.targets)


def mismatch_distance(targets: Targets, captions: Sequence[str]) -> Tensor:
    """Mean d [B] to the clips of other captions, to all others where all captions agree (t2a).

    Such a pair sounds equally real and means something else. There are at least two clips.
    """
    # The mean cosine of every pair, over the shorter clip's features.
    features_BLD = targets.features_BLD * targets.inside_BL[..., None]
    lengths_B = targets.lengths_B
    cosine_BB = torch.einsum("ild,jld->ij", features_BLD, features_BLD)
    cosine_BB = cosine_BB / torch.minimum(lengths_B[:, None], lengths_B)

    # The pairs that differ.
    differ_BB = torch.tensor([[a != b for b in captions] for a in captions])
    if not bool(differ_BB.any()):
        differ_BB = ~torch.eye(len(captions), dtype=torch.bool)
    differ_BB = differ_BB.to(cosine_BB.device)
    return 1 - (cosine_BB * differ_BB).sum(1) / differ_BB.sum(1)
