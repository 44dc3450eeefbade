"""The least memory that training needs, before any of it is taken."""

from __future__ import annotations

import os

import torch

from stagecli.codec.base import Codec
from stagecli.errors import Problem, StageError
from stagecli.model.network import count_parameters, meta_network
from stagecli.schema import Recipe

COPIES = 5  # of the parameters, in fp32: weights, gradients, two AdamW moments, the EMA
CERTAIN = 2.0  # a need of so many times the memory there is cannot be met by luck or swapping


def least_bytes(recipe: Recipe, codec: Codec, parameters: int, processes: int = 1) -> int:
    """Bytes for the weights and what AdamW keeps, the audio of a batch, and a value per token,
    channel and block, which the backward pass needs: less than training takes in any case.
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
    parameters = count_parameters(network)
    needed = least_bytes(recipe, codec, parameters, processes)
    there = _bytes_of(device)
    if there and needed > CERTAIN * there:
        weights = 4 * COPIES * parameters
        owner = "the GPU" if device.type == "cuda" else "this machine"
        raise StageError(
            f"training needs at least {_gigabytes(needed)} of memory, {owner} has "
            f"{_gigabytes(there)}",
            problems=[
                Problem("model", f"{parameters:,} parameters take {_gigabytes(weights)}"),
                Problem("train.batch_size", f"a batch takes {_gigabytes(needed - weights)}"),
            ],
            hint="choose a smaller model or batch_size, more accumulate, or fewer data.seconds",
        )


def _bytes_of(device: torch.device) -> int:
    """Memory of a device; 0 where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GB"
