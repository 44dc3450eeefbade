"""`train.precision = "auto"`: what this machine computes fast."""

from __future__ import annotations

import torch

from stagecli.schema import Recipe


def settled(recipe: Recipe) -> Recipe:
    """The recipe with `train.precision = "auto"` replaced by what this machine computes fast.

    A CPU without bf16 instructions emulates them: measured, a step takes about ten times as long as in fp32.
    """
    if recipe.train.precision != "auto":
        return recipe
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    train = recipe.train.model_copy(update={"precision": "bf16" if fast else "fp32"})
    return recipe.model_copy(update={"train": train})
