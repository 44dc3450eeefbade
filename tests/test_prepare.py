"""`stagecli data prepare`: a miniature of each archive's real layout becomes a manifest."""

from __future__ import annotations

import csv
import json
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
from cli_results import Cli, document, noise
from helpers.source import REPOSITORY

from stagecli.archives.catalogue import ARCHIVES
from stagecli.archives.prepare import READERS
from stagecli.data.manifest import manifest_entries
from stagecli.recipe.source import shipped_recipes
from stagecli.schema import Data

Tree = Callable[[Path], None]


def recording(path: Path, rate: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(0.05, rate), rate)
    return path


def table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def fsdd(root: Path) -> None:
    for digit, speaker, index in [(0, "george", 0), (7, "jackson", 6), (9, "theo", 12)]:
        recording(root / "recordings" / f"{digit}_{speaker}_{index}.wav", 8000)


ESC_HEADER = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
ESC_ROWS = [
    ["1-100032-A-0.wav", 1, 0, "dog", "True", 100032, "A"],
    ["4-204777-A-39.wav", 4, 39, "glass_breaking", "False", 204777, "A"],
    ["4-164064-A-1.wav", 4, 1, "rooster", "True", 164064, "A"],
    ["5-9032-A-0.wav", 5, 0, "dog", "True", 9032, "A"],
]


def esc50(root: Path) -> None:
    table(root / "ESC-50-master/meta/esc50.csv", [ESC_HEADER, *ESC_ROWS])
    for name, *_ in ESC_ROWS:
        recording(root / "ESC-50-master/audio" / str(name), 44100)


def esc10_archive(root: Path) -> None:
    names = ["Dog bark", "Rain", "Sea waves", "Baby cry", "Clock tick"]
    names += ["Person sneeze", "Helicopter", "Chainsaw", "Rooster", "Fire crackling"]
    for number, name in enumerate(names, 1):
        for fold in (1, 4, 5):
            file = f"{number:03d} - {name}/{fold}-1{number}-A.ogg"
            recording(root / "ESC-10-master" / file, 44100)


def audiocaps(root: Path) -> None:
    header = ["audiocap_id", "youtube_id", "start_time", "caption"]
    table(root / "train.csv", [header, [91139, "r1nicOVtvkQ", 130, "A woman talks, a dog barks"]])
    clips = [[97151, "vfY_TJq7n_U", 130, "Rustling"], [97152, "vfY_TJq7n_U", 130, "A duck quacks"]]
    table(root / "val.csv", [header, *clips])
    table(root / "test.csv", [header, [103549, "7fmOlUlwoNg", 20, 'Constant "rattling" noise']])
    recording(root / "audio/train/Yr1nicOVtvkQ.wav")
    recording(root / "audio/val/vfY_TJq7n_U_130_140.flac")
    recording(root / "audio/test/103549.wav")


def clotho(root: Path) -> None:
    header = ["file_name", *(f"caption_{number}" for number in range(1, 6))]
    for part in ("development", "validation", "evaluation"):
        name = f"Café {part}.wav"
        captions = [f"{part}, told {count} times" for count in ("one", "two", "3", "4", "5")]
        table(root / f"clotho_captions_{part}.csv", [header, [name, *captions]])
        folder = root / part if part != "evaluation" else root / "clotho_audio_evaluation" / part
        recording(folder / name, 44100)


def vctk(root: Path) -> None:
    for speaker in ("p225", "p280", "p345", "s5"):
        for microphone in (1, 2):
            name = f"{speaker}_001_mic{microphone}.flac"
            recording(root / "wav48_silence_trimmed" / speaker / name, 48000)
        text = root / "txt" / speaker / f"{speaker}_001.txt"
        text.parent.mkdir(parents=True)
        text.write_text("Please call Stella. \n")


def librispeech(root: Path) -> None:
    for part, speaker in (("train-clean-100", 19), ("dev-clean", 84), ("test-clean", 61)):
        folder = root / "LibriSpeech" / part / str(speaker) / "198"
        recording(folder / f"{speaker}-198-0000.flac")
        (folder / f"{speaker}-198.trans.txt").write_text(f"{speaker}-198-0000 NORTHANGER ABBEY\n")


LAYOUTS: dict[str, Tree] = {
    "fsdd": fsdd,
    "esc10": esc50,
    "esc50": esc50,
    "audiocaps": audiocaps,
    "clotho": clotho,
    "vctk": vctk,
    "librispeech": librispeech,
}
SPLITS = {name: {"train": 1, "valid": 1, "test": 1} for name in LAYOUTS}
SPLITS["esc50"]["valid"] = 2


