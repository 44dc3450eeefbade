"""The command line: exit codes, what is on stdout, what errors say, and what the reading commands give back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import TERMINAL, Result, run_cli, sha, tree, write_recipe

from stagecli.data.audio import resample, write_wav
from stagecli.errors import StageError

Cli = Callable[..., Result]
KEPT_DB = 75  # of the band below the cutoff: 84 and more are measured, 48 to 61 where only the frames are kept


def noise(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(
        np.float32
    )


def low_passed(audio: np.ndarray, rate: int, cutoff: float) -> np.ndarray:
    """Empty above the cutoff, to the last bit of float32."""
    spectrum = np.fft.rfft(audio)
    spectrum[np.fft.rfftfreq(len(audio), 1 / rate) > cutoff] = 0
    return np.fft.irfft(spectrum, len(audio)).astype(np.float32)


# --- exit codes and errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--version"], 0, []),
        (["--help"], 0, []),
        (["recipes", "list"], 0, []),
        (["recipes", "check", "good.toml"], 0, []),
        (["recipes", "check", "bad.toml"], 1, ["bad.toml"]),
        (["recipes", "check", "nowhere.toml"], 1, ["nowhere.toml"]),
        (["inspect-regime", "runs/t2a"], 0, []),
        (["tarin"], 2, ["tarin"]),
        (["train"], 2, ["Missing argument"]),
        (["train", "good.toml", "--stepz", "3"], 2, ["--stepz"]),
        (["train", "bad.toml"], 2, ["bad.toml:", "hint:"]),
        (["train", "quikstart"], 2, ["quikstart", "did you mean `quickstart`?"]),
        (["train", "good.toml", "--set", "train.lr"], 2, ["--set train.lr", "key=VALUE"]),
        (["inspect-regime", "nowhere"], 2, ["nowhere", "hint:"]),
        (["evaluate", "nowhere"], 2, ["nowhere", "hint:"]),
        (["evaluate", "runs/t2a", "--task", "music"], 2, ["music", "t2a, sr"]),
        (["evaluate", "runs/t2a", "--task", "sr"], 2, ["runs/t2a is a t2a run, not sr"]),
        (["evaluate", "runs/t2a", "--split", "dev"], 2, ["dev", "train, valid, test"]),
        (["evaluate", "runs/t2a", "--checkpoint", "77"], 2, ["'77'", "there are: "]),
        (["evaluate", "--runs-dir", "empty"], 2, ["empty", "hint:"]),
        (["evaluate", "--reference", "runs"], 2, ["--task"]),
        (["evaluate", "--reference", "runs", "--task", "sr"], 2, ["--generated"]),
        (["sample", "runs/t2a"], 2, ["--prompt", "--input"]),
        (["sample", "runs/t2a", "--input", "good.toml"], 2, ["good.toml"]),
        (["sample", "runs/t2a", "--prompt", "x", "--sampler", "ddim"], 2, ["ddim", "euler"]),
        (["sample", "runs/t2a", "--prompt", "x", "--steps", "0"], 2, ["--steps"]),
        (["sample", "runs/t2a", "-p", "x", "-p", "y", "-o", "one.wav"], 2, ["2 prompts"]),
        (["sample", "runs/t2a", "--prompts", "gone.txt"], 2, ["gone.txt"]),
        (["sample", "runs/sr", "--prompt", "x"], 2, ["super-resolution", "--input"]),
        (["sample", "runs/sr", "--input", "gone.wav"], 2, ["gone.wav", "missing"]),
    ],
)
def test_exit_code(
    arguments: list[str],
    code: int,
    words: list[str],
    cli: Cli,
    runs: Path,
    tmp_path: Path,
    sr_recipe: Any,
) -> None:
    write_recipe(tmp_path / "good.toml")
    write_recipe(tmp_path / "bad.toml", train__stepz=3)
    (tmp_path / "empty").mkdir()
    result = cli(*arguments)
    assert result.code == code, result
    for word in words:
        assert word in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.stderr
    if code == 2:
        assert result.stdout == "", "stdout is for data"
    if code == 0:
        assert result.stdout


def test_ctrl_c_in_a_reading_command_is_130(
    cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagecli.report import run_report

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_report, "read_run", interrupted)
    result = cli("inspect-regime", runs / "t2a")
    assert (result.code, result.stdout) == (130, "")
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(cli: Cli) -> None:
    with pytest.raises(StageError, match="nowhere"):
        cli("inspect-regime", "nowhere", env={"STAGECLI_DEBUG": "1"})


def test_every_mistake_of_a_recipe_at_once_each_with_its_place(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "bad.toml",
        train__stepz=3,
        model__width=33,
        codec__kind="mdtc",
        data__sample_rate="fast",
    )
    lines = recipe.read_text().splitlines()
    result = cli("train", recipe, "--set", "train.batch_size=0")
    assert result.code == 2
    for text, word in (
        ("stepz", "did you mean `steps`?"),
        ('kind = "mdtc"', "mdct"),
        ("sample_rate", "'fast'"),
    ):
        number = next(i for i, line in enumerate(lines, 1) if line.startswith(text))
        assert f"bad.toml:{number}:" in result.stderr and word in result.stderr
    assert "--set train.batch_size=0" in result.stderr
    assert "width 33" in result.stderr
    assert not (tmp_path / "runs").exists()


# --- help and start -------------------------------------------------------------------------------

OPTIONS = {
    "train": [
        "--name",
        "--runs-dir",
        "--set",
        "--dry-run",
        "--prepare-only",
        "--restart",
        "--quiet",
        "Path of a recipe",
    ],
    "evaluate": [
        "--task",
        "--split",
        "--checkpoint",
        "--samples",
        "--cutoff",
        "--reference",
        "--generated",
        "--json",
    ],
    "inspect-regime": ["--plot", "--html", "--follow", "--every", "--json", "run directories"],
    "sample": [
        "--prompt",
        "--prompts",
        "--input",
        "--output",
        "--seconds",
        "--cutoff",
        "--seed",
        "--json",
    ],
    "recipes": ["list", "show", "copy", "check"],
    "recipes show": ["--set", "--json"],
    "recipes copy": ["--force"],
    "recipes check": ["--set", "--json"],
    "doctor": ["--runs-dir", "--json"],
    "": ["train", "evaluate", "inspect-regime", "sample", "recipes", "doctor", "--version"],
}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_mentions_every_option(command: str, cli: Cli) -> None:
    result = cli(*command.split(), "--help")
    assert result.code == 0
    assert result.stderr == ""
    for option in OPTIONS[command]:
        assert option in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_help_and_listing_do_not_import_torch() -> None:
    """One fresh interpreter for all of them: what a command imports stays."""
    code = """
