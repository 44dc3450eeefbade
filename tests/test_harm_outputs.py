"""Outputs that the user names never harm anything: not inputs, recordings, links or devices."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from cli_results import Cli, document, noise
from conftest import read_rows, tree

from stagecli.data.audio import write_wav
from stagecli.errors import EXIT_FAILED, EXIT_USAGE, StageError
from stagecli.report.formats import time_left
from stagecli.targets import Target, plan_targets, write_target


def refusal(*targets: Path, inputs: tuple[Path, ...] = (), force: bool = False) -> str:
    """The error of planning these files, whose origins are their numbers."""
    with pytest.raises(StageError) as caught:
        plan_targets(
            [Target(path, f"input {i}") for i, path in enumerate(targets)],
            inputs=inputs,
            force=force,
        )
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value)


# -- planning ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("a.wav", "a.wav"),
        ("a.wav", "A.wav"),
        ("\u00e9.wav", "e\u0301.wav"),
        ("a.wav", "x/../a.wav"),
    ],
    ids=["equal", "case", "accents", "dots"],
)
def test_two_results_never_share_a_name(names: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    message = refusal(*(tmp_path / name for name in names))
    assert "input 0, input 1" in message


def test_a_result_is_never_inside_another_file(tmp_path: Path) -> None:
    assert "would be inside the file" in refusal(tmp_path / "a.wav", tmp_path / "a.wav" / "b.wav")


@pytest.mark.parametrize("kind", ["name", "symbolic link", "hard link"])
def test_an_input_is_never_replaced_even_by_force(kind: str, tmp_path: Path) -> None:
    recording = tmp_path / "rec.wav"
    recording.write_text("precious")
    other = tmp_path / "other.wav"
    if kind == "symbolic link":
        other.symlink_to(recording)
    elif kind == "hard link":
        os.link(recording, other)
    else:
        other = recording
    assert "is " in refusal(other, inputs=(recording,), force=True)
    assert recording.read_text() == "precious"


def test_a_file_that_exists_needs_force_and_one_that_appears_later_too(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    plan_targets([Target(target, "--csv")])
    target.write_text("mine")
    assert "--force" in refusal(target)
    with pytest.raises(StageError, match="exists"):
        write_target(target, "yours")
    assert target.read_text() == "mine"
    target.chmod(0o600)
    write_target(target, "yours", force=True)
    assert target.read_text() == "yours" and target.stat().st_mode & 0o777 == 0o600


def test_what_can_not_be_written_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "is a folder" in refusal(tmp_path)
    assert "folder does not exist" in refusal(tmp_path / "no" / "a.csv")
    assert "ot a directory" in refusal(tmp_path / "file" / "a.csv")
    assert "too long" in refusal(tmp_path / ("a" * 300))
    assert "symbolic links" in refusal(tmp_path / "loop")


# -- writing -------------------------------------------------------------------------------------


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in ("existing", "dangling"):
        link = tmp_path / f"{name}.html"
        link.symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "existing").write_text("old")
    for name in ("existing", "dangling"):
        write_target(tmp_path / f"{name}.html", "new", force=True)
        assert (tmp_path / f"{name}.html").is_symlink()
        assert (tmp_path / "real" / name).read_text() == "new"
    assert sorted(tree(tmp_path)) == [
        *("dangling.html", "existing.html"),
        *("real/dangling", "real/existing"),
    ]


def test_a_fifo_is_written_to_and_stays_one(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.csv"
    os.mkfifo(fifo)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_text()))
    reader.start()
    plan_targets([Target(fifo, "--csv")])
    write_target(fifo, "a,b\n")
    reader.join(10)
    assert received == ["a,b\n"] and fifo.is_fifo()


def test_a_redirected_stdout_is_continued_not_replaced(tmp_path: Path) -> None:
    """`--csv /dev/stdout >> log`: the log keeps what it holds."""
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("a") as stream:
        path = Path(f"/proc/self/fd/{stream.fileno()}")
        plan_targets([Target(path, "--csv")])
        write_target(path, "after\n")
    assert log.read_text() == "before\nafter\n"


def test_a_name_of_full_length_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("\u00e9" * 125 + ".wav")
    write_target(target, b"audio")
    assert target.read_bytes() == b"audio"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_html_csv_and_samples_to_a_full_device_are_one_error_and_the_device_stays(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "full.wav").symlink_to("/dev/full")
    commands = (
        ("inspect-regime", "runs/t2a", "--html", "/dev/full"),
        ("evaluate", "runs/sr", "--samples", "2", "--csv", "/dev/full"),
        ("sample", "runs/t2a", "-p", "hi", "-o", "full.wav"),
    )
    for command in commands:
        result = cli(*command)
        assert result.code == EXIT_FAILED
        assert result.stderr.count("error:") == 1 and "No space left" in result.stderr
        assert "Traceback" not in result.stderr
    assert Path("/dev/full").is_char_device() and (tmp_path / "full.wav").is_symlink()


def test_a_full_disk_leaves_no_half_file_and_one_error(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(tmp_path)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for command in (
        ("sample", "runs/t2a", "-p", "hi", "-o", "out.wav"),
        ("sample", "runs/t2a", "-p", "hi"),
        ("inspect-regime", "runs/t2a", "--html", "page.html"),
        ("inspect-regime", "runs/t2a", "--plot", "curves.svg"),
        ("recipes", "copy", "quickstart", "mine.toml"),
    ):
        result = cli(*command)
        assert result.code == EXIT_FAILED
        assert result.stderr.count("error:") == 1 and "No space left" in result.stderr
    assert tree(tmp_path) == before


def test_rows_that_a_full_disk_takes_half_of_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagecli.files import append_json_lines, read_json_lines

    write = os.write
    room = 5

    def short(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(descriptor, data[:room])
        room -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        with pytest.raises(OSError, match="No space"):
            append_json_lines(tmp_path / "rows.jsonl", [{"step": 1}])
    append_json_lines(tmp_path / "rows.jsonl", [{"step": 2}])
    assert [row for _, row in read_json_lines(tmp_path / "rows.jsonl")] == [{"step": 2}]


# -- commands ------------------------------------------------------------------------------------


def test_restoring_a_folder_into_itself_changes_no_recording(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    """rec.flac would become rec.wav, which is a recording of its own."""
    import soundfile

    folder = tmp_path / "in"
    folder.mkdir()
    write_wav(folder / "rec.wav", noise(0.2, 8000), 8000)
    soundfile.write(folder / "rec.flac", noise(0.2, 8000, 1), 8000)
    before = tree(folder)
    for force in ((), ("--force",)):
        result = cli("sample", "runs/sr", "--input", "in", "-o", "in", *force)
        assert result.code == EXIT_USAGE and "rec.wav" in result.stderr
        assert tree(folder) == before
    # Two inputs with one name of their results, in another folder.
    result = cli("sample", "runs/sr", "--input", "in", "-o", "out", "--force")
    assert result.code == EXIT_USAGE
    assert "in/rec.flac" in result.stderr and "in/rec.wav" in result.stderr
    assert not (tmp_path / "out").exists() and tree(folder) == before


def test_a_sample_never_replaces_a_recording_unless_forced(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.wav").write_text("precious")
    refused = cli("sample", "runs/t2a", "-p", "x", "-o", "mine.wav")
    assert refused.code == EXIT_USAGE and "mine.wav exists" in refused.stderr
    assert (tmp_path / "mine.wav").read_text() == "precious"
    assert not (tmp_path / "samples.jsonl").exists()
    not_written = cli("sample", "runs/t2a", "-p", "x", "-o", "mine.aiff")
    assert not_written.code == EXIT_USAGE and ".wav" in not_written.stderr
    for prompt in ("x", "y"):
        assert cli("sample", "runs/t2a", "-p", prompt, "-o", "mine.wav", "--force").code == 0
    assert [row["prompt"] for row in read_rows(tmp_path, "samples")] == ["y"]


def test_every_call_without_an_output_has_a_folder_of_its_own(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    for number in (1, 2):
        result = cli("sample", "runs/t2a", "-p", "x", "--seed", number)
        folder = f"runs/t2a/samples/step_00000010_prompts_00{number}"
        assert result.code == 0 and f"wrote 1 file to {folder}" in result.stderr
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == [
            "samples.jsonl",
            f"x_seed{number}.wav",
        ]


def test_foreign_lines_and_a_prompt_file_in_the_way_are_kept(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    listing = tmp_path / "samples.jsonl"
    listing.write_text('{"prompt": "a bell"}\nno json\n')
    refused = cli("sample", "runs/t2a", "--prompts", "samples.jsonl", "-o", ".")
    assert refused.code == EXIT_USAGE
    listing.write_text('{"prompt": "a bell"}\n')
    refused = cli("sample", "runs/t2a", "--prompts", "samples.jsonl", "-o", ".")
    assert refused.code == EXIT_USAGE and "is an input" in refused.stderr
    listing.write_text("no json\n[1]\n")
    for prompt in "ab":
        assert cli("sample", "runs/t2a", "-p", prompt, "-o", "0.wav", "--force").code == 0
    assert listing.read_text().startswith("no json\n[1]\n")
    assert len(listing.read_text().splitlines()) == 3


def test_tables_and_pages_never_replace_a_file_of_the_run_or_of_the_user(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    before = tree(runs)
    shutil.copy(runs / "t2a" / "run.json", tmp_path / "mine.html")
    for command in (
        ("inspect-regime", "runs/t2a", "--html", "mine.html"),
        ("inspect-regime", "runs/t2a", "--html", "runs/t2a/metrics.jsonl", "--force"),
        ("inspect-regime", "runs/t2a", "--plot", "a.svg", "--html", "A.svg"),
        ("evaluate", "runs/t2a", "--csv", "mine.html"),
        ("evaluate", "runs/t2a", "--csv", "runs/t2a/run.json", "--force"),
    ):
        assert cli(*command).code == EXIT_USAGE, command
    assert tree(runs) == before
    assert (tmp_path / "mine.html").read_bytes() == (runs / "t2a" / "run.json").read_bytes()
    for _ in range(2):
        again = cli("inspect-regime", "runs/t2a", "--html", "runs/t2a/page.html", "--force")
        assert again.code == 0, again.stderr


def test_a_recipe_is_never_copied_over_itself(cli: Cli, tmp_path: Path) -> None:
    assert cli("recipes", "copy", "quickstart", "mine.toml").code == 0
    text = (tmp_path / "mine.toml").read_text()
    refused = cli("recipes", "copy", "mine.toml", "mine.toml", "--force")
    assert refused.code == EXIT_USAGE and (tmp_path / "mine.toml").read_text() == text
    (tmp_path / "link.toml").symlink_to("mine.toml")
    assert cli("recipes", "copy", "quickstart", "link.toml").code == EXIT_USAGE
    assert cli("recipes", "copy", "quickstart", "link.toml", "--force").code == 0
    assert (tmp_path / "link.toml").is_symlink()


def test_a_long_file_reports_progress_from_its_first_window(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagecli.generate.output import Destination
    from stagecli.generate.restore import restore_files

    write_wav(tmp_path / "in.wav", noise(2.0, 8000).astype(np.float32), 8000)
    counts: list[tuple[int, int]] = []
    silent = Destination(output=tmp_path / "out", warn=lambda _: None, note=lambda _: None)
    restore_files(
        runs / "sr",
        tmp_path / "in.wav",
        silent,
        seed=0,
        batch_size=2,
        progress=lambda done, total: counts.append((done, total)),
    )
    total = counts[0][1]
    assert counts[0][0] <= 2 < total and counts[-1] == (total, total)
    assert len(document(cli("sample", "runs/sr", "-i", "in.wav", "-o", "2", "--json"))) == 1
    assert time_left(10, 5, 50) == ", 1m 40s left" and time_left(10, 0, 50) == ""
