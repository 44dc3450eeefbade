"""The part of `gpu_check.py` that measures the size L, against what the device can do at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from timed_session import synchronize
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stagecli.flow.objective import flow_loss
from stagecli.model.ema import EMA
from stagecli.model.network import Network
from stagecli.recipe.load import load_recipe
from stagecli.schema import Recipe
from stagecli.schema.model import SIZES
from stagecli.train.memory import estimate_memory

Check = tuple[str, str, str, bool | None]
FRAMES = 862  # of 10 s at 44.1 kHz, hop 512
CHANNELS = 1024
BATCH = 16
TEXT = 64  # bytes


def seconds_of(work: Callable[[], object], count: int) -> float:
    """Median seconds of one call, after two that do not count."""
    times = []
    for number in range(count + 2):
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        if number >= 2:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def ceilings(device: torch.device) -> tuple[float, float]:
    """FLOP/s of a bf16 matrix product, and bytes/s of a copy, reads and writes counted."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product = 2 * size**3 / seconds_of(lambda: a @ b, 20)
    x = torch.randn(2**28 if device.type == "cuda" else 2**20, device=device)
    y = torch.empty_like(x)
    return product, 2 * x.nbytes / seconds_of(lambda: y.copy_(x), 20)


@dataclass
class Bare:
    """A training loop over the network, as the trainer's, on one batch."""

    recipe: Recipe
    network: Network
    optimizer: torch.optim.Optimizer
    ema: EMA
    skip: Tensor
    batch: dict[str, Tensor]
    t_B: Tensor

    @classmethod
    def build(cls, device: torch.device) -> Bare:
        """L on a GPU, a tiny network on a CPU."""
        small = device.type != "cuda"
        frames, channels, batch = (64, 32, 2) if small else (FRAMES, CHANNELS, BATCH)
        width, depth, heads = (128, 2, 2) if small else SIZES["L"]
        sizes = [f"model.width={width}", f"model.depth={depth}", f"model.heads={heads}"]
        sizes += ["train.precision=bf16", f"condition.max_length={TEXT}"]
        recipe = load_recipe("quickstart", sizes).model_copy(update={"stage": {}})
        torch.manual_seed(0)
        with device:
            network = Network(recipe, channels=channels).train()
        shape = (batch, frames, channels)
        return cls(
            recipe=recipe,
            network=network,
            optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True),
            ema=EMA(network, 0.999),
            skip=torch.zeros((), device=device),
            batch={
                "x0": torch.randn(shape, device=device),
                "noise": torch.randn(shape, device=device),
                "text_ids": torch.randint(2, 250, (batch, TEXT), device=device),
            },
            t_B=torch.rand(batch, device=device),
        )

    def loss(self, rows: int | None = None) -> Tensor:
        batch = {name: value[:rows] for name, value in self.batch.items()}
        with torch.autocast(self.t_B.device.type, dtype=torch.bfloat16):
            result = flow_loss(self.network, batch["x0"], batch["noise"], self.t_B[:rows], batch)
        return result.loss_B.mean()

    def step(self) -> None:
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.found_inf = self.skip  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.network, self.skip)


def flops_of_step(bare: Bare) -> float:
    """FLOPs of forward and backward of the batch, counted on one example."""
    with FlopCounterMode(display=False) as counter:
        bare.loss(1).backward()
    bare.optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops() * len(bare.t_B)


def large_checks(device: torch.device, *, compile_blocks: bool) -> Iterator[Check]:
    """(check, value, aim, ok) of a step of L: speed, memory, and where the time goes."""
    # What a step computes and needs, counted before anything is compiled.
    gpu = device.type == "cuda"
    label = "L, blocks" if compile_blocks else "L, none"
    bare = Bare.build(device)
    flops = flops_of_step(bare)
    shape = bare.batch["x0"].shape
    guess = estimate_memory(bare.recipe, frames=shape[1], channels=shape[2]).total(shape[0])
    if compile_blocks:
        bare.network.dit.compile_blocks()

    # Its speed.
    began = time.perf_counter()
    bare.step()
    synchronize()
    first = time.perf_counter() - began
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(bare.step, 8 if gpu else 2)
    share = flops / seconds / ceilings(device)[0]
    words = f"{1e3 * seconds:.0f} ms a step of {len(bare.t_B)}, {first:.0f} s for the first"
    words += f", {flops / seconds / 1e12:.0f} TFLOP/s, {100 * share:.0f} % of the product"
    yield label, words, ">= 50 %" if gpu else "", share >= 0.5 if gpu else None

    # Its memory, and its parts.
    if gpu:
        peak = torch.cuda.max_memory_allocated()
        text = f"{peak / 2**30:.1f} GiB; estimate {guess / 2**30:.1f} ({guess / peak - 1:+.0%})"
        yield f"{label}: memory", text, "within 15 %", abs(guess / peak - 1) <= 0.15
    yield from parts(bare, label)
    del bare
    if gpu:
        torch.cuda.empty_cache()


def parts(bare: Bare, label: str) -> Iterator[Check]:
    """Where the time of a step goes."""
    count = 5 if bare.t_B.device.type == "cuda" else 1
    forward = seconds_of(lambda: bare.loss(), count)
    both = seconds_of(lambda: bare.loss().backward(), count)
    update = seconds_of(bare.optimizer.step, count)
    average = seconds_of(lambda: bare.ema.update(bare.network, bare.skip), count)
    bare.optimizer.zero_grad(set_to_none=True)
    words = f"forward {1e3 * forward:.0f}, backward {1e3 * (both - forward):.0f}"
    words += f", AdamW {1e3 * update:.1f}, EMA {1e3 * average:.1f} ms"
    yield f"{label}: parts", words, "", None
