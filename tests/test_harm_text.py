"""Text of data sets and prompts: no row is swallowed, nothing enters that is not text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Result, losses_of, run_cli, write_recipe
from helpers.resume import at_row, killed, same

from stagecli.data.csv_rows import Columns, csv_rows
from stagecli.data.examples import caption_at
from stagecli.data.manifest import manifest_entries
from stagecli.data.rows import Clip, Entry
from stagecli.errors import StageError
from stagecli.generate.prompts import read_prompts
from stagecli.schema import Data

Cli = Callable[..., Result]
LINES = 400


def entries_of(path: Path, content: str | bytes) -> list[Entry]:
    """The entries of a manifest with this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return manifest_entries(
        Data(source="manifest", sample_rate=8000, seconds=1), path, need_captions=True
    )


def clips_of(path: Path, content: str | bytes) -> list[Clip]:
    return [entry.clip for entry in entries_of(path, content) if entry.clip is not None]


def csv_of(captions: list[str]) -> str:
    rows = [f"{number}.wav,{caption},train" for number, caption in enumerate(captions)]
    return "\n".join(["path,caption,split", *rows, ""])


@pytest.mark.parametrize(
    "broken",
    [{100: '"a dog'}, {100: '"a dog', 299: 'a cat"'}, {100: '"a dog', 101: 'a cat"'}, {399: '"'}],
    ids=["one", "two-far-apart", "two-in-a-row", "at-the-end"],
)
def test_a_lone_quotation_mark_costs_its_own_row_only(
    broken: dict[int, str], tmp_path: Path
) -> None:
    captions = [broken.get(number, f"sound {number}") for number in range(LINES)]
    entries = entries_of(tmp_path / "m.csv", csv_of(captions))
    problems = {entry.where: str(entry.problem) for entry in entries if entry.problem}
    first = min(broken)
    assert list(problems) == [f"{tmp_path}/m.csv:{first + 2}"]
    assert "quotation mark" in problems[f"{tmp_path}/m.csv:{first + 2}"]
    assert len(entries) == LINES


def test_a_quoted_caption_of_several_lines_is_one_caption(tmp_path: Path) -> None:
    clips = clips_of(tmp_path / "m.csv", csv_of(['"a dog,\r\nthen a ""cat"""', "a cow"]))
    assert [clip.caption for clip in clips] == ['a dog,\r\nthen a "cat"', "a cow"]
    endless = csv_of(['"' + "a word\n" * 30 + '"', "a cow"])
    assert [clip.caption for clip in clips_of(tmp_path / "m.csv", endless)] == ["a cow"]


