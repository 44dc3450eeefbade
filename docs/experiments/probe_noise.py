"""The repeat noise of a probe: how much D changes with other noise (eps), by size of the probe set.

    python docs/experiments/probe_noise.py runs/digits-0 --checkpoint 1000 --clips 64 --draws 6

Measures every clip of a large probe set with several draws of eps, and derives the standard
deviation of D over draws for other sizes from the deviations per clip, which are independent.
Training always uses the same draw, so this is the error of D's level, not of its slope.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator

from stagecli.model.network import Network
from stagecli.recipe.load import load_recipe
from stagecli.runs import checkpoint
from stagecli.stage.controller import Stages
from stagecli.train.prepare import prepare
from stagecli.train.probe_setup import build_probes

SIZES = (8, 16, 32, 64, 128, 256)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--checkpoint", default="latest", help="latest, best, or a step")
    parser.add_argument("--clips", type=int, default=64, help="clips measured")
    parser.add_argument("--draws", type=int, default=6, help="draws of the noise")
    options = parser.parse_args()
    recipe = load_recipe(options.run / "recipe.toml", [f"stage.regime.clips={options.clips}"])
    settings = Stages.of(recipe).probes
    assert settings is not None, "the recipe of this run has no [stage.regime]"
    accelerator = Accelerator(
        mixed_precision="bf16" if recipe.train.precision == "bf16" else "no", cpu=True
    )
    prepared = prepare(recipe, None, accelerator.device, lambda *_: None)
    network = Network(recipe, channels=prepared.codec.channels)
    path = checkpoint.resolve(options.run / "checkpoints", options.checkpoint)
    network.load_state_dict(checkpoint.load_weights(path, "model"))
    network.eval()
    probes = build_probes(settings, prepared, network, accelerator)
    d_KTB = torch.stack([probes.distances(network, draw) for draw in range(options.draws)])
    D = float(d_KTB.mean())
    per_clip = float(d_KTB.mean(1).std(0).square().mean().sqrt())  # of a clip's mean over t
    ceiling = float(probes.ceiling_B.mean())
    gap = float(probes.reference_B.mean()) - ceiling
    sizes = f"{len(probes.clips)} clips, {options.draws} draws"
    print(f"{path.name}: D {D:.4f}, Dn {(D - ceiling) / gap:.3f}, {sizes}")
    print("| clips | deviation of D, % of D | of Dn |\n|---|---|---|")
    for size in SIZES:
        deviation = per_clip / size**0.5
        print(f"| {size} | {100 * deviation / D:.2f} | {deviation / gap:.4f} |")


if __name__ == "__main__":
    main()
