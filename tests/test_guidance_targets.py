"""Targets, heads, gates and normalisation of `[stage.guidance]`, whole steps and parts of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import die_at, losses_of, read_rows, run_cli, write_recipe
from helpers.resume import attempts, facts, killed, weights

from stagecli.errors import StageError
from stagecli.flow.objective import Result
from stagecli.model.network import Network
from stagecli.recipe.load import load_from_run, load_recipe
from stagecli.stage.base import Plan
from stagecli.stage.controller import Stages
from stagecli.stage.guidance import GuidanceMechanism
from stagecli.stage.guidance_gate import Gate
from stagecli.stage.guidance_heads import CodecHead, FrameChoice, standardised
from stagecli.stage.guidance_options import GuidanceOptions, check_guidance
from stagecli.train.teacher_features import TargetFeatures

STEPS = 8
CHANNELS = 16  # of the tiny recipe's codec
WIDTH = 32
BATCH = 8
FRAMES = FrameChoice(step=0, stride=1)  # all of them
GUIDED: dict[str, Any] = {
    "train__steps": STEPS,
    "train__samples": 0,
    "stage__guidance__schedule": "constant",
    "stage__guidance__hidden": 16,
    "stage__guidance__weight": 0.5,
    "stage__guidance__target": "teacher",
    "stage__guidance__conflict_every": 3,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "clip": {"normalise": "clip"},
    "codec": {"target": "codec"},
    "both, deep, smooth": {"target": "both", "head_layers": 3, "gate": "smooth"},
    "paying": {"schedule": "paying", "conflict_every": 1},
}


def changes(options: dict[str, Any]) -> dict[str, Any]:
    return {**GUIDED, **{f"stage__guidance__{key}": value for key, value in options.items()}}


def mechanism(folder: Path, recipe_changes: dict[str, Any], **options: Any) -> GuidanceMechanism:
    """Guidance of the tiny t2a recipe, attached to its network."""
    path = write_recipe(folder / "g.toml", "t2a", **changes(options), **recipe_changes)
    recipe = load_recipe(path)
    guidance = GuidanceMechanism.build(GuidanceOptions(**recipe.stage["guidance"]), recipe)
    torch.manual_seed(0)
    features = 24 if guidance.features is not None else None
    guidance.attach(Network(recipe, channels=CHANNELS), features)
    return guidance


def example_batch(frames: int = 10, tokens: int = 10) -> Result:
    """Noise levels, frames, features and hidden states of one whole step."""
    rng = torch.Generator().manual_seed(1)
    x0_BTC = torch.randn(BATCH, frames, CHANNELS, generator=rng)
    hidden = {k: torch.randn(BATCH, tokens, WIDTH, generator=rng) for k in (1, 2)}
    t_B = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.97, 0.55])
    condition = {"features": torch.randn(BATCH, 7, 24, generator=rng), "x0": x0_BTC}
    loss_B = torch.zeros(BATCH)
    return Result(loss_B, x0_BTC, x0_BTC, t_B, condition, hidden)


def part_of(result: Result, rows: slice) -> Result:
    """One micro-batch of a step, whose hidden states take gradients."""
    condition = {name: value[rows] for name, value in result.condition.items()}
    hidden = {k: h[rows].clone().requires_grad_() for k, h in result.hidden.items()}
    x_BTC = result.x_BTC[rows]
    return Result(result.loss_B[rows], x_BTC, x_BTC, result.t_B[rows], condition, hidden)


# -- the loss of a step ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [*VARIANTS.values(), {}], ids=[*VARIANTS, "default"])
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_the_term_and_its_gradients_do_not_depend_on_the_split(
    parts: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """Also where a micro-batch has no sample inside the window, as the last one of 4 has."""
    step = example_batch()
    terms = []
    gradients = []
    for count in (1, parts):
        guidance = mechanism(tmp_path, {"train__batch_size": BATCH}, **options, layers=[1, 2])
        guidance.plan(0, Plan())
        guidance.begin_step(step.t_B)
        size = BATCH // count
        micro = [part_of(step, slice(n * size, (n + 1) * size)) for n in range(count)]
        losses = [guidance.loss(one) for one in micro]
        term = torch.stack([loss for loss in losses if loss is not None]).mean()
        term.backward()
        terms.append(float(term.detach()))
        hidden = [torch.cat([one.hidden[k].grad for one in micro]) for k in (1, 2)]  # type: ignore[misc]
        heads = [
            p.grad for head in guidance.heads.values() for p in head.projection.module.parameters()
        ]
        gradients.append([*hidden, *heads])
    assert terms[0] > 0.1
    assert terms[1] == pytest.approx(terms[0], abs=5e-7)
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.allclose(ours, theirs, atol=5e-7)


def test_the_term_is_the_mean_over_the_samples_that_count(tmp_path: Path) -> None:
    """With few samples inside the window, the term is as large as with all of them inside."""
    for t in (0.5, 0.99):
        guidance = mechanism(tmp_path, {}, layers=[1], stride=1)
        guidance.plan(0, Plan())
        result = part_of(example_batch(), slice(None))
        result.t_B = torch.full((BATCH,), t)
        result.t_B[0] = 0.5
        guidance.begin_step(result.t_B)
        term = guidance.loss(result)
        assert term is not None
        (head,) = guidance.heads.values()
        hidden = torch.stack([result.hidden[1]])
        loss_B = head.losses(hidden, result.condition, FRAMES)[0]
        expected = loss_B.mean() if t == 0.5 else loss_B[0]
        assert float(term.detach()) == pytest.approx(0.5 * float(expected.detach()), rel=1e-6)


def test_shuffled_targets_are_those_of_the_next_clip(tmp_path: Path) -> None:
    guidance = mechanism(tmp_path, {}, layers=[1], stride=1, shuffled=True, target="both")
    guidance.plan(0, Plan())
    result = part_of(example_batch(), slice(None))
    result.t_B = torch.full((BATCH,), 0.5)
    guidance.begin_step(result.t_B)
    term = guidance.loss(result)
    hidden = torch.stack([result.hidden[1]])
    others = {name: value.roll(1, 0) for name, value in result.condition.items()}
    expected = [
        head.losses(hidden, others, FRAMES).mean().detach() for head in guidance.heads.values()
    ]
    assert term is not None
    assert float(term.detach()) == pytest.approx(0.25 * float(sum(expected)), rel=1e-6)
    alone = load_recipe(write_recipe(tmp_path / "one.toml", train__batch_size=1))
    with pytest.raises(StageError, match="a batch of one clip"):
        check_guidance(GuidanceOptions(shuffled=True), alone)


def test_a_step_without_samples_inside_the_window_has_a_term_of_zero(tmp_path: Path) -> None:
    guidance = mechanism(tmp_path, {}, layers=[1])
    guidance.plan(0, Plan())
    result = part_of(example_batch(), slice(None))
    result.t_B = torch.full((BATCH,), 0.99)
    guidance.begin_step(result.t_B)
    term = guidance.loss(result)
    assert term is not None
    assert float(term.detach()) == 0.0
    guidance.step(1e-3, lambda x: x, 1.0)
    assert guidance.metrics()["cosine_block1"] == 0.0


def test_both_targets_share_the_weight(tmp_path: Path) -> None:
    """Half of each alone; the teacher's head begins as it does alone."""
    step = example_batch()
    terms = {}
    for target in ("teacher", "codec", "both"):
        guidance = mechanism(tmp_path, {}, target=target, layers=[1, 2], stride=1)
        guidance.plan(0, Plan())
        guidance.begin_step(step.t_B)
        result = part_of(step, slice(None))
        assert guidance.loss(result) is not None
        hidden = torch.stack([result.hidden[1], result.hidden[2]])
        h_B = guidance.gate(step.t_B)
        losses = {
            name: float(
                ((h_B * head.losses(hidden, result.condition, FRAMES)).sum() / h_B.sum()).detach()
            )
            for name, head in guidance.heads.items()
        }
        terms[target] = float(guidance.loss(result).detach())  # type: ignore[union-attr]
        expected = 0.5 * sum(losses.values()) / 2 / len(losses)
        assert terms[target] == pytest.approx(expected, rel=1e-5)
        if target == "both":
            assert 0.5 * losses["teacher"] / 2 == pytest.approx(terms["teacher"], rel=1e-5)


