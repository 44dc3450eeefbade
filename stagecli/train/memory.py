"""The memory that training takes: estimated without taking any of it, and what the device has."""

from __future__ import annotations

import os
import resource
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stagecli import launcher
from stagecli.cgroup import memory_limit
from stagecli.codec.base import Codec
from stagecli.errors import Problem, StageError
from stagecli.flow.objective import flow_loss
from stagecli.model.network import Network, count_parameters, meta_network
from stagecli.schema import Recipe
from stagecli.stage import registry
from stagecli.train.initial import freeze

COPIES = 5  # of the parameters, in fp32: weights, gradients, two AdamW moments, the EMA
FROZEN_COPIES = 2  # of parameters that are not trained: weights and EMA
CERTAIN = 2.0  # a need of so many times the memory there is cannot be met by luck or swapping
USABLE = 0.9  # of a device's memory; the rest is for its runtime and what lies between tensors


# -- the estimate ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that one process of a training run takes on its device.

    fixed: weights, moments of AdamW and EMA weights; gradients: of all weights, at the end of a
    backward pass; copies: of the weights in the type they are computed in; per_clip: what the
    backward pass needs of each clip of a micro-batch.
    """

    fixed: int
    gradients: int
    copies: int
    per_clip: int

    def total(self, clips: int) -> int:
        """Peak bytes with micro-batches of `clips` clips.

        The gradients come while what the forward pass left behind goes.
        """
        return self.fixed + max(self.gradients + self.per_clip, self.batch(clips))

    def batch(self, clips: int) -> int:
        """Bytes at the end of a forward pass, beside what is there all the time."""
        return self.copies + clips * self.per_clip

    def most_clips(self, there: int) -> int:
        """The largest micro-batch for which `there` bytes are enough; 0 where none is."""
        if self.total(1) > there:
            return 0
        return max(1, (there - self.fixed - self.copies) // max(1, self.per_clip))

    def sharded(self, processes: int) -> MemoryEstimate:
        """The same where processes share weights, gradients, moments and EMA weights."""
        return replace(self, fixed=self.fixed // processes, gradients=self.gradients // processes)


def estimate_memory(
    recipe: Recipe, *, frames: int, channels: int, text_width: int | None = None
) -> MemoryEstimate:
    """What training a recipe on crops of [frames, channels] takes, from a step without memory.

    The step is that of plain training: projectors of guidance and frozen networks come on top.
    text_width: D of the embeddings of a frozen text encoder. It takes about a second.
    """
    clips = 4  # any number: what is kept grows in proportion
    # The first backward pass decides for the whole process whether autograd has threads, which no
    # fork survives; a first one in there would count a GPU that is not.
    torch.zeros((), requires_grad=True).backward()
    # The weights of the levels of bands are real: they are computed.
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        network = Network(recipe, channels=channels, text_width=text_width).train()
        freeze(network, recipe.train.freeze)
        weights = live.now
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        for parameter in trained:
            # What is left of the gradients is known, and would hide what the clips take.
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        batch = noise_batch(recipe, clips, frames=frames, channels=channels, text_width=text_width)
        bare_loss(network, batch, recipe.train.precision).backward()
    parameters = count_parameters(network)
    moved = sum(parameter.numel() for parameter in trained)
    copies = 0 if recipe.train.precision == "fp32" else 2 * parameters
    averages = 2 if registry.REGIME in recipe.stage else 1
    return MemoryEstimate(
        fixed=weights + 4 * (averages * parameters + 2 * moved),
        gradients=4 * moved,
        copies=copies,
        per_clip=max(1, (live.peak - weights - copies) // clips),
    )


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are made inside and still there; `peak`: at most, so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self.alive:
            return
        self.alive.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, count: int) -> None:
        self.alive.discard(key)
        self.now -= count


def noise_batch(
    recipe: Recipe,
    clips: int,
    *,
    frames: int,
    channels: int,
    text_width: int | None = None,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Noise in the shapes of a batch of `to_frames`, texts of the greatest length."""
    shape = (clips, frames, channels)
    length = recipe.condition.max_length
    with device or torch.device("cpu"):
        batch = {"x0": torch.randn(shape), "noise": torch.randn(shape), "t": torch.rand(clips)}
        if text_width is not None:
            batch["text"] = torch.randn(clips, length, text_width)
            batch["text_mask"] = torch.ones(clips, length, dtype=torch.bool)
        elif recipe.condition.text != "none":
            batch["text_ids"] = torch.ones(clips, length, dtype=torch.long)
        if recipe.task.kind == "sr":
            batch["low"] = torch.randn(shape)
            batch["cutoff"] = torch.full((clips,), 0.5)
            batch["level"] = torch.zeros(clips)
            batch["band"] = torch.zeros(clips, channels, dtype=torch.bool)
            batch["weight"] = torch.ones(clips, 1, channels)
        if recipe.data.padding == "mask":
            batch["mask"] = torch.ones(clips, frames, dtype=torch.bool)
            batch["weight"] = torch.ones(clips, frames, 1)
    return batch


