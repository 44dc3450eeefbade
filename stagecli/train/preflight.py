"""What a dry run says about cost: memory, the largest batch that fits, and hours."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from stagecli import launcher
from stagecli.errors import counted, significant
from stagecli.files import JsonRow
from stagecli.model.ema import EMA
from stagecli.model.network import Network, count_parameters, meta_network
from stagecli.report.formats import duration
from stagecli.schema import Recipe
from stagecli.train.memory import (
    USABLE,
    MemoryEstimate,
    bare_loss,
    bytes_of,
    estimate_memory,
    in_words,
    noise_batch,
)

BUDGET_S = 3.0  # that measured steps may take
STEPS = 3  # that are measured
MOST_PARAMETERS = {"cpu": 2 * 10**8}  # of a network that is built to be measured


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Frames and channels of a crop, and the width of a frozen text encoder's embeddings."""

    frames: int
    channels: int
    text_width: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of an optimiser step; clips: in the micro-batch that was measured."""

    seconds: float
    clips: int


def preflight_rows(recipe: Recipe, shape: Shape, device: torch.device, processes: int) -> JsonRow:
    """Memory, largest batch and hours of a run, by name."""
    options = recipe.train
    estimate = estimate_memory(
        recipe, frames=shape.frames, channels=shape.channels, text_width=shape.text_width
    )
    if launcher.shares_weights():
        estimate = estimate.sharded(processes)
    clips = max(1, options.batch_size // (options.accumulate * processes))
    there = bytes_of(device)
    usable = round(USABLE * there)
    whole = estimate.total(clips)
    batch = whole - estimate.fixed
    rows: JsonRow = {
        "memory": f"about {in_words(whole)} of {in_words(there)} ({device.type})",
        "of it, a batch": f"{in_words(batch)} for {counted(clips, 'clip')} at once",
        "largest batch": largest_batch(estimate, recipe, usable, processes),
    }
    if whole > usable:
        return rows | {"hours": "not measured: this batch does not fit"}
    try:
        pace = measure_pace(recipe, shape, device, clips)
    except TooLargeError as error:
        return rows | {"hours": f"not measured: {error}"}
    seconds = pace.seconds * options.accumulate
    text = f"{duration(seconds * options.steps)} at {significant(seconds, 3)} s a step"
    if pace.clips < clips:
        text += f", from steps of {pace.clips} of {clips} clips"
    return rows | {"hours": f"at least {text}, without data, probes and mechanisms"}


def largest_batch(estimate: MemoryEstimate, recipe: Recipe, usable: int, processes: int) -> str:
    """The largest `train.batch_size` that fits, in words."""
    options = recipe.train
    most = estimate.most_clips(usable)
    if not most:
        return f"none: one clip takes {in_words(estimate.total(1))}; choose a smaller model"
    words = f"{most * processes * options.accumulate:,}"
    if options.accumulate > 1 or processes > 1:
        words += f" ({most:,} clips at once)"
    return words


class TooLargeError(Exception):
    """Steps of a network would take more than seconds to measure."""


def measure_pace(recipe: Recipe, shape: Shape, device: torch.device, clips: int) -> Pace:
    """The time of a step with a micro-batch of `clips` clips of noise.

    Fewer clips are measured where so many take too long, and the time grows in proportion. Raises
    TooLargeError where one clip takes too long.
    """
    network = meta_network(recipe, channels=shape.channels, text_width=shape.text_width)
    parameters = count_parameters(network)
    most = MOST_PARAMETERS.get(device.type)
    if most is not None and parameters > most:
        raise TooLargeError(f"a network of {parameters:,} parameters on a {device.type}")
    step = bare_step(recipe, network.to_empty(device=device), shape)
    step(1)
    single = seconds_of(step, 1, device)
    if single > BUDGET_S:
        raise TooLargeError(f"a step of one clip takes {single:.1f} s")
    measured = max(1, min(clips, int(BUDGET_S / (STEPS * single))))
    step(measured)
    seconds = sum(seconds_of(step, measured, device) for _ in range(STEPS)) / STEPS
    return Pace(seconds=seconds * clips / measured, clips=measured)


def bare_step(recipe: Recipe, network: Network, shape: Shape) -> Callable[[int], None]:
    """A step of plain training on noise; weights of 0 take as long as any others."""
    for value in (*network.parameters(), *network.buffers()):
        value.detach().zero_()
    network.train()
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-9, fused=device.type in ("cuda", "cpu")
    )
    ema = EMA(network, recipe.train.ema)

    def step(clips: int) -> None:
        batch = noise_batch(
            recipe,
            clips,
            frames=shape.frames,
            channels=shape.channels,
            text_width=shape.text_width,
            device=device,
        )
        bare_loss(network, batch, recipe.train.precision).backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.train.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(network)

    return step


def seconds_of(step: Callable[[int], None], clips: int, device: torch.device) -> float:
    """Wall seconds of a step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    step(clips)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
