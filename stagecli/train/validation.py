"""Measured while training: the loss on a fixed grid of t, and samples to listen to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from stagecli.data.degrade import degrade, test_low_pass
from stagecli.data.examples import VALID, VALID_NOISE, VALID_SEED, Collate, crop, evenly, stream
from stagecli.data.frames import to_device, to_frames
from stagecli.files import JsonRow, json_line, write_atomic
from stagecli.flow.objective import flow_loss
from stagecli.generate.listening import LISTING, write_listening
from stagecli.generate.pipeline import Pipeline, SamplerSettings
from stagecli.train.prepare import Prepared
from stagecli.train.references import with_references

if TYPE_CHECKING:
    from accelerate import Accelerator


@torch.no_grad()
def validate(prepared: Prepared, network: nn.Module, accelerator: Accelerator) -> dict[str, float]:
    """Mean loss over validation clips at each t of `train.validate_t`, and over all of them.

    Clips, crops, filters and noise are the same every time, so that only the weights change the
    figure. The clips are shared out over the processes. Leaves the network in eval mode.
    """
    # The clips of this process, in batches of the size that training uses.
    options = prepared.recipe.train
    world = accelerator.num_processes
    examples = prepared.examples(evenly(prepared.valid, options.validate_clips))
    mine = range(accelerator.process_index, len(examples), world)
    most = -(-len(examples) // world)
    collate = Collate(prepared.recipe.condition.max_length)
    size = max(1, options.batch_size // (options.accumulate * world))
    total_T = torch.zeros(len(options.validate_t), device=accelerator.device)
    network.eval()

    # Every batch at every t, with noise that depends on clip and t alone. A process without a clip
    # left keeps step with the others, which may need its part of the weights.
    for first in range(0, most, size):
        own = mine[first : first + size]
        indices = own or range(1)
        batch = collate([examples.valid_item(index) for index in indices])
        batch = to_frames(to_device(batch, accelerator.device), prepared.codec)
        for k, t in enumerate(options.validate_t):
            draws = [
                stream(VALID_SEED, VALID_NOISE, index, k).standard_normal(
                    prepared.shape, dtype=np.float32
                )
                for index in indices
            ]
            noise_BTC = torch.from_numpy(np.stack(draws)).to(accelerator.device)
            t_B = torch.full((len(indices),), t, device=accelerator.device)
            with accelerator.autocast():
                result = flow_loss(
                    network, batch["x0"], noise_BTC, t_B, batch, weight_BTC=batch.get("weight")
                )
            if own:
                total_T[k] += result.loss_B.sum()

    # Means over all clips.
    losses = (accelerator.reduce(total_T, "sum") / len(examples)).tolist()
    by_t = {
        f"valid/loss_t{t:.2f}": loss for t, loss in zip(options.validate_t, losses, strict=True)
    }
    return {"valid/loss": sum(losses) / len(losses), **by_t}


def draw_samples(
    pipeline: Pipeline, prepared: Prepared, folder: Path, count: int, step: int
) -> list[JsonRow]:
    """Write `count` samples as WAV files, and `samples.jsonl` with a row for each.

    From `train.prompts`, else from validation captions (t2a), each beside a recording of it where
    there is one, or from low-passed validation clips (sr), each beside its input and target; step:
    of the weights.
    Returns the rows. Raises OSError.
    """
    settings = SamplerSettings.of(prepared.recipe.evaluate)
    origin = {
        "seed": prepared.recipe.evaluate.seed,
        "steps": settings.steps,
        "cfg_scale": settings.cfg_scale,
        "checkpoint": step,
    }
    folder.mkdir(parents=True, exist_ok=True)
    if prepared.recipe.task.kind == "sr":
        rows = draw_restored(pipeline, prepared, folder, count)
    else:
        rows = draw_generated(pipeline, prepared, folder, count)
        rows = with_references(prepared, folder, rows)
    rows = [{**row, **origin} for row in rows]
    write_atomic(folder / LISTING, "".join(map(json_line, rows)))
    return rows


def draw_generated(
    pipeline: Pipeline, prepared: Prepared, folder: Path, count: int
) -> list[JsonRow]:
    """Samples of `train.prompts`, or of at most `count` evenly spaced captions of the valid split.

    Every set has the same prompts and noise, so that only the weights differ.
    """
    options = prepared.recipe.evaluate
    captions = list(dict.fromkeys(clip.caption for clip in prepared.valid))
    number = min(count, len(captions))
    prompts = list(prepared.recipe.train.prompts) or [
        captions[i * len(captions) // count] for i in range(number)
    ]
    settings = SamplerSettings.of(options)
    rows = []
    for i, audio in enumerate(pipeline.generate(prompts, seed=options.seed, settings=settings)):
        name = f"{i:03d}.wav"
        levels = write_listening(folder / name, audio, prepared.recipe.data.sample_rate)
        rows.append({"path": name, "prompt": prompts[i], **levels})
    return rows


def draw_restored(
    pipeline: Pipeline, prepared: Prepared, folder: Path, count: int
) -> list[JsonRow]:
    """Restored valid clips at the first cutoff of `evaluate.cutoffs`, beside input and target."""
    options = prepared.recipe.evaluate
    rate = prepared.recipe.data.sample_rate
    cutoff = options.cutoffs[0]
    low_pass = test_low_pass(options, cutoff)
    settings = SamplerSettings.of(options)
    rows = []
    for i, clip in enumerate(evenly(prepared.valid, count)):
        rng = stream(options.seed, VALID, i)
        target, _ = crop(prepared.source.read(clip), prepared.num_samples, rng)
        low = degrade(target, rate, low_pass)
        restored = pipeline.restore(
            low, cutoff, seed=options.seed, settings=settings, index=i, prompt=clip.caption
        )
        # One gain for all three, so that they compare by ear.
        clips = {"input": low, "target": target, "output": restored}
        for name, audio in clips.items():
            path = folder / f"{i:03d}_{name}.wav"
            levels = write_listening(path, audio, rate, beside=list(clips.values()))
        rows.append({"path": path.name, "input": clip.key, "cutoff": cutoff, **levels})
    return rows
