"""The projectors of guidance: from hidden states to the teacher's features, trained beside the
network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BETAS = (0.9, 0.99)  # of AdamW
CLIP = 1.0  # largest gradient norm
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Projectors(nn.Module):
    """A linear, SiLU, linear map for each of K blocks, all at once: [K, N, W] -> [K, N, D]."""

    def __init__(self, blocks: int, width: int, hidden: int, features: int) -> None:
        super().__init__()
        pairs = [(nn.Linear(width, hidden), nn.Linear(hidden, features)) for _ in range(blocks)]
        self.first_KWH, self.first_K1H = _stacked([first for first, _ in pairs])
        self.second_KHD, self.second_K1D = _stacked([second for _, second in pairs])

    def forward(self, h_KNW: Tensor) -> Tensor:
        inner_KNH = F.silu(torch.baddbmm(self.first_K1H, h_KNW, self.first_KWH))
        return torch.baddbmm(self.second_K1D, inner_KNH, self.second_KHD)


def _stacked(linears: Sequence[nn.Linear]) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights [K, in, out] and biases [K, 1, out]."""
    weight_KIO = torch.stack([linear.weight.detach().T for linear in linears])
    bias_K1O = torch.stack([linear.bias.detach()[None] for linear in linears])
    return nn.Parameter(weight_KIO), nn.Parameter(bias_K1O)


def build_projection(
    *,
    blocks: int,
    width: int,
    hidden: int,
    features: int,
    seed: int,
    device: torch.device,
    precision: str,
) -> Projection:
    """Projectors with their optimiser, drawn from a seed of their own.

    The global generator is left as it was, so that the run's other draws are those without
    guidance.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Projectors(blocks, width, hidden, features)
    return Projection(module.to(device), PRECISIONS[precision])


class Projection:
    """Projectors and their optimiser. dtype: of the autocast they run in; None: fp32."""

    def __init__(self, module: Projectors, dtype: torch.dtype | None) -> None:
        self.module = module
        self.dtype = dtype
        fused = module.first_KWH.device.type in ("cuda", "cpu")
        self.optimizer = torch.optim.AdamW(module.parameters(), betas=BETAS, fused=fused)

    def cosines(self, hidden: Sequence[Tensor], target_BLD: Tensor, frames: slice) -> Tensor:
        """Mean cosines [K, B] of K projected hidden states [B, P, W] with the features at `frames`.

        The hidden states are interpolated from P tokens to the L frames of the features. The
        projectors run in the precision of training, the cosines in fp32: normalising in fp16 gives
        NaN late in training (REPA, issue 46).
        """
        x_NWP = torch.stack(list(hidden)).float().flatten(0, 1).transpose(1, 2)
        x_NWL = F.interpolate(x_NWP, size=target_BLD.shape[1], mode="linear")[..., frames]
        x_KBLW = x_NWL.transpose(1, 2).unflatten(0, (len(hidden), -1))
        device = target_BLD.device.type
        half = self.dtype is not None
        with torch.autocast(device, self.dtype or torch.bfloat16, enabled=half):
            projected_KND = self.module(x_KBLW.flatten(1, 2))
        projected_KBLD = projected_KND.float().unflatten(1, x_KBLW.shape[1:3])
        return F.cosine_similarity(projected_KBLD, target_BLD[:, frames], dim=-1, eps=1e-6).mean(-1)

    def step(self, lr: float, all_reduce_mean: Callable[[Tensor], Tensor], scale: float) -> None:
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
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
