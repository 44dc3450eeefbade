"""Probes and `[stage.regime]` in training: exact after a kill, no effect on what is trained."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import (
    Result,
    die_at,
    fresh_accelerate,
    losses_of,
    read_rows,
    run_cli,
    sha,
    two_processes,
    write_recipe,
)
from helpers.resume import attempts, facts, killed, weights

from stagecli.errors import StageError
from stagecli.model.network import Network
from stagecli.recipe.load import load_recipe
from stagecli.stage.base import Probe, ProbeSettings
from stagecli.stage.controller import Stages
from stagecli.stage.regime_controls import read_replay
from stagecli.train.encoders import open_monitor
from stagecli.train.prepare import prepare
from stagecli.train.probe import ProbeSet
from stagecli.train.probe_setup import build_probes

LEVELS = (0.15, 0.35, 0.55, 0.75, 0.9, 0.97)
REGIME: dict[str, Any] = {"stage__regime__every": 2, "stage__regime__clips": 4, "train__steps": 12}
CLOCK = ("seconds", "seconds_total", "share")


def probes(run: Path) -> list[dict[str, Any]]:
    rows = read_rows(run, "probes")
    return [{k: v for k, v in row.items() if k not in ("time", "attempt", *CLOCK)} for row in rows]


def regime_events(run: Path) -> dict[int, list[tuple[Any, ...]]]:
    """step -> events of the mechanism; those that a kill and its resume both wrote count once."""
    by_step: dict[int, list[tuple[Any, ...]]] = {}
    for row in read_rows(run, "events"):
        if row["mechanism"] == "regime":
            event = (
                row["from"],
                row["to"],
                row["reason"],
                json.dumps(row["evidence"], sort_keys=True),
            )
            if event not in by_step.setdefault(row["step"], []):
                by_step[row["step"]].append(event)
    return by_step


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/t2a and runs/sr with probes, and runs/t2a-plain and runs/sr-plain without stages."""
    folder = tmp_path_factory.mktemp("probed")
    for kind in ("t2a", "sr"):
        recipe = write_recipe(folder / f"{kind}.toml", kind, **REGIME)
        result = run_cli("train", recipe, cwd=folder)
        assert result.code == 0, result.stderr
        plain = write_recipe(
            folder / f"{kind}-plain.toml", kind, train__steps=REGIME["train__steps"]
        )
        assert run_cli("train", plain, cwd=folder).code == 0
    return folder / "runs"


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_probes_change_nothing_that_is_trained(kind: str, whole: Path) -> None:
    run = whole / kind
    plain = whole / f"{kind}-plain"
    assert len(probes(run)) == 6
    assert losses_of(run) == losses_of(plain)
    assert [row["optim/grad_norm"] for row in read_rows(run) if "optim/grad_norm" in row] == [
        row["optim/grad_norm"] for row in read_rows(plain) if "optim/grad_norm" in row
    ]
    for name in ("model", "ema"):
        assert sha(run / f"checkpoints/step_00000012/{name}.safetensors") == sha(
            plain / f"checkpoints/step_00000012/{name}.safetensors"
        )


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_rows_of_probes_hold_what_was_measured(kind: str, whole: Path) -> None:
    rows = read_rows(whole / kind, "probes")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    for row in rows:
        by_t = [row[f"D_t{t:.2f}"] for t in LEVELS]
        assert row["D"] == pytest.approx(sum(by_t) / 6)
        assert row["Dn"] == pytest.approx(sum(row[f"Dn_t{t:.2f}"] for t in LEVELS) / 6)
        assert -1e-6 <= row["d_ceiling"] < row["d_ref"] <= 2
        assert row["seconds"] > 0
        assert row["monitor"].startswith("bundled:teacher")
    taus = [row["tau"] for row in rows]
    assert taus == sorted(taus)
    assert taus[-1] < 12  # warm-up and decay count less than a full step
    assert taus[-1] == pytest.approx(rows[-1]["tau_end"])
    for row in rows:  # progress by noise level, from the fifth probe on
        for t in LEVELS:
            names = {f"{letter}_t{t:.2f}" for letter in "GRr"}
            assert names & set(row) == (names if row["step"] >= 10 else set())


