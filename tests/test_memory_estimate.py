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


def test_the_largest_batch_is_the_last_that_fits() -> None:
    estimate = memory.MemoryEstimate(fixed=1000, gradients=300, copies=50, per_clip=100)
    for there in (1399, 1400, 1500, 1999, 5000):
        most = estimate.most_clips(there)
        assert (most == 0) == (there < 1400)
        assert not most or estimate.total(most) <= there < estimate.total(most + 1)


@pytest.mark.parametrize(
    ("group", "files", "limit"),
    [
        ("0::/a/b\n", {"a/memory.max": "1000", "a/b/memory.max": "max"}, 1000),
        ("3:memory:/x\n", {"memory/x/memory.limit_in_bytes": "700"}, 700),
        ("3:cpu:/x\n", {"cpu/x/memory.limit_in_bytes": "700"}, None),
    ],
)
def test_the_memory_of_a_cgroup(
    group: str, files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.write_text(group)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cgroup.memory_limit(tmp_path / "groups", own) == limit
    assert cgroup.memory_limit(tmp_path / "groups", tmp_path / "missing") is None