# -- gates -----------------------------------------------------------------------------------------


def test_gates() -> None:
    t_B = torch.tensor([0.0, 0.1, 0.5, 0.75, 0.95, 1.0])
    window = Gate("window", (0.1, 0.9))
    assert window(t_B).tolist() == [0, 1, 1, 1, 0, 0]
    smooth = Gate("smooth", (0.15, 0.9))
    expected = [1 / (1 + np.exp(-20 * (0.75 - t))) for t in t_B.tolist()]
    assert smooth(t_B).tolist() == pytest.approx(expected, rel=1e-5)
    assert smooth.mean(t_B) == pytest.approx(np.mean(expected))
    assert window.mean(torch.tensor([0.95])) == 1.0  # nothing to divide by


# -- the teacher's features, by clip ---------------------------------------------------------------


def test_features_by_clip_have_mean_zero_and_deviation_one_over_its_frames() -> None:
    features_BLD = 3 + 5 * torch.randn(2, 40, 6)
    ours = standardised(features_BLD)
    assert torch.allclose(ours.mean(1), torch.zeros(2, 6), atol=1e-5)
    assert torch.allclose(ours.std(1, correction=0), torch.ones(2, 6), atol=1e-5)


def test_constant_clips_and_channels_have_no_direction() -> None:
    """Rounding noise must not be blown up to a target of its own."""
    features_BLD = torch.randn(3, 12, 6)
    features_BLD[0] = torch.randn(6) * (1 + 1e-7 * torch.randn(12, 1))
    features_BLD[1, :, 2] = 0.3
    features_BLD[2] = 0.0
    ours = standardised(features_BLD)
    assert ours[0].abs().max() == 0
    assert ours[1, :, 2].abs().max() == 0
    assert ours[1, :, 3].abs().max() > 0.5
    assert ours[2].abs().max() == 0


