"""What is measured while training: the loss on a fixed grid of t, and samples to listen to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from stagecli.codec.base import Codec
from stagecli.data.audio import write_wav
from stagecli.data.degrade import degrade, test_low_pass
from stagecli.data.examples import VALID, VALID_NOISE, VALID_SEED, Collate, crop, evenly, stream
from stagecli.data.frames import to_device, to_frames
from stagecli.files import write_atomic
from stagecli.flow.objective import flow_loss
from stagecli.generate.pipeline import Pipeline, SamplerSettings
from stagecli.train.prepare import Prepared

if TYPE_CHECKING:
    from accelerate import Accelerator


@torch.no_grad()
def validate(
    prepared: Prepared, network: Callable, codec: Codec, accelerator: Accelerator
) -> dict[str, float]:
    """Mean loss over validation clips at each t of `train.validate_t`, and over all of them.

    Clips, crops, filters and noise are the same every time, so that only the weights change the
    figure. The clips are shared out over the processes.
    """
    table = prepared.recipe.train
    examples = prepared.examples(evenly(prepared.valid, table.validate_clips))
    mine = range(accelerator.process_index, len(examples), accelerator.num_processes)
    collate = Collate(prepared.recipe.condition.max_length)
    total = torch.zeros(len(table.validate_t), device=accelerator.device)
    size = max(1, table.batch_size // (table.accumulate * accelerator.num_processes))
    network.eval()  # type: ignore[attr-defined]
    for first in range(0, len(mine), size):
        part = mine[first : first + size]
        batch = to_frames(
            to_device(collate([examples.valid_item(i) for i in part]), accelerator.device), codec
        )
        for k, t in enumerate(table.validate_t):
            noise = np.stack(
                [
                    stream(VALID_SEED, VALID_NOISE, i, k).standard_normal(
                        prepared.shape, dtype=np.float32
                    )
                    for i in part
                ]
            )
            t_B = torch.full((len(part),), t, device=accelerator.device)
            with accelerator.autocast():
                noise_BTC = torch.from_numpy(noise).to(accelerator.device)
                result = flow_loss(
                    network, batch["x0"], noise_BTC, t_B, batch, weight_BTC=batch.get("weight")
                )
            total[k] += result.loss_B.sum()
    losses = (accelerator.reduce(total, "sum") / len(examples)).tolist()
    by_t = {f"valid/loss_t{t:.2f}": loss for t, loss in zip(table.validate_t, losses, strict=True)}
    return {"valid/loss": sum(losses) / len(losses), **by_t}


def draw_samples(
    pipeline: Pipeline, prepared: Prepared, folder: Path, count: int, step: int
) -> None:
    """`count` samples from validation captions (t2a) or low-passed validation clips (sr), as WAV files."""
    recipe = prepared.recipe
    settings = SamplerSettings.of(recipe.evaluate)
    seed = recipe.evaluate.seed
    rate = recipe.data.sample_rate
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    facts = {
        "seed": seed,
        "steps": settings.steps,
        "cfg_scale": settings.cfg_scale,
        "checkpoint": step,
    }
    if recipe.task.kind == "t2a":
        captions = list(dict.fromkeys(clip.caption for clip in prepared.valid))
        prompts = [captions[i * len(captions) // count] for i in range(min(count, len(captions)))]
        for i, audio in enumerate(pipeline.generate(prompts, seed=seed, settings=settings)):
            write_wav(folder / f"{i:03d}.wav", audio, rate)
            rows.append({"path": f"{i:03d}.wav", "prompt": prompts[i], **facts})
    else:
        cutoff = recipe.evaluate.cutoffs[0]
        low_pass = test_low_pass(recipe.evaluate, cutoff)
        for i, clip in enumerate(evenly(prepared.valid, count)):
            audio, _ = crop(prepared.source.read(clip), prepared.samples, stream(seed, VALID, i))
            low = degrade(audio, rate, low_pass)
            restored = pipeline.restore(
                low, cutoff, seed=seed, settings=settings, index=i, prompt=clip.caption
            )
            for name, data in (("input", low), ("output", restored), ("target", audio)):
                write_wav(folder / f"{i:03d}_{name}.wav", data, rate)
            rows.append(
                {"path": f"{i:03d}_output.wav", "input": clip.key, "cutoff": cutoff, **facts}
            )
    write_atomic(folder / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