def test_the_recipe_of_the_run_has_every_default(whole: Path) -> None:
    table = load_recipe(whole / "t2a" / "recipe.toml").stage["regime"]
    assert table["monitor"] == "bundled:teacher"
    assert tuple(table["t"]) == LEVELS


# -- resume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t2a", "sr"])
@pytest.mark.parametrize("step", [7, 10])
def test_kill_9_and_resume_give_the_same_probes_and_events(
    kind: str, step: int, whole: Path, tmp_path: Path
) -> None:
    def arrange() -> None:
        from stagecli.runs.directory import Run

        die_at(Run, "append", lambda run, stream, row: stream == "metrics" and row["step"] == step)

    recipe = whole.parent / f"{kind}.toml"
    killed(tmp_path, "train", recipe, arrange=arrange)
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    run = tmp_path / "runs" / kind
    assert attempts(run) == [0, 4 if step == 7 else 8]
    written = {row["step"]: row for row in probes(run)}
    assert all(written[row["step"]] == row for row in probes(run)), (
        "a step trained twice gave two different probes"
    )
    assert list(written.values()) == probes(whole / kind)
    assert regime_events(run) == regime_events(whole / kind)
    assert facts(run) == facts(whole / kind)
    assert weights(run, 12) == weights(whole / kind, 12)


def test_kill_9_while_a_row_of_a_probe_is_written(whole: Path, tmp_path: Path) -> None:
    def arrange() -> None:
        from stagecli.runs.directory import Run

        die_at(Run, "append", lambda run, stream, row: stream == "probes" and row["step"] == 8)

    killed(tmp_path, "train", whole.parent / "t2a.toml", arrange=arrange)
    assert run_cli("train", whole.parent / "t2a.toml", cwd=tmp_path).code == 0
    written = {row["step"]: row for row in probes(tmp_path / "runs" / "t2a")}
    assert list(written.values()) == probes(whole / "t2a")


# -- the controls ----------------------------------------------------------------------------------


def test_replay_follows_the_other_run_and_linear_the_step(whole: Path, tmp_path: Path) -> None:
    source = tmp_path / "other"
    shutil.copytree(whole / "t2a", source)
    rows = [{**row, "r": min(1.0, row["step"] / 8)} for row in read_rows(source, "probes")]
    (source / "probes.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 14, "r"'
    )
    recipe = write_recipe(
        tmp_path / "r.toml",
        "t2a",
        **REGIME,
        stage__regime__source="replay",
        stage__regime__replay=str(source),
    )
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    assert [row["r"] for row in probes(tmp_path / "runs" / "r")] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    linear = write_recipe(tmp_path / "l.toml", "t2a", **REGIME, stage__regime__source="linear")
    assert run_cli("train", linear, cwd=tmp_path).code == 0
    assert [row["r"] for row in probes(tmp_path / "runs" / "l")] == pytest.approx(
        [s / 12 for s in range(2, 13, 2)]
    )
    assert losses_of(tmp_path / "runs" / "l") == losses_of(whole / "t2a")


def test_a_run_that_cannot_be_replayed_is_refused(whole: Path, tmp_path: Path) -> None:
    empty = tmp_path / "no-probes"
    shutil.copytree(whole / "t2a-plain", empty)
    for where in (tmp_path / "nowhere", empty):
        with pytest.raises(StageError, match="replay"):
            read_replay(where)
    damaged = tmp_path / "damaged"
    shutil.copytree(whole / "t2a", damaged)
    lines = (damaged / "probes.jsonl").read_text().splitlines()
    (damaged / "probes.jsonl").write_text("\n".join([lines[0], "not a row", *lines[1:]]) + "\n")
    with pytest.raises(StageError, match="damaged"):
        read_replay(damaged)
    short = [line for line in lines if json.loads(line)["step"] < 10]
    (damaged / "probes.jsonl").write_text("\n".join(short) + "\n")
    with pytest.raises(StageError, match="too short, or of an earlier version"):
        read_replay(damaged)