def test_normalising_by_clip_removes_what_a_clip_has_in_common(tmp_path: Path) -> None:
    terms: dict[str, list[float]] = {"set": [], "clip": []}
    for normalise, values in terms.items():
        for offset in (0.0, 50.0):
            guidance = mechanism(tmp_path, {}, normalise=normalise, layers=[1])
            guidance.plan(0, Plan())
            result = part_of(example_batch(), slice(None))
            result.condition["features"] = result.condition["features"] + offset
            guidance.begin_step(result.t_B)
            values.append(float(guidance.loss(result).detach()))  # type: ignore[union-attr]
    assert terms["clip"][0] == pytest.approx(terms["clip"][1], rel=1e-4)
    assert terms["set"][0] != pytest.approx(terms["set"][1], rel=1e-2)


# -- the codec's frames ----------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [10, 9])
def test_a_token_predicts_its_own_frames(frames: int, tmp_path: Path) -> None:
    """The smooth L1 distance with beta 0.05, over what is neither padding nor kept from the input.

    With 9 frames, the last token of two has half of its frames in the padding.
    """
    guidance = mechanism(tmp_path, {"model__patch": 2}, target="codec", layers=[1, 2], stride=1)
    head = guidance.heads["codec"]
    assert isinstance(head, CodecHead)
    assert len(head.projection.module.weights) == 4
    result = part_of(example_batch(frames=frames, tokens=5), slice(None))
    hidden = torch.stack([result.hidden[1], result.hidden[2]])
    weight = torch.ones(BATCH, frames, CHANNELS)
    weight[:, -2:] = 0.0
    weight[0, :, 3:] = 0.0
    batch = {**result.condition, "weight": weight}
    losses = head.losses(hidden, batch, FRAMES)
    assert losses.shape == (2, BATCH)

    predicted = head.projection(hidden).unflatten(-1, (2, CHANNELS)).flatten(2, 3)[:, :, :frames]
    distance = (predicted - result.condition["x0"]).abs()
    error = torch.where(distance < 0.05, distance.square() / 0.1, distance - 0.025)
    expected = (weight * error).sum((2, 3)) / weight.sum((1, 2))
    assert torch.allclose(losses, expected, atol=1e-6)

    moved = {**batch, "x0": batch["x0"] + 100 * (1 - weight)}
    assert torch.allclose(head.losses(hidden, moved, FRAMES), losses)


def test_the_codec_needs_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No encoder is opened, no feature read, nothing cached; the section names no teacher."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an encoder was opened")

    monkeypatch.setattr("stagecli.train.prepare.build_target_features", refuse)
    monkeypatch.setattr("stagecli.train.encoders.open_encoder", refuse)
    monkeypatch.setattr(TargetFeatures, "crop", refuse)
    path = write_recipe(
        tmp_path / "c.toml",
        "t2a",
        **changes({"target": "codec", "teacher": "bundled:judge"}),
    )
    recipe = load_recipe(path)
    assert Stages.of(recipe).features is None
    result = run_cli("train", path, cwd=tmp_path)
    assert result.code == 0, result.stderr
    rows = [row for row in read_rows(tmp_path / "runs" / "c") if "train/loss" in row]
    assert all(row["stage/guidance/error_block1"] > 0 for row in rows)
    assert not any("cosine_block" in name for row in rows for name in row)
    caches = [p for p in tmp_path.rglob("*") if p.is_dir() and p.name.startswith("features")]
    assert caches == []


