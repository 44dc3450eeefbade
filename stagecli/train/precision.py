"""`train.precision = "auto"`: bf16 where this machine computes it natively, else fp32."""

from __future__ import annotations

import torch

from stagecli.schema import Recipe


def resolve_precision(recipe: Recipe) -> Recipe:
    """The recipe with `train.precision = "auto"` replaced by the faster of bf16 and fp32.

    A CPU without bf16 instructions emulates them: a step was measured to take about ten times as
    long as in fp32.
    """
    if recipe.train.precision != "auto":
        return recipe
    if torch.cuda.is_available():
        native_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    precision = "bf16" if native_bf16 else "fp32"
    train = recipe.train.model_copy(update={"precision": precision})
    return recipe.model_copy(update={"train": train})