# -- bad input ---------------------------------------------------------------------------


def refused(kind: str, tmp_path: Path, **changes: Any) -> Result:
    """Train; it must end with code 1 or 2, without a row of metrics."""
    recipe = write_recipe(tmp_path / "bad.toml", kind, **{**REGIME, **changes})
    result = run_cli("train", recipe, cwd=tmp_path)
    assert result.code in (1, 2), result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs" / "bad" / "metrics.jsonl").exists()
    return result


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint of a 16 kHz encoder."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    folder = tmp_path_factory.mktemp("ssl") / "wav2vec2"
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(0)
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_a_monitor_whose_band_is_below_what_is_restored(wav2vec2: Path, tmp_path: Path) -> None:
    result = refused(
        "sr",
        tmp_path,
        stage__regime__monitor=f"transformers:{wav2vec2}",
        data__sample_rate=24000,
        data__seconds=0.2,
    )
    assert "sees up to 8000 Hz" in result.stderr
    assert "full-band encoder" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage__regime__monitor": "bundled:judge"}, "is also the judge"),
        ({"stage__regime__monitor": "bundled:teachr"}, "teacher"),
        ({"stage__regime__monitor": "transformers:/nowhere/at/all"}, "/nowhere/at/all"),
        ({"stage__regime__monitor": "teacher"}, "kind:model"),
        ({"stage__regime__monitor": "clap:x"}, "unknown kind 'clap'"),
        ({"stage__regime__layer": 99}, "no layer 99"),
        ({"data__seconds": 0.05}, "receptive field|needs 0.0"),
        ({"stage__regime__clips": 1}, "single clip"),
        ({"stage__regime__source": "replay"}, "belong together"),
        ({"stage__regime__source": "replay", "stage__regime__replay": "nowhere"}, "cannot be read"),
        ({"stage__regime__t": [0.5, 1.0]}, "below 1"),
        ({"stage__regime__evry": 3}, "did you mean `every`"),
        ({"stage__regim__every": 3}, "did you mean `regime`"),
    ],
)
def test_what_cannot_measure_is_refused_before_training(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    result = refused("t2a", tmp_path, **changes)
    assert re.search(message, " ".join(result.stderr.split())), result.stderr


def test_a_monitor_from_disk_measures_t2a(wav2vec2: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "w.toml",
        "t2a",
        **{**REGIME, "train__steps": 4},
        stage__regime__monitor=f"transformers:{wav2vec2}",
    )
    result = run_cli("train", recipe, cwd=tmp_path)
    assert result.code == 0, result.stderr
    for row in probes(tmp_path / "runs" / "w"):
        assert row["monitor"].startswith(f"transformers:{wav2vec2}")
        assert math.isfinite(row["Dn"])


def test_a_probe_that_is_not_finite_is_an_event_and_training_continues(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = ProbeSet.measure

    def broken(self: ProbeSet, network: Network) -> Probe:
        probe = measure(self, network)
        if self.calls == 2:
            probe = Probe(dict.fromkeys(probe.D_t, math.nan), probe.ceiling_t, probe.reference_t)
        self.calls += 1
        return probe

    monkeypatch.setattr(ProbeSet, "measure", broken)
    monkeypatch.setattr(ProbeSet, "calls", 0, raising=False)
    assert run_cli("train", whole.parent / "t2a.toml", cwd=tmp_path).code == 0
    run = tmp_path / "runs" / "t2a"
    row = probes(run)[2]
    assert row["D"] is None
    assert row["Dn"] is None
    assert [
        e
        for e in read_rows(run, "events")
        if e["mechanism"] == "regime" and "the probe has no value" in e["reason"]
    ]
    assert losses_of(run) == losses_of(whole / "t2a-plain")


# -- the measurement itself ------------------------------------------------------------------------


@pytest.fixture
def probe_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ProbeSet, Network]:
    monkeypatch.chdir(tmp_path)
    fresh_accelerate()
    options = {**REGIME, "stage__regime__clips": 9}  # as many at every noise level
    recipe = load_recipe(write_recipe(tmp_path / "p.toml", "t2a", **options))
    accelerator = Accelerator(cpu=True)
    prepared = prepare(recipe, None, accelerator.device, lambda *_: None)
    torch.manual_seed(0)
    network = Network(recipe, channels=prepared.codec.channels)
    settings = Stages.of(recipe).probes
    assert settings is not None
    return build_probes(settings, prepared, network, accelerator), network


def test_same_weights_same_number_and_other_noise_another(
    probe_set: tuple[ProbeSet, Network],
) -> None:
    probes, network = probe_set
    first = probes.measure(network)
    assert probes.measure(network).D_t == first.D_t
    d_TB = probes.distances(network)
    measured_TB = ~d_TB.isnan()
    assert not probes.distances(network, noise=1)[measured_TB].equal(d_TB[measured_TB])


def test_a_clip_is_measured_at_two_of_six_noise_levels_and_a_level_on_a_third_of_the_clips(
    probe_set: tuple[ProbeSet, Network],
) -> None:
    probes, network = probe_set
    measured_TB = ~probes.distances(network).isnan()
    assert measured_TB.shape == (6, 9)
    assert measured_TB.sum(0).tolist() == [2] * 9
    assert measured_TB.sum(1).tolist() == [3] * 6
    assert measured_TB[:, 1].nonzero().flatten().tolist() == [1, 4]


@pytest.mark.parametrize(
    ("options", "train", "expected"),
    [
        ({}, {"steps": 600, "batch_size": 32}, (20, 12)),
        ({}, {"steps": 600, "batch_size": 8}, (20, 9)),
        ({}, {"steps": 2000, "batch_size": 32}, (66, 42)),
        ({}, {"steps": 400_000, "batch_size": 64}, (2000, 96)),
        ({}, {"steps": 10_000, "batch_size": 64}, (75, 96)),
        ({"clips": 24}, {"steps": 600, "batch_size": 32}, (38, 24)),
        ({"every": 25}, {"steps": 600, "batch_size": 32}, (25, 16)),
        ({"every": 5, "clips": 64}, {"steps": 600, "batch_size": 32}, (5, 64)),
        ({}, {"steps": 4, "batch_size": 2}, (1, 9)),
    ],
)
def test_interval_and_clips_that_are_not_set_follow_from_the_cost(
    options: dict[str, Any], train: dict[str, int], expected: tuple[int, int], tmp_path: Path
) -> None:
    regime = {"source": "measured", **options}
    changes = {f"stage__regime__{key}": value for key, value in regime.items()}
    changes |= {f"train__{key}": value for key, value in {"warmup_steps": 0, **train}.items()}
    recipe = load_recipe(write_recipe(tmp_path / "p.toml", "t2a", **changes))
    settings = Stages.of(recipe).probes
    assert settings is not None
    assert (settings.every, settings.clips) == expected


def test_measuring_leaves_the_network_as_it_was(probe_set: tuple[ProbeSet, Network]) -> None:
    probes, network = probe_set
    network.train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5)
    before = {name: p.clone() for name, p in network.named_parameters()}
    probes.measure(network)
    assert network.training
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())


