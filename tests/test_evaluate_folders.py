"""evaluate on two folders of audio, and the CLAP score."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from conftest import Result
from helpers.encoder_checkpoints import save_clap, save_wave

from stagecli.data.audio import read_mono
from stagecli.errors import StageError
from stagecli.evaluate.clap import open_clap
from stagecli.evaluate.flags import Flags
from stagecli.evaluate.folders import evaluate_folders
from stagecli.evaluate.pairs import SR_METRICS, score_pair
from stagecli.metrics.spectral import lsd_bands

Cli = Callable[..., Result]
RATE = 16000


def noise(seed: int, samples: int = 8000, scale: float = 0.1) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def write(folder: Path, clips: dict[str, np.ndarray], rate: int = RATE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, audio in clips.items():
        soundfile.write(folder / f"{name}.wav", audio, rate, subtype="FLOAT")
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Five clips and nearly the same ones."""
    real = {f"{i}": noise(i) for i in range(5)}
    made = {name: audio + noise(50, scale=0.01) for name, audio in real.items()}
    return write(tmp_path / "real", real), write(tmp_path / "made", made)


def score(pair: tuple[Path, Path], task: str = "sr", **options: Any) -> tuple[Any, list[str]]:
    """(the document, the warnings) of two folders, reference and generated."""
    warnings: list[str] = []
    flags = Flags(
        reference=pair[0],
        generated=pair[1],
        task=task,
        cutoffs=[4000.0] if task == "sr" else [],
        runs_dir=pair[0].parent / "runs",
        **options,
    )
    return evaluate_folders(flags, warn=warnings.append), warnings


# --- pairs ----------------------------------------------------------------------------------------


def test_pairs_get_every_metric_and_their_mean(pair: tuple[Path, Path]) -> None:
    document, warnings = score(pair)
    metrics = document["rows"][0]["metrics"]
    assert set(metrics) == set(SR_METRICS) and warnings == []
    expected = []
    for i in range(5):
        x, y = (
            torch.from_numpy(soundfile.read(side / f"{i}.wav", dtype="float32")[0]) for side in pair
        )
        expected.append(float(lsd_bands(x, y, RATE, 4000)["lsd_hf"]))
    assert metrics["lsd_hf"]["value"] == pytest.approx(np.mean(expected))
    assert document["rows"][0]["n"] == 5 and document["settings"]["preset"] == "nuwave"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: (made / "3.wav").unlink(), ["5 and 4 files", "real/3.wav", "no partner"]),
        (lambda made: write(made, {"extra": noise(0)}), ["5 and 6 files", "made/extra.wav"]),
        (
            lambda made: write(made, {"2": noise(2, 7600), "4": noise(4, 4000)}),
            ["2 of 5 pairs", "7600 samples", "4000"],
        ),
        (
            lambda made: write(made.parent / "real", {"1": noise(1)}, 8000),
            ["most files have 16000 Hz", "real/1.wav", "8000 Hz"],
        ),
        (
            lambda made: write(made, {"1": np.stack([noise(1)] * 2, 1)}),
            ["2 channels, its reference has 1"],
        ),
        (lambda made: write(made, {"1": np.full(8000, np.nan, np.float32)}), ["made/1.wav", "NaN"]),
        (
            lambda made: write(made.parent / "real", {"0": np.zeros(8000, np.float32)}),
            ["reference is silent"],
        ),
        (lambda made: (made / "0.wav").write_bytes(b"no audio"), ["made/0.wav"]),
    ],
)
def test_mismatched_pairs_are_named_and_not_scored(
    change: Callable[[Path], object], words: list[str], pair: tuple[Path, Path]
) -> None:
    change(pair[1])
    with pytest.raises(StageError) as caught:
        score(pair)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_warnings_are_given_once_per_kind(pair: tuple[Path, Path]) -> None:
    loud = np.clip(20 * noise(0), -1, 1)
    write(pair[1], {"0": loud, "1": np.clip(20 * noise(1), -1, 1), "2": np.zeros(8000, np.float32)})
    document, warnings = score(pair)
    text = "\n".join(warnings)
    assert "clipped (and 1 more of 5 clips)" in text and "made/0.wav" in text
    assert "made/2.wav: estimate: silent" in text
    assert "level: the estimate is off by" in text and "of LSD by itself" in text
    assert document["notes"] == warnings
    assert document["rows"][0]["metrics"]["si_sdr"]["left_out"] == 1, (
        "a silent clip without a value is counted"
    )


