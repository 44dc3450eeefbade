"""`[stage.structure]`: finding groups, when it acts and for how long, resume, the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import die_at, losses_of, read_rows, run_cli, sha, two_processes, write_recipe
from helpers.resume import attempts, facts, killed, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecli.errors import StageError
from stagecli.flow.objective import Result
from stagecli.model.dit import Block
from stagecli.recipe.load import load_recipe
from stagecli.report import mechanisms as report_mechanisms
from stagecli.report.matrix_text import matrix_lines
from stagecli.runs.checkpoint import pack, unpack
from stagecli.stage import grouping
from stagecli.stage.base import Plan, Probe, Signals
from stagecli.stage.controller import Stages
from stagecli.stage.probe_columns import group_spans
from stagecli.stage.structure import StructureMechanism, StructureOptions
from stagecli.stage.structure_columns import COLUMNS
from stagecli.stage.structure_groups import TYPES

STEPS = 12
BASE: dict[str, Any] = {
    "train__steps": STEPS,
    "train__validate_every": 3,
    "model__depth": 4,
    "stage__regime__every": 2,
    "stage__regime__clips": 4,
}
# Guidance reads hidden states of the same blocks.
GUIDED = {**BASE, "stage__guidance__schedule": "constant", "stage__guidance__hidden": 16}
ALWAYS = {
    **GUIDED,
    "stage__structure__action": "align",
    "stage__structure__when": "always",
    "stage__structure__ramp": 0.3,
}


def result_of(depth: int) -> Result:
    """A step's result with the hidden states of all blocks."""
    generator = torch.Generator().manual_seed(0)
    hidden = {k: torch.randn(2, 3, 8, generator=generator) for k in range(depth + 1)}
    return Result(
        torch.zeros(2), torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), hidden[0][:, 0, 0], {}, hidden
    )


