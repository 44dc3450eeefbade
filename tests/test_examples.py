"""Examples of a step: independent of workers, processes, accumulation and resumes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stagecli.condition.low import KEPT, LEVEL, band_weight, kept_band, level_gain
from stagecli.condition.text import BEGIN, OFFSET, PAD
from stagecli.data.cache import FeatureCache
from stagecli.data.examples import (
    Collate,
    Examples,
    clip_at,
    crop,
    pad_texts,
    stratified,
    stream,
)
from stagecli.data.loader import MicroBatches, loader
from stagecli.data.memory import Memory
from stagecli.data.rows import Clip
from stagecli.data.synth import SynthSource
from stagecli.recipe.load import load_recipe
from stagecli.schema import Recipe

CLIPS = 6
RATE = 8000
HOP = 250
TINY = [
    f"data.clips={CLIPS}",
    f"data.sample_rate={RATE}",
    "data.seconds=0.25",
    "train.batch_size=4",
    "data.workers=0",
]
SR = ["condition.cutoff=[1000, 3000]", "evaluate.cutoffs=[2000]"]
FRAMES = (8, 3)


class Counting(SynthSource):
    """Synthetic clips, counting how often each is read."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe.data, recipe.train.seed)
        self.reads: Counter[str] = Counter()

    def read(self, clip: Clip) -> np.ndarray:
        self.reads[clip.key] += 1
        return super().read(clip)


@lru_cache
def tiny_recipe(name: str, *sets: str) -> Recipe:
    return load_recipe(name, [*TINY, *(SR if name == "quickstart-sr" else []), *sets])


def examples(name: str = "quickstart", *sets: str, crop_samples: int | None = None) -> Examples:
    recipe = tiny_recipe(name, *sets)
    source = Counting(recipe)
    length = crop_samples or round(recipe.data.seconds * RATE)
    return Examples(
        recipe,
        source,
        source.clips("train"),
        shape=(-(-length // HOP), 3),
        crop_samples=length,
        hop=HOP,
    )


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    assert set(a) == set(b)
    return all(a[k].equal(b[k]) if isinstance(a[k], Tensor) else a[k] == b[k] for k in a)


# --- order ----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**31), clips=st.integers(1, 50), epoch=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_each_pass_has_each_clip_once(seed: int, clips: int, epoch: int) -> None:
    assert sorted(clip_at(seed, clips, epoch * clips + i) for i in range(clips)) == list(
        range(clips)
    )


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(clip_at(seed, 20, epoch * 20 + i) for i in range(20))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    mixed = [clip_at(0, 20, i) for i in (5, 45, 5, 25, 5)]  # in any order of asking
    assert mixed[0] == mixed[2] == mixed[4]


def test_streams_are_independent() -> None:
    keys = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0), (0, 1, 3), (0, 1, 2, 1)]
    drawn = {float(stream(*key).random()) for key in keys}
    assert len(drawn) == 6
    assert stream(3, 4, 5).random() == stream(3, 4, 5).random()


@given(seed=st.integers(0, 1000), step=st.integers(0, 10**6), size=st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_one_u_in_each_stratum(seed: int, step: int, size: int) -> None:
    u = stratified(seed, step, size)
    assert u.dtype == torch.float32
    assert u.equal(stratified(seed, step, size))
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    place = u.double().sort().values * size - torch.arange(size)
    assert float(place.min()) >= -1e-4  # fp32 rounds at the edges
    assert float(place.max()) <= 1 + 1e-4


def test_strata_come_in_random_order_and_fill_the_interval() -> None:
    rows = torch.stack([stratified(0, step, 16) for step in range(200)])
    assert not rows[0].equal(rows[1])
    assert abs(float(rows[:, 0].mean()) - 0.5) < 0.1  # row 0 is no particular stratum
    assert float((rows * 16 % 1).std()) == pytest.approx(12**-0.5, abs=0.02)


# --- micro-batches --------------------------------------------------------------------------------


def micro_batches(
    batch_size: int, accumulate: int, rank: int, world: int, *, start: int, stop: int
) -> MicroBatches:
    return MicroBatches(
        batch_size=batch_size,
        accumulate=accumulate,
        rank=rank,
        world=world,
        start=start,
        stop=stop,
    )


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int]:
    world = draw(st.integers(1, 4))
    accumulate = draw(st.integers(1, 4))
    return world * accumulate * draw(st.integers(1, 5)), world, accumulate


