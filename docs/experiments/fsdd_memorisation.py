"""Check generated digits for copies: distance of each clip to its nearest training clip.

    STAGECLI_DATA=DIR python docs/experiments/fsdd_memorisation.py SAMPLES_DIR

The distance is the root mean square difference of log-mel frames (512/160, 48 bands, floor 1e-4)
over 0.8 s, the smallest over shifts of up to 3 frames. Copies would be far nearer to the training
set than real test clips are. Test clips go through the codec first, as samples have.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagecli.codec.mel import MelCodec
from stagecli.data.audio import read_mono

NUM_SAMPLES = 6400  # 0.8 s at 8 kHz
SHIFT = 3  # frames


def frames(codec: MelCodec, paths: list[Path]) -> Tensor:
    """Log-mel frames [n, T, C]."""
    clips = [read_mono(path, 8000)[:NUM_SAMPLES] for path in paths]
    audio_BN = np.stack([np.pad(clip, (0, NUM_SAMPLES - len(clip))) for clip in clips])
    return codec.analyse(torch.from_numpy(audio_BN))


def nearest(clips_NTC: Tensor, train_MTC: Tensor) -> Tensor:
    """Smallest distance [n] of each clip to any training clip."""
    best = torch.full((len(clips_NTC),), float("inf"))
    for shift in range(-SHIFT, SHIFT + 1):
        shifted = train_MTC.roll(shift, dims=1).flatten(1)
        best = torch.minimum(best, torch.cdist(clips_NTC.flatten(1), shifted).min(1).values)
    return best / clips_NTC[0].numel() ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=Path, help="folder with samples.jsonl")
    folder = parser.parse_args().samples
    codec = MelCodec(sample_rate=8000, n_fft=512, hop=160, n_mels=48, floor=1e-4, iterations=32)
    root = Path(os.environ["STAGECLI_DATA"]) / "fsdd"
    rows = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    train = frames(codec, [root / row["path"] for row in rows if row["split"] == "train"])
    test = frames(codec, [root / row["path"] for row in rows if row["split"] == "test"])
    samples = [
        json.loads(line)["path"] for line in (folder / "samples.jsonl").read_text().splitlines()
    ]
    with torch.no_grad():
        decoded = codec.analyse(codec.decode(test, NUM_SAMPLES))
        for name, clips in (
            ("real test clips", decoded),
            ("samples", frames(codec, [folder / p for p in samples])),
        ):
            distance = nearest(clips, train)
            low, middle, high = np.quantile(distance.numpy(), [0.05, 0.5, 0.95])
            spread = f"5 % {low:.3f}  median {middle:.3f}  95 % {high:.3f}"
            print(f"{name:16} n {len(distance)}  nearest training clip: {spread}")


if __name__ == "__main__":
    main()