class Blocks(torch.nn.Module):
    """The blocks of a transformer without the rest."""

    def __init__(self, depth: int, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(depth)
        self.blocks = torch.nn.ModuleList(Block(width, 2, 4.0, text=False) for _ in range(depth))


def recipe_of(folder: Path, depth: int = 12, **changes: Any) -> Any:
    table = {"train__steps": 1000, "stage__structure__seed": 0, **changes}
    return load_recipe(
        write_recipe(folder / "s.toml", "t2a", **{**BASE, "model__depth": depth, **table})
    )


def mechanism(
    folder: Path, depth: int = 12, network: torch.nn.Module | None = None, **options: Any
) -> Any:
    built = StructureMechanism.build(StructureOptions(**options), recipe_of(folder, depth))
    built.attach(network or Blocks(depth), None)
    return built


def signals(step: int, average: Any = None, valid: Any = None) -> Signals:
    probe = None if average is None else Probe({0.5: 0.5}, 0.0, 1.0)
    return Signals(step, torch.zeros(1), torch.zeros(1), 1.0, 1.0, probe, average, valid)


def drawn(
    correlation_LL: np.ndarray, network: torch.nn.Module, probes: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Averaged weights probe by probe; the blocks' updates have these correlations along the
    depth.
    """
    values, vectors = np.linalg.eigh(correlation_LL)
    mix = torch.from_numpy(vectors * np.sqrt(np.clip(values, 0, None))).float()
    generator = torch.Generator().manual_seed(seed)
    by_type: dict[str, list[str]] = {}
    for name, _ in network.named_parameters():
        if name.endswith("weight") and any(f".{kind}." in name for kind in TYPES):
            by_type.setdefault(name.split(".", 2)[2], []).append(name)
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    # Equal weights at the start, so that equal updates change their moments alike.
    for names in by_type.values():
        weights |= dict.fromkeys(names, weights[names[0]])
    for _ in range(probes):
        yield weights
        weights = dict(weights)
        for names in by_type.values():
            shape = weights[names[0]].shape
            update = 0.01 * mix @ torch.randn(len(names), shape.numel(), generator=generator)
            for name, change in zip(names, update, strict=True):
                weights[name] = weights[name] + change.view(shape)


def uneven(C_LL: np.ndarray, rng: np.random.Generator, spread: float = 0.3) -> np.ndarray:
    """The correlations when some blocks are noisier than others."""
    share = np.exp(-spread * np.abs(rng.standard_normal(len(C_LL))))
    C_LL = C_LL * np.sqrt(np.outer(share, share))
    np.fill_diagonal(C_LL, 1.0)
    return C_LL


def drift(depth: int, length: float, warp: float) -> np.ndarray:
    """No groups: correlations that fall from 0.6 to 0.1 with the distance in depth.

    warp: other than 1, they fall faster at one end.
    """
    position = (np.arange(depth) / (depth - 1)) ** warp * (depth - 1)
    return 0.1 + 0.5 * np.exp(-np.abs(position[:, None] - position[None]) / length)


def grouped(labels: list[int], inside: float = 0.5, outside: float = 0.25) -> np.ndarray:
    """Groups on top of a fall with the distance in depth."""
    group = np.array(labels)
    position = np.arange(len(labels))
    fall = outside * np.exp(-np.abs(position[:, None] - position[None]) / 6)
    return fall + (inside - outside) * (group[:, None] == group[None])


def of_sizes(*sizes: int) -> list[int]:
    return [k for k, size in enumerate(sizes) for _ in range(size)]


# -- partitions ------------------------------------------------------------------------------------


def every_partition(depth: int) -> list[np.ndarray]:
    """All contiguous partitions into groups of two or more that the depth allows."""
    steps = itertools.product((0, 1), repeat=depth - 1)
    labels = [np.array([0, *itertools.accumulate(changes)]) for changes in steps]
    return [each for each in labels if min(np.bincount(each)) >= 2 and 1 <= each.max() <= 5]


@settings(max_examples=60, deadline=None)
@given(depth=st.integers(4, 9), seed=st.integers(0, 10_000))
def test_the_dynamic_programme_is_exact(depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    S = grouping.similarity(rng.standard_normal((2, depth, 5)) + rng.standard_normal((2, 1, 5)))
    groups = list(grouping.counts(depth))

    def cost(labels: np.ndarray) -> float:
        same = labels[:, None] == labels[None]
        return float((same * (1 - S) / same.sum(0)).sum())

    partitions = grouping.partitions(S[None], groups)[0]
    every = every_partition(depth)
    for K, labels in zip(groups, partitions, strict=True):
        best = min(cost(other) for other in every if other.max() + 1 == K)
        assert labels.max() + 1 == K
        assert np.bincount(labels).min() >= 2
        assert cost(labels) == pytest.approx(best, abs=1e-9)
        assert np.isin(np.diff(labels), (0, 1)).all()


def test_every_partition_is_counted() -> None:
    counts = [len(every_partition(depth)) for depth in (4, 5, 6, 7, 8, 12)]
    assert counts == [1, 2, 4, 7, 12, 88]
    assert [max(grouping.counts(depth)) for depth in (4, 6, 12, 24)] == [2, 3, 6, 6]


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),
        ([0, 0, 1, 1], [0, 0, 1, 2], 4 / 7),
        ([0, 0, 1, 1], [0, 1, 0, 1], -0.5),
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.0),
        ([0, 0, 0], [0, 0, 0], 1.0),
        ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2], 8 / 33),
    ],
)
def test_adjusted_rand_index(a: list[int], b: list[int], value: float) -> None:
    assert grouping.adjusted_rand(a, b) == pytest.approx(value)
    assert grouping.adjusted_rand(b, a) == pytest.approx(value)


@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=12), seed=st.integers(0, 99))
def test_adjusted_rand_index_is_symmetric_and_blind_to_names(labels: list[int], seed: int) -> None:
    other = np.random.default_rng(seed).permutation(labels).tolist()
    value = grouping.adjusted_rand(labels, other)
    assert value == pytest.approx(grouping.adjusted_rand(other, labels))
    assert value == pytest.approx(grouping.adjusted_rand([9 - k for k in labels], other))
    assert grouping.adjusted_rand(labels, labels) == 1.0


# -- sketches and the null -------------------------------------------------------------------------


def test_sketches_are_linear_and_keep_cosines_within_the_stated_error() -> None:
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 3000, generator=generator)
    for cosine in (0.0, 0.5, 0.9):
        y = cosine * x / x.norm() + math.sqrt(1 - cosine**2) * z / z.norm()
        exact = float(torch.cosine_similarity(x, y, dim=0))
        cosines = []
        for seed in range(60):
            sketch = grouping.Sketch.make(3000, 512, seed, torch.device("cpu"))
            cosines.append(float(torch.cosine_similarity(sketch(x), sketch(y), dim=0)))
        assert np.std(cosines) <= 1.2 * math.sqrt((1 + exact**2) / 512)
        assert abs(np.mean(cosines) - exact) < 4 * np.std(cosines) / math.sqrt(60) + 0.002
    assert torch.allclose(sketch(x + 2 * z), sketch(x) + 2 * sketch(z), atol=1e-3)
    assert torch.equal(sketch(x), grouping.Sketch.make(3000, 512, 59, torch.device("cpu"))(x))
    with pytest.raises(ValueError, match="3000"):
        sketch(x[:-1])


def test_fewer_entries_than_buckets_are_kept_exactly() -> None:
    x, y = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    sketch = grouping.Sketch.make(100, 512, 0, torch.device("cpu"))
    assert float(sketch(x) @ sketch(y)) == pytest.approx(float(x @ y), rel=1e-5)


def test_an_update_of_zero_is_like_no_other() -> None:
    S = grouping.similarity(np.array([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]]))
    assert S[0].tolist() == [1.0, 0.0, 0.0]
    assert S[1, 2] == pytest.approx(math.sqrt(0.5))


def test_surrogates_keep_every_diagonal() -> None:
    S = grouping.similarity(np.random.default_rng(0).standard_normal((1, 7, 4)))
    drawn_NLL = grouping.surrogates(S, 5, np.random.default_rng(1))
    assert drawn_NLL.shape == (5, 7, 7)
    for other in drawn_NLL:
        assert np.array_equal(other, other.T)
        for distance in range(7):
            assert sorted(np.diagonal(other, distance)) == sorted(np.diagonal(S, distance))
    again = grouping.surrogates(S, 5, np.random.default_rng(1))
    assert np.array_equal(again, drawn_NLL)


def test_ideal_groups_are_found_and_a_pure_fall_has_none() -> None:
    labels = of_sizes(4, 5, 3)
    best = grouping.group(grouped(labels), seed=0)
    assert best.labels == tuple(labels)
    assert best.K == 3
    assert best.z > 4
    assert best.p == pytest.approx(1 / 201)
    S = drift(12, 3, 1.0)
    np.fill_diagonal(S, 1.0)
    assert grouping.group(S, seed=0).z == 0.0  # every surrogate is S itself


# -- does it act where it should -------------------------------------------------------------------


def activated(
    structure: Any, C_LL: np.ndarray, network: torch.nn.Module, seed: int, probes: int
) -> tuple[bool, list[dict]]:
    """Whether the mechanism acts within so many probes, and the rows of the probes."""
    rows = []
    for k, average in enumerate(drawn(C_LL, network, probes, seed), 1):
        structure.plan(k, Plan(r=1.0))
        events = structure.observe(signals(k, average))
        rows.append(structure.probe_row())
        if any(event.after in ("active", "fixed") for event in events):
            return True, rows
    return False, rows


@pytest.mark.parametrize("kind", ["drift", "groups"])
def test_z_tells_groups_from_a_smooth_drift(kind: str, tmp_path: Path) -> None:
    """60 trials of 9 probes at depth 12; run with `-k smooth -s` to see the numbers."""
    network = Blocks(12, width=12)
    rng = np.random.default_rng(5)
    sketches = {}
    begun = []
    z = []
    drifts = [drift(12, length, warp) for length in (2, 3, 4, 6) for warp in (1.0, 0.67, 1.5)]
    sizes = [(4, 4, 4), (3, 5, 4), (6, 6), (5, 7), (2, 4, 6)]
    recipe = recipe_of(tmp_path)
    for k in range(60):
        C_LL = (
            drifts[k % len(drifts)]
            if kind == "drift"
            else grouped(of_sizes(*sizes[k % len(sizes)]))
        )
        structure = StructureMechanism.build(StructureOptions(seed=k), recipe)
        structure.attach(network, None)
        # The same maps in every trial: making them takes most of the time.
        structure.groups.sketches = sketches
        did, rows = activated(structure, uneven(C_LL, rng), network, k, 9)
        begun.append(did)
        z.append(rows[-1]["structure_z"])
    print(f"\n{kind}: the groups of {sum(begun)} of {len(begun)} trials converge")
    print(f"z median {np.median(z):.2f}, 95 % {np.quantile(z, 0.95):.2f}")
    if kind == "groups":
        assert all(begun)
        assert np.median(z) > 4
    else:
        assert np.quantile(z, 0.95) < 3


def test_stable_groups_and_r_are_both_needed(tmp_path: Path) -> None:
    network = Blocks(12)
    averages = list(drawn(grouped(of_sizes(6, 6), 0.8, 0.1), network, 12, 0))
    for r, needed in ((0.5, 5), (0.49, None)):
        waits = mechanism(tmp_path, network=network)
        steps = []
        for k, average in enumerate(averages, 1):
            waits.plan(k, Plan(r=r))
            steps += [k for _ in waits.observe(signals(k, average))]
        # Two probes to the first partition, then three like the one before.
        assert steps == ([] if needed is None else [needed])
    late = mechanism(tmp_path, network=network)
    for k, average in enumerate(averages, 1):
        late.plan(k, Plan(r=0.49 if k < 9 else 0.5))
        assert bool(late.observe(signals(k, average))) == (k == 9)
    # A partition that jumps about is not converged, however large r is.
    jumps = mechanism(tmp_path, network=network)
    noise = list(drawn(np.eye(12), network, 12, 3))
    labels = [None]
    for k, average in enumerate(noise, 1):
        jumps.plan(k, Plan(r=1.0))
        jumps.observe(signals(k, average))
        labels.append(jumps.probe_row()["structure_labels"])
        same = labels[-2] is not None and grouping.adjusted_rand(labels[-1], labels[-2]) >= 0.9
        assert (jumps.streak > 0) == same


def test_moments_find_groups_whose_hidden_units_are_in_another_order(tmp_path: Path) -> None:
    """Blocks that do the same with their units permuted change alike; their raw weights do not."""
    network = Blocks(12)
    C_LL = grouped(of_sizes(6, 6), 0.8, 0.1)
    order = np.random.default_rng(0)
    orders = {k: torch.from_numpy(order.permutation(32)) for k in range(12)}
    heads = {k: torch.from_numpy(order.permutation(8)) for k in range(12)}

    def permuted(name: str, W: torch.Tensor) -> torch.Tensor:
        if W.ndim != 2 or "modulation" in name:
            return W
        block = int(name.split(".")[1])
        kind = name.split(".")[-2]
        units = (orders if kind.startswith("fc") else heads)[block]
        return W[:, units] if kind in ("o", "fc2") else W[units]

    monitors = {}
    for similarity in ("moments", "updates"):
        structure = mechanism(tmp_path, network=network, similarity=similarity)
        for k, average in enumerate(drawn(C_LL, network, 10, 0), 1):
            structure.plan(k, Plan(r=1.0))
            structure.observe(signals(k, {name: permuted(name, W) for name, W in average.items()}))
        monitors[similarity] = structure
    assert monitors["moments"].state == "fixed"
    assert list(monitors["moments"].labels) == of_sizes(6, 6)
    assert monitors["updates"].groups.grouping.z < 3
    off = ~np.eye(12, dtype=bool)
    updates_LL = monitors["updates"].groups.S_LL
    moments_LL = monitors["moments"].groups.S_LL
    assert np.abs(updates_LL[off]).mean() < 0.05 < moments_LL[off].mean()


def test_the_event_says_why_and_names_the_groups(tmp_path: Path) -> None:
    network = Blocks(12)
    labels = of_sizes(6, 6)
    structure = mechanism(tmp_path, network=network, action="align")
    for k, average in enumerate(drawn(grouped(labels, 0.8, 0.1), network, 10, 0), 1):
        structure.plan(k, Plan(r=0.7))
        for event in structure.observe(signals(k, average)):
            assert (event.before, event.after) == ("waiting", "active")
            assert "converged" in event.reason
            assert event.evidence["groups"] == labels
            assert event.evidence["z"] > 2
            assert (event.evidence["action"], event.evidence["blocks"]) == ("align", "4 <- 9")
            return
    pytest.fail("no event")


# -- controls --------------------------------------------------------------------------------------


def test_controls_choose_other_groups(tmp_path: Path) -> None:
    network = Blocks(12)
    labels = of_sizes(3, 4, 5)
    chosen = {}
    for kind in ("measured", "shuffled", "random", "thirds"):
        structure = mechanism(tmp_path, network=network, groups=kind, when="always", seed=3)
        activated(structure, grouped(labels, 0.9, 0.1), network, 0, 4)
        assert structure.state == "fixed"
        chosen[kind] = list(structure.labels)
    assert chosen["thirds"] == of_sizes(4, 4, 4)
    assert sorted(chosen["shuffled"]) == sorted(chosen["measured"])
    assert grouping.adjusted_rand(chosen["shuffled"], chosen["measured"]) < 0.1


def test_random_groups_are_every_partition_and_nothing_else(tmp_path: Path) -> None:
    seen = set()
    for seed in range(120):
        structure = mechanism(tmp_path, depth=7, groups="random", when="always", seed=seed)
        seen.add(structure.choose_labels())
    assert seen == {tuple(labels.tolist()) for labels in every_partition(7)}


def test_random_groups_need_no_measurement_and_a_step_is_waited_for(tmp_path: Path) -> None:
    for when, first in (("always", 1), ("step", 500)):
        structure = mechanism(tmp_path, depth=6, groups="random", when=when)
        steps = [step for step in range(1, 502) if structure.observe(signals(step))]
        assert steps == [first]
    measured = mechanism(tmp_path, depth=6, when="always")
    assert [measured.observe(signals(step)) for step in range(5)] == [[]] * 5


# -- the end ---------------------------------------------------------------------------------------


def acting(folder: Path, labels: list[int], **options: Any) -> Any:
    """A mechanism whose action began at step 0 with these groups."""
    structure = mechanism(folder, len(labels), **{"action": "align", "when": "always", **options})
    structure.begin(tuple(labels), 0)
    assert structure.state == "active"
    return structure


def test_off_for_good_when_the_validation_loss_stays_above_its_best(tmp_path: Path) -> None:
    structure = acting(tmp_path, of_sizes(2, 2))
    losses = [1.0, 0.9, 0.905, 0.92, 0.92, 0.908, 0.92, math.nan, 0.95, 0.5]
    ended = []
    for k, loss in enumerate(losses):
        for step in (10 * k + 1, 10 * k + 2):  # a validation counts once
            structure.plan(step, Plan())
            ended += [
                (k, event) for event in structure.observe(signals(step, valid=(10 * k, loss)))
            ]
    assert [k for k, _ in ended] == [8]
    assert (ended[0][1].before, ended[0][1].after) == ("active", "stopped")
    assert "1 % above its best" in ended[0][1].reason
    assert structure.plan(99, Plan()) == Plan()
    assert structure.loss(result_of(4)) is None
    assert structure.metrics() == {"active": 0.0, "lambda": 0.0, "value": 0.0}
    assert structure.observe(signals(100)) == []  # never on again


def test_the_validation_before_the_action_is_the_first_best(tmp_path: Path) -> None:
    structure = mechanism(tmp_path, 4, when="always", groups="random", action="align")
    structure.observe(signals(5, valid=(4, 1.0)))
    assert (structure.state, structure.watch.best) == ("active", 1.0)
    events = [
        event for k in range(3) for event in structure.observe(signals(6 + k, valid=(6 + k, 1.02)))
    ]
    assert [event.after for event in events] == ["stopped"]


# -- state -----------------------------------------------------------------------------------------


def test_state_is_exact(tmp_path: Path) -> None:
    network = Blocks(12)
    C_LL = grouped(of_sizes(6, 6), 0.8, 0.1)
    averages = list(drawn(C_LL, network, 12, 0))
    result = result_of(12)
    for cut in (1, 3, 6, 9):
        one = mechanism(tmp_path, network=network, action="align")
        other = mechanism(tmp_path, network=network, action="align")

        def run(structure: Any, span: range) -> list[Any]:
            seen = []
            for k in span:
                structure.plan(k, Plan(r=1.0))
                term = structure.loss(result)
                events = structure.observe(signals(k, averages[k - 1], (k // 2, 1.0)))
                seen.append(
                    [
                        None if term is None else float(term.detach()),
                        events,
                        structure.probe_row(),
                        structure.metrics(),
                    ]
                )
            return seen

        run(one, range(1, cut + 1))
        state = unpack(*pack(one.state_dict()))
        other.load_state_dict(state)
        assert repr(run(one, range(cut + 1, 13))) == repr(run(other, range(cut + 1, 13)))
        assert one.state == "active"
    with pytest.raises(StageError, match="12 blocks"):
        mechanism(tmp_path, 8, when="always").load_state_dict(one.state_dict())
    old = {k: v for k, v in one.state_dict().items() if k != "labels"}
    with pytest.raises(StageError, match="another version") as caught:
        other.load_state_dict({**old, "term": {}, "size": {}})
    assert caught.value.hint


# -- in training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/t2a: aligns from the second probe on; runs/t2a-plain: without the section."""
    folder = tmp_path_factory.mktemp("structured")
    for name, changes in (("t2a", ALWAYS), ("t2a-plain", GUIDED)):
        result = run_cli(
            "train", write_recipe(folder / f"{name}.toml", "t2a", **changes), cwd=folder
        )
        assert result.code == 0, result.stderr
    return folder / "runs"


def events_of(run: Path) -> list[tuple[int, str]]:
    return sorted(
        {
            (row["step"], row["to"])
            for row in read_rows(run, "events")
            if row["mechanism"] == "structure"
        }
    )


def test_the_action_is_reported(whole: Path) -> None:
    assert events_of(whole / "t2a") == [(4, "active")]
    ours = losses_of(whole / "t2a")
    plain = losses_of(whole / "t2a-plain")
    assert ours[:4] == plain[:4]
    assert ours[5:] != plain[5:]
    rows = [row for row in read_rows(whole / "t2a") if "train/loss" in row]
    assert [row["stage/structure/active"] for row in rows] == [0.0] * 3 + [1.0] * 9
    assert all(row["stage/structure/lambda"] > 0 for row in rows[4:])
    assert rows[-1]["stage/structure/lambda"] == pytest.approx(0.25)
    assert all(0 < row["stage/structure/value"] < 1 for row in rows[4:])
    probes = read_rows(whole / "t2a", "probes")
    assert probes[0]["structure_S"] is None
    for row in probes[1:]:
        assert np.array(row["structure_S"]).shape == (4, 4)
        assert row["structure_labels"] == [0, 0, 1, 1]
        assert row["structure_active"] == (row["step"] >= 4)


@pytest.mark.parametrize("step", [7, 10])
def test_kill_9_and_resume(step: int, whole: Path, tmp_path: Path) -> None:
    def arrange() -> None:
        from stagecli.runs.directory import Run

        die_at(Run, "append", lambda run, stream, row: stream == "metrics" and row["step"] == step)

    killed(tmp_path, "train", whole.parent / "t2a.toml", arrange=arrange)
    assert run_cli("train", whole.parent / "t2a.toml", cwd=tmp_path).code == 0
    run = tmp_path / "runs" / "t2a"
    assert attempts(run) == [0, 4 if step == 7 else 8]
    assert facts(run) == facts(whole / "t2a")
    assert events_of(run) == events_of(whole / "t2a")
    assert weights(run, STEPS) == weights(whole / "t2a", STEPS)
    written = [
        {
            row["step"]: {k: v for k, v in row.items() if k.startswith("structure_")}
            for row in read_rows(r, "probes")
        }
        for r in (run, whole / "t2a")
    ]
    assert written[0] == written[1]


def test_two_processes_decide_as_one(whole: Path, tmp_path: Path) -> None:
    two_processes("train", whole.parent / "t2a.toml", cwd=tmp_path)
    assert losses_of(tmp_path / "runs" / "t2a") == pytest.approx(losses_of(whole / "t2a"), rel=1e-3)
    assert events_of(tmp_path / "runs" / "t2a") == events_of(whole / "t2a")


def test_measuring_only_is_bit_identical_to_no_section(whole: Path, tmp_path: Path) -> None:
    changes = {**GUIDED, "stage__structure__when": "always"}
    recipe = write_recipe(tmp_path / "with.toml", "t2a", **changes)
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    run = tmp_path / "runs" / "with"
    plain = whole / "t2a-plain"
    assert losses_of(run) == losses_of(plain)
    for name in ("model", "ema"):
        file = f"checkpoints/step_{STEPS:08}/{name}.safetensors"
        assert sha(run / file) == sha(plain / file)
    assert events_of(run) == [(4, "fixed")]
    summary = summary_of(read_rows(run, "probes"), read_rows(run, "events"))
    assert COLUMNS.facts(summary)["structure"] == "groups fixed, no action"
    assert COLUMNS.facts(summary)["fixed groups"] == "A 1-2, B 3-4"
    assert any("fixed since step 4" in line for line in summary["reading"])


# -- what bad input gets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "changes", "options", "message"),
    [
        (
            12,
            {"stage__regime__every": None, "stage__regime__clips": None},
            {},
            r"needs \[stage.regime\]",
        ),
        (12, {"train__validate_every": 0}, {"action": "align"}, "watches the validation loss"),
        (3, {}, {}, "need 4 blocks"),
        (5, {}, {"groups": "thirds"}, "need 6 blocks"),
    ],
)
def test_what_can_never_act_is_refused(
    depth: int, changes: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    named = {f"stage__structure__{name}": value for name, value in options.items()}
    recipe = recipe_of(tmp_path, depth, **changes, **named)
    with pytest.raises(StageError, match=message) as caught:
        Stages.of(recipe)
    assert caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [{"at": 0.3}, {"when": "never"}, {"groups": "halves"}, {"action": "pull"}, {"weight": -1}],
)
def test_options_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"step|must be|Input"):
        StructureOptions(**wrong)