def bare_loss(network: Network, batch: Mapping[str, Tensor], precision: str) -> Tensor:
    """The loss of plain training on a batch of `noise_batch`."""
    device = batch["x0"].device.type
    dtype = torch.float16 if precision == "fp16" and device != "cpu" else torch.bfloat16
    with torch.autocast(device, dtype=dtype, enabled=precision != "fp32"):
        result = flow_loss(
            network,
            batch["x0"],
            batch["noise"],
            batch["t"],
            batch,
            weight_BTC=batch.get("weight"),
        )
    return result.loss_B.mean()


# -- what there is, and what cannot fit ------------------------------------------------------------


def least_bytes(recipe: Recipe, codec: Codec, parameters: int, processes: int = 1) -> int:
    """Bytes for the weights and what AdamW keeps, the audio of a batch, and a value per token,
    channel and block, which the backward pass needs: less than training takes in any case.

    parameters: of which a process keeps copies.
    """
    options = recipe.train
    width, depth, _ = recipe.model.resolved()
    num_samples = round(recipe.data.seconds * recipe.data.sample_rate)
    clips = max(1, options.batch_size // (options.accumulate * processes))
    tokens = codec.frames(num_samples) // recipe.model.patch
    per_clip = 4 * (num_samples + codec.frames(num_samples) * codec.channels)
    return 4 * COPIES * parameters + clips * (per_clip + 2 * depth * tokens * width)


def refuse_what_cannot_fit(
    recipe: Recipe, codec: Codec, text_width: int | None, device: torch.device, processes: int
) -> None:
    """Raises StageError where training needs several times the memory of the device."""
    network = meta_network(recipe, channels=codec.channels, text_width=text_width)
    freeze(network, recipe.train.freeze)
    moved = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    count = count_parameters(network)
    # Frozen ones have neither gradients nor moments, and count for less.
    parameters = moved + (count - moved) * FROZEN_COPIES // COPIES
    if launcher.shares_weights():
        parameters //= processes
    needed = least_bytes(recipe, codec, parameters, processes)
    there = bytes_of(device)
    if there and needed > CERTAIN * there:
        weights = 4 * COPIES * parameters
        owner = "the GPU" if device.type == "cuda" else "this machine"
        raise StageError(
            f"training needs at least {in_words(needed)} of memory, {owner} has {in_words(there)}",
            problems=[
                Problem("model", f"{count:,} parameters take {in_words(weights)}"),
                Problem("train.batch_size", f"a batch takes {in_words(needed - weights)}"),
            ],
            hint="choose a smaller model or batch_size, more accumulate, or fewer data.seconds",
        )


def bytes_of(device: torch.device) -> int:
    """Memory of a device; of a CPU, what its cgroup may use of it. 0 where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
    limit = memory_limit()
    return physical if limit is None else min(physical, limit)


def peak_memory() -> int:
    """Bytes that were taken at most: of the GPU's allocations, or of this process on a CPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_words(count: int) -> str:
    """Bytes as `1.5 GB`, or `300 MB` of less than that."""
    if count < 2**30:
        return f"{count / 2**20:,.0f} MB"
    return f"{count / 2**30:,.1f} GB"
