"""`stagecli export`: a slim folder that is read as a run is, and tells nothing about a machine."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_results import Cli, document
from conftest import run_cli, sha, tree, write_recipe

import stagecli
from stagecli.data.audio import write_wav

FILES = {
    "README.md",
    "codec.safetensors",
    "ema.safetensors",
    "export.json",
    "recipe.toml",
    "sha256sums.txt",
}


@pytest.fixture(scope="module")
def exports(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/, of which t2a is scored, and the exports t2a/ and sr/."""
    folder = tmp_path_factory.mktemp("exports")
    shutil.copytree(trained / "runs", folder / "runs")
    scored = run_cli("evaluate", "runs/t2a", "--quick", "--samples", 4, cwd=folder)
    assert scored.code == 0, scored.stderr
    for task in ("t2a", "sr"):
        done = run_cli("export", f"runs/{task}", task, "--license", "cc-by-4.0", cwd=folder)
        assert done.code == 0, done.stderr
    return folder


def test_an_export_is_slim_and_checked(exports: Path) -> None:
    assert set(tree(exports / "t2a")) == FILES
    sums = subprocess.run(
        ["sha256sum", "-c", "sha256sums.txt"], cwd=exports / "t2a", capture_output=True, text=True
    )
    assert sums.returncode == 0 and "ema.safetensors: OK" in sums.stdout
    source = exports / "runs" / "t2a" / "checkpoints" / "step_00000010" / "ema.safetensors"
    assert sha(exports / "t2a" / "ema.safetensors") == sha(source)


def test_an_export_generates_what_its_run_does(exports: Path) -> None:
    run = stagecli.load(exports / "runs" / "t2a").generate(["a bell", "rain"], seed=1)
    model = stagecli.load(exports / "t2a")
    np.testing.assert_array_equal(run.audio, model.generate(["a bell", "rain"], seed=1).audio)
    assert (model.step, model.task) == (10, "t2a")


def test_sample_and_evaluate_read_an_export(exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "t2a", tmp_path / "t2a")
    shutil.copytree(exports / "sr", tmp_path / "sr")
    rows = document(run_cli("sample", "t2a", "-p", "a bell", "--json", cwd=tmp_path))
    assert rows[0]["run"] == "t2a" and rows[0]["checkpoint"] == "step_00000010"
    scores = document(run_cli("evaluate", "sr", "--samples", 2, "--json", cwd=tmp_path))
    assert scores["checkpoint"] == "step_00000010" and scores["rows"]
    assert Path(scores["file"]).parent == Path("sr/evals")
    (tmp_path / "low").mkdir()
    write_wav(tmp_path / "low" / "a.wav", 0.1 * np.sin(np.arange(4000) / 3.0), 8000)
    restored = run_cli("sample", "sr", "-i", "low", "--cutoff", 4000, "-o", "full", cwd=tmp_path)
    assert restored.code == 0, restored.stderr