def test_a_network_without_blocks_is_refused(tmp_path: Path) -> None:
    structure = StructureMechanism.build(StructureOptions(), recipe_of(tmp_path))
    with pytest.raises(StageError, match="has no transformer blocks"):
        structure.attach(torch.nn.Linear(2, 2), None)
    with pytest.raises(StageError, match="has 8 blocks, the recipe 12"):
        structure.attach(Blocks(8), None)


def test_a_block_without_a_matrix_is_refused(tmp_path: Path) -> None:
    class Bare(torch.nn.Module):
        def matrices(self) -> dict[str, torch.Tensor]:
            return {}

    network = Blocks(12)
    network.blocks[4] = Bare()
    structure = StructureMechanism.build(StructureOptions(), recipe_of(tmp_path))
    with pytest.raises(StageError, match="block 5 of the network has no matrix q"):
        structure.attach(network, None)


# -- the report ------------------------------------------------------------------------------------


def summary_of(rows: list[dict[str, Any]], events: list[dict[str, Any]]) -> Any:
    return report_mechanisms.probe_summary("structure", COLUMNS, rows, events)


def test_the_report_draws_the_groups_and_names_them(whole: Path) -> None:
    rows = read_rows(whole / "t2a", "probes")
    summary = summary_of(rows, read_rows(whole / "t2a", "events"))
    assert COLUMNS.facts(summary)["groups"] == "A 1-2, B 3-4"
    assert COLUMNS.facts(summary)["structure"] == "aligning groups"
    matrix = COLUMNS.matrix(summary)
    assert matrix is not None
    for ascii_only, width in itertools.product((True, False), (20, 40, 100)):
        lines = matrix_lines(matrix, width, ascii_only)
        assert len(lines) == 6  # heading, four blocks, and the gap between the groups
        assert all(len(line) <= width for line in lines[1:])
        assert not ascii_only or all(line.isascii() for line in lines)
    assert matrix.boundaries == (2,)
    assert matrix.group_names == ("A", "B")
    marks = report_mechanisms.transitions(summary["events"])
    assert [mark["step"] for mark in marks] == [4]
    assert set(summary["series"]) == {"z", "ari", "change"}
    assert any("active since step 4" in line for line in summary["reading"])