def test_the_codec_head_learns_frames_that_the_hidden_states_hold(tmp_path: Path) -> None:
    guidance = mechanism(tmp_path, {}, target="codec", layers=[1])
    (head,) = guidance.heads.values()
    batch = example_batch().condition
    hidden_KBPW = F.pad(batch["x0"], (0, WIDTH - CHANNELS))[None]
    errors = []
    for _ in range(150):
        loss = head.losses(hidden_KBPW, batch, FRAMES).mean()
        loss.backward()
        head.projection.step(1e-2, lambda x: x, 1.0)
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.5 * errors[0]


# -- in training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/NUMBER: an uninterrupted run of each variant."""
    folder = tmp_path_factory.mktemp("targets")
    for number, options in enumerate(VARIANTS.values()):
        path = write_recipe(folder / f"{number}.toml", kind_of(number), **changes(options))
        result = run_cli("train", path, cwd=folder)
        assert result.code == 0, result.stderr
    return folder


def kind_of(number: int) -> str:
    return ("t2a", "sr")[number % 2]


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=VARIANTS)
def test_kill_9_and_resume_give_the_same_to_the_bit(
    number: int, whole: Path, tmp_path: Path
) -> None:
    def arrange() -> None:
        from stagecli.runs.directory import Run

        die_at(Run, "append", lambda run, stream, row: stream == "metrics" and row["step"] == 6)

    path = whole / f"{number}.toml"
    killed(tmp_path, "train", path, arrange=arrange)
    assert run_cli("train", path, cwd=tmp_path).code == 0
    run = tmp_path / "runs" / str(number)
    assert attempts(run) == [0, 4]
    assert facts(run) == facts(whole / "runs" / str(number))
    assert weights(run, STEPS) == weights(whole / "runs" / str(number), STEPS)


@pytest.mark.parametrize("number", [1, 2])
def test_accumulation_gives_the_same_losses(number: int, whole: Path, tmp_path: Path) -> None:
    path = whole / f"{number}.toml"
    slow = ("--set", "train.lr=1e-5")
    for parts in (1, 2, 4):
        name = f"p{parts}"
        result = run_cli(
            *("train", path, "--name", name, "--set", f"train.accumulate={parts}", *slow),
            cwd=tmp_path,
        )
        assert result.code == 0, result.stderr
    one, two, four = (losses_of(tmp_path / "runs" / f"p{parts}") for parts in (1, 2, 4))
    assert two[0] == pytest.approx(one[0], rel=5e-7)
    assert four[0] == pytest.approx(one[0], rel=5e-7)
    assert two == pytest.approx(one, rel=1e-4)
    assert four == pytest.approx(one, rel=1e-4)


# -- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "regime", "end": 0.7}, "fade"),
        ({"schedule": "regime", "fade": 0.98}, "fade"),
        ({"gate": "smooth", "window": (0.2, 0.9)}, "window requires"),
        ({"head_layers": 1}, "0, 2, 3 or 4"),
        ({"head_layers": 5}, "0, 2, 3 or 4"),
        ({"target": "mel"}, "'teacher', 'codec' or 'both'"),
        ({"normalise": "batch"}, "'set' or 'clip'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuidanceOptions(**options)


def test_defaults_by_schedule_and_by_target() -> None:
    assert GuidanceOptions().end == 0.98
    assert GuidanceOptions().fade == 0.9
    for schedule in ("stop", "linear", "cosine", "exponential"):
        assert GuidanceOptions(schedule=schedule).end == 0.7
        assert GuidanceOptions(schedule=schedule, end=0.5).end == 0.5
    assert [GuidanceOptions().depth_of_head(target) for target in ("teacher", "codec")] == [2, 4]
    deep = GuidanceOptions(head_layers=3)
    assert [deep.depth_of_head(target) for target in ("teacher", "codec")] == [3, 3]


def test_the_teacher_may_be_the_judge_only_where_it_does_not_teach(tmp_path: Path) -> None:
    mechanism(tmp_path, {}, target="codec", teacher="bundled:judge")
    with pytest.raises(StageError, match="also the judge"):
        mechanism(tmp_path, {}, target="both", teacher="bundled:judge")


def test_runs_of_earlier_versions_keep_their_shape(tmp_path: Path) -> None:
    """Without a `fade`, lambda fell from r = 0 on; in a new recipe, such an `end` is an error."""
    old = {"stage__regime__every": 2, "stage__guidance__end": 0.7}
    path = write_recipe(
        tmp_path / "recipe.toml",
        "t2a",
        **{**changes({"schedule": "regime"}), **old},
    )
    section = load_from_run(path).stage["guidance"]
    assert (section["fade"], section["end"]) == (0.0, 0.7)
    with pytest.raises(StageError) as caught:
        load_recipe(path)
    assert "fade (0.9) must be below end (0.7)" in str(caught.value.problems)
