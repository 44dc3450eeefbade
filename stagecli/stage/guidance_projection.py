"""The projectors of guidance: from hidden states to a target, trained beside the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BETAS = (0.9, 0.99)  # of AdamW
CLIP = 1.0  # largest gradient norm
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ProjectorShape:
    """blocks: K; layers: linear ones, with SiLU in between; sizes of input, inner layers, output.

    The projectors of all blocks run as one.
    """

    blocks: int
    layers: int
    width: int
    hidden: int
    output: int

    @property
    def sizes(self) -> list[int]:
        """Features before the first layer, and after each one."""
        return [self.width, *[self.hidden] * (self.layers - 1), self.output]


class Projectors(nn.Module):
    """An MLP for each of K blocks, all at once: [K, N, W] -> [K, N, D]."""

    def __init__(self, shape: ProjectorShape) -> None:
        super().__init__()
        sizes = list(zip(shape.sizes[:-1], shape.sizes[1:], strict=True))
        mlps = [[nn.Linear(*size) for size in sizes] for _ in range(shape.blocks)]
        pairs = [_stacked(linears) for linears in zip(*mlps, strict=True)]
        self.weights = nn.ParameterList(weight_KIO for weight_KIO, _ in pairs)
        self.biases = nn.ParameterList(bias_K1O for _, bias_K1O in pairs)

    def forward(self, h_KNW: Tensor) -> Tensor:
        for number, (weight_KIO, bias_K1O) in enumerate(
            zip(self.weights, self.biases, strict=True)
        ):
            inner_KNI = F.silu(h_KNW) if number else h_KNW
            h_KNW = torch.baddbmm(bias_K1O, inner_KNI, weight_KIO)
        return h_KNW


def _stacked(linears: Sequence[nn.Linear]) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights [K, in, out] and biases [K, 1, out]."""
    weight_KIO = torch.stack([linear.weight.detach().T for linear in linears])
    bias_K1O = torch.stack([linear.bias.detach()[None] for linear in linears])
    return nn.Parameter(weight_KIO), nn.Parameter(bias_K1O)


def build_projections(
    shapes: Sequence[ProjectorShape], *, seed: int, device: torch.device, precision: str
) -> list[Projection]:
    """Projectors with their optimisers, drawn in turn from a seed of their own.

    The global generator is left as it was, so that the run's other draws are those without
    guidance.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = [Projectors(shape) for shape in shapes]
    return [Projection(module.to(device), PRECISIONS[precision]) for module in modules]


class Projection:
    """Projectors and their optimiser. dtype: of the autocast they run in; None: fp32."""

    def __init__(self, module: Projectors, dtype: torch.dtype | None) -> None:
        self.module = module
        self.dtype = dtype
        fused = module.weights[0].device.type in ("cuda", "cpu")
        self.optimizer = torch.optim.AdamW(module.parameters(), betas=BETAS, fused=fused)

    def __call__(self, h_KBLW: Tensor) -> Tensor:
        """Projected frames [K, B, L, D], fp32; the projectors run in the precision of training."""
        half = self.dtype is not None
        device = h_KBLW.device.type
        with torch.autocast(device, self.dtype or torch.bfloat16, enabled=half):
            projected_KND = self.module(h_KBLW.flatten(1, 2))
        return projected_KND.float().unflatten(1, h_KBLW.shape[1:3])

    def step(
        self,
        lr: float,
        all_reduce_mean: Callable[[Tensor], Tensor],
        scale: float,
        skip: Tensor | None = None,
    ) -> None:
        """One optimiser step with clipped gradients; arguments as in `Mechanism.step`."""
        weights = [p for p in self.module.parameters() if p.grad is not None]
        if not weights:
            return
        gradients = [all_reduce_mean(p.grad) / scale for p in weights if p.grad is not None]
        norm = torch.stack([g.norm() for g in gradients]).norm()
        factor = (CLIP / norm.clamp_min(1e-6)).clamp_max(1.0)
        # A gradient that overflowed in fp16 becomes 0, without a sync to look at it.
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = torch.where(norm.isfinite(), gradient * factor, 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if skip is not None:
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # fused: reads it
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