def test_two_exports_are_compared(exports: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(exports / "sr", tmp_path / name)
    both = document(run_cli("evaluate", "a", "b", "--samples", 2, "--json", cwd=tmp_path))
    assert len(both["runs"]) == 2 and both["differences"]


def test_the_card_says_what_it_is(exports: Path) -> None:
    card = (exports / "t2a" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: stagecli\n")
    for text in (
        "pipeline_tag: text-to-audio",
        'stagecli.load("t2a")',
        "step 10 of 10",
        "| train split | 24 clips",
        "| steps | 10 of 10, batch 4 |",
        "fd_judge",
        "[^kad]:",
    ):
        assert text in card, text
    scores = json.loads(next((exports / "runs" / "t2a" / "evals").glob("*.json")).read_text())
    value = scores["rows"][0]["metrics"]["kad"]["value"]
    assert f"| {value:.4g}" in card
    assert "have not been scored" in (exports / "sr" / "README.md").read_text()


def test_no_path_of_the_machine_is_in_an_export(tmp_path: Path) -> None:
    """Data, cache and networks lie in folders whose names must not travel."""
    secret = tmp_path / "s3cret-home"
    (secret / "clips").mkdir(parents=True)
    for number in range(12):
        audio = 0.1 * np.random.default_rng(number).standard_normal(3200)
        write_wav(secret / "clips" / f"{number}.wav", audio, 8000)
        (secret / "clips" / f"{number}.txt").write_text("a sound")
    recipe = write_recipe(
        secret / "own.toml",
        train__steps=2,
        train__checkpoint_every=2,
        data__source="folder",
        data__path=str(secret / "clips"),
        data__cache_dir=str(secret / "cache"),
        evaluate__judge="bundled:judge",
    )
    assert run_cli("train", recipe, cwd=secret).code == 0
    scores = run_cli("evaluate", "runs/own", "--data", secret / "clips", "--quick", cwd=secret)
    assert scores.code == 0, scores.stderr
    done = run_cli("export", "own", tmp_path / "model", cwd=secret)
    assert done.code == 0, done.stderr
    for file in (tmp_path / "model").iterdir():
        assert b"s3cret" not in file.read_bytes(), file.name
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| data | folder `clips` |" in card
    assert "[^kad]" in card


def test_a_local_network_travels_with_the_model(tmp_path: Path) -> None:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    place = tmp_path / "s3cret" / "voc"
    SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=16,
            sampling_rate=8000,
            upsample_initial_channel=8,
            upsample_rates=[8, 10],
            upsample_kernel_sizes=[16, 20],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
        )
    ).save_pretrained(place)
    recipe = write_recipe(
        tmp_path / "v.toml",
        codec__vocoder=str(place),
        train__steps=1,
        train__checkpoint_every=1,
        train__samples=0,
    )
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    expected = stagecli.load(tmp_path / "runs" / "v").generate("a bell").audio
    done = run_cli("export", "v", "model", cwd=tmp_path)
    assert done.code == 0, done.stderr
    shutil.rmtree(tmp_path / "s3cret")
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    np.testing.assert_array_equal(
        stagecli.load(tmp_path / "elsewhere").generate("a bell").audio, expected
    )
    files = tree(tmp_path / "elsewhere")
    assert "networks/codec-vocoder/model.safetensors" in files
    assert b"s3cret" not in (tmp_path / "elsewhere" / "recipe.toml").read_bytes()
    broken = tmp_path / "elsewhere" / "networks" / "codec-vocoder" / "config.json"
    broken.write_text(broken.read_text() + " ")
    with pytest.raises(
        stagecli.StageError, match=r"networks/codec-vocoder/config.json has changed"
    ):
        stagecli.load(tmp_path / "elsewhere")


def test_another_checkpoint(exports: Path, tmp_path: Path) -> None:
    folder = tmp_path / "earlier"
    shutil.copytree(exports / "runs", tmp_path / "runs")
    done = run_cli("export", "t2a", folder, "--checkpoint", 8, "--json", cwd=tmp_path)
    assert document(done)["step"] == 8
    assert "have not been scored" in (folder / "README.md").read_text()
    assert stagecli.load(folder).step == 8
    again = run_cli("export", folder, tmp_path / "copy", cwd=tmp_path)
    assert again.code == 0 and stagecli.load(tmp_path / "copy").step == 8
    with pytest.raises(stagecli.StageError, match="is an export of step 8 alone"):
        stagecli.load(folder, checkpoint=10)


def test_what_an_export_is_not_written_over(exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "runs", tmp_path / "runs")
    for arguments, words in (
        (("runs/t2a", "runs/sr"), "is a run"),
        (("runs/t2a", "runs/t2a/export"), "lies in what is exported"),
        (("nothing", "x"), "there are: sr, t2a"),
        (("t2a", "x", "--license", "My Licence"), "not the id of a licence"),
        (("t2a", "x", "--private"), "--push-to-hub"),
        (("t2a", "x", "--checkpoint", "9"), "there are: 8, 10"),
    ):
        before = tree(tmp_path)
        refused = run_cli("export", *arguments, cwd=tmp_path)
        assert refused.code == 2 and words in refused.stderr, refused.stderr
        assert tree(tmp_path) == before
    assert run_cli("export", "t2a", "x", cwd=tmp_path).code == 0
    refused = run_cli("export", "sr", "x", cwd=tmp_path)
    assert refused.code == 2 and "--force" in refused.stderr
    assert run_cli("export", "sr", "x", "--force", cwd=tmp_path).code == 0
    assert stagecli.load(tmp_path / "x").task == "sr"


