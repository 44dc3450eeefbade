"""`train.compile`: whether this machine can do it, and the graphs of `step`.

`blocks` compiles the transformer blocks (`setup.build_network`). `step` also records forward and
backward pass as CUDA graphs and replays them: launching the kernels of a small model one by one
takes longer than running them. What mechanisms add to the loss is computed outside of the graphs,
so that nothing is recorded anew while r or a weight moves.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecli.condition.text import PAD
from stagecli.errors import Problem, StageError
from stagecli.flow.objective import Result, flow_loss
from stagecli.schema import Recipe
from stagecli.train.feed import Batch

UNUSED = ("index", "features")  # of a batch, by network and objective


def check_compile(recipe: Recipe, device: torch.device, processes: int) -> None:
    """Raises StageError where this machine cannot do what `train.compile` asks for."""
    mode = recipe.train.compile
    if mode == "none":
        return
    reason = ""
    hint = "use --set train.compile=blocks"
    if mode == "step" and device.type != "cuda":
        reason = f"needs a GPU with CUDA: the device is {device.type}"
    elif mode == "step" and processes > 1:
        reason = f"is for one process, and {processes} train"
    elif not has_compiler(device):
        reason = "needs a compiler, and there is no gcc or g++"
        hint = "install one, or use --set train.compile=none"
    if reason:
        raise StageError(
            f'train.compile = "{mode}" {reason}',
            problems=[Problem("train.compile", mode)],
            hint=hint,
        )


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile finds the compiler of its kernels (CPU) or of their launchers (GPU)."""
    if device.type == "cpu":
        return shutil.which(os.environ.get("CXX", "g++")) is not None
    return any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "clang"))


class GraphedLoss:
    """`flow_loss` of a micro-batch, by replaying a CUDA graph.

    The graph is recorded at the first batch, and again where shapes or the hidden states that are
    returned change; only the last one is held.
    """

    def __init__(self, network: nn.Module, text_length: int) -> None:
        """network: as Accelerate wraps it; text_length: tokens of a text at most."""
        self.network = network
        self.text_length = text_length
        self.signature: tuple[object, ...] = ()
        self.replay: Callable[..., tuple[Tensor, ...]] | None = None

    def __call__(self, batch: Batch, t_B: Tensor, hidden: Sequence[int]) -> Result:
        """batch: of `to_frames`; hidden: numbers of the hidden states to return."""
        batch = pad_text(batch, self.text_length)
        names = [name for name in batch if name not in UNUSED]
        tensors = [t_B, *(batch[name] for name in names)]
        shapes = [(value.shape, value.dtype) for value in tensors]
        signature = (tuple(names), tuple(shapes), tuple(hidden))
        if self.replay is None or signature != self.signature:
            self.replay = None  # frees the memory of the last graph
            self.replay = record(LossOfTensors(self.network, names, hidden), tensors)
            self.signature = signature
        loss_B, velocity_BTC, x_BTC, *states = self.replay(*tensors)
        # The losses are read later than the next replay, which writes to the same memory.
        return Result(
            loss_B=loss_B.clone(),
            velocity_BTC=velocity_BTC,
            x_BTC=x_BTC,
            t_B=t_B,
            condition=batch,
            hidden=dict(zip(hidden, states, strict=True)),
        )


class LossOfTensors(nn.Module):
    """`flow_loss` with tensors in and tensors out, which is what can be recorded."""

    def __init__(self, network: nn.Module, names: Sequence[str], hidden: Sequence[int]) -> None:
        """names: of the tensors after t."""
        super().__init__()
        self.network = network
        self.names = list(names)
        self.hidden = tuple(hidden)

    def forward(self, t_B: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        batch = dict(zip(self.names, tensors, strict=True))
        result = flow_loss(
            self.network,
            batch["x0"],
            batch["noise"],
            t_B,
            batch,
            weight_BTC=batch.get("weight"),
            return_hidden=self.hidden,
        )
        states = [result.hidden[k] for k in self.hidden]
        return (result.loss_B, result.velocity_BTC.detach(), result.x_BTC.detach(), *states)


def record(loss: LossOfTensors, tensors: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """The same, as replays of CUDA graphs of the loss and of its backward pass."""
    examples = tuple(value.clone() for value in tensors)
    graphed = torch.cuda.make_graphed_callables(loss, examples, allow_unused_input=True)
    return cast("Callable[..., tuple[Tensor, ...]]", graphed)


def pad_text(batch: Batch, length: int) -> Batch:
    """The batch with texts of `length` tokens, so that all batches have the same shapes."""
    padded = dict(batch)
    for name, value in (("text_ids", PAD), ("text", 0), ("text_mask", False)):
        if name in batch:
            missing = length - batch[name].shape[1]
            behind = [0, 0] * (batch[name].ndim - 2) + [0, missing]
            padded[name] = F.pad(batch[name], behind, value=value)
    return padded