def test_a_perfect_prediction_is_at_the_ceiling_and_another_clip_at_the_reference(
    probe_set: tuple[ProbeSet, Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    probes, network = probe_set
    x0_BTC = probes.frames["x0"]
    rows = [row for row in range(len(probes.clips)) for _ in probes.levels_of(row)]

    def predicting(frames_BTC: torch.Tensor) -> Probe:
        left = list(rows)

        def velocity(x_BTC: torch.Tensor, t_B: torch.Tensor, _: Any) -> Any:
            part = left[: len(x_BTC)]
            del left[: len(x_BTC)]

            class Out:
                velocity_BTC = (x_BTC - frames_BTC[part]) / t_B[:, None, None]

            return Out

        with monkeypatch.context() as patch:
            patch.setattr(network, "forward", velocity)
            return probes.measure(network)

    perfect = predicting(x0_BTC)
    assert perfect.Dn == pytest.approx(0, abs=1e-3)
    other = predicting(x0_BTC.roll(1, 0))
    assert 0.3 < other.Dn < 2.5


def test_a_noise_level_is_normalised_by_the_clips_it_was_measured_on(
    probe_set: tuple[ProbeSet, Network],
) -> None:
    probes, network = probe_set
    probe = probes.measure(network)
    t = probes.settings.t[1]
    rows = [1, 4, 7]
    ceiling = float(probes.ceiling_B[rows].mean())
    reference = float(probes.reference_B[rows].mean())
    assert probe.ceiling_t[t] == pytest.approx(ceiling)
    expected = (float(probes.distances(network)[1, rows].mean()) - ceiling) / (reference - ceiling)
    assert probe.Dn_t[t] == pytest.approx(expected)


def test_the_average_follows_with_half_the_interval_as_half_life(
    probe_set: tuple[ProbeSet, Network],
) -> None:
    probes, _ = probe_set
    probes.settings = ProbeSettings(**{**vars(probes.settings), "every": 100})
    assert probes.due(100)
    assert not probes.due(150)
    assert probes.hold == 1
    assert probes.ema.decay == pytest.approx(0.5)  # every = 2: half-life of one step


def test_open_monitor_takes_a_list_of_layers(tmp_path: Path) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path / "p.toml", "t2a", **REGIME, stage__regime__layer=[1, 2])
    )
    settings = Stages.of(recipe).probes
    assert settings is not None
    assert open_monitor(recipe, settings).layers == (1, 2)