def prepared(cli: Cli, name: str, root: Path, *flags: object) -> list[dict[str, Any]]:
    """The rows of the manifest, each of whose files exists."""
    result = document(cli("data", "prepare", name, root, "--json", *flags))
    manifest = Path(result["manifest"])
    manifest = manifest if manifest.is_absolute() else root.parent / manifest
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert Counter(row["split"] for row in rows) == result["clips"]
    assert all((manifest.parent / row["path"]).is_file() for row in rows)
    return rows


def test_every_archive_is_described_read_and_tested() -> None:
    assert set(ARCHIVES) == set(READERS) == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_real_layout_becomes_a_manifest(name: str, cli: Cli, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path / "data")
    rows = prepared(cli, name, tmp_path / "data")
    assert Counter(row["split"] for row in rows) == SPLITS[name]

    # The product reads it as it is, with captions.
    data = Data(source="manifest", sample_rate=8000, seconds=1.0)
    entries = manifest_entries(data, tmp_path / "data/manifest.jsonl", need_captions=True)
    assert [entry.problem for entry in entries] == [None] * len(rows)


def by_split(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["split"]: row for row in rows}


def test_captions_labels_and_splits(cli: Cli, tmp_path: Path) -> None:
    for name in ("fsdd", "esc10", "audiocaps", "clotho", "vctk", "librispeech"):
        LAYOUTS[name](tmp_path / name)
    rows = {
        name: by_split(prepared(cli, name, tmp_path / name)) for name in SPLITS if name != "esc50"
    }
    assert rows["fsdd"]["valid"] == {
        "path": "recordings/7_jackson_6.wav",
        "caption": "jackson says seven",
        "label": "seven",
        "speaker": "jackson",
        "split": "valid",
    }
    assert rows["esc10"]["train"]["label"] == "dog_bark"
    assert rows["esc10"]["valid"]["caption"] == "a rooster crowing"
    assert rows["audiocaps"]["train"]["caption"] == "A woman talks, a dog barks"
    assert rows["audiocaps"]["valid"]["caption"] == ["Rustling", "A duck quacks"]
    assert len(rows["clotho"]["test"]["caption"]) == 5
    assert rows["vctk"]["test"]["path"].endswith("s5/s5_001_mic1.flac")
    assert rows["vctk"]["valid"]["caption"] == "Please call Stella."
    assert rows["librispeech"]["train"]["caption"] == "northanger abbey"


def test_esc50_names_its_categories(cli: Cli, tmp_path: Path) -> None:
    esc50(tmp_path / "data")
    rows = prepared(cli, "esc50", tmp_path / "data")
    assert {row["label"]: row["caption"] for row in rows}["glass_breaking"] == "glass breaking"
    assert {row["fold"] for row in rows} == {1, 4, 5}


def test_the_archive_of_esc10_has_folders(cli: Cli, tmp_path: Path) -> None:
    esc10_archive(tmp_path / "data")
    rows = prepared(cli, "esc10", tmp_path / "data")
    assert len(rows) == 30
    assert {row["label"]: row["caption"] for row in rows}["baby_cry"] == "a baby crying"


@pytest.mark.parametrize("name", ["fsdd", "esc10"])
def test_the_manifests_of_the_studies_are_reproduced(
    name: str, cli: Cli, tmp_path: Path, data_dir: Path
) -> None:
    """Captions, labels and splits of the real recordings, laid out as published."""
    before = [json.loads(line) for line in (data_dir / name / "manifest.jsonl").open()]
    root = tmp_path / "data"
    if name == "fsdd":
        root.mkdir()
        (root / "recordings").symlink_to(data_dir / "fsdd/audio")
    for row in before if name == "esc10" else []:
        label, _, file = Path(row["path"]).name.rpartition("_")
        folder = root / f"001 - {label.replace('_', ' ').capitalize()}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).symlink_to(data_dir / name / row["path"])
    after = prepared(cli, name, root)

    def meaning(row: dict[str, Any]) -> tuple[object, ...]:
        stem = Path(row["path"]).name
        stem = stem.rpartition("_")[2] if name == "esc10" else stem
        return stem, row["caption"], row["label"], row["split"], row.get("speaker"), row.get("fold")

    assert sorted(map(meaning, after)) == sorted(map(meaning, before))


# --- what is wrong --------------------------------------------------------------------------------