def test_the_report_reads_what_is_missing_or_damaged(whole: Path) -> None:
    rows = read_rows(whole / "t2a", "probes")
    assert summary_of([{"step": 1}], []) is None
    assert COLUMNS.facts(None)["groups"] == "-"
    first = summary_of(rows[:1], [])
    assert COLUMNS.matrix(first) is None
    assert matrix_lines(COLUMNS.matrix(first), 80, True) == []
    damaged = {
        **rows[-1],
        "structure_S": [[1.0, None], [0.5, 1.0]],
        "structure_labels": "x",
        "structure_z": "high",
    }
    summary = summary_of([damaged], [])
    assert summary["S"] is None
    assert summary["z"] is None
    assert group_spans([0, 1, 0, 0]) == "A 1+3-4, B 2"


def test_probes_of_an_earlier_version_are_read(whole: Path) -> None:
    """`structure_streak` was called `structure_row`; neither is needed to read a run."""
    rows = read_rows(whole / "t2a", "probes")
    assert all("structure_streak" in row for row in rows)
    old = [{k.replace("streak", "row"): v for k, v in row.items()} for row in rows]
    assert summary_of(old, []) == summary_of(rows, [])
    # Their term acted on weights, and no row names an action.
    unnamed = [{k: v for k, v in row.items() if k != "structure_action"} for row in old]
    assert COLUMNS.facts(summary_of(unnamed, []))["structure"] == "the term acts"