# -- two processes ---------------------------------------------------------------------------------


def test_two_processes_measure_and_decide_as_one(whole: Path, tmp_path: Path) -> None:
    """gloo on two processes: the same D to rounding, the same events."""
    two_processes("train", whole.parent / "t2a.toml", cwd=tmp_path)
    ours = probes(tmp_path / "runs" / "t2a")
    theirs = probes(whole / "t2a")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["D"] == pytest.approx(other["D"], rel=1e-3)
        assert one["stage"] == other["stage"]
        # r follows D, which the processes sum in another order.
        assert one["r"] == pytest.approx(other["r"], abs=5e-3)
    assert facts(tmp_path / "runs" / "t2a")


def test_a_monitor_of_a_part_of_the_band_measures_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled teacher hears up to 22.05 of the 24 kHz that vctk-sr-48k restores."""
    from stagecli.errors import StageError
    from stagecli.recipe.load import load_recipe
    from stagecli.stage.controller import Stages
    from stagecli.train.encoders import open_monitor

    monkeypatch.setenv("STAGECLI_DATA", str(tmp_path))
    asked = load_recipe("vctk-sr-48k-stage")
    settings = Stages.of(asked).probes
    assert settings is not None and open_monitor(asked, settings).band == 22050
    plain = load_recipe("vctk-sr-48k-stage", ["stage.regime.partial_band=false"])
    settings = Stages.of(plain).probes
    assert settings is not None
    with pytest.raises(StageError, match="sees up to 22050 Hz") as caught:
        open_monitor(plain, settings)
    assert "partial_band" in str(caught.value.hint)