@given(layouts(), st.integers(0, 5), st.integers(0, 4))
@settings(max_examples=80, deadline=None)
def test_the_union_over_processes_is_the_global_batch(
    layout: tuple[int, int, int], start: int, steps: int
) -> None:
    batch, world, accumulate = layout
    parts = [
        list(micro_batches(batch, accumulate, rank, world, start=start, stop=start + steps))
        for rank in range(world)
    ]
    assert all(len(part) == steps * accumulate for part in parts)
    assert (
        len(micro_batches(batch, accumulate, 0, world, start=start, stop=start + steps))
        == steps * accumulate
    )
    for k in range(steps):
        step = start + k
        rows = [
            row
            for micro in range(accumulate)
            for rank in range(world)
            for row in parts[rank][k * accumulate + micro]
        ]
        assert rows == list(range(step * batch, (step + 1) * batch))
    u = stratified(0, start, batch)
    batches = [
        micro_batches(batch, accumulate, rank, world, start=start, stop=start + 1)
        for rank in range(world)
    ]
    taken = [u[part.rows(micro)] for micro in range(accumulate) for part in batches]
    assert torch.cat(taken).equal(u)  # t is drawn per row


def test_a_resume_continues_where_it_stopped() -> None:
    whole = list(micro_batches(12, 2, 1, 3, start=0, stop=6))
    assert list(micro_batches(12, 2, 1, 3, start=4, stop=6)) == whole[8:]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(workers: int) -> None:
    micro = micro_batches(4, 2, 0, 1, start=1, stop=4)
    alone = list(loader(examples(), micro))
    others = list(loader(examples("quickstart", f"data.workers={workers}"), micro))
    assert len(alone) == len(others) == 6
    assert all(same(a, b) for a, b in zip(alone, others, strict=True))
    assert [batch["index"].tolist() for batch in alone] == list(micro)


def test_processes_and_accumulation_do_not_change_a_sample() -> None:
    data = examples()
    one = next(iter(loader(data, micro_batches(4, 1, 0, 1, start=3, stop=4))))
    for rank in range(2):
        part = next(iter(loader(data, micro_batches(4, 1, rank, 2, start=3, stop=4))))
        for name in ("index", "audio", "noise"):
            assert part[name].equal(one[name][2 * rank : 2 * rank + 2])


def test_a_sample_depends_on_its_index_and_the_seed_alone() -> None:
    data = examples()
    again = examples()
    forward = [data[i] for i in range(8)]
    backward = [again[i] for i in reversed(range(8))]
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    noises = torch.stack([item["noise"] for item in forward])
    assert len(noises.flatten(1).unique(dim=0)) == 8
    assert not forward[0]["noise"].equal(examples("quickstart", "train.seed=1")[0]["noise"])
    assert abs(float(noises.std()) - 1) < 0.2


def test_validation_examples_never_change() -> None:
    data = examples("quickstart-sr")
    first = [data.valid_item(i) for i in range(3)]
    for i in range(9):
        _ = data[i]
    assert all(same(a, data.valid_item(i)) for i, a in enumerate(first))


@pytest.mark.parametrize("task", ["quickstart", "quickstart-sr"])
def test_audio_filter_and_features_share_one_crop(task: str) -> None:
    """With crops shorter than the clip, all of them start at the same sample."""

    class Starts:
        def samples_of(self, clip: Clip) -> int:
            return len(data.source.read(clip))

        def crop(self, clip: Clip, start: int) -> Tensor:
            return torch.from_numpy(data.source.read(clip)[start : start + data.crop_samples])

    data = examples(task, crop_samples=500)
    data.features = Starts()
    for index in range(8):
        item = data[index]
        gain = 10 ** item["level"] if task == "quickstart-sr" else 1.0
        torch.testing.assert_close(item["audio"], item["features"] * gain)
    for index in range(4):
        item = data.valid_item(index)
        audio_N, unpadded = data.valid_audio(index)
        gain = 10 ** item["level"] if task == "quickstart-sr" else 1.0
        torch.testing.assert_close(item["audio"], torch.from_numpy(audio_N) * gain)
        assert unpadded == 500


# --- crops and padding ----------------------------------------------------------------------------


