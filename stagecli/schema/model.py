"""`[model]` of a recipe: the size of the diffusion transformer. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from stagecli.bounds import Range
from stagecli.schema.section import Depth, Section, Width

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 6, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
"""Width, depth and heads of each named size; S to XL are those of the DiT paper, table 1."""


class Model(Section):
    """`[model]`: the diffusion transformer."""

    size: Literal["tiny", "S", "B", "L", "XL"] = "tiny"
    """Named size; `width`, `depth` and `heads` override its numbers."""
    width: Width | None = None
    """Width of the transformer; default: that of `size`."""
    depth: Depth | None = None
    """Number of transformer blocks; default: that of `size`."""
    heads: Annotated[int, Range(1, 1024)] | None = None
    """Attention heads per block; default: that of `size`."""
    patch: Annotated[int, Range(1, 1024)] = 1
    """Codec frames per token."""
    mlp_ratio: Annotated[float, Range(0.1, 64)] = 4.0
    """Hidden width of each MLP as a multiple of `width`."""
    levels: bool = False
    """Also read the levels of x_t and input in 32 bands, which a narrow trunk hardly infers."""
    output: Literal["plain", "gated"] = "plain"
    """`gated`: a per-channel skip of x_t around the trunk, for codecs wider than `width`."""

    @model_validator(mode="after")
    def check_heads_divide_width(self) -> Model:
        """Rotary embeddings rotate pairs of channels, so each head needs an even width."""
        width, _, heads = self.resolved()
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width {width} must be an even multiple of heads {heads}")
        return self

    def resolved(self) -> tuple[int, int, int]:
        """(width, depth, heads) with the numbers of the named size filled in."""
        width, depth, heads = SIZES[self.size]
        return self.width or width, self.depth or depth, self.heads or heads