def test_gain_is_matched_on_request_and_reported(pair: tuple[Path, Path]) -> None:
    plain = score(pair)[0]["rows"][0]["metrics"]["lsd"]["value"]
    for i in range(5):
        audio = soundfile.read(pair[1] / f"{i}.wav", dtype="float32")[0]
        write(pair[1], {f"{i}": audio / np.abs(audio).max()})
    normalised, warnings = score(pair)
    assert normalised["rows"][0]["metrics"]["lsd"]["value"] > plain + 0.3
    assert any("all 5 clips" in line and "peak-normalised" in line for line in warnings)
    assert any("--match-gain" in line for line in warnings)
    matched, warnings = score(pair, match_gain=True)
    assert matched["rows"][0]["metrics"]["lsd"]["value"] == pytest.approx(plain, abs=0.01)
    assert any("gain matched" in line and "dB" in line for line in warnings)
    assert "gain not matched" in normalised["conventions"]["lsd"]
    assert "gain not matched" not in matched["conventions"]["lsd"]
    write(pair[1], {"0": -soundfile.read(pair[0] / "0.wav", dtype="float32")[0]})
    with pytest.raises(StageError, match="gain is not positive"):
        score(pair, match_gain=True)


def test_scored_pairs_are_not_scored_again(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score_pair(*arguments)

    monkeypatch.setattr("stagecli.evaluate.pair_scoring.score_pair", counted)
    with pytest.raises(KeyboardInterrupt):
        score(pair)
    first = score(pair)[0]["rows"]
    assert len(calls) == 4 + 2
    write(pair[1], {"0": noise(9)})
    assert score(pair)[0]["rows"] != first and len(calls) == 7, "a changed file is scored again"


def test_the_command_refuses_flags_that_do_not_fit_together(
    cli: Cli, pair: tuple[Path, Path]
) -> None:
    both = ("evaluate", "--reference", "real", "--generated", "made")
    for more, word in (
        (["--task", "sr"], "--cutoff"),
        (["--task", "sr", "--cutoff", "9000"], "9000 Hz is not below"),
        (["--task", "sr", "--cutoff", "4000", "--judge", "bundled:judge"], "--judge"),
        (["--task", "sr", "--cutoff", "4000", "--cutoff", "2000"], "one --cutoff"),
        (["--task", "t2a", "--match-gain"], "--match-gain"),
        (["--task", "t2a", "--clap", "x", "--fail-if", "clap > 1"], "clap_score"),
    ):
        result = cli(*both, *more)
        assert result.code == 2 and word in result.stderr and not result.stdout, result
    failing = cli(*both, "--task", "sr", "--cutoff", "4000", "--fail-if", "snr < 100", "--markdown")
    assert failing.code == 1 and "snr is" in failing.stderr and "| made | 5 |" in failing.stdout


# --- sets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "held"), [("sr", 4), ("t2a", 2)])
def test_one_clip_or_pair_is_in_memory_at_a_time(
    task: str, held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand clips of ten seconds would be 6 GB; here sixty are counted."""
    clips = {f"{i:02d}": noise(i, 2000) for i in range(60)}
    sides = (
        write(tmp_path / "a", clips),
        write(
            tmp_path / "b",
            {name: 0.99 * clip + noise(99, 2000, 0.01) for name, clip in clips.items()},
        ),
    )
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def counted(path: Path, rate: int, **options: Any) -> np.ndarray:
        nonlocal most
        audio = read_mono(path, rate, **options)
        alive.append(weakref.ref(audio))
        most = max(most, sum(ref() is not None for ref in alive))
        return audio

    monkeypatch.setattr("stagecli.evaluate.folder_files.read_mono", counted)
    document, warnings = score(sides, task)
    assert document["clips"] == 60
    assert len(alive) == 120, "each clip is read once"
    assert most <= held
    assert document["rows"][0]["n"] == 60 and not warnings
    if task == "t2a":
        metrics = document["rows"][0]["metrics"]
        assert metrics["fd_judge"]["biased"] and metrics["coverage"]["value"] is not None
        assert "bundled:judge" in document["conventions"]["kad"]


def test_any_encoder_can_judge(tmp_path: Path) -> None:
    save_wave(tmp_path / "hubert", "hubert")
    sides = (
        write(tmp_path / "a", {f"{i}": noise(i) for i in range(20)}),
        write(tmp_path / "b", {"x": noise(99)}),
    )
    write(sides[1], {f"{i}": noise(i + 50) for i in range(20)})
    document, _ = score(sides, "t2a", judge=f"transformers:{tmp_path / 'hubert'}")
    metric = document["rows"][0]["metrics"]["fd_judge"]
    assert metric["dimensions"] == 16 and not metric["biased"]
    assert (
        str(tmp_path / "hubert") in document["conventions"]["fd_judge"]
        and document["settings"]["judge_weights"]
    )


def test_differences_between_the_sets_are_warned_about(tmp_path: Path) -> None:
    real = write(tmp_path / "real", {f"{i}": noise(i) for i in range(8)})
    made = write(tmp_path / "made", {f"x{i}": np.stack([noise(i, 4000)] * 2, 1) for i in range(7)})
    write(
        made,
        {"silent": np.zeros((4000, 2), np.float32), "loud": np.clip(30 * noise(3, 4000), -1, 1)},
    )
    _, warnings = score((real, made), "t2a")
    text = "\n".join(warnings)
    for word in (
        "8 reference and 9 generated clips",
        "0.50 s (reference) and 0.25 s",
        "channels: 1",
        "silent",
        "clipped",
    ):
        assert word in text, text
    with pytest.raises(StageError, match="sample rates differ"):
        score((real, write(tmp_path / "other", {"a": noise(0)}, 8000)), "t2a")


def test_copies_of_training_clips_are_found(cli: Cli, tmp_path: Path) -> None:
    train = {f"t{i}": noise(i) for i in range(12)}
    write(tmp_path / "train", train)
    write(tmp_path / "real", {f"r{i}": noise(100 + i) for i in range(8)})
    write(
        tmp_path / "made", {f"m{i}": train[f"t{i}"] if i < 3 else noise(200 + i) for i in range(8)}
    )
    both = ("evaluate", "--task", "t2a", "--reference", "real", "--generated", "made")
    result = cli(*both, "--training", "train", "--json")
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["memorisation"]["copies"] == 3
    assert {p["sample"].split("/")[-1] for p in document["memorisation"]["pairs"][:3]} == {
        f"m{i}.wav" for i in range(3)
    }
    assert document["rows"][0]["metrics"]["memorised_share"]["value"] >= 3 / 8
    assert "memorised_share" not in json.loads(cli(*both, "--json").stdout)["rows"][0]["metrics"]
    failing = cli(*both, "--training", "train", "--fail-if", "memorised_share > 0.1")
    assert failing.code == 1 and "3 exact copies" in " ".join(failing.stdout.split())


# --- CLAP -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLAP with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    save_clap(folder)
    names = {
        word: i
        for i, word in enumerate(
            ["<s>", "<pad>", "</s>", "<unk>", "a", "loud", "bell", "soft", "rain"]
        )
    }
    words = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return folder


def test_clap_embeds_as_transformers_does(clap: Path) -> None:
    ours = open_clap(str(clap))
    model = transformers.ClapModel.from_pretrained(clap).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clap)
    tokens = tokenizer(["a loud bell", "rain"], padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
    text = pooled if isinstance(pooled, torch.Tensor) else pooled.pooler_output
    text = torch.nn.functional.normalize(text, dim=-1).double()
    torch.testing.assert_close(ours.text(["a loud bell", "rain"]), text, atol=1e-5, rtol=1e-5)
    audio = noise(0, 48000)  # one window of this checkpoint
    extractor = transformers.ClapFeatureExtractor.from_pretrained(clap)
    inputs = extractor(audio, sampling_rate=48000, return_tensors="pt")
    with torch.no_grad():
        pooled = model.get_audio_features(**inputs)
    theirs = pooled if isinstance(pooled, torch.Tensor) else pooled.pooler_output
    theirs = torch.nn.functional.normalize(theirs, dim=-1)[0].double()
    assert float(ours.audio(audio, 48000) @ theirs) > 0.999
    # Two equal windows and a rest too short to count: the embedding of one window.
    long = np.concatenate([audio, audio, audio[:10000]])
    torch.testing.assert_close(
        ours.audio(long, 48000), ours.audio(audio, 48000), atol=1e-5, rtol=1e-5
    )


def test_clap_scores_of_a_run_and_of_a_folder(
    clap: Path, cli: Cli, runs: Path, tmp_path: Path
) -> None:
    result = cli("evaluate", "runs/t2a", "--quick", "--samples", "4", "--clap", clap, "--json")
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    rows = {row["system"]: row["metrics"] for row in document["rows"]}
    assert (
        -1 <= rows["samples"]["clap_score"]["value"] <= 1
        and "clap_score" in rows["real, test split"]
    )
    assert str(clap) in document["conventions"]["clap_score"]
    # The same samples as a folder, with the prompts beside them.
    folder = (
        "evaluate",
        "--task",
        "t2a",
        "--reference",
        document["samples"],
        "--generated",
        document["samples"],
    )
    again = json.loads(cli(*folder, "--clap", clap, "--json").stdout)
    assert again["rows"][0]["metrics"]["clap_score"]["value"] == pytest.approx(
        rows["samples"]["clap_score"]["value"]
    )
    listed = tmp_path / document["samples"] / "samples.jsonl"
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join(lines[:-1]) + "\n")
    missing = cli(*folder, "--clap", clap)
    assert missing.code == 2 and "0003.wav" in missing.stderr
    listed.unlink()
    assert "samples.jsonl" in cli(*folder, "--clap", clap).stderr


def test_a_checkpoint_that_is_not_a_clap_is_refused(clap: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(clap, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(StageError, match="no tokenizer"):
        open_clap(str(tmp_path / "bare"))
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps({**config, "model_type": "hubert"}))
    with pytest.raises(StageError, match="model of type 'hubert'"):
        open_clap(str(tmp_path / "bare"))