@given(length=st.integers(1, 60), samples=st.integers(1, 40), seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_crop(length: int, samples: int, seed: int) -> None:
    audio = np.arange(1, length + 1, dtype=np.float64)
    part, real = crop(audio, samples, np.random.default_rng(seed))
    assert part.dtype == np.float32
    assert len(part) == samples
    assert real == min(length, samples)
    assert not part[real:].any()
    start = int(part[0]) - 1
    assert 0 <= start <= max(0, length - samples)
    assert np.array_equal(part[:real], audio[start : start + real])


def test_crops_reach_both_ends() -> None:
    starts = {
        int(crop(np.arange(10.0), 8, np.random.default_rng(seed))[0][0]) for seed in range(40)
    }
    assert starts == {0, 1, 2}


@pytest.mark.parametrize("extra", [0, 1, HOP, 2 * HOP + 7])
def test_padding_is_silence_or_masked_out(extra: int) -> None:
    clip_length = round(0.25 * RATE)
    data = examples("quickstart", "data.padding=mask", crop_samples=clip_length + extra)
    item = data[0]
    frames = data.shape[0]
    assert item["mask"].dtype == torch.bool
    # a frame is real if any of its samples is
    assert item["mask"].tolist() == [frame * HOP < clip_length for frame in range(frames)]
    assert not item["audio"][clip_length:].any()
    assert "mask" not in examples("quickstart", crop_samples=clip_length + extra)[0]


# --- memory ---------------------------------------------------------------------------------------


def test_memory_reads_once_and_stays_in_its_budget() -> None:
    recipe = tiny_recipe("quickstart", "data.seconds=10", f"data.clips={CLIPS}")
    source = Counting(recipe)
    clips = source.clips("train")
    size = source.read(clips[0]).nbytes  # 0.3 MB
    source.reads.clear()
    memory = Memory(source.read, 1)
    fits = 2**20 // size
    assert 1 < fits < CLIPS
    for _ in range(2):
        for clip in clips[:fits]:
            memory.read(clip)
    assert set(source.reads.values()) == {1}
    memory.read(clips[0])  # used again: clip 1 is now the one that goes
    memory.read(clips[fits])
    assert list(memory.held) == [c.key for c in (*clips[2:fits], clips[0], clips[fits])]
    for clip in clips * 2:
        memory.read(clip)
        assert memory.used == sum(audio.nbytes for audio in memory.held.values()) <= memory.budget
    nothing = Memory(source.read, 0)
    assert np.array_equal(nothing.read(clips[0]), nothing.read(clips[0]))
    assert len(nothing.held) == 1


# --- super-resolution -----------------------------------------------------------------------------


def test_the_low_input_is_empty_above_its_cutoff_and_level() -> None:
    data = examples("quickstart-sr")
    cutoffs = set()
    clear = 0
    for i in range(8):
        item = data[i]
        low = item["low"].double()
        audio = item["audio"].double()
        share = float(item["cutoff"])
        cutoffs.add(share)
        assert 1000 <= share * RATE / 2 <= 3000
        # The ends of the clip are not part of the filter.
        taper = torch.hann_window(len(low), dtype=torch.float64)
        above = torch.fft.rfftfreq(len(low), 1 / RATE) > share * RATE / 2 + 100
        left = [float(torch.fft.rfft(x * taper)[above].abs().max()) for x in (low, audio)]
        assert left[0] < 2e-3 * LEVEL * len(low) ** 0.5
        clear += left[1] > 20 * left[0]
        original = data.source.read(data.clips[clip_at(data.seed, CLIPS, i)])
        ratio = float(np.dot(audio.numpy(), original) / np.dot(original, original))
        # The gain is the input's, not the target's.
        assert level_gain((low / ratio).numpy()) == pytest.approx(ratio, rel=1e-3)
        assert float(item["level"]) == pytest.approx(np.log10(ratio), abs=1e-3)
        # One gain for both restores the original.
        np.testing.assert_allclose(audio.numpy() / ratio, original, atol=1e-5)
    assert len(cutoffs) == 8
    assert clear > 4  # most targets do have something up there


def test_level_gain_brings_inputs_to_one_level_and_leaves_silence() -> None:
    tone = np.sin(np.arange(4000) / 5).astype(np.float32)
    levels = [
        float(np.sqrt(np.mean(np.square(x * level_gain(x)))))
        for x in (0.1 * tone, 0.3 * tone, tone)
    ]
    assert levels == pytest.approx([LEVEL] * 3, rel=1e-4)
    assert (
        level_gain(np.zeros(10, np.float32))
        == level_gain(1e-6 * tone)
        == level_gain(np.zeros(0, np.float32))
    )
    assert level_gain(1e-6 * tone) * 1e-6 < LEVEL  # near silence is not amplified to full level


def test_the_kept_band_is_below_the_cutoff() -> None:
    edge = KEPT * 1000.0
    band = kept_band(torch.tensor([0.0, edge - 1, edge, 3000.0]), torch.tensor([0.25, 1.0]), 8000)
    assert band.tolist() == [[True, True, False, False], [True, True, True, True]]
    assert band_weight(band).tolist() == [[[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]]


# --- captions -------------------------------------------------------------------------------------


def test_share_of_dropped_captions() -> None:
    data = examples("quickstart", "condition.dropout=0.3")
    data.memory = Memory(data.source.read, 64)
    dropped = [data[i]["caption"] == "" for i in range(600)]
    assert abs(sum(dropped) / 600 - 0.3) < 0.06  # three standard deviations
    kept = next(i for i, empty in enumerate(dropped) if not empty)
    assert data[kept]["caption"] == data.clips[clip_at(data.seed, CLIPS, kept)].caption
    assert all(examples("quickstart", "condition.dropout=1")[i]["caption"] == "" for i in range(5))
    assert all(examples("quickstart", "condition.dropout=0")[i]["caption"] for i in range(5))
    assert all(
        examples("quickstart", "condition.dropout=1").valid_item(i)["caption"] for i in range(5)
    )


def test_dropout_does_not_change_crops_and_noise() -> None:
    with_all = examples("quickstart", "condition.dropout=0")[7]
    without = examples("quickstart", "condition.dropout=1")[7]
    assert with_all["audio"].equal(without["audio"])
    assert with_all["noise"].equal(without["noise"])


def test_collate_pads_captions() -> None:
    items = [
        {"caption": "ab", "index": 3},
        {"caption": "", "index": 4},
        {"caption": "abcdefgh", "index": 5},
    ]
    batch = Collate(5)(items)
    a = ord("a") + OFFSET
    assert batch["text_ids"].tolist() == [
        [BEGIN, a, a + 1, PAD, PAD],
        [BEGIN, PAD, PAD, PAD, PAD],
        [BEGIN, a, a + 1, a + 2, a + 3],
    ]
    assert batch["index"].tolist() == [3, 4, 5]
    assert Collate(5)(items[1:2])["text_ids"].tolist() == [[BEGIN]]


def test_pad_texts() -> None:
    text, mask = pad_texts([torch.ones(1, 2), torch.full((3, 2), 2.0)])
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert text[0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert text[1].tolist() == [[2, 2]] * 3


# --- caches ---------------------------------------------------------------------------------------


def test_cached_frames_and_texts_take_the_place_of_audio_and_captions(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        "quickstart",
        "condition.text=transformers",
        "condition.model=x",
        "data.crops=2",
        "condition.dropout=0.5",
    )
    source = Counting(recipe)
    clips = source.clips("train")
    frames = FeatureCache(tmp_path, "frames", {})
    texts = FeatureCache(tmp_path, "text", {})
    for i, clip in enumerate(clips):
        frames.put(
            source.content_hash(clip),
            np.stack([np.full(FRAMES, 10 * i + k, np.float32) for k in range(2)]),
        )
        texts.put(clip.caption, np.full((i + 1, 4), i, np.float32))
    texts.put("", np.full((1, 4), -1, np.float32))
    data = Examples(
        recipe,
        source,
        clips,
        shape=FRAMES,
        crop_samples=2000,
        hop=HOP,
        frames_cache=frames,
        text_cache=texts,
    )
    crops = set()
    empty = 0
    for i in range(60):
        item = data[i]
        number = clip_at(data.seed, CLIPS, i)
        assert "audio" not in item
        value = int(item["raw"][0, 0])
        assert item["raw"].eq(value).all()
        assert value // 10 == number
        crops.add(value % 10)
        dropped = bool(item["text"].lt(0).any())
        empty += dropped
        assert dropped or item["text"].eq(number).all()
    assert crops == {0, 1}
    assert 15 < empty < 45
    assert not source.reads  # no audio is decoded
    batch = Collate(64)([data[0], data[1]])
    assert batch["raw"].shape == (2, *FRAMES)
    assert batch["text"].shape[:2] == batch["text_mask"].shape
    gone = Examples(
        recipe,
        source,
        [replace(clips[0], key="synth/train/999")],
        shape=FRAMES,
        crop_samples=2000,
        hop=HOP,
        frames_cache=frames,
    )
    with pytest.raises(RuntimeError, match="left the feature cache"):
        gone.valid_item(0)