def test_all_that_is_wrong_is_told_at_once(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "data"
    rows = [*ESC_ROWS, ["1-1-A-0.wav", 1, 0, "unicorn", "True", 1, "A"]]
    rows += [[f"2-{number}-A-0.wav", 2, 0, "dog", "True", number, "A"] for number in range(5)]
    rows += [["3-1-A-0.wav", "six", 0, "dog", "True", 1, "A"]]
    table(root / "meta/esc50.csv", [ESC_HEADER, *rows])
    recording(root / "audio/1-100032-A-0.wav")
    result = cli("data", "prepare", "esc50", root)
    assert result.code == 2
    assert "esc50.csv:6" in result.stderr and "unicorn" in result.stderr
    assert "esc50.csv:12" in result.stderr and "'six'" in result.stderr
    assert "8 of 11 rows without a file in audio/: 4-204777-A-39.wav" in result.stderr
    assert not (root / "manifest.jsonl").exists()


def test_a_table_of_another_kind(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "data"
    clotho(root)
    table(root / "clotho_captions_validation.csv", [["file_name", "caption_1"], ["a.wav", "rain"]])
    result = cli("data", "prepare", "clotho", root)
    assert result.code == 2
    assert "clotho_captions_validation.csv:1" in result.stderr
    assert "has no column caption_2, caption_3" in result.stderr


def test_what_is_missing_is_left_out_on_request(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "data"
    audiocaps(root)
    (root / "audio/test/103549.wav").unlink()
    refused = cli("data", "prepare", "audiocaps", root)
    assert refused.code == 2
    assert "1 of 1 row without a file named after its video: 7fmOlUlwoNg" in refused.stderr
    assert "no clips for the split test: test.csv" in refused.stderr
    assert "--skip-missing" in refused.stderr
    result = cli("data", "prepare", "audiocaps", root, "--skip-missing")
    assert result.code == 0
    assert "left out:" in result.stderr and "7fmOlUlwoNg" in result.stderr
    assert len((root / "manifest.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_of_something_else(name: str, cli: Cli, tmp_path: Path) -> None:
    recording(tmp_path / "data/sound.wav")
    result = cli("data", "prepare", name, tmp_path / "data", "--skip-missing")
    assert result.code == 2
    assert "is not whole" in result.stderr and "expected: " in result.stderr
    assert "Traceback" not in result.stderr
    missing = cli("data", "prepare", name, tmp_path / "nowhere")
    assert missing.code == 2 and "is missing" in missing.stderr


def test_an_existing_manifest_stays_without_force(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "data"
    fsdd(root)
    manifest = root / "manifest.jsonl"
    manifest.write_text("mine\n")
    result = cli("data", "prepare", "fsdd", root)
    assert result.code == 2 and "--force" in result.stderr
    assert manifest.read_text() == "mine\n"
    assert cli("data", "prepare", "fsdd", root, "--force").code == 0
    assert len(manifest.read_text().splitlines()) == 3


def test_the_output_is_a_manifest_and_never_a_recording(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "data"
    fsdd(root)
    sound = root / "recordings/0_george_0.wav"
    before = sound.read_bytes()
    result = cli("data", "prepare", "fsdd", root, "--output", sound, "--force")
    assert result.code == 2 and ".jsonl" in result.stderr
    assert sound.read_bytes() == before


@pytest.mark.parametrize("name", ["fsdd", "esc10", "vctk"])
def test_the_next_command_is_one_that_works(name: str, cli: Cli, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path / "my data")
    result = cli("data", "prepare", name, "my data")
    assert result.code == 0, result.stderr
    command = shlex.split(result.stderr.rpartition("next:")[2])
    assert command[:2] == ["stagecli", "train"]
    plan = cli(*command[1:])
    assert plan.code == 0, plan.stderr
    assert ARCHIVES[name].recipe in plan.stdout


def test_a_manifest_elsewhere_finds_its_files(cli: Cli, tmp_path: Path) -> None:
    fsdd(tmp_path / "data")
    (tmp_path / "lists").mkdir()
    rows = prepared(cli, "fsdd", tmp_path / "data", "--output", tmp_path / "lists/fsdd.jsonl")
    assert rows[0]["path"] == "../data/recordings/0_george_0.wav"


def test_help_names_licence_and_address(cli: Cli) -> None:
    text = " ".join(cli("data", "prepare", "--help").stdout.split())
    for name, archive in ARCHIVES.items():
        assert f"{name}: {archive.title} licence: {archive.licence}" in text
        assert archive.address.split()[0] in text


def test_the_docs_have_a_row_for_each() -> None:
    page = (REPOSITORY / "docs/data.md").read_text(encoding="utf-8")
    for name, archive in ARCHIVES.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` | ["))
        assert archive.title in row and archive.licence in row
        assert archive.address.split()[0] in row
        assert "; ".join(archive.splits.values()) in row
        if archive.recipe:
            assert archive.recipe in shipped_recipes()


def test_an_unknown_name_lists_those_that_exist(cli: Cli, tmp_path: Path) -> None:
    result = cli("data", "prepare", "ljspeech", tmp_path)
    assert result.code == 2
    assert all(name in result.stderr for name in ARCHIVES)