import sys
import tomllib
from stagecli import cli
for arguments in (["--help"], ["train", "--help"], ["sample", "--help"], ["evaluate", "--help"], ["recipes", "list"]):
    sys.argv = ["stagecli", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, arguments
    for name in ("torch", "transformers", "numpy", "accelerate"):
        assert name not in sys.modules, (arguments, name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_the_command_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stagecli", "train", "nowhere.toml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "nowhere.toml" in done.stderr and "Traceback" not in done.stderr


# --- train ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_dry_run_says_the_plan_and_writes_nothing(kind: str, cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", kind)
    before = tree(tmp_path)
    result = cli("train", recipe, "--dry-run")
    assert result.code == 0, result.stderr
    assert tree(tmp_path) == before and sorted(p.name for p in tmp_path.iterdir()) == ["r.toml"]
    for word in (
        "training clips",
        "24",
        "width 32, depth 2",
        "parameters",
        "none (plain training)",
    ):
        assert word in result.stdout


def test_prepare_only_trains_nothing(cli: Cli, tmp_path: Path) -> None:
    result = cli("train", write_recipe(tmp_path / "r.toml"), "--prepare-only")
    assert result.code == 0, result.stderr
    assert "24 training" in result.stderr
    assert not list(tmp_path.glob("runs/r"))


def test_one_line_per_interval_where_there_is_no_terminal(cli: Cli, tmp_path: Path) -> None:
    result = cli("train", write_recipe(tmp_path / "r.toml", train__log_every=4))
    assert result.code == 0
    assert result.stdout == ""
    steps = [
        line.split()[1]
        for line in result.stderr.splitlines()
        if line.startswith("step") and "loss" in line
    ]
    assert steps == ["4/10", "8/10", "10/10"]
    assert "\r" not in result.stderr and "\x1b" not in result.stderr
    assert result.stderr.isascii()
    assert result.stderr.splitlines()[-1].startswith("next:  stagecli evaluate runs/r")
    assert cli("train", tmp_path / "r.toml", "--name", "q", "--quiet").stderr == ""


# --- recipes --------------------------------------------------------------------------------------


def test_recipes_list_show_and_check_as_json(cli: Cli, tmp_path: Path) -> None:
    listed = json.loads(cli("recipes", "list", "--json").stdout)
    assert "quickstart" in {row["name"] for row in listed}
    shown = json.loads(
        cli("recipes", "show", "quickstart", "--set", "train.lr=3e-4", "--json").stdout
    )
    assert shown["train"]["lr"] == 3e-4
    good = cli("recipes", "check", "quickstart", "--json")
    assert good.code == 0 and json.loads(good.stdout)["ok"] is True
    bad = cli("recipes", "check", write_recipe(tmp_path / "bad.toml", train__stepz=3), "--json")
    assert bad.code == 1
    problems = json.loads(bad.stdout)["problems"]
    assert (
        len(problems) == 1
        and "stepz" in problems[0]["what"]
        and "bad.toml:" in problems[0]["where"]
    )


def test_a_shown_recipe_is_the_recipe(cli: Cli, tmp_path: Path) -> None:
    shown = cli("recipes", "show", "quickstart-sr").stdout
    (tmp_path / "shown.toml").write_text(shown)
    signatures = [
        json.loads(cli("recipes", "check", r, "--json").stdout)
        for r in ("quickstart-sr", "shown.toml")
    ]
    assert signatures[0]["signature"] == signatures[1]["signature"]


def test_recipes_copy_never_replaces_a_file(cli: Cli, tmp_path: Path) -> None:
    assert cli("recipes", "copy", "quickstart", "mine.toml").code == 0
    (tmp_path / "mine.toml").write_text("# my work\n")
    refused = cli("recipes", "copy", "quickstart", "mine.toml")
    assert refused.code == 2
    assert "mine.toml exists" in refused.stderr and "--force" in refused.stderr
    assert (tmp_path / "mine.toml").read_text() == "# my work\n"
    assert cli("recipes", "copy", "quickstart", "mine.toml", "--force").code == 0
    assert 'name = "quickstart"' in (tmp_path / "mine.toml").read_text()
    (tmp_path / "folder").mkdir()
    assert cli("recipes", "copy", "quickstart", "folder").code == 0
    assert cli("recipes", "copy", "quickstart", "folder").code == 2
    assert cli("recipes", "copy", "quikstart", "other.toml").code == 2
    nowhere = cli("recipes", "copy", "quickstart", "no/such/folder/r.toml")
    assert nowhere.code == 2 and "no/such/folder" in nowhere.stderr


# --- evaluate, inspect-regime, doctor -------------------------------------------------------------


def document(result: Result) -> Any:
    assert result.code == 0, result.stderr
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout)  # fails where anything stands beside the document


def test_evaluate_t2a(cli: Cli, runs: Path) -> None:
    found = document(cli("evaluate", "runs/t2a", "--json"))
    assert found["task"] == "t2a" and found["clips"] == 4 and found["checkpoint"] == "step_00000010"
    rows = {row["system"]: row["metrics"] for row in found["rows"]}
    assert list(rows) == ["samples", "real, train split", "codec round trip", "real, test split"]
    distances = [of["fd_log_mel"]["value"] for of in rows.values() if "fd_log_mel" in of]
    assert len(distances) == 3 and min(distances) >= 0
    assert found["conventions"]["fd_log_mel"]
    assert json.loads(Path(runs.parent / found["file"]).read_text()) == {
        k: v for k, v in found.items() if k != "file"
    }
    assert document(cli("evaluate", "runs/t2a", "--json"))["rows"] == found["rows"], (
        "not repeatable"
    )
    other = document(cli("evaluate", "runs/t2a", "--json", "--seed", "5", "--steps", "3"))
    assert (other["seed"], other["steps"]) == (5, 3)
    assert other["rows"][0] != found["rows"][0]


def test_evaluate_without_a_run_takes_the_newest_finished_one_and_says_which(
    cli: Cli, runs: Path
) -> None:
    shutil.copytree(runs / "sr", runs / "unfinished")
    info = json.loads((runs / "unfinished" / "run.json").read_text())
    (runs / "unfinished" / "run.json").write_text(json.dumps({**info, "status": "failed"}))
    result = cli("evaluate", "--task", "sr", "--json", "--cutoff", "2000", "--samples", "2")
    found = document(result)
    assert "scoring runs/sr\n" in result.stderr
    assert found["run"] == "runs/sr"
    systems = {(row["system"], row["cutoff"]) for row in found["rows"]}
    assert systems == {(s, 2000) for s in ("unprocessed", "copy-up", "model")}
    metrics = {row["system"]: row["metrics"] for row in found["rows"]}
    # The band below the cutoff is the input's, up to what a network of ten steps spills over the edge.
    low = [metrics[system]["lsd_lf"]["value"] for system in ("unprocessed", "model")]
    assert low[1] < low[0] + 0.5 < metrics["model"]["lsd_hf"]["value"]
    assert set(metrics["model"]) >= {
        "lsd",
        "lsd_hf",
        "lsd_lf",
        "si_sdr",
        "snr",
        "mr_stft",
        "log_mel",
    }


def test_evaluate_tables_name_the_convention(cli: Cli, runs: Path) -> None:
    result = cli("evaluate", "runs/sr", "--samples", "2")
    assert result.code == 0
    for word in ("unprocessed", "copy-up", "model", "lsd_hf", "2048", "cheby1 order 8"):
        assert word in result.stdout
    assert result.stdout.isascii()


def test_evaluate_folders(cli: Cli, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / "real").mkdir(exist_ok=True)
        (tmp_path / "made").mkdir(exist_ok=True)
        write_wav(tmp_path / "real" / f"{name}.wav", noise(0.5, 16000, seed), 16000)
        write_wav(tmp_path / "made" / f"{name}.wav", 2 * noise(0.5, 16000, seed), 16000)
    both = ("--reference", "real", "--generated", "made", "--json")
    sr = document(cli("evaluate", *both, "--task", "sr", "--cutoff", "4000"))
    # LSD(g x, x) = 2 |log10 g|
    assert sr["rows"][0]["metrics"]["lsd"]["value"] == pytest.approx(2 * np.log10(2), abs=1e-3)
    t2a = document(cli("evaluate", *both, "--task", "t2a"))
    assert t2a["rows"][0]["metrics"]["fd_log_mel"]["value"] > 0
    same = document(
        cli("evaluate", "--reference", "real", "--generated", "real", "--json", "--task", "t2a")
    )
    assert same["rows"][0]["metrics"]["fd_log_mel"]["value"] == pytest.approx(0, abs=1e-3)
    assert "--cutoff" in cli("evaluate", *both, "--task", "sr").stderr
    (tmp_path / "made" / "b.wav").unlink()
    alone = cli("evaluate", *both, "--task", "sr", "--cutoff", "4000")
    assert alone.code == 2 and "real/b.wav" in alone.stderr


def test_inspect_regime_one_and_several(cli: Cli, runs: Path, tmp_path: Path) -> None:
    one = document(cli("inspect-regime", "runs/t2a", "--json"))
    assert (one["task"], one["step"], one["status"]) == ("t2a", 10, "finished")
    several = document(cli("inspect-regime", "runs/t2a", "runs/sr", "--json"))
    assert [entry["task"] for entry in several] == ["t2a", "sr"]
    shown = cli("inspect-regime", "runs/t2a", "runs/sr")
    assert shown.code == 0 and "t2a" in shown.stdout and "sr" in shown.stdout
    page = cli("inspect-regime", "runs/t2a", "--html", "page.html", "--json")
    assert {**document(page), "time": None} == {**one, "time": None}
    assert "page.html" in page.stderr and "</html>" in (tmp_path / "page.html").read_text()


def test_doctor(cli: Cli) -> None:
    found = document(cli("doctor", "--json"))
    assert found["ok"] is True
    assert {"torch", "torchaudio", "soundfile"} <= {check["name"] for check in found["checks"]}
    assert "torch" in cli("doctor").stdout


# --- sample: t2a ----------------------------------------------------------------------------------


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_sample_prompts_from_flags_and_files(cli: Cli, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a deep bell\n\n  zwei Töne  \n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"prompt": "rain"}\n{"caption": "a dog"}\n')
    found = document(
        cli(
            "sample",
            "runs/t2a",
            "-p",
            "one",
            "--prompts",
            "p.txt",
            "-o",
            "out",
            "--seed",
            "3",
            "--json",
        )
    )
    assert [row["prompt"] for row in found] == ["one", "a deep bell", "zwei Töne"]
    rows = rows_of(tmp_path / "out")
    assert rows == [{k: v for k, v in row.items() if k != "file"} for row in found]
    expected = {
        "seed": 3,
        "steps": 2,
        "cfg_scale": 1.0,
        "sampler": "euler",
        "checkpoint": "step_00000010",
    }
    for row in rows:
        assert {k: row[k] for k in expected} == expected
        audio, rate = soundfile.read(tmp_path / "out" / row["path"])
        assert (
            rate == 8000 and audio.shape == (3200,) and np.isfinite(audio).all() and np.any(audio)
        )
    assert [
        r["prompt"] for r in document(cli("sample", "runs/t2a", "--prompts", "p.jsonl", "--json"))
    ] == [
        "rain",
        "a dog",
    ]
    assert (runs / "t2a" / "samples" / "step_00000010_prompts" / "samples.jsonl").exists()
    (tmp_path / "bad.jsonl").write_text('{"prompt": "rain"}\n{"text": 1}\n{\n')
    bad = cli("sample", "runs/t2a", "--prompts", "bad.jsonl")
    assert bad.code == 2 and "bad.jsonl:2" in bad.stderr and "bad.jsonl:3" in bad.stderr


def test_sample_to_one_file_and_of_another_length(cli: Cli, runs: Path, tmp_path: Path) -> None:
    found = document(
        cli("sample", "runs/t2a", "-p", "a", "-o", "one/clip.wav", "--seconds", "1.5", "--json")
    )
    assert [row["path"] for row in found] == ["clip.wav"]
    audio, rate = soundfile.read(tmp_path / "one" / "clip.wav")
    assert len(audio) == 1.5 * rate
    assert cli("sample", "runs/t2a", "-p", "b", "-o", "one/other.wav").code == 0
    assert {row["path"]: row["prompt"] for row in rows_of(tmp_path / "one")} == {
        "clip.wav": "a",
        "other.wav": "b",
    }


def test_the_same_seed_gives_the_same_bytes(cli: Cli, runs: Path, tmp_path: Path) -> None:
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        assert (
            cli("sample", "runs/t2a", "-p", "a bell", "-p", "rain", "-o", name, "--seed", seed).code
            == 0
        )
    wavs = {n: [sha(tmp_path / n / f"000{i}.wav") for i in range(2)] for n in "xyz"}
    assert wavs["x"] == wavs["y"]
    assert not set(wavs["x"]) & set(wavs["z"])


def test_a_sample_does_not_depend_on_its_batch(trained: Path) -> None:
    """Alone or beside a longer prompt: equal up to the order of sums (1e-4 of the frames' scale)."""
    from stagecli.generate.pipeline import SamplerSettings, load_pipeline

    pipeline, _ = load_pipeline(trained / "runs" / "t2a")
    prompts = ["a bell", "a much longer prompt than that"]
    frames = []
    pipeline.codec.decode = lambda x_BTC, samples: frames.append(x_BTC) or x_BTC[:, :, 0]  # type: ignore[assignment]
    for size in (1, 2):
        pipeline.generate(
            prompts,
            seed=4,
            settings=SamplerSettings.of(pipeline.recipe.evaluate, batch_size=size, cfg_scale=2.0),
        )
    alone = np.concatenate([frames[0], frames[1]])
    together = frames[2].numpy()
    assert np.abs(alone[0] - alone[1]).max() > 1e-2, "the two samples are one"
    np.testing.assert_allclose(alone, together, atol=1e-4)


# --- sample: sr -----------------------------------------------------------------------------------


def restored(
    cli: Cli, tmp_path: Path, audio: np.ndarray, rate: int, *more: object
) -> tuple[np.ndarray, Result]:
    write_wav(tmp_path / "in.wav", audio, rate)
    result = cli("sample", "runs/sr", "--input", "in.wav", "-o", "out", "--json", *more)
    assert result.code == 0, result.stderr
    made, made_rate = soundfile.read(tmp_path / "out" / "in.wav", dtype="float32", always_2d=True)
    assert made_rate == 16000
    assert rows_of(tmp_path / "out")[0]["input"] == "in.wav"
    return made.T, result


def band(audio: np.ndarray, rate: int, low: float, high: float) -> np.ndarray:
    """Only what lies between two frequencies; the ends, where a filter has to start, left out."""
    spectrum = np.fft.rfft(audio)
    hz = np.fft.rfftfreq(len(audio), 1 / rate)
    spectrum[(hz < low) | (hz > high)] = 0
    part = np.fft.irfft(spectrum, len(audio))
    return part[len(part) // 8 : -len(part) // 8]


def snr(reference: np.ndarray, audio: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(reference**2) / np.sum((audio - reference) ** 2)))


@pytest.mark.parametrize("rate", [8000, 11025])
@pytest.mark.parametrize("level", [1.0, 0.01])
def test_the_low_band_of_a_file_at_another_rate_is_kept(
    rate: int, level: float, cli: Cli, runs: Path, tmp_path: Path
) -> None:
    """Longer than six windows, any rate and any level: below the cutoff the output is the input."""
    audio = level * noise(1.3, rate)
    (made,), result = restored(cli, tmp_path, audio, rate)
    up = resample(audio, rate, 16000)
    assert len(made) == len(up)
    assert json.loads(result.stdout)[0]["cutoff"] == pytest.approx(rate / 2, rel=0.01)
    edge = 0.85 * rate / 2
    assert snr(band(up, 16000, 50, edge), band(made, 16000, 50, edge)) > KEPT_DB
    assert np.std(band(made, 16000, 1.1 * rate / 2, 8000)) > 1e-3 * level, (
        "nothing was made above the cutoff"
    )


def test_a_band_limited_file_at_the_rate_of_the_model(cli: Cli, runs: Path, tmp_path: Path) -> None:
    audio = low_passed(noise(1.0, 16000), 16000, 3000)
    (made,), result = restored(cli, tmp_path, audio, 16000)
    assert json.loads(result.stdout)[0]["cutoff"] == pytest.approx(3000, rel=0.05)
    assert snr(band(audio, 16000, 50, 2500), band(made, 16000, 50, 2500)) > KEPT_DB


def test_a_full_band_file_is_refused_unless_a_cutoff_is_given(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    write_wav(tmp_path / "full.wav", noise(0.5, 16000), 16000)
    refused = cli("sample", "runs/sr", "--input", "full.wav", "-o", "out")
    assert refused.code == 2
    assert (
        "full.wav" in refused.stderr
        and "nothing to restore" in refused.stderr
        and "--cutoff" in refused.stderr
    )
    assert (
        cli("sample", "runs/sr", "--input", "full.wav", "-o", "out", "--cutoff", "3000").code == 0
    )


def test_stereo_keeps_its_channels_and_their_levels(cli: Cli, runs: Path, tmp_path: Path) -> None:
    left = noise(0.6, 8000, 1)
    right = 0.1 * noise(0.6, 8000, 2)
    made, _ = restored(cli, tmp_path, np.stack([left, right], axis=1), 8000)
    assert made.shape == (2, 9600)
    for before, after in ((left, made[0]), (right, made[1])):
        up = resample(before, 8000, 16000)
        assert snr(band(up, 16000, 50, 3400), band(after, 16000, 50, 3400)) > KEPT_DB


def test_a_silent_channel_stays_silent_and_says_nothing_about_the_band(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    """At the model's own rate the band is measured, and a channel of zeros has none to measure."""
    left = low_passed(noise(0.6, 16000), 16000, 3000)
    made, result = restored(cli, tmp_path, np.stack([left, 0 * left], axis=1), 16000)
    assert json.loads(result.stdout)[0]["cutoff"] == pytest.approx(3000, rel=0.05)
    assert not np.any(made[1]) and np.any(made[0])
    silent, _ = restored(cli, tmp_path, np.zeros(1600, dtype=np.float32), 16000)
    assert silent.shape == (1, 1600) and not np.any(silent)


@pytest.mark.parametrize("samples", [1, 20, 63, 700])
def test_very_short_files(samples: int, cli: Cli, runs: Path, tmp_path: Path) -> None:
    """Down to less than one frame (64 samples at 16 kHz) and less than one window."""
    (made,), _ = restored(cli, tmp_path, noise(1, 8000)[:samples], 8000)
    assert len(made) == 2 * samples
    assert np.isfinite(made).all()


def test_a_folder_keeps_its_shape_and_a_bad_file_is_named(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    for name in ("a.wav", "sub/b.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_wav(tmp_path / "in" / name, noise(0.3, 8000), 8000)
    found = document(cli("sample", "runs/sr", "--input", "in", "-o", "out", "--json"))
    assert [row["path"] for row in found] == ["a.wav", "sub/b.wav"]
    assert all((tmp_path / "out" / row["path"]).exists() for row in found)
    assert cli("sample", "runs/sr", "--input", "in", "-o", "in").code == 2, (
        "would overwrite its own input"
    )
    (tmp_path / "in" / "c.wav").write_text("no audio")
    bad = cli("sample", "runs/sr", "--input", "in", "-o", "out2")
    assert bad.code == 2 and "in/c.wav" in bad.stderr and not (tmp_path / "out2").exists()


def test_a_file_outside_of_what_was_trained_is_warned_about(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    write_wav(tmp_path / "in.wav", noise(0.3, 2000), 2000)
    result = cli("sample", "runs/sr", "--input", "in.wav", "-o", "out", "--json")
    document(result)
    assert "outside what the model was trained on" in result.stderr


def test_the_terminal_is_pinned() -> None:
    """What `run_cli` promises to the tests above."""
    assert run_cli("--version", cwd=Path.cwd()).stdout.startswith("stagecli ")
    assert TERMINAL["COLUMNS"] == "100"


@pytest.mark.parametrize(("fast", "expected"), [(True, "bf16"), (False, "fp32")])
def test_precision_auto_is_settled_by_the_machine_and_kept(
    fast: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    recipe = write_recipe(
        tmp_path / "a.toml", train__precision="auto", train__steps=1, train__samples=0
    )
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    kept = tomllib.loads((tmp_path / "runs" / "a" / "recipe.toml").read_text())
    assert kept["train"]["precision"] == expected
    assert run_cli("train", recipe, cwd=tmp_path).code == 0  # resumes: nothing has changed
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not fast)
    other = run_cli("train", recipe, cwd=tmp_path)
    assert other.code == 2 and "precision" in other.stderr