@pytest.mark.parametrize("name", sorted(FILES - {"README.md", "export.json"}))
def test_a_damaged_export_is_refused(name: str, exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "t2a", tmp_path / "t2a")
    content = (tmp_path / "t2a" / name).read_bytes()
    (tmp_path / "t2a" / name).write_bytes(content[:-1] + b"#")
    refused = run_cli("sample", "t2a", "-p", "a", cwd=tmp_path)
    assert refused.code == 2 and "the export t2a is damaged" in refused.stderr
    (tmp_path / "t2a" / name).unlink()
    refused = run_cli("evaluate", "t2a", cwd=tmp_path)
    assert refused.code == 2 and f"{name} is missing" in refused.stderr


def test_nothing_is_trained_in_an_export(exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "t2a", tmp_path / "runs" / "t2a")
    refused = run_cli("train", write_recipe(tmp_path / "t2a.toml"), cwd=tmp_path)
    assert refused.code == 2 and "not a run directory" in refused.stderr


# --- the hub --------------------------------------------------------------------------------------


class Hub:
    """A model hub that keeps what it is given."""

    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012
    fails = ""

    def whoami(self) -> dict[str, str]:
        if self.fails == "whoami":
            raise OSError("401: no token")
        return {"name": "someone"}

    def create_repo(self, repo_id: str, **more: Any) -> None:
        self.calls.append(("create", {"repo_id": repo_id, **more}))

    def upload_folder(self, **more: Any) -> None:
        if self.fails == "upload":
            raise OSError("the network is gone")
        self.calls.append(("upload", more))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    import huggingface_hub

    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(Hub, "fails", "")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def test_push_to_the_hub(hub: type[Hub], cli: Cli, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "m" / "evals").mkdir(parents=True)
    (tmp_path / "m" / "evals" / "own.json").write_text("{}")
    done = cli("export", "t2a", "m", "--push-to-hub", "org/bells", "--private")
    assert done.code == 0 and "https://huggingface.co/org/bells" in done.stderr
    (_, created), (_, uploaded) = hub.calls
    assert created == {
        "repo_id": "org/bells",
        "repo_type": "model",
        "private": True,
        "exist_ok": True,
    }
    assert set(uploaded["allow_patterns"]) == FILES and uploaded["folder_path"] == "m"
    assert 'stagecli.load("org/bells")' in (tmp_path / "m" / "README.md").read_text()


def test_what_cannot_be_pushed(hub: type[Hub], cli: Cli, runs: Path, tmp_path: Path) -> None:
    refused = cli("export", "t2a", "m", "--push-to-hub", "bells")
    assert refused.code == 2 and "ORG/NAME" in refused.stderr
    hub.fails = "whoami"
    refused = cli("export", "t2a", "m", "--push-to-hub", "org/bells")
    assert refused.code == 2 and "hf auth login" in refused.stderr and "401" in refused.stderr
    assert not (tmp_path / "m").exists()
    hub.fails = "upload"
    failed = cli("export", "t2a", "m", "--push-to-hub", "org/bells")
    assert failed.code == 1 and "the network is gone" in failed.stderr
    assert stagecli.load(tmp_path / "m").step == 10


def test_load_from_the_hub(exports: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def snapshot(source: str, **more: Any) -> str:
        assert "*.safetensors" in more["allow_patterns"]
        return str(exports / "t2a" if source == "org/bells" else tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert stagecli.load("org/bells").step == 10
    with pytest.raises(stagecli.StageError, match="not an export"):
        stagecli.load("org/other")
