"""Measure what a codec costs: labels of real clips, recognised before and after it.

By the network that `stagecli evaluate` takes for prompt accuracy: trained on the recipe's real
train split, on linear spectrograms, so that it shares no front end with codec or judge.

    export STAGECLI_DATA=DIR
    python docs/experiments/codec_ceilings.py fsdd-t2a
    python docs/experiments/codec_ceilings.py fsdd-t2a --codec "hop=160 n_mels=48" --seeds 0 1
    python docs/experiments/codec_ceilings.py esc10-t2a --splits valid test
    python docs/experiments/codec_ceilings.py fsdd-t2a --samples DIR

A codec's settings are those of the recipe except for those given. A folder of samples is what
`stagecli sample` or `evaluate` writes: `samples.jsonl` with `path` and `prompt`, where a prompt has
the labels of the clips with that caption. Networks are kept in the recipe's cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagecli.codec import make_codec
from stagecli.codec.base import Codec
from stagecli.data.audio import read_mono
from stagecli.data.examples import cut
from stagecli.data.open import open_source
from stagecli.data.rows import Clip, Split
from stagecli.data.source import Source
from stagecli.evaluate.classifier import label_columns, label_text
from stagecli.evaluate.label_training import LabelClassifier, open_label_classifier
from stagecli.evaluate.samples import real_clips
from stagecli.files import read_json_lines
from stagecli.metrics.classes import prompt_accuracy
from stagecli.recipe.load import load_recipe
from stagecli.schema import Recipe

AT_ONCE = 16  # clips that go through the codec together


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--codec", action="append", default=[], help="settings (repeatable)")
    parser.add_argument("--samples", action="append", default=[], type=Path, help="(repeatable)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the network")
    parser.add_argument("--splits", nargs="+", default=["test"], help="of the real clips")
    parser.add_argument("--label", action="append", default=[], help="column (repeatable)")
    return parser.parse_args()


def show_progress(activity: str, done: int, total: int) -> None:
    if done == total or done % 20 == 0:
        print(f"\r{activity}: {done} of {total}   ", end="", file=sys.stderr, flush=True)


def accuracies(
    networks: Sequence[LabelClassifier],
    audio_BN: Tensor,
    requested: Sequence[Mapping[str, str]],
) -> str:
    """Per column: the accuracy by each network, and the interval of the first."""
    texts = []
    for column in networks[0].classes:
        kept = [i for i, labels in enumerate(requested) if labels.get(column)]
        wanted = [requested[i][column] for i in kept]
        shares = []
        for network in networks:
            predicted = network.predict(network.logits(audio_BN), column)
            shares.append(prompt_accuracy([predicted[i] for i in kept], wanted))
        values = " / ".join(f"{share.value:.1%}" for share in shares)
        low, high = shares[0].low, shares[0].high
        texts.append(f"{column} {values} [{low:.1%}, {high:.1%}] (n {len(kept)})")
    return ", ".join(texts)


@torch.no_grad()
def round_trip(codec: Codec, audio_BN: Tensor) -> Tensor:
    """Audio [B, N] -> frames -> audio [B, N]."""
    length = audio_BN.shape[1]
    return torch.cat([codec.decode(codec.encode(x), length) for x in audio_BN.split(AT_ONCE)])


def read_samples(
    folder: Path, rate: int, num_samples: int, by_caption: Mapping[str, Mapping[str, str]]
) -> tuple[Tensor, list[Mapping[str, str]]]:
    """The samples of a folder [B, N], and the labels that their prompts request."""
    rows = [row for _, row in read_json_lines(folder / "samples.jsonl")]
    audio = [cut(read_mono(folder / row["path"], rate), 0, num_samples)[0] for row in rows]
    requested = [by_caption.get(row["prompt"], {}) for row in rows]
    return torch.from_numpy(np.stack(audio)), requested


def labels_of(clip: Clip, columns: Sequence[str]) -> dict[str, str]:
    return {column: label_text(clip, column) for column in columns}


def open_networks(
    recipe: Recipe, source: Source, columns: Sequence[str], seeds: Sequence[int]
) -> list[LabelClassifier]:
    """A network per seed; trained unless it is in the recipe's cache."""
    open_network = partial(
        open_label_classifier,
        source,
        columns,
        num_samples=round(recipe.data.seconds * recipe.data.sample_rate),
        cache_dir=Path(recipe.data.cache_dir),
        progress=show_progress,
        note=partial(print, file=sys.stderr),
    )
    return [open_network(seed=seed) for seed in seeds]


def main() -> None:
    """Command line: one line per row on stdout."""
    # Data, and networks trained on them.
    args = parse_arguments()
    torch.set_num_threads(1)
    recipe = load_recipe(args.recipe)
    splits: list[Split] = ["train", *args.splits]
    source = open_source(recipe.data, need_captions=True, base=Path.cwd(), splits=splits, seed=0)
    held_out = [clip for split in splits[1:] for clip in source.clips(split)]
    columns = label_columns(source.clips("train"), held_out, args.label)
    networks = open_networks(recipe, source, columns, args.seeds)
    print(file=sys.stderr)

    # Real clips, and the same after each codec.
    num_samples = round(recipe.data.seconds * recipe.data.sample_rate)
    clips = real_clips(source, held_out, "clips", num_samples=num_samples, seed=0)
    audio_BN = torch.from_numpy(np.stack([clips.read(i) for i in range(clips.count)]))
    requested = [labels_of(clip, columns) for clip in held_out]
    print(f"real clips: {accuracies(networks, audio_BN, requested)}")
    for settings in args.codec or [""]:
        changed = load_recipe(args.recipe, [f"codec.{text}" for text in settings.split()])
        decoded_BN = round_trip(make_codec(changed), audio_BN)
        title = settings or "the recipe's codec"
        print(f"{title}: {accuracies(networks, decoded_BN, requested)}", flush=True)

    # Samples.
    by_caption = {clip.caption: labels_of(clip, columns) for clip in source.clips("train")}
    for folder in args.samples:
        samples_BN, wanted = read_samples(folder, source.sample_rate, num_samples, by_caption)
        print(f"{folder}: {accuracies(networks, samples_BN, wanted)}")


if __name__ == "__main__":
    main()
