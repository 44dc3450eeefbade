"""The noise that a clip is sampled from depends on the seed and the number of the clip alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stagecli.generate.pipeline import SamplerSettings, load_pipeline


def test_noise_is_a_function_of_seed_and_number(trained: Path) -> None:
    pipeline, _ = load_pipeline(trained / "runs" / "t2a")
    noise = pipeline.noise((4, 3), 5, 2)
    assert noise.shape == (4, 3)
    assert torch.equal(noise, pipeline.noise((4, 3), 5, 2))
    assert not torch.equal(noise, pipeline.noise((4, 3), 5, 1))
    assert not torch.equal(noise, pipeline.noise((4, 3), 4, 2))


def test_one_prompt_twice_gives_two_clips(trained: Path) -> None:
    pipeline, _ = load_pipeline(trained / "runs" / "t2a")
    settings = SamplerSettings.of(pipeline.recipe.evaluate)
    first, second = pipeline.generate(["a bell", "a bell"], seed=3, settings=settings)
    assert not np.allclose(first, second, atol=1e-3)
