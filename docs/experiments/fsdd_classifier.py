"""Classify the digit and the speaker of clips, with two small CNNs trained on real FSDD clips.

Independent of every encoder in the package: the CNNs are trained on the train split alone and
never on generated audio.

    export STAGECLI_DATA=DIR
    python docs/experiments/fsdd_classifier.py --weights judge.pt
    python docs/experiments/fsdd_classifier.py --weights judge.pt --codec --hop 128
    python docs/experiments/fsdd_classifier.py --weights judge.pt --samples DIR

The weights file is written by the first call (3 minutes on one core) and reused after that. A
folder of samples contains `samples.jsonl`: rows with `path`, relative to the folder, and
`prompt`, such as "george says zero".
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from scipy.signal import resample_poly
from torch import Tensor, nn

from stagecli.codec.mel import MelCodec
from stagecli.dsp.mel import mel_filters

RATE = 8000  # Hz
NUM_SAMPLES = 8000  # every clip is cut or zero-padded to 1 s
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


class Judge(nn.Module):
    """CNN on 40-band log-mel of 1 s at 8 kHz: audio [B, 8000] -> logits [B, classes]."""

    filters_FC: Tensor
    window: Tensor

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        filters_FC = mel_filters(
            sample_rate=RATE, n_fft=256, bands=40, f_min=100.0, f_max=3800.0
        ).float()
        self.register_buffer("filters_FC", filters_FC, persistent=False)
        self.register_buffer("window", torch.hann_window(256), persistent=False)
        widths = (1, width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            layers += [nn.MaxPool2d(2)] if index < 3 else []
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(widths[-1] * 5, classes))

    def forward(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, 8000] -> logits [B, classes]; the loudness of a clip does not matter."""
        loudness_B1 = audio_BN.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
        spectrum_BFT = torch.stft(
            audio_BN / loudness_B1, 256, 128, window=self.window, center=True, return_complex=True
        )
        mel_BTC = spectrum_BFT.abs().square().transpose(1, 2) @ self.filters_FC
        x_B1TC = (mel_BTC.clamp_min(1e-4).log() / 3)[:, None]
        x_BCTF = self.layers(x_B1TC)
        # The loudest moment of each feature, so that its position in time does not matter.
        return self.head(x_BCTF.amax(2).flatten(1))


def fit_length(audio_N: np.ndarray) -> Tensor:
    """Audio of any length -> [8000]: cut at 1 s, or padded with zeros at the end."""
    cut = torch.from_numpy(np.ascontiguousarray(audio_N[:NUM_SAMPLES], dtype=np.float32))
    return F.pad(cut, (0, NUM_SAMPLES - cut.shape[0]))


def read(path: Path) -> Tensor:
    """Audio file -> mono 8 kHz, [8000]."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono_N = audio.mean(1)
    if rate != RATE:
        shared = math.gcd(rate, RATE)
        mono_N = resample_poly(mono_N, RATE // shared, rate // shared)
    return fit_length(mono_N)


def load_split(root: Path, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Audio [B, 8000], digits [B], speakers [B] of one split of FSDD."""
    with (root / "manifest.jsonl").open() as lines:
        rows = [row for row in map(json.loads, lines) if row["split"] == split]
    audio_BN = torch.stack([read(root / row["path"]) for row in rows])
    digits_B = torch.tensor([DIGITS.index(row["label"]) for row in rows])
    speakers_B = torch.tensor([SPEAKERS.index(row["speaker"]) for row in rows])
    return audio_BN, digits_B, speakers_B