def test_rows_with_too_few_and_too_many_fields_are_problems(tmp_path: Path) -> None:
    entries = entries_of(tmp_path / "m.csv", csv_of(["a", "b, c"]) + "9.wav,d\n\n8.wav,e,train\n")
    problems = [str(entry.problem) for entry in entries if entry.problem]
    assert [problem[:12] for problem in problems] == ["has 4 fields", "has 2 fields"]
    assert all("the header 3 (separated by commas)" in problem for problem in problems)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.csv", "file,text\na.wav,b\n", "its columns, separated by commas: `file`, `text`"),
        ("m.csv", "path,text\na.wav,b\n", "no column `caption`"),
        ("m.csv", "path;caption\na.wav;b\n", "it looks separated by semicolons"),
        ("m.csv", "path\tcaption\na.wav\tb\n", "in a file that ends in .tsv"),
        ("m.tsv", "path,caption\na.wav,b\n", "its columns, separated by tabs: `path,caption`"),
        ("m.csv", "path,caption,path\na.wav,b,c\n", "two columns `path`"),
        ("m.csv", "", "its columns, separated by commas: none"),
    ],
)
def test_a_csv_without_the_wanted_header_names_columns_and_delimiter(
    name: str, content: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(StageError) as caught:
        entries_of(tmp_path / name, content)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_lines_of_jsonl_and_prompts_end_at_line_feeds_only(tmp_path: Path) -> None:
    row = {"path": "a.wav", "caption": "one\u2028two\x85three\x0bfour", "split": "train"}
    text = json.dumps(row, ensure_ascii=False)
    assert [clip.caption for clip in clips_of(tmp_path / "m.jsonl", text)] == [row["caption"]]
    (tmp_path / "p.jsonl").write_text(text)
    (tmp_path / "p.txt").write_text("one\u2028two\r\nthree\n")
    assert read_prompts(tmp_path / "p.jsonl") == [row["caption"]]
    assert read_prompts(tmp_path / "p.txt") == ["one\u2028two", "three"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "p.txt").write_bytes(mark + b"a dog\na cat\n")
    (tmp_path / "p.jsonl").write_bytes(mark + b'{"prompt": "a dog"}\n')
    assert read_prompts(tmp_path / "p.txt") == ["a dog", "a cat"]
    assert read_prompts(tmp_path / "p.jsonl") == ["a dog"]
    jsonl = mark + b'{"path": "a.wav", "caption": "a dog", "split": "train"}\n'
    for name, content in (("m.jsonl", jsonl), ("m.csv", mark + csv_of(["a dog"]).encode())):
        assert [clip.caption for clip in clips_of(tmp_path / name, content)] == ["a dog"]


# What a JSONL file may hold where a text belongs -> what is said about it.
NOT_TEXT: dict[str, str] = {
    '"half \\ud800 a pair"': "lone surrogate",
    '"a NUL \\u0000 inside"': "NUL",
    "null": "needs|no caption",
    "3": "needs|is not text",
    '"  "': "needs|is empty",
    "[" * 900 + "]" * 900: "nested",
    "[" * 100_000 + "]" * 100_000: "nested",
    "1" * 5000: "thousands of digits",
}


@pytest.mark.parametrize("value", NOT_TEXT, ids=lambda value: value[:12])
def test_a_caption_or_prompt_that_is_no_text_is_one_error(value: str, tmp_path: Path) -> None:
    line = f'{{"path": "a.wav", "caption": {value}, "split": "train"}}\n'
    (entry,) = entries_of(tmp_path / "m.jsonl", line)
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": {value}}}\n')
    with pytest.raises(StageError) as caught:
        read_prompts(tmp_path / "p.jsonl")
    (problem,) = caught.value.problems
    assert problem.where.endswith("p.jsonl:1")
    for message in (str(entry.problem), problem.what):
        assert any(part in message for part in NOT_TEXT[value].split("|")), message
        assert len(message) < 200


def test_a_label_or_path_that_is_no_text_is_one_error(tmp_path: Path) -> None:
    for more in ({"path": "a\0.wav"}, {"path": "\ud83d.wav"}, {"note": ["x", {"y": "\ud800"}]}):
        row = {"path": "a.wav", "caption": "x", "split": "train", **more}
        (entry,) = entries_of(tmp_path / "m.jsonl", json.dumps(row))
        assert "NUL" in str(entry.problem) or "surrogate" in str(entry.problem)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_text_that_is_not_utf8_is_refused_with_its_line(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    with pytest.raises(StageError, match="not UTF-8") as caught:
        entries_of(path, csv_of(["a dog", "café"]).encode(encoding))
    assert caught.value.problems[0].where == f"{path}:{1 if encoding == 'utf-16' else 3}"
    assert caught.value.hint == "save it as UTF-8"
    path.write_bytes("a dog\ncafé\n".encode(encoding))
    with pytest.raises(StageError, match="not UTF-8"):
        read_prompts(path)


def test_a_prompt_of_the_command_line_that_is_no_text_is_refused(runs: Path, cli: Cli) -> None:
    result = cli("sample", runs / "t2a", "--prompt", "caf\udce9")
    assert result.code == 2
    assert "prompt 1" in result.stderr
    assert "not UTF-8" in result.stderr


# -- several captions


def two_captions(**more: Any) -> list[dict[str, Any]]:
    row = {"path": "a.wav", "split": "train", **more}
    return [{**row, "caption": "a dog"}, {**row, "caption": "an animal"}]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_captions_of_a_clip_are_a_list_or_lines_of_the_same_path(tmp_path: Path) -> None:
    as_list = {**two_captions()[0], "caption": ["a dog ", "an animal", "a dog"]}
    for rows in ([as_list], two_captions()):
        (clip,) = clips_of(tmp_path / "m.jsonl", jsonl(rows))
        assert clip.caption == "a dog"
        assert clip.captions == ("a dog", "an animal")
    (clip,) = clips_of(tmp_path / "m.csv", csv_of(["a dog"]) + "0.wav,an animal,train\n")
    assert clip.captions == ("a dog", "an animal")


def test_a_label_that_differs_between_captions_belongs_to_neither(tmp_path: Path) -> None:
    first, second = two_captions(label="dog")
    (clip,) = clips_of(tmp_path / "m.jsonl", jsonl([{**first, "id": 1}, {**second, "id": 2}]))
    assert clip.labels == {"label": "dog"}


def test_the_same_path_twice_is_a_problem_unless_it_adds_a_caption(tmp_path: Path) -> None:
    first, second = two_captions()
    for repeated in (first, {**second, "split": "valid"}, {**second, "path": "./a.wav"}):
        entries = entries_of(tmp_path / "m.jsonl", jsonl([first, repeated]))
        assert [bool(entry.problem) for entry in entries] == [False, True]
        assert "is on line 1 already" in str(entries[1].problem)


def test_a_bad_list_of_captions_is_a_problem(tmp_path: Path) -> None:
    for captions in ([], ["a dog", ""], ["a dog", None], ["a dog", 3], [["a dog"]]):
        row = {**two_captions()[0], "caption": captions}
        assert entries_of(tmp_path / "m.jsonl", jsonl([row]))[0].problem


def test_each_visit_draws_one_of_several_captions_by_seed_and_sample() -> None:
    clip = Clip("a.wav", "a dog", "train", more_captions=("an animal", "a noise"))
    drawn = [caption_at(0, clip, index) for index in range(300)]
    assert drawn == [caption_at(0, clip, index) for index in range(300)]
    assert drawn != [caption_at(1, clip, index) for index in range(300)]
    assert all(60 < drawn.count(caption) < 140 for caption in clip.captions)


def test_a_run_with_several_captions_resumes_exactly_with_other_workers(tmp_path: Path) -> None:
    rows = []
    for number in range(6):
        noise = 0.1 * np.random.default_rng(number).standard_normal(4000)
        soundfile.write(tmp_path / f"{number}.wav", noise, 8000)
        split = "valid" if number == 5 else "train"
        captions = [f"noise {number}", f"a hiss {number}"]
        rows.append({"path": f"{number}.wav", "caption": captions, "split": split})
    (tmp_path / "m.jsonl").write_text(jsonl(rows))
    (tmp_path / "one.jsonl").write_text(
        jsonl([{**row, "caption": row["caption"][0]} for row in rows])
    )
    data = {"data__source": "manifest", "data__path": "m.jsonl", "data__clips": None}
    recipe = write_recipe(tmp_path / "r.toml", **data)
    assert run_cli("train", recipe, "--name", "whole", cwd=tmp_path).code == 0
    killed(tmp_path, "train", recipe, "--name", "cut", arrange=at_row(7))
    again = run_cli("train", recipe, "--name", "cut", "--set", "data.workers=2", cwd=tmp_path)
    assert again.code == 0, again.stderr
    same(tmp_path / "runs/cut", tmp_path / "runs/whole")
    single = ("--name", "one", "--set", 'data.path="one.jsonl"')
    assert run_cli("train", recipe, *single, cwd=tmp_path).code == 0
    assert losses_of(tmp_path / "runs/one") != losses_of(tmp_path / "runs/whole")


def test_the_rows_of_csv_know_their_first_line() -> None:
    text = 'path,caption\na.wav,"one\ntwo"\nb.wav,three\n'
    assert [row.number for row in csv_rows(Path("m.csv"), text, Columns("path", None))] == [2, 4]
