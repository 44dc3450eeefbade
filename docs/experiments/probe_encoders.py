"""Linear probes of the bundled SSL encoders, and distances between sounds in their features.

    export STAGECLI_DATA=DIR OMP_NUM_THREADS=1
    python docs/experiments/probe_encoders.py teacher [--weights DIR] [--split valid] [--twins 3]
    python docs/experiments/probe_encoders.py judge

Every row is probed in the same way: the mean, or mean and standard deviation, over the frames of
a clip at its own length, standardised on the train split; multinomial logistic regression
(L-BFGS, full batch) with L2 chosen on the valid split; accuracy on `--split` with a Wilson 95 %
interval. Also with few training clips per class (mean of five draws), and over the five folds of
ESC-10 (400 clips; L2 chosen on the next fold), of which the encoders were trained on 1 to 3,
without labels.

Rows: the encoder's own log-mel front end, every layer of the trained network, and the last layer
of networks of the same architecture with random weights (mean and range over `--twins` seeds).
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from encoder_data import read_clips
from safetensors.torch import load_file
from torch import Tensor

from stagecli.ssl.base import recorded
from stagecli.ssl.bundled import NETWORKS, RATE, WEIGHTS, BandMel, BundledEncoder

SPLITS = ("train", "valid", "test")
FOLDS = -1
TASKS = (  # data set, label, training clips per class (None: all, FOLDS: cross-validation)
    ("esc10", "label", None),
    ("fsdd", "label", None),
    ("esc10", "label", 5),
    ("fsdd", "label", 10),
    ("esc10", "label", FOLDS),
    ("fsdd", "speaker", None),
)
COLUMNS = (
    "ESC-10",
    "FSDD digits",
    "ESC-10, 5 a class",
    "FSDD digits, 10 a class",
    "ESC-10, 5 folds",
    "FSDD speakers",
)
POOLS = ("mean", "mean and deviation")
DRAWS = 5  # of the training clips where only a few per class are used
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # L2: times |W|^2 / 2, added to the mean cross-entropy
Clips = list[tuple[np.ndarray, Any]]
Probed = dict[str, tuple[Tensor, Tensor]]  # split -> embeddings [B, D], labels [B]
Tasks = tuple[tuple[str, str, int | None], ...]


class EveryLayer(BundledEncoder):
    """Returns all layers of one pass, concatenated: [B, L, D * (depth + 1)]."""

    def encode(self, audio_BN: Tensor) -> Tensor:
        with recorded(self.network.blocks) as states:
            states[self.depth] = self.network(self.mel(audio_BN))
        tokens = torch.stack([states[k] for k in range(self.depth + 1)], -1)
        return tokens.unflatten(1, (-1, self.rows)).mean(2).flatten(2)


def make_encoder(
    kind: type[BundledEncoder], model: str, weights: Path | None, seed: int = 0
) -> Any:
    """The encoder with the weights in a folder, or with random weights."""
    torch.manual_seed(seed)
    network: Any = NETWORKS[model]()
    if weights is not None:
        state = load_file(weights / f"{model}.safetensors")
        network.load_state_dict({name: value.float() for name, value in state.items()})
    return kind(network, model, -1)


@torch.no_grad()
def frames(encoder: EveryLayer, audio_N: Tensor) -> list[Tensor]:
    """Log-mel and every layer of one clip, each [L, D]; audio too short for a feature is padded."""
    audio_BN = F.pad(audio_N, (0, max(0, encoder.receptive_field - len(audio_N))))[None]
    layers = encoder(audio_BN)[0].unflatten(-1, (-1, encoder.depth + 1)).unbind(-1)
    return [encoder.mel(audio_BN)[0], *layers]


def embed(encoder: EveryLayer, clips: Clips) -> list[Tensor]:
    """Mean and deviation over time of every row of `frames`: [clips, 2 D] each."""
    rows: list[list[Tensor]] = []
    for audio, _ in clips:
        layers = frames(encoder, torch.from_numpy(audio))
        rows.append([torch.cat([x.mean(0), x.std(0, correction=0)]) for x in layers])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def fit(x_BD: Tensor, y_B: Tensor, classes: int, strength: float) -> Tensor:
    """Weights [D + 1, classes] of logistic regression with L2 on everything but the bias."""
    weight = torch.zeros(x_BD.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=60, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (
            F.cross_entropy(x_BD @ weight[:-1] + weight[-1], y_B)
            + strength * weight[:-1].square().sum() / 2
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def probe(data: Probed, split: str) -> tuple[float, int]:
    """Accuracy on `split`, and its number of clips."""
    x, y = data["train"]
    mean = x.mean(0)
    deviation = x.std(0).clamp_min(1e-5)
    ready = {name: ((x - mean) / deviation, y) for name, (x, y) in data.items()}
    classes = int(y.max()) + 1

    def accuracy(weight: Tensor, name: str) -> float:
        x, y = ready[name]
        return float(((x @ weight[:-1] + weight[-1]).argmax(1) == y).float().mean())

    weights = [fit(*ready["train"], classes, strength) for strength in STRENGTHS]
    best = max(weights, key=lambda w: accuracy(w, "valid"))
    return accuracy(best, split), len(ready[split][1])


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
        / (1 + z * z / count)
    )
    return middle - half, middle + half


def with_few_clips(data: Probed, count: int | None, draw: int) -> Probed:
    """The data with only `count` random training clips of each class; None: all."""
    if count is None:
        return data
    x, y = data["train"]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(draw))
    chosen = torch.cat([order[y[order] == label][:count] for label in y.unique()])
    return data | {"train": (x[chosen], y[chosen])}


def over_folds(x_BD: Tensor, y_B: Tensor, fold_B: Tensor) -> tuple[float, int]:
    """Accuracy over all clips; each probe is trained on three other folds and tuned on a fourth."""
    folds = fold_B.unique().tolist()
    right = 0.0
    for test, valid in zip(folds, [*folds[1:], folds[0]], strict=True):
        masks = {
            "test": fold_B == test,
            "valid": fold_B == valid,
            "train": (fold_B != test) & (fold_B != valid),
        }
        data = {name: (x_BD[mask], y_B[mask]) for name, mask in masks.items()}
        share, count = probe(data, "test")
        right += share * count
    return right / len(y_B), len(y_B)


def labels_of(clips: Clips, label: str, names: list[str]) -> Tensor:
    """Class numbers [B]."""
    return torch.tensor([names.index(clip.labels[label]) for _, clip in clips])


def scores(
    encoder: EveryLayer,
    sets: dict[str, dict[str, Clips]],
    split: str,
    tasks: Tasks,
    *,
    quick: bool,
) -> dict[tuple[int, str], list[tuple[float, int]]]:
    """(row of `frames`, pooling) -> accuracy and number of clips per task; quick: last row only."""
    embedded = {
        name: {s: embed(encoder, clips) for s, clips in splits.items()}
        for name, splits in sets.items()
    }
    result: dict[tuple[int, str], list[tuple[float, int]]] = {}
    rows = range(encoder.depth + 1 if quick else 0, encoder.depth + 2)
    for row, pool in itertools.product(rows, POOLS):
        result[row, pool] = []
        for name, label, count in tasks:
            splits = sets[name]
            names = sorted({clip.labels[label] for _, clip in splits["train"]})
            width = embedded[name]["train"][row].shape[1] // (2 if pool == "mean" else 1)
            data = {
                s: (embedded[name][s][row][:, :width], labels_of(splits[s], label, names))
                for s in splits
            }
            if count == FOLDS:
                folds = [clip.labels["fold"] for clips in splits.values() for _, clip in clips]
                x, y = (torch.cat(columns) for columns in zip(*data.values(), strict=True))
                result[row, pool].append(over_folds(x, y, torch.tensor(folds)))
            else:
                result[row, pool].append(mean_accuracy(data, split, count))
    return result


def mean_accuracy(data: Probed, split: str, count: int | None) -> tuple[float, int]:
    """Accuracy, averaged over draws of `count` training clips per class, and number of clips."""
    draws = range(DRAWS if count else 1)
    results = [probe(with_few_clips(data, count, draw), split) for draw in draws]
    return float(np.mean([share for share, _ in results])), results[0][1]


def print_row(name: str, cells: list[str]) -> None:
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def percent(cell: tuple[float, int]) -> str:
    low, high = wilson(*cell)
    return f"{100 * cell[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def distances(encoder: BundledEncoder, sets: dict[str, dict[str, Clips]], split: str) -> None:
    """Print the mean of 1 - cosine over frames, features centred on the mean of the train split."""
    rng = np.random.default_rng(0)
    for name in ("esc10", "fsdd"):
        train = [audio for audio, _ in sets[name]["train"][::10] if len(audio) > 8000]
        clips = [c for c in sets[name][split] if len(c[0]) > encoder.receptive_field]
        with torch.no_grad():
            features = [encoder(torch.from_numpy(audio)[None])[0] for audio in train]
            mean_D = torch.cat(features).mean(0)
        clean = [directions(encoder, audio, mean_D) for audio, _ in clips]
        labels = [clip.labels["label"] for _, clip in clips]
        measured: dict[str, list[float]] = {"noise": [], "low": [], "same": [], "other": []}
        for i, (audio, _) in enumerate(clips):
            noisy = directions(encoder, add_noise(audio, rng), mean_D)
            measured["noise"].append(distance(noisy, clean[i]))
            low = directions(encoder, low_passed(audio), mean_D)
            measured["low"].append(distance(low, clean[i]))
            for j in rng.choice(len(clips), min(len(clips), 40), replace=False):
                if i != j:
                    pair = "same" if labels[i] == labels[int(j)] else "other"
                    measured[pair].append(distance(clean[i], clean[int(j)]))
        means = ", ".join(f"{kind} {np.mean(values):.3f}" for kind, values in measured.items())
        print(f"distance {name}: {means}", flush=True)


@torch.no_grad()
def directions(encoder: BundledEncoder, audio_N: np.ndarray | Tensor, mean_D: Tensor) -> Tensor:
    """Centred features of unit length, [L, D]."""
    return F.normalize(encoder(torch.as_tensor(audio_N)[None])[0] - mean_D, dim=-1)


def distance(one_LD: Tensor, other_LD: Tensor) -> float:
    """Mean of 1 - cosine over the frames that both have."""
    frames = min(len(one_LD), len(other_LD))
    return float(1 - (one_LD[:frames] * other_LD[:frames]).sum(-1).mean())


def add_noise(audio_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise at 30 dB SNR."""
    rms = float(np.sqrt(np.mean(audio_N**2)))
    noise_N = rms * 10 ** (-30 / 20) * rng.standard_normal(len(audio_N))
    return audio_N + noise_N.astype(np.float32)


