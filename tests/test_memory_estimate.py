"""The memory of a step: estimated without taking it, and measured by torch's own profiler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import write_recipe

from stagecli import cgroup
from stagecli.model.ema import EMA
from stagecli.model.network import Network
from stagecli.recipe.load import load_recipe
from stagecli.train import memory

CHANNELS = 16
FRAMES = 40


def peak_of_a_step(recipe_path: Path, clips: int) -> int:
    """Bytes at most during a second step, weights included, as the CPU's allocator counts them."""
    recipe = load_recipe(str(recipe_path))
    network = Network(recipe, channels=CHANNELS).train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    ema = EMA(network, 0.9)
    batch = memory.noise_batch(recipe, clips, frames=FRAMES, channels=CHANNELS)

    def step() -> None:
        memory.bare_loss(network, batch, recipe.train.precision).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(network)

    step()
    kept = 4 * sum(p.numel() for p in network.parameters()) * 4
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    level = kept
    peak = level
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("t2a", {"model__depth": 3, "train__batch_size": 8}),
        ("t2a", {"model__width": 64, "train__precision": "bf16", "train__batch_size": 8}),
        ("sr", {"model__depth": 4, "train__batch_size": 2}),
        ("t2a", {"train__activation_checkpointing": True, "model__depth": 6}),
    ],
)
def test_the_estimate_is_near_the_measured_peak(
    kind: str, changes: dict[str, object], tmp_path: Path
) -> None:
    path = write_recipe(tmp_path / "r.toml", kind, **changes)
    recipe = load_recipe(str(path))
    clips = recipe.train.batch_size
    guess = memory.estimate_memory(recipe, frames=FRAMES, channels=CHANNELS)
    peak = peak_of_a_step(path, clips)
    assert guess.total(clips) == pytest.approx(peak, rel=0.25)
