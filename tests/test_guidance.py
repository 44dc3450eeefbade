"""`[stage.guidance]`: the schedules, the projectors, and that nothing is left after the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import die_at, losses_of, read_rows, run_cli, sha, two_processes, write_recipe
from helpers.resume import attempts, facts, killed, weights

from stagecli.data.open import open_source
from stagecli.errors import StageError
from stagecli.flow.objective import Result
from stagecli.recipe.load import load_recipe
from stagecli.ssl import make_encoder
from stagecli.stage.base import Plan, Probe, Signals
from stagecli.stage.controller import Stages
from stagecli.stage.guidance import GuidanceMechanism
from stagecli.stage.guidance_heads import TeacherHead
from stagecli.stage.guidance_options import GuidanceOptions
from stagecli.stage.guidance_projection import Projectors, ProjectorShape
from stagecli.train.teacher_features import TargetFeatures, build_target_features

STEPS = 12
GUIDED: dict[str, Any] = {
    "train__steps": STEPS,
    "stage__guidance__schedule": "constant",
    "stage__guidance__hidden": 16,
    "stage__guidance__target": "teacher",
    "stage__guidance__weight": 0.5,
}
STOPPED = {**GUIDED, "stage__guidance__schedule": "stop", "stage__guidance__end": 0.5}


def recipe_of(folder: Path, **changes: Any) -> Any:
    return load_recipe(write_recipe(folder / "g.toml", "t2a", **{**GUIDED, **changes}))


def mechanism(folder: Path, **options: Any) -> GuidanceMechanism:
    plain = {"target": "teacher", "weight": 0.5}
    table = {f"stage__guidance__{k}": v for k, v in {**plain, **options}.items()}
    regime = {"stage__regime__every": 2} if options.get("schedule") == "regime" else {}
    recipe = recipe_of(folder, **table, **regime)
    return GuidanceMechanism.build(GuidanceOptions(**recipe.stage["guidance"]), recipe)


# -- the schedules ---------------------------------------------------------------------------------


def test_the_schedule_by_r_holds_then_fades_and_is_then_exactly_zero(tmp_path: Path) -> None:
    guidance = mechanism(tmp_path, schedule="regime")
    assert {guidance.strength(0, r) for r in (0.0, 0.5, 0.89, 0.9)} == {0.5}
    assert guidance.strength(5, 0.94) == pytest.approx(0.25)
    for r in (0.98, 0.99, 1.0):
        assert guidance.strength(5, r) == 0.0
    values = [guidance.strength(0, r) for r in np.linspace(0, 1, 80)]
    assert values == sorted(values, reverse=True)


def test_without_a_fade_the_schedule_by_r_is_one_half_cosine(tmp_path: Path) -> None:
    guidance = mechanism(tmp_path, schedule="regime", fade=0.0, end=0.7)
    for r in np.linspace(0, 1, 40):
        expected = 0.25 * (1 + np.cos(np.pi * min(1, r / 0.7)))
        assert guidance.strength(0, float(r)) == pytest.approx(expected, abs=1e-12)
    assert guidance.strength(0, 0.7) == 0.0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential", "stop"])
def test_schedules_by_step_end_and_stay_at_zero(schedule: str, tmp_path: Path) -> None:
    """A cosine that is not held at 0 would rise again after its end."""
    guidance = mechanism(tmp_path, schedule=schedule, end=0.5)
    values = [guidance.strength(step, 0.0) for step in range(4 * STEPS)]
    assert values[0] == 0.5
    assert values[: STEPS // 2] == sorted(values[: STEPS // 2], reverse=True)
    assert min(values[: STEPS // 2]) > 0
    assert set(values[STEPS // 2 :]) == {0.0}


def test_constant_is_constant(tmp_path: Path) -> None:
    guidance = mechanism(tmp_path, schedule="constant", weight=0.3)
    assert {guidance.strength(step, r) for step in range(STEPS) for r in (0.0, 0.5, 1.0)} == {0.3}


def test_the_end_by_r_takes_three_probes_in_a_row(tmp_path: Path) -> None:
    guidance = mechanism(tmp_path, schedule="regime")
    guidance.attach(torch.nn.Linear(2, 2), 8)
    probe = Probe({0.5: 0.5}, {0.5: 0.0}, {0.5: 1.0})
    ended = []
    for step, r in enumerate([0.9, 0.981, 0.982, 0.983, 0.984]):
        guidance.plan(step, Plan(r=r))
        assert (
            guidance.observe(Signals(step, torch.zeros(1), torch.zeros(1), 1.0, 1.0)) == []
        )  # no probe, no decision
        ended.append(
            [
                event.after
                for event in guidance.observe(Signals(step, *[torch.zeros(1)] * 2, 1.0, 1.0, probe))
            ]
        )
    assert ended == [[], [], [], ["ended"], []]
    assert guidance.features is None
    assert guidance.plan(9, Plan(r=0.0)) == Plan(r=0.0)


# -- the loss --------------------------------------------------------------------------------------


def result_of(batch: int = 6, frames: int = 10, width: int = 32, features: int = 192) -> Result:
    torch.manual_seed(0)
    x_BTC = torch.randn(batch, frames, 4)
    hidden = {k: torch.randn(batch, frames, width, requires_grad=True) for k in (1, 2)}
    t_B = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])[:batch]
    loss_B = sum(h.square().mean((1, 2)) for h in hidden.values())
    condition = {"features": torch.randn(batch, 7, features)}
    return Result(loss_B, x_BTC, x_BTC, t_B, condition, hidden)  # type: ignore[arg-type]


def teacher_head(guidance: GuidanceMechanism) -> TeacherHead:
    head = guidance.heads["teacher"]
    assert isinstance(head, TeacherHead)
    return head


def test_samples_outside_the_window_are_not_guided_and_the_weight_is_per_sample(
    tmp_path: Path,
) -> None:
    guidance = mechanism(tmp_path, layers=[1, 2], stride=1)
    guidance.attach(torch.nn.Linear(2, 2), 192)
    guidance.plan(0, Plan())
    result = result_of()
    guidance.begin_step(result.t_B)
    term = guidance.loss(result)
    assert term is not None
    assert term.shape == ()
    expected = 0.0
    cosine_KB = teacher_head(guidance).cosines(
        torch.stack(list(result.hidden.values())), result.condition["features"], slice(None)
    )
    assert cosine_KB.shape == (2, 6)
    for cosine_B in cosine_KB:
        expected += 0.5 * float((1 - cosine_B[1:5]).detach().mean()) / 2
    assert float(term.detach()) == pytest.approx(expected, rel=1e-5)
    term.backward()
    for hidden in result.hidden.values():
        assert hidden.grad is not None
        assert hidden.grad[[0, 5]].abs().max() == 0  # t = 0.05 and 0.95
        assert (hidden.grad[1:5].flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("tokens", [3, 10])
def test_over_a_few_steps_every_frame_counts_once(tokens: int, tmp_path: Path) -> None:
    """The mean over `stride` steps is the term over all frames."""
    thin, whole = (
        mechanism(tmp_path, layers=[1, 2], stride=stride, conflict_every=99) for stride in (4, 1)
    )
    result = result_of(frames=tokens)
    result.condition["features"] = torch.randn(6, 8, 192)
    terms: dict[int, list[float]] = {1: [], 4: []}
    for guidance in (thin, whole):
        guidance.attach(torch.nn.Linear(2, 2), 192)
        for step in range(4):
            guidance.plan(step, Plan())
            term = guidance.loss(result)
            assert term is not None
            terms[guidance.options.stride].append(float(term.detach()))
    assert len(set(terms[1])) == 1
    assert len(set(terms[4])) == 4
    assert np.mean(terms[4]) == pytest.approx(terms[1][0], rel=1e-5)


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_projectors_are_mlps_each_of_its_own_block(layers: int) -> None:
    projectors = Projectors(ProjectorShape(blocks=2, layers=layers, width=3, hidden=5, output=4))
    assert len(projectors.weights) == layers
    x_KNW = torch.randn(2, 7, 3)
    for k in range(2):
        plain = x_KNW[k]
        for number, (weight, bias) in enumerate(
            zip(projectors.weights, projectors.biases, strict=True)
        ):
            inner = torch.nn.functional.silu(plain) if number else plain
            plain = torch.nn.functional.linear(inner, weight[k].T, bias[k, 0])
        assert plain.shape == (7, 4)
        assert torch.allclose(projectors(x_KNW)[k], plain, atol=1e-6)


def test_projectors_clip_and_a_gradient_that_overflows_moves_nothing(tmp_path: Path) -> None:
    guidance = mechanism(tmp_path, layers=[1])
    guidance.attach(torch.nn.Linear(2, 2), 8)
    projection = teacher_head(guidance).projection
    weights = list(projection.module.parameters())
    before = [p.detach().clone() for p in weights]
    for value, moves in ((torch.inf, False), (torch.nan, False), (1e3, True)):
        for p in weights:
            p.grad = torch.ones_like(p)
        weights[0].grad = torch.full_like(weights[0], value)
        guidance.step(1e-2, lambda x: x, 2.0)
        assert all(bool(torch.isfinite(p).all()) for p in weights)
        states = projection.optimizer.state.values()
        norm = torch.stack([s["exp_avg"].norm() for s in states]).norm()
        assert float(norm) == pytest.approx(
            0.1 if moves else 0.0, rel=1e-3
        )  # 1 - 0.9 of a gradient clipped at 1
    assert not torch.equal(before[0], weights[0])


def test_the_gradient_cosine_is_that_of_the_two_losses(tmp_path: Path) -> None:
    guidance = mechanism(tmp_path, layers=[2], conflict_every=1)
    guidance.attach(torch.nn.Linear(2, 2), 192)
    guidance.plan(0, Plan())
    result = result_of()
    term = guidance.loss(result)
    assert term is not None
    weight_B = torch.linspace(
        0.5, 2, 6
    )  # of the samples' losses: no cosine depends on it, nor on fp16's scale
    (64 * ((weight_B * result.loss_B).mean() + term)).backward(retain_graph=True)
    guidance.step(0.0, lambda x: x, 64.0)
    ours = torch.autograd.grad(term, result.hidden[2], retain_graph=True)[0].flatten(1)
    theirs = torch.autograd.grad(result.loss_B.mean(), result.hidden[2], retain_graph=True)[
        0
    ].flatten(1)
    cosine_B = torch.nn.functional.cosine_similarity(ours, theirs)[1:5]
    values = guidance.conflict.values
    assert values["gradient_cosine"] == pytest.approx(float(cosine_B.mean()), abs=1e-5)
    assert values["gradient_cosine_t0.125"] == pytest.approx(float(cosine_B[0]), abs=1e-5)


def test_features_of_a_crop_are_those_of_its_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut from the whole clip, interpolated between grid points, and held past the end."""
    monkeypatch.chdir(tmp_path)
    long = recipe_of(tmp_path, data__sample_rate=44100, data__clips=3, data__seconds=0.8)
    recipe = recipe_of(tmp_path, data__sample_rate=44100, data__clips=3)
    source = open_source(long.data, need_captions=False, base=tmp_path, splits=("train",), seed=0)
    clips = source.clips("train")
    features = build_target_features(
        make_encoder("bundled", "teacher", 0),
        recipe=recipe,
        source=source,
        clips=clips,
        device=torch.device("cpu"),
        progress=lambda done, total: None,
    )
    encoder = make_encoder(
        "bundled", "teacher", 0
    )  # layer 0 sees 100 ms: away from the edges no other context
    clip = max(clips, key=lambda c: c.seconds)
    audio = source.read(clip)
    from stagecli.condition.low import level_gain

    audio = audio * level_gain(audio)
    start = encoder.grid.hop * 3
    samples = round(0.4 * 44100)
    assert len(audio) >= start + samples
    direct = encoder(torch.from_numpy(audio[start : start + samples])[None])[0] - features.centre_D
    cut = features.crop(clip, start)
    assert cut.shape == direct.shape
    cosine = torch.nn.functional.cosine_similarity(cut[2:-2], direct[2:-2], dim=-1)
    assert float(cosine.min()) > 0.99
    between = features.crop(clip, start + encoder.grid.hop // 2)
    assert torch.allclose(
        between, (cut + features.crop(clip, start + encoder.grid.hop)) / 2, atol=1e-3
    )
    assert torch.isfinite(features.crop(clip, len(audio))).all()


# -- in training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/{t2a,sr}: guidance ends at half of the steps; runs/{t2a,sr}-plain: without the
    section.
    """
    folder = tmp_path_factory.mktemp("guided")
    for kind in ("t2a", "sr"):
        for name, changes in ((kind, STOPPED), (f"{kind}-plain", {"train__steps": STEPS})):
            result = run_cli(
                "train", write_recipe(folder / f"{name}.toml", kind, **changes), cwd=folder
            )
            assert result.code == 0, result.stderr
    return folder / "runs"


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_guidance_changes_training_reports_itself_and_ends(kind: str, whole: Path) -> None:
    rows = [row for row in read_rows(whole / kind) if "train/loss" in row]
    # the row of the last guided step comes after its end
    guided = rows[: STEPS // 2 - 1]
    after = rows[STEPS // 2 - 1 :]
    assert all(row["stage/guidance/lambda"] == 0.5 for row in guided)
    assert all(-1 <= row["stage/guidance/cosine_block1"] <= 1 for row in guided)
    assert all(row["stage/guidance/lambda"] == 0 for row in after)
    assert not any("cosine_block1" in name for row in after for name in row)
    assert losses_of(whole / kind)[1:] != losses_of(whole / f"{kind}-plain")[1:]
    events = [row for row in read_rows(whole / kind, "events") if row["mechanism"] == "guidance"]
    assert [(row["step"], row["to"]) for row in events] == [(STEPS // 2, "ended")]
    from stagecli.runs import checkpoint

    _, trainer = checkpoint.load_state(whole / kind / "checkpoints" / f"step_{STEPS:08d}")
    state = trainer["stages"]["guidance"]
    assert state["ended"]
    assert state["heads"] == {}


def test_after_the_end_no_feature_is_read(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    crop = TargetFeatures.crop

    def counting(self: TargetFeatures, clip: Any, start: int) -> torch.Tensor:
        calls.append(clip)
        return crop(self, clip, start)

    monkeypatch.setattr(TargetFeatures, "crop", counting)
    assert run_cli("train", whole.parent / "t2a.toml", cwd=tmp_path).code == 0
    assert len(calls) == STEPS // 2 * 4  # batches of 4, in this process
    assert losses_of(tmp_path / "runs" / "t2a") == losses_of(whole / "t2a")


def test_projectors_learn(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "l.toml", "t2a", **{**GUIDED, "train__steps": 90, "train__lr": 3e-3}
    )
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    rows = [
        row["stage/guidance/cosine_block1"]
        for row in read_rows(tmp_path / "runs" / "l")
        if "train/loss" in row
    ]
    assert np.mean(rows[-10:]) > np.mean(rows[:10]) + 0.1


@pytest.mark.parametrize("kind", ["t2a", "sr"])
@pytest.mark.parametrize("step", [6, 10])
def test_kill_9_and_resume_before_and_after_the_end(
    kind: str, step: int, whole: Path, tmp_path: Path
) -> None:
    def arrange() -> None:
        from stagecli.runs.directory import Run

        die_at(Run, "append", lambda run, stream, row: stream == "metrics" and row["step"] == step)

    killed(tmp_path, "train", whole.parent / f"{kind}.toml", arrange=arrange)
    assert run_cli("train", whole.parent / f"{kind}.toml", cwd=tmp_path).code == 0
    run = tmp_path / "runs" / kind
    assert attempts(run) == [0, 4 if step == 6 else 8]
    assert facts(run) == facts(whole / kind)
    assert weights(run, STEPS) == weights(whole / kind, STEPS)


def test_workers_give_the_same(whole: Path, tmp_path: Path) -> None:
    assert (
        run_cli("train", whole.parent / "t2a.toml", "--set", "data.workers=2", cwd=tmp_path).code
        == 0
    )
    assert losses_of(tmp_path / "runs" / "t2a") == losses_of(whole / "t2a")


def test_gate_ablation_chooses_blocks(tmp_path: Path) -> None:
    changes = {
        "stage__guidance__ablation": 1,
        "stage__guidance__ablation_start": 0.25,
        "train__lr": 1e-2,
    }
    recipe = write_recipe(tmp_path / "a.toml", "t2a", **{**GUIDED, **changes})
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    run = tmp_path / "runs" / "a"
    event = next(row for row in read_rows(run, "events") if row["mechanism"] == "guidance")
    assert event["step"] == 4
    changes = {int(name.split()[-1]): value for name, value in event["evidence"].items()}
    best = max(changes, key=lambda k: changes[k])
    assert str(best) in event["reason"]
    last = [row for row in read_rows(run) if "train/loss" in row][-1]
    assert f"stage/guidance/cosine_block{best}" in last


def test_a_conflict_three_times_in_a_row_ends_it(tmp_path: Path) -> None:
    changes = {
        "stage__guidance__schedule": "conflict",
        "stage__guidance__threshold": 1.0,
        "stage__guidance__conflict_every": 2,
    }
    recipe = write_recipe(tmp_path / "c.toml", "t2a", **{**GUIDED, **changes})
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    events = [
        row
        for row in read_rows(tmp_path / "runs" / "c", "events")
        if row["mechanism"] == "guidance"
    ]
    assert [(row["step"], row["to"]) for row in events] == [(6, "ended")]
    assert "gradient_cosine" in events[0]["evidence"]


def test_two_processes_guide_as_one(whole: Path, tmp_path: Path) -> None:
    two_processes("train", whole.parent / "t2a.toml", cwd=tmp_path)
    assert losses_of(tmp_path / "runs" / "t2a") == pytest.approx(losses_of(whole / "t2a"), rel=1e-3)
    events = [
        row["step"]
        for row in read_rows(tmp_path / "runs" / "t2a", "events")
        if row["mechanism"] == "guidance"
    ]
    assert events == [STEPS // 2]


def test_off_is_bit_identical_to_no_table(whole: Path, tmp_path: Path) -> None:
    """Guidance that never begins: features are read, but the losses are those without the
    section.
    """
    changes = {**GUIDED, "stage__guidance__ablation": 1, "stage__guidance__ablation_start": 1.0}
    assert (
        run_cli("train", write_recipe(tmp_path / "o.toml", "t2a", **changes), cwd=tmp_path).code
        == 0
    )
    assert losses_of(tmp_path / "runs" / "o") == losses_of(whole / "t2a-plain")
    name = f"checkpoints/step_{STEPS:08d}/model.safetensors"
    assert sha(tmp_path / "runs" / "o" / name) == sha(whole / "t2a-plain" / name)


# -- what bad input gets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [3]}, "no block 3"),
        ({"ablation": 3}, "no block 3"),
        ({"teacher": "bundled:judge"}, "also the judge"),
    ],
)
def test_what_cannot_guide_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(StageError) as caught:
        mechanism(tmp_path, **options)
    assert message in f"{caught.value.message} {caught.value.problems}"


def test_a_schedule_by_r_needs_the_regime(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, stage__guidance__schedule="regime")
    with pytest.raises(StageError, match=r"needs \[stage.regime\]") as caught:
        Stages.of(recipe)
    assert caught.value.problems[0].where == "stage.guidance.schedule"
    assert caught.value.hint is not None
    assert 'source = "linear"' in caught.value.hint


@pytest.mark.parametrize(
    "wrong", [{"layers": [1, 1]}, {"layers": [1], "ablation": 1}, {"window": [0.9, 0.1]}]
)
def test_options_that_contradict_each_other(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"twice|one|rise"):
        GuidanceOptions(**wrong)


def test_half_precision_cosines_stay_finite(tmp_path: Path) -> None:
    guidance = mechanism(tmp_path, layers=[1])
    guidance.attach(torch.nn.Linear(2, 2), 8)
    guidance.plan(0, Plan())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = torch.zeros(1, 2, 5, 32, dtype=torch.bfloat16).float()
        cosine_KB = teacher_head(guidance).cosines(hidden, torch.zeros(2, 3, 8), slice(None))
    assert bool(torch.isfinite(cosine_KB).all())
    assert cosine_KB.dtype == torch.float32


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_after_the_end_a_step_allocates_what_an_unguided_step_does(
    kind: str, tmp_path: Path
) -> None:
    """The allocations of a step are the same, one by one: the same work, and nothing more."""
    after = 5  # steps
    sizes = {}
    for name, options in (
        ("plain", {}),
        ("guided", GUIDED),
        ("ended", {**STOPPED, "stage__guidance__end": 2 / STEPS}),
    ):
        path = write_recipe(tmp_path / f"{name}.toml", kind, **{**options, "train__steps": STEPS})
        sizes[name] = allocations(load_recipe(path), tmp_path / name, after)
    assert len(sizes["plain"]) > 500
    assert sizes["ended"] == sizes["plain"]
    assert sum(sizes["guided"]) > sum(sizes["plain"])


def allocations(recipe: Any, run_dir: Path, at: int) -> list[int]:
    """Bytes of each allocation from the report of step `at` to that of the next one.

    What is freed in between may be another test's, when garbage happens to be collected: it is left
    out.
    """
    from accelerate import Accelerator

    from stagecli.terminal.views import QuietView
    from stagecli.train.interrupt import Interrupt
    from stagecli.train.setup import build_trainer

    class Watch(QuietView):
        profile: torch.profiler.profile | None = None

        def step(self, step: int) -> None:
            if step == at:
                self.profile = torch.profiler.profile(profile_memory=True, acc_events=True)
                self.profile.__enter__()
            elif self.profile is not None:
                self.profile.__exit__(None, None, None)
                interrupt.requested = True

    run_dir.mkdir()
    interrupt = Interrupt()
    trainer = build_trainer(recipe, Accelerator(cpu=True), run_dir, None, watch := Watch())
    trainer.fit(interrupt)
    assert watch.profile is not None
    assert watch.profile.profiler is not None
    events = [e for e in watch.profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()) if e.nbytes() > 0]
