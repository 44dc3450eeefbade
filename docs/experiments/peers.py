"""Training speed of our transformer beside those of `diffusers` and `stable-audio-tools`.

    pip install diffusers stable-audio-tools
    OMP_NUM_THREADS=1 python docs/experiments/peers.py --width 384 --depth 6 --frames 216

One optimiser step (flow matching with cross-attention to the same text, forward, backward,
clipping, fused AdamW) of three models of the same width, depth, heads and tokens, taking turns in
one process. The models differ: both peers have gated feed-forward parts of four times the width, so
the table also shows how many FLOPs a step has, and how many of them each second gets done. A peer
that is not installed is a row that says so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timed_session import synchronize
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stagecli.model.dit import Conditioning, DiT


@dataclass(frozen=True)
class Size:
    """Of the models and the batch; text: tokens of the text, as wide as the model."""

    width: int
    depth: int
    heads: int
    frames: int
    channels: int
    text: int
    batch: int


@dataclass
class Racer:
    """A model with its optimiser. velocity: x_t [B, T, C], t [B], text [B, L, D] -> [B, T, C]."""

    name: str
    model: nn.Module
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.seconds: list[float] = []

    def loss(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        x0_BTC, noise_BTC, t_B, text_BLD = batch
        t_B11 = t_B[:, None, None]
        x_BTC = (1 - t_B11) * x0_BTC + t_B11 * noise_BTC
        with torch.autocast(x_BTC.device.type, torch.bfloat16, enabled=x_BTC.is_cuda):
            velocity_BTC = self.velocity(x_BTC, t_B, text_BLD)
        return F.mse_loss(velocity_BTC.float(), noise_BTC - x0_BTC)

    def step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        began = clock()
        self.loss(batch).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(clock() - began)


def clock() -> float:
    """Wall seconds once the GPU has done its work; without one, CPU seconds of this process.

    With one thread, CPU time is what one waits for on a machine without neighbours.
    """
    if not torch.cuda.is_available():
        return time.process_time()
    synchronize()
    return time.perf_counter()


def ours(size: Size) -> Racer:
    """The transformer of this project."""
    model = DiT(
        channels=size.channels, width=size.width, depth=size.depth, heads=size.heads, text=True
    )
    mask_BL = torch.ones(size.batch, size.text, dtype=torch.bool, device=device_of(model))

    def velocity(x_BTC: Tensor, t_B: Tensor, text_BLD: Tensor) -> Tensor:
        condition = Conditioning(text_BLD=text_BLD, text_mask_BL=mask_BL)
        return model(x_BTC, t_B, condition).velocity_BTC

    return Racer("stagecli", model, velocity)


def of_diffusers(size: Size) -> Racer:
    """StableAudioDiTModel. Raises ImportError."""
    from diffusers import StableAudioDiTModel
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    head = size.width // size.heads
    model = StableAudioDiTModel(
        sample_size=size.frames,
        in_channels=size.channels,
        out_channels=size.channels,
        num_layers=size.depth,
        attention_head_dim=head,
        num_attention_heads=size.heads,
        num_key_value_attention_heads=size.heads,
        cross_attention_dim=size.width,
        cross_attention_input_dim=size.width,
        global_states_input_dim=size.width,
    )
    rotary = get_1d_rotary_pos_embed(
        head // 2, size.frames + 1, use_real=True, repeat_interleave_real=False
    )
    rotary = tuple(table.to(device_of(model)) for table in rotary)
    silent_B1D = torch.zeros(size.batch, 1, size.width, device=device_of(model))

    def velocity(x_BTC: Tensor, t_B: Tensor, text_BLD: Tensor) -> Tensor:
        result = model(
            x_BTC.transpose(1, 2),
            t_B,
            encoder_hidden_states=text_BLD,
            global_hidden_states=silent_B1D,
            rotary_embedding=rotary,
            return_dict=False,
        )
        return result[0].transpose(1, 2)

    return Racer("diffusers StableAudioDiTModel", model, velocity)


def of_stable_audio_tools(size: Size) -> Racer:
    """DiffusionTransformer. Raises ImportError."""
    from stable_audio_tools.models.dit import DiffusionTransformer

    model = DiffusionTransformer(
        io_channels=size.channels,
        embed_dim=size.width,
        cond_token_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        diffusion_objective="rectified_flow",
    )

    def velocity(x_BTC: Tensor, t_B: Tensor, text_BLD: Tensor) -> Tensor:
        return model(x_BTC.transpose(1, 2), t_B, cross_attn_cond=text_BLD).transpose(1, 2)

    return Racer("stable-audio-tools DiffusionTransformer", model, velocity)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def flops(racer: Racer, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """FLOPs of forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        racer.loss(batch).backward()
    racer.optimizer.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def race(size: Size, rounds: int, device: torch.device) -> None:
    """Print the table."""
    # The models, and one batch for all.
    racers: list[Racer] = []
    for build in (ours, of_diffusers, of_stable_audio_tools):
        torch.manual_seed(0)
        try:
            with device:
                racers.append(build(size))
        except ImportError as error:
            print(f"{build.__name__.removeprefix('of_')}: not measured: {error}")
    frames = (size.batch, size.frames, size.channels)
    batch = (
        torch.randn(frames, device=device),
        torch.randn(frames, device=device),
        torch.rand(size.batch, device=device),
        torch.randn(size.batch, size.text, size.width, device=device),
    )

    # Turns.
    work = [flops(racer, batch) for racer in racers]
    for _ in range(rounds + 2):
        for racer in racers:
            racer.step(batch)

    # The table; the first two rounds do not count.
    print(f"{size}; {device}, torch {torch.__version__}, {rounds} rounds")
    print(f"{'model':42}{'parameters':>12}{'ms':>9}{'samples/s':>11}{'GFLOP':>8}{'GFLOP/s':>9}")
    for racer, count in zip(racers, work, strict=True):
        seconds = statistics.median(racer.seconds[2:])
        ratios = [a / b for a, b in zip(racer.seconds[2:], racers[0].seconds[2:], strict=True)]
        millions = sum(p.numel() for p in racer.model.parameters()) / 1e6
        print(
            f"{racer.name:42}{millions:10.1f} M{1e3 * seconds:9.1f}{size.batch / seconds:11.2f}"
            f"{count / 1e9:8.0f}{count / seconds / 1e9:9.0f}   time over ours "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, value in (
        ("width", 384),
        ("depth", 6),
        ("heads", 6),
        ("frames", 216),
        ("channels", 64),
        ("text", 64),
        ("batch", 4),
        ("rounds", 10),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args())
    rounds = options.pop("rounds")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    race(Size(**options), rounds, device)


if __name__ == "__main__":
    main()
