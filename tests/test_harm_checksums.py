"""Flipped bits in caches and in run.json: noticed, and made again or told with a way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, read_rows, run_cli, write_recipe

from stagecli.data.cache import FeatureCache
from stagecli.data.file_index import open_index
from stagecli.evaluate.ledger import open_ledger
from stagecli.files import SEAL, finite, opened, sealed
from stagecli.report.run_info import read_info_file

Cli = Callable[..., Result]
SCORES = {"model": {"lsd": 1.25, "snr": None}}


def flips(content: bytes) -> list[bytes]:
    """The content with one bit flipped, once for every bit."""
    number = int.from_bytes(content, "big")
    length = len(content)
    return [(number ^ (1 << bit)).to_bytes(length, "big") for bit in range(8 * length)]


# --- arrays ---------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_cached_array_is_noticed(tmp_path: Path) -> None:
    array = np.arange(20, dtype=np.float32).reshape(5, 4)
    cache = FeatureCache(tmp_path, "mel", {})
    cache.put("k", array)
    path = cache.file_of("k")
    whole = path.read_bytes()
    for damaged in flips(whole):
        path.write_bytes(damaged)
        again = FeatureCache(tmp_path, "mel", {})
        assert again.get("k") is None and again.damaged == 1
        assert not path.exists()
    path.write_bytes(whole)
    stored = FeatureCache(tmp_path, "mel", {}).get("k")
    assert isinstance(stored, np.memmap) and np.array_equal(stored, array)


@pytest.mark.parametrize(
    "array",
    [np.zeros((0, 4)), np.array(3), np.arange(7, dtype=np.uint8), np.asfortranarray(np.eye(3))],
)
def test_files_of_earlier_versions_are_read_and_so_are_ours_by_numpy(
    array: np.ndarray, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path, "mel", {})
    cache.put("k", array)
    path = cache.file_of("k")
    assert np.array_equal(np.load(path), array)
    np.save(path, array)
    stored = FeatureCache(tmp_path, "mel", {}).get("k")
    assert stored is not None and np.array_equal(stored, array)


def test_a_file_is_verified_once_per_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureCache(tmp_path, "mel", {}).put("k", np.arange(5))
    cache = FeatureCache(tmp_path, "mel", {})
    assert cache.has("k")
    monkeypatch.setattr("zlib.crc32", lambda *_: pytest.fail("was verified again"))
    assert cache.has("k") and cache.get("k") is not None


def test_damaged_embeddings_of_the_judge_are_made_again_with_a_notice(runs: Path, cli: Cli) -> None:
    first = cli("evaluate", "runs/t2a", "--quick", "--json")
    path = sorted((runs / ".cache").glob("judged-*/*/*.npy"))[0]
    whole = path.read_bytes()
    path.write_bytes(flips(whole)[8 * len(whole) // 2])
    shutil.rmtree(runs / "t2a" / "evals")
    again = cli("evaluate", "runs/t2a", "--quick", "--json")
    assert again.code == 0 and path.read_bytes() == whole
    assert "damaged files made again: 1" in " ".join(again.stderr.split())
    rows = [json.loads(result.stdout)["rows"] for result in (first, again)]
    assert rows[0] == rows[1]


# --- lines ----------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_line_about_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "hashes.jsonl"
    open_index(path).put("a.wav", (10, 20), "abc")
    whole = path.read_bytes()
    told = 0
    for damaged in flips(whole)[::3]:
        path.write_bytes(damaged)
        index = open_index(path)
        assert index.get("a.wav", (10, 20)) in (None, "abc")
        told += index.damaged
        index.put("a.wav", (10, 20), "abc")
        again = open_index(path)
        assert again.get("a.wav", (10, 20)) == "abc" and not again.damaged
    assert told > 30  # the others are no JSON, as a torn line


def test_lines_of_earlier_and_of_other_versions_stay(tmp_path: Path) -> None:
    path = tmp_path / "hashes.jsonl"
    open_index(path, 2).put("new", (1, 2), "N")
    with path.open("a") as file:
        file.write('["old", 1, 2, 1, "O"]\n["bad", 1, 2, 1, "B", "0123456789abcdef"]\n')
    index = open_index(path, 1)
    assert index.get("old", (1, 2)) == "O" and index.get("bad", (1, 2)) is None
    assert index.damaged == 1
    assert open_index(path, 2).get("new", (1, 2)) == "N"
    assert path.read_text().count("\n") == 2


def test_every_flipped_bit_of_a_score_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.clips.jsonl"
    open_ledger(path).put("1 Hz", "a.wav", SCORES)
    whole = path.read_bytes()
    right = open_ledger(path).scores
    assert list(right) == [("1 Hz", "a.wav")]
    for damaged in flips(whole)[::3]:
        path.write_bytes(damaged)
        scores = open_ledger(path).scores
        assert not scores or repr(scores) == repr(right)


def test_scores_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.clips.jsonl"
    path.write_text(json.dumps(["1 Hz", "a.wav", SCORES]) + "\n")
    assert open_ledger(path).get("1 Hz", "a.wav") is not None


# --- run.json -------------------------------------------------------------------------------------


def test_every_changed_character_of_run_json_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    info = {"schema": 1, "id": "ab12", "steps": 100, "best": {"step": 9, "value": 0.5}}
    info["attempts"] = [{"attempt": 1, "from_step": 0, "status": "finished"}]
    text = json.dumps(sealed(info), indent=1)
    path.write_text(text)
    assert read_info_file(path) == (info, [])
    inside = text.index(f'"{SEAL}"')
    for position in range(inside):
        for new in "7z":
            if text[position] in (" ", "\n", new):
                continue
            path.write_text(text[:position] + new + text[position + 1 :])
            assert read_info_file(path)[1], f"{position}: {path.read_text()}"


def test_a_document_without_a_checksum_passes() -> None:
    assert opened({"a": 1}) == ({"a": 1}, None)
    assert opened(json.loads(json.dumps(finite(sealed({"a": float("nan")}))))) == (
        {"a": None},
        None,
    )


@pytest.fixture
def changed(runs: Path, tmp_path: Path) -> Path:
    """A run whose budget has one digit changed."""
    path = runs / "t2a" / "run.json"
    path.write_text(path.read_text().replace('"steps": 10', '"steps": 70'))
    return write_recipe(tmp_path / "t2a.toml")


def test_a_changed_digit_of_run_json_is_one_error_with_a_way_out(changed: Path, cli: Cli) -> None:
    for command in (("sample", "runs/t2a", "-p", "a"), ("evaluate", "runs/t2a", "--quick")):
        result = cli(*command)
        assert result.code == 2
        assert "run.json" in result.stderr and "has changed since it was written" in result.stderr
        assert "`stagecli train` with the run's recipe makes it again" in result.stderr
    inspected = cli("inspect-regime", "runs/t2a", "--json")
    assert inspected.code == 0
    assert json.loads(inspected.stdout)["damage"] == [
        "run.json: has changed since it was written; it is read"
    ]


def test_train_makes_a_changed_run_json_again_and_keeps_it(
    changed: Path, runs: Path, tmp_path: Path
) -> None:
    result = run_cli("train", changed, cwd=tmp_path)
    assert result.code == 0, result.stderr
    info = json.loads((runs / "t2a" / "run.json").read_text())
    assert (info["steps"], info["status"]) == (10, "finished")
    (event,) = [row for row in read_rows(runs / "t2a", "events") if "run.json" in row["reason"]]
    assert "has changed since it was written; the old file is run.json.damaged-1" in event["reason"]


def test_a_changed_run_is_not_replayed(changed: Path, cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "replay.toml", stage__regime__source="replay", stage__regime__replay="runs/t2a"
    )
    result = cli("train", recipe)
    assert result.code == 2
    assert "run.json has changed since it was written" in result.stderr
