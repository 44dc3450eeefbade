"""Tensors that the processes of a run share out, as FSDP shares out weights: each holds one part.

Such a tensor is a `DTensor`; any other one is whole in every process, and passes through all of
these functions as it is. Where a function says *together*, every process must call it, in the same
order: it exchanges parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(module: nn.Module) -> bool:
    """Whether processes share out the weights of a module."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """The part of this process, which shares its memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_whole(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into one that may be shared out, of which each process takes its part."""
    own_part(target).copy_(own_part(shared_like(source, target)))


def shared_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, shared out as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tree: Any, *, keep: bool) -> Any:
    """Nested dicts and lists with whole tensors, those that were shared out on the CPU; together.

    keep: False where the values are not used: a process then holds one tensor at a time, and
    returns None for each that was shared out.
    """
    if isinstance(tree, DTensor):
        value = whole(tree)
        return value.cpu() if keep else None
    if isinstance(tree, Mapping):
        return {name: gathered(value, keep=keep) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [gathered(value, keep=keep) for value in tree]
    return tree


class WholeTensors(Mapping[str, Tensor]):
    """Tensors by name, each of them put together when it is read; together."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return whole(self.tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def share_out_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A state dict of an optimiser with whole tensors, shared out as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {
            name: shared_like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": moments}
