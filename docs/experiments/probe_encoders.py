"""Linear probes of the bundled SSL encoders, and how far apart their features put sounds.

    export STAGECLI_DATA=...  OMP_NUM_THREADS=1
    python docs/experiments/probe_encoders.py teacher [--weights DIR] [--split valid] [--twins 3]
    python docs/experiments/probe_encoders.py judge

Every row is probed alike: the mean, or mean and standard deviation, over the frames of a clip at its own length,
standardised on the train split, multinomial logistic regression (L-BFGS, full batch), L2 chosen on the valid split,
accuracy on `--split` with a Wilson 95 % interval; also with few training clips a class (mean of five draws), and over
the five folds of ESC-10, of which the encoders heard 1 to 3, without labels (400 clips; L2 chosen on the next fold).
Rows: the encoder's own log-mel front end, every layer of the trained network, and the last layer of networks of one
architecture with random weights (mean and range over `--twins` seeds).
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
from safetensors.torch import load_file
from torch import Tensor
from train_encoders import read_clips

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
DRAWS = 5  # of the training clips where there are few: the mean accuracy
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # L2: share of the mean cross-entropy, times |W|^2 / 2
Clips = list[tuple[np.ndarray, Any]]
Probed = dict[str, tuple[Tensor, Tensor]]  # split -> embeddings [B, D], labels [B]
Tasks = tuple[tuple[str, str, int | None], ...]


class EveryLayer(BundledEncoder):
    """Gives all layers of one pass, side by side: [B, L, D * (depth + 1)]."""

    def encode(self, audio_BN: Tensor) -> Tensor:
        with recorded(self.network.blocks) as states:
            states[self.depth] = self.network(self.mel(audio_BN))
        tokens = torch.stack([states[k] for k in range(self.depth + 1)], -1)
        return tokens.unflatten(1, (-1, self.rows)).mean(2).flatten(2)


def make(kind: type[BundledEncoder], model: str, weights: Path | None, seed: int = 0) -> Any:
    """The encoder with the weights of a folder, or with random ones; all its layers are kept."""
    torch.manual_seed(seed)
    network: Any = NETWORKS[model]()
    if weights is not None:
        network.load_state_dict(
            {k: v.float() for k, v in load_file(weights / f"{model}.safetensors").items()}
        )
    return kind(network, model, -1)


@torch.no_grad()
def frames(encoder: EveryLayer, audio_N: Tensor) -> list[Tensor]:
    """Log-mel and then every layer of one clip, each [L, D]; audio shorter than one feature is padded to it."""
    audio_BN = F.pad(audio_N, (0, max(0, encoder.receptive_field - len(audio_N))))[None]
    layers = encoder(audio_BN)[0].unflatten(-1, (-1, encoder.depth + 1)).unbind(-1)
    return [encoder.mel(audio_BN)[0], *layers]


def embed(encoder: EveryLayer, clips: Clips) -> list[Tensor]:
    """Mean and deviation over time of every row of `frames`: [clips, 2 D] each."""
    rows: list[list[Tensor]] = []
    for audio, _ in clips:
        found = frames(encoder, torch.from_numpy(audio))
        rows.append([torch.cat([x.mean(0), x.std(0, correction=0)]) for x in found])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def fit(x_BD: Tensor, y_B: Tensor, classes: int, strength: float) -> Tensor:
    """Weights [D + 1, classes] of a logistic regression with L2 on all but the bias."""
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
    """Accuracy on `split`, and its number of clips; data: split -> embeddings [B, D], labels [B]."""
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


def drawn(data: Probed, count: int | None, draw: int) -> Probed:
    """The data with `count` random training clips of each class."""
    if count is None:
        return data
    x, y = data["train"]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(draw))
    chosen = torch.cat([order[y[order] == label][:count] for label in y.unique()])
    return data | {"train": (x[chosen], y[chosen])}


def over_folds(x_BD: Tensor, y_B: Tensor, fold_B: Tensor) -> tuple[float, int]:
    """Accuracy over all clips, each by a probe that was trained on three other folds and tuned on a fourth."""
    folds = fold_B.unique().tolist()
    right = 0.0
    for test, valid in zip(folds, [*folds[1:], folds[0]], strict=True):
        parts = {
            "test": fold_B == test,
            "valid": fold_B == valid,
            "train": (fold_B != test) & (fold_B != valid),
        }
        share, count = probe(
            {name: (x_BD[part], y_B[part]) for name, part in parts.items()}, "test"
        )
        right += share * count
    return right / len(y_B), len(y_B)


def labelled(clips: Clips, label: str, names: list[str]) -> Tensor:
    return torch.tensor([names.index(clip.labels[label]) for _, clip in clips])


def scores(
    encoder: EveryLayer, sets: dict[str, dict[str, Clips]], split: str, tasks: Tasks, quick: bool
) -> dict[tuple[int, str], list[tuple[float, int]]]:
    """(row of `frames`, pooling) -> per task accuracy and number of clips; quick: the last row only."""
    embedded = {
        name: {s: embed(encoder, clips) for s, clips in parts.items()}
        for name, parts in sets.items()
    }
    out: dict[tuple[int, str], list[tuple[float, int]]] = {}
    rows = range(encoder.depth + 1 if quick else 0, encoder.depth + 2)
    for row, pool in itertools.product(rows, POOLS):
        out[row, pool] = []
        for name, label, count in tasks:
            parts = sets[name]
            names = sorted({clip.labels[label] for _, clip in parts["train"]})
            width = embedded[name]["train"][row].shape[1] // (2 if pool == "mean" else 1)
            data = {
                s: (embedded[name][s][row][:, :width], labelled(parts[s], label, names))
                for s in parts
            }
            if count == FOLDS:
                x, y = (torch.cat(columns) for columns in zip(*data.values(), strict=True))
                out[row, pool].append(
                    over_folds(
                        x, y, torch.tensor([c.labels["fold"] for p in parts for _, c in parts[p]])
                    )
                )
                continue
            found = [
                probe(drawn(data, count, draw), split) for draw in range(DRAWS if count else 1)
            ]
            out[row, pool].append((float(np.mean([share for share, _ in found])), found[0][1]))
    return out


def print_row(name: str, cells: list[str]) -> None:
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def percent(cell: tuple[float, int]) -> str:
    low, high = wilson(*cell)
    return f"{100 * cell[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def distances(encoder: BundledEncoder, sets: dict[str, dict[str, Clips]], split: str) -> None:
    """Mean of 1 - cosine over frames, features centred on the mean of the train split."""
    rng = np.random.default_rng(0)
    for name in ("esc10", "fsdd"):
        train = sets[name]["train"][::10]
        clips = [c for c in sets[name][split] if len(c[0]) > encoder.receptive_field]
        with torch.no_grad():
            mean_D = torch.cat(
                [encoder(torch.from_numpy(a)[None])[0] for a, _ in train if len(a) > 8000]
            ).mean(0)

        def read(audio_N: np.ndarray | Tensor, mean_D: Tensor = mean_D) -> Tensor:
            with torch.no_grad():
                return F.normalize(encoder(torch.as_tensor(audio_N)[None])[0] - mean_D, dim=-1)

        clean = [read(a) for a, _ in clips]
        labels = [c.labels["label"] for _, c in clips]
        found: dict[str, list[float]] = {"noise": [], "low": [], "same": [], "other": []}
        for i, (audio, _) in enumerate(clips):
            rms = float(np.sqrt(np.mean(audio**2)))
            noisy = audio + (rms * 10 ** (-30 / 20) * rng.standard_normal(len(audio))).astype(
                np.float32
            )
            found["noise"].append(float(1 - (read(noisy) * clean[i]).sum(-1).mean()))
            low = torchaudio.functional.resample(torch.from_numpy(audio), RATE, 8000)
            low = torchaudio.functional.resample(low, 8000, RATE)[: len(audio)]
            low = F.pad(low, (0, len(audio) - len(low)))
            found["low"].append(float(1 - (read(low) * clean[i]).sum(-1).mean()))
            for j in rng.choice(len(clips), min(len(clips), 40), replace=False):
                if i != j:
                    n = min(len(clean[i]), len(clean[int(j)]))
                    d = float(1 - (clean[i][:n] * clean[int(j)][:n]).sum(-1).mean())
                    found["same" if labels[i] == labels[int(j)] else "other"].append(d)
        print(
            f"distance {name}: " + ", ".join(f"{k} {np.mean(v):.3f}" for k, v in found.items()),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(NETWORKS))
    parser.add_argument(
        "--weights",
        type=Path,
        default=WEIGHTS,
        help="folder of the weights (default: the package's)",
    )
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument("--twins", type=int, default=3, help="random networks to compare with")
    parser.add_argument("--quick", action="store_true", help="the default layer only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = {name: {s: read_clips(name, s) for s in SPLITS} for name in ("esc10", "fsdd")}
    if args.split == "valid":
        sets = {name: {s: parts[s] for s in ("train", "valid")} for name, parts in sets.items()}
    print(f"# {args.model}, {BandMel.n_mels} bands, split {args.split}")
    print_row("features", list(COLUMNS))
    depth = len(NETWORKS[args.model]().blocks)
    rows = scores(make(EveryLayer, args.model, args.weights), sets, args.split, TASKS, args.quick)
    for (row, pool), found in rows.items():
        name = (
            "log-mel"
            if row == 0
            else f"trained, layer {row - 1}" + " (default)" * (row == depth + 1)
        )
        print_row(f"{name}: {pool}", [percent(cell) for cell in found])
    for name, weights in (("trained", args.weights), ("random", None)):
        print(f"distances, {name}")
        distances(make(BundledEncoder, args.model, weights, seed=1), sets, args.split)
    twins = []
    for seed in range(1, args.twins + 1):
        twins.append(
            scores(
                make(EveryLayer, args.model, None, seed), sets, args.split, TASKS[:-1], quick=True
            )
        )
    for key in twins[0] if twins else []:
        columns = [[100 * twin[key][task][0] for twin in twins] for task in range(len(TASKS) - 1)]
        cells = [f"{np.mean(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in columns]
        print_row(f"random, layer {key[0] - 1}: {key[1]}", [*cells, ""])


if __name__ == "__main__":
    main()