def low_passed(audio_N: np.ndarray) -> Tensor:
    """Without the band above 4 kHz, same length."""
    low_N = torchaudio.functional.resample(torch.from_numpy(audio_N), RATE, 8000)
    low_N = torchaudio.functional.resample(low_N, 8000, RATE)[: len(audio_N)]
    return F.pad(low_N, (0, len(audio_N) - len(low_N)))


def print_trained(args: argparse.Namespace, sets: dict[str, dict[str, Clips]]) -> None:
    """Rows of the trained network, and distances in it and in a random twin."""
    depth = len(NETWORKS[args.model]().blocks)
    encoder = make_encoder(EveryLayer, args.model, args.weights)
    rows = scores(encoder, sets, args.split, TASKS, quick=args.quick)
    for (row, pool), accuracies in rows.items():
        name = f"trained, layer {row - 1}" + " (default)" * (row == depth + 1)
        if row == 0:
            name = "log-mel"
        print_row(f"{name}: {pool}", [percent(accuracy) for accuracy in accuracies])
    for name, weights in (("trained", args.weights), ("random", None)):
        print(f"distances, {name}")
        distances(make_encoder(BundledEncoder, args.model, weights, seed=1), sets, args.split)


def print_twins(args: argparse.Namespace, sets: dict[str, dict[str, Clips]]) -> None:
    """Mean and range over networks with random weights."""
    twins = []
    for seed in range(1, args.twins + 1):
        encoder = make_encoder(EveryLayer, args.model, None, seed)
        twins.append(scores(encoder, sets, args.split, TASKS[:-1], quick=True))
    for key in twins[0] if twins else []:
        columns = [[100 * twin[key][task][0] for twin in twins] for task in range(len(TASKS) - 1)]
        cells = [f"{np.mean(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in columns]
        print_row(f"random, layer {key[0] - 1}: {key[1]}", [*cells, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=sorted(NETWORKS))
    parser.add_argument(
        "--weights",
        type=Path,
        default=WEIGHTS,
        help="folder of the weights (default: the package's)",
    )
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument("--twins", type=int, default=3, help="random networks to compare with")
    parser.add_argument("--quick", action="store_true", help="default layer only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    splits = SPLITS if args.split == "test" else ("train", "valid")
    sets = {name: {s: read_clips(name, s) for s in splits} for name in ("esc10", "fsdd")}
    print(f"# {args.model}, {BandMel.n_mels} bands, split {args.split}")
    print_row("features", list(COLUMNS))
    print_trained(args, sets)
    print_twins(args, sets)


if __name__ == "__main__":
    main()