def augment(audio_BN: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 0.1 s and add white noise 10 to 40 dB below the clip: [B, N] -> [B, N]."""
    batch, num_samples = audio_BN.shape
    shift_B1 = torch.randint(0, RATE // 10, (batch, 1), generator=generator)
    index_BN = torch.arange(num_samples) - shift_B1
    moved_BN = audio_BN.gather(1, index_BN.clamp_min(0)) * (index_BN >= 0)
    loudness_B1 = moved_BN.square().mean(1, keepdim=True).sqrt()
    down_db_B1 = 10 + 30 * torch.rand(batch, 1, generator=generator)
    noise_BN = torch.randn(batch, num_samples, generator=generator)
    return moved_BN + noise_BN * loudness_B1 * 10 ** (-down_db_B1 / 20)


@torch.no_grad()
def hits(judge: Judge, audio_BN: Tensor, labels_B: Tensor) -> Tensor:
    """True where the judge's first choice is the label: [B]."""
    judge.eval()
    guesses = [judge(batch_BN).argmax(1) for batch_BN in audio_BN.split(100)]
    return torch.cat(guesses) == labels_B


def train_judge(
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    classes: int,
    *,
    epochs: int,
    seed: int,
) -> Judge:
    """Train on (audio [B, N], labels [B]); the weights of the best epoch on `valid` are kept."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = Judge(classes)
    audio_BN, labels_B = train
    steps = epochs * (len(audio_BN) // 64)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    best = (-1.0, -math.inf)
    kept = judge.state_dict()
    for _ in range(epochs):
        judge.train()
        order = torch.randperm(len(audio_BN), generator=generator)
        for rows in order[: len(order) // 64 * 64].split(64):
            logits = judge(augment(audio_BN[rows], generator))
            loss = F.cross_entropy(logits, labels_B[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        right = hits(judge, *valid).float().mean().item()
        with torch.no_grad():
            score = (right, -F.cross_entropy(judge(valid[0]), valid[1]).item())  # loss breaks ties
        if score >= best:
            best = score
            kept = {name: value.clone() for name, value in judge.state_dict().items()}
    judge.load_state_dict(kept)
    return judge.eval()


def load_or_train(weights: Path, root: Path, *, epochs: int, seed: int) -> tuple[Judge, Judge]:
    """The digit and the speaker judge from `weights`; trained and saved there if it is missing."""
    if weights.exists():
        state = torch.load(weights, weights_only=True)
        judges = Judge(len(DIGITS)), Judge(len(SPEAKERS))
        for judge, name in zip(judges, ("digit", "speaker"), strict=True):
            judge.load_state_dict(state[name])
            judge.eval()
        return judges
    started = time.monotonic()
    train = load_split(root, "train")
    valid = load_split(root, "valid")
    digit = train_judge(
        (train[0], train[1]), (valid[0], valid[1]), len(DIGITS), epochs=epochs, seed=seed
    )
    speaker = train_judge(
        (train[0], train[2]), (valid[0], valid[2]), len(SPEAKERS), epochs=epochs, seed=seed
    )
    weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"digit": digit.state_dict(), "speaker": speaker.state_dict()}, weights)
    print(f"trained in {time.monotonic() - started:.0f} s, saved to {weights}", file=sys.stderr)
    return digit, speaker


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927)."""
    z = 1.959964
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    return middle - half, middle + half


def score(
    judges: tuple[Judge, Judge], audio_BN: Tensor, digits_B: Tensor, speakers_B: Tensor
) -> dict[str, float]:
    """Digit and speaker accuracy of audio [B, 8000] with their intervals, as one flat row."""
    row: dict[str, float] = {"n": len(audio_BN)}
    labels = (digits_B, speakers_B)
    for name, judge, labels_B in zip(("digit", "speaker"), judges, labels, strict=True):
        right = int(hits(judge, audio_BN, labels_B).sum())
        low, high = wilson(right, len(audio_BN))
        row |= {name: right / len(audio_BN), f"{name}_low": low, f"{name}_high": high}
    return row


def accuracy(
    judges: tuple[Judge, Judge],
    paths: Sequence[Path],
    digits: Sequence[str],
    speakers: Sequence[str],
) -> dict[str, float]:
    """`score` of audio files against the names of their digit and speaker."""
    audio_BN = torch.stack([read(path) for path in paths])
    digits_B = torch.tensor([DIGITS.index(name) for name in digits])
    speakers_B = torch.tensor([SPEAKERS.index(name) for name in speakers])
    return score(judges, audio_BN, digits_B, speakers_B)


def score_folder(judges: tuple[Judge, Judge], folder: Path) -> dict[str, float]:
    """`accuracy` of a folder of samples against the prompts in its `samples.jsonl`."""
    with (folder / "samples.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    words = [row["prompt"].split() for row in rows]
    paths = [folder / row["path"] for row in rows]
    return accuracy(judges, paths, [w[-1] for w in words], [w[0] for w in words])


@torch.no_grad()
def through_codec(codec: MelCodec, audio_BN: Tensor) -> Tensor:
    """Audio [B, N] -> frames -> audio [B, N]."""
    return torch.cat([codec.decode(codec.encode(x), x.shape[-1]) for x in audio_BN.split(50)])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=Path("fsdd_judge.pt"))
    parser.add_argument(
        "--samples",
        type=Path,
        action="append",
        default=[],
        help="folder with samples.jsonl (repeatable)",
    )
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    codec = parser.add_argument_group("real test clips through the log-mel codec")
    codec.add_argument("--codec", action="store_true")
    for name, default in (("n-fft", 512), ("hop", 128), ("n-mels", 48), ("iterations", 32)):
        codec.add_argument(f"--{name}", type=int, default=default)
    codec.add_argument("--power", type=float, default=1.0)
    codec.add_argument("--floor", type=float, default=1e-4)
    args = parser.parse_args()
    if "STAGECLI_DATA" not in os.environ:
        parser.error("set STAGECLI_DATA to the folder that holds fsdd/manifest.jsonl")
    return args


def main() -> None:
    """Command line: one line per row on stdout."""
    args = parse_arguments()
    root = Path(os.environ["STAGECLI_DATA"]) / "fsdd"
    torch.set_num_threads(1)
    judges = load_or_train(args.weights, root, epochs=args.epochs, seed=args.seed)
    audio_BN, *labels = load_split(root, "test")
    rows = {"real test clips": score(judges, audio_BN, *labels)}
    if args.codec:
        mel = MelCodec(
            sample_rate=RATE,
            n_fft=args.n_fft,
            hop=args.hop,
            n_mels=args.n_mels,
            power=args.power,
            floor=args.floor,
            iterations=args.iterations,
        )
        rows["real test clips, codec"] = score(judges, through_codec(mel, audio_BN), *labels)
    for folder in args.samples:
        rows[str(folder)] = score_folder(judges, folder)
    for name, row in rows.items():
        if args.json:
            print(json.dumps({"clips": name, **row}))
            continue
        accuracies = [
            f"{k} {row[k]:.1%} [{row[k + '_low']:.1%}, {row[k + '_high']:.1%}]"
            for k in ("digit", "speaker")
        ]
        print(f"{name}: n {row['n']}, {', '.join(accuracies)}")


if __name__ == "__main__":
    main()
