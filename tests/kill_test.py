"""Kill -9 at random moments, the same command again, and count what was lost.

    python tests/kill_test.py --kills 100 [--seed 0] [--only NAME] [--keep FOLDER]

Not part of the suite. Every episode starts from nothing (or from a copy of a finished run), kills
its command up to three times, runs it to its end and compares with a run that was never killed.
Exit status 1 if a loss differs, a checkpoint was lost, or the same command did not do.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from conftest import forked, read_rows, run_cli, sha, write_recipe
from helpers.resume import TIMED
from safetensors.numpy import load_file

LONGEST = 300.0  # seconds that a command may take
KILLS_PER_EPISODE = 3
POLL = 0.002  # seconds
TEMPORARY = (".partial", ".tmp", ".stale")
STREAMS = ("metrics", "bins", "probes")
CLOCK = {*TIMED, "seconds", "seconds_total", "share"}  # values that depend on it
IMPORTS = ("cli", "evaluate.command", "generate.restore", "generate.prompts", "train.launch")
MEASURED = {
    "train__validate_every": 3,
    "train__sample_every": 5,
    "train__evaluate_every": 5,
    "train__evaluate_clips": 4,
}
MECHANISMS = {
    "model__depth": 4,
    "train__validate_every": 3,
    "stage__regime__every": 2,
    "stage__regime__clips": 4,
    "stage__regime__partial_band": True,
    "stage__guidance__hidden": 16,
    "stage__timesteps__floor": 0.2,
    "stage__structure__action": "align",
    "stage__structure__when": "always",
    "stage__structure__ramp": 0.3,
}
FROM_FILES = {
    "data__source": "manifest",
    "data__path": "clips/manifest.jsonl",
    "data__clips": None,
    "data__cache_dir": "cache",
}


@dataclass
class Tally:
    """What the episodes of one scenario have shown; stops: the commands that did not go on."""

    kills: int = 0
    compared: int = 0
    differing: int = 0
    lost: int = 0
    left_over: int = 0
    stops: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.differing or self.lost or self.stops)


@dataclass(frozen=True)
class Scenario:
    """One command to kill.

    changes: to the tiny recipe of the task; command: after `stagecli`; then: another command, run
    once this one went through; on_finished_run: train first, and kill this command alone; when:
    whether a kill may come now, by the state of the folder.
    """

    name: str
    task: str
    command: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    then: tuple[str, ...] = ()
    on_finished_run: bool = False
    when: Callable[[Path], bool] = lambda folder: True

    def prepare(self, folder: Path) -> None:
        """Write the recipe and its data."""
        folder.mkdir(parents=True)
        write_recipe(folder / "recipe.toml", self.task, **self.changes)
        if "data__path" in self.changes:
            write_clips(folder / "clips")


def is_writing_a_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint is half written, or the run's files are being replaced."""
    folders = (folder / "runs" / "recipe", folder / "runs" / "recipe" / "checkpoints")
    return any(
        name.endswith(TEMPORARY) for path in folders if path.is_dir() for name in os.listdir(path)
    )


TRAIN = ("train", "recipe.toml")
PROMPTS = ("-p", "a bell", "-p", "a dog", "-p", "rain")
SCENARIOS = (
    Scenario("train t2a", "t2a", TRAIN, MEASURED),
    Scenario("train sr", "sr", TRAIN, MEASURED | {"data__workers": 1}),
    Scenario("train t2a, all mechanisms", "t2a", TRAIN, MEASURED | MECHANISMS),
    Scenario("train sr, all mechanisms", "sr", TRAIN, MEASURED | MECHANISMS),
    Scenario(
        "prepare", "t2a", (*TRAIN, "--prepare-only"), {**MECHANISMS, **FROM_FILES}, then=TRAIN
    ),
    Scenario(
        "write checkpoints",
        "t2a",
        TRAIN,
        {"train__checkpoint_every": 1, "model__width": 256, "train__keep": 3},
        when=is_writing_a_checkpoint,
    ),
    Scenario("evaluate t2a", "t2a", ("evaluate", "runs/recipe", "--json"), on_finished_run=True),
    Scenario("evaluate sr", "sr", ("evaluate", "runs/recipe", "--json"), on_finished_run=True),
    Scenario(
        "sample t2a", "t2a", ("sample", "runs/recipe", *PROMPTS, "--json"), on_finished_run=True
    ),
    Scenario(
        "sample sr",
        "sr",
        ("sample", "runs/recipe", "-i", "clips", "--cutoff", "2000", "--json"),
        FROM_FILES,
        on_finished_run=True,
    ),
)


def write_clips(folder: Path) -> None:
    """24 clips of noise at 16 kHz with their manifest."""
    folder.mkdir()
    lines = []
    for number in range(24):
        generator = np.random.default_rng(number)
        soundfile.write(folder / f"{number}.wav", 0.1 * generator.standard_normal(8000), 16000)
        split = ("train", "train", "valid", "test")[number % 4]
        lines.append({"path": f"{number}.wav", "caption": f"noise {number}", "split": split})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


# --- one command ----------------------------------------------------------------------------------


def start(folder: Path, command: tuple[str, ...]) -> Any:
    """A forked process that runs `stagecli COMMAND` in the folder and leaves its result there."""

    def work() -> None:
        result = run_cli(*command, cwd=folder)
        (folder / "result.json").write_text(json.dumps(result._asdict()))

    (folder / "result.json").unlink(missing_ok=True)
    return forked(work)


def run_to_the_end(folder: Path, command: tuple[str, ...]) -> dict[str, Any]:
    """The result of the command: code, stdout, stderr."""
    process = start(folder, command)
    process.join(LONGEST)
    if process.exitcode is None:
        process.kill()
        return {"code": -1, "stdout": "", "stderr": f"no end in {LONGEST:.0f} s"}
    if not (folder / "result.json").exists():
        return {"code": process.exitcode, "stdout": "", "stderr": "died"}
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def kill_after(folder: Path, scenario: Scenario, seconds: float) -> bool:
    """Start the command and kill it after so long, or as soon after as `when` holds.

    False if it ended before that.
    """
    process = start(folder, scenario.command)
    due = time.monotonic() + seconds
    while process.exitcode is None:
        if time.monotonic() >= due and scenario.when(folder):
            process.kill()
            break
        time.sleep(POLL)
    process.join()
    return bool(process.exitcode == -signal.SIGKILL)


# --- what is compared -----------------------------------------------------------------------------


def newest_checkpoint(folder: Path) -> int:
    """The step of the newest whole checkpoint; 0 if there is none, -1 if it cannot be read."""
    checkpoints = folder / "runs" / "recipe" / "checkpoints"
    if not (checkpoints / "latest").exists():
        return 0
    newest = checkpoints / (checkpoints / "latest").read_text().strip()
    try:
        for file in newest.glob("*.safetensors"):
            load_file(file)
        return int(json.loads((newest / "state.json").read_text())["step"])
    except Exception:  # whatever is wrong with it, it is lost
        return -1


def values(run: Path) -> Iterator[tuple[tuple[str, int, str], Any]]:
    """((stream, step, name), value) of every row, without what depends on the clock."""
    for stream in STREAMS:
        if (run / f"{stream}.jsonl").exists():
            for row in read_rows(run, stream):
                for name, value in row.items():
                    if name not in CLOCK:
                        yield (stream, row["step"], name), value


def compare_runs(run: Path, reference: Path, tally: Tally) -> None:
    """Count the values that differ, also where a step was trained twice; then the weights."""
    expected = dict(values(reference))
    missing = set(expected)
    for key, value in values(run):
        missing.discard(key)
        tally.compared += 1
        tally.differing += key not in expected or expected[key] != value
    tally.differing += len(missing)
    names = sorted(path.name for path in (reference / "checkpoints").glob("step_*"))
    for name in names:
        for file in ("model.safetensors", "ema.safetensors"):
            ours = run / "checkpoints" / name / file
            tally.lost += not ours.exists()
            if ours.exists():
                tally.differing += sha(ours) != sha(reference / "checkpoints" / name / file)


def compare_answers(folder: Path, answer: Any, reference_folder: Path, expected: Any) -> int:
    """The number of differences between what two commands printed and the audio they name."""
    if isinstance(expected, dict) and isinstance(answer, dict):
        keys = {*expected, *answer} - {"samples", "seconds", "time"}
        pairs = [(answer.get(key), expected.get(key)) for key in sorted(keys)]
        if "file" in keys:
            same = sha(folder / answer["file"]) == sha(reference_folder / expected["file"])
            pairs = [(same, True)]
        return sum(compare_answers(folder, a, reference_folder, b) for a, b in pairs)
    if isinstance(expected, list) and isinstance(answer, list):
        if len(expected) != len(answer):
            return 1
        pairs = list(zip(answer, expected, strict=True))
        return sum(compare_answers(folder, a, reference_folder, b) for a, b in pairs)
    return int(answer != expected)


def unreadable_audio(folder: Path) -> int:
    """The number of audio files under a run that are not whole."""
    count = 0
    for path in (folder / "runs").rglob("*.wav"):
        try:
            soundfile.read(path)
        except soundfile.LibsndfileError:
            count += 1
    return count


# --- episodes -------------------------------------------------------------------------------------


class Reference:
    """A folder in which a scenario's commands ran without a kill."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.folder = folder

    def make(self) -> None:
        """Run the commands; `seconds` is how long the one to kill took."""
        self.scenario.prepare(self.folder)
        if self.scenario.on_finished_run:
            self._run(TRAIN)
            shutil.copytree(self.folder, self.before)
        begin = time.monotonic()
        self.answer = self._run(self.scenario.command)
        self.seconds = time.monotonic() - begin
        if self.scenario.then:
            self._run(self.scenario.then)

    @property
    def before(self) -> Path:
        """A copy of the folder from before the command."""
        return self.folder.with_name(f"{self.folder.name}-before")

    def _run(self, command: tuple[str, ...]) -> str:
        result = run_to_the_end(self.folder, command)
        if result["code"] != 0:
            sys.exit(f"{self.scenario.name}: fails without a kill: {result['stderr']}")
        return str(result["stdout"])


def episode(reference: Reference, folder: Path, kills: int, tally: Tally) -> None:
    """Kill one command up to `kills` times, run it to its end, and compare with the reference."""
    scenario = reference.scenario
    if scenario.on_finished_run:
        shutil.copytree(reference.before, folder)
    else:
        scenario.prepare(folder)

    # Kills, each followed by the same command.
    reached = newest_checkpoint(folder)
    for number in range(kills):
        share = random.random() / (1 + number)
        if not kill_after(folder, scenario, share * reference.seconds):
            break
        tally.kills += 1
        newest = newest_checkpoint(folder)
        tally.lost += newest < reached
        reached = max(reached, newest)

    # The same command once more, now to its end.
    for command in filter(None, (scenario.command, scenario.then)):
        result = run_to_the_end(folder, command)
        if result["code"] != 0:
            tally.stops.append(f"{' '.join(command)}: {result['stderr'].strip()}")
            return
        if command == scenario.command and "--json" in command:
            tally.compared += 1
            tally.differing += compare_answers(
                folder, json.loads(result["stdout"]), reference.folder, json.loads(reference.answer)
            )
    tally.differing += unreadable_audio(folder)
    compare_runs(folder / "runs" / "recipe", reference.folder / "runs" / "recipe", tally)
    leftovers = [path for path in folder.rglob("*") if path.name.endswith(TEMPORARY)]
    tally.left_over += len(leftovers)


def run_scenario(scenario: Scenario, folder: Path, kills: int) -> Tally:
    """Episodes until there were as many kills."""
    reference = Reference(scenario, folder / "reference")
    reference.make()
    tally = Tally()
    episodes = 0
    while tally.kills < kills and not tally.stops:
        episodes += 1
        here = folder / f"episode_{episodes}"
        episode(reference, here, min(KILLS_PER_EPISODE, kills - tally.kills), tally)
        if tally.is_clean:
            shutil.rmtree(here)
    return tally


def show(tallies: dict[str, Tally], seconds: float) -> None:
    """The table, and every command that did not go on."""
    head = ("command", "kills", "values", "differing", "checkpoints lost", "manual steps", "left")
    rows = [
        (name, t.kills, t.compared, t.differing, t.lost, len(t.stops), t.left_over)
        for name, t in tallies.items()
    ]
    total = ("all", *(sum(row[k] for row in rows) for k in range(1, len(head))))
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in (*rows, total):
        print("| " + " | ".join(map(str, row)) + " |")
    print(f"\n{seconds:.0f} s; `left`: temporary files that are still there at the end")
    for tally in tallies.values():
        for text in tally.stops:
            print(f"\nmanual step: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="of the moments of the kills")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--keep", type=Path, help="folder to keep what went wrong in")
    options = parser.parse_args()
    random.seed(options.seed)
    chosen = [scenario for scenario in SCENARIOS if options.only in scenario.name]

    # Imported before any fork, so that no process has to do it again.
    for module in IMPORTS:
        importlib.import_module(f"stagecli.{module}")

    begin = time.monotonic()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="kill_test_"))
    tallies = {}
    for number, scenario in enumerate(chosen):
        kills = (options.kills + number) // len(chosen)
        tallies[scenario.name] = run_scenario(scenario, folder / str(number), kills)
        done = tallies[scenario.name]
        print(f"{scenario.name}: {done.kills} kills, {time.monotonic() - begin:.0f} s")
    show(tallies, time.monotonic() - begin)
    clean = all(tally.is_clean for tally in tallies.values())
    if clean and not options.keep:
        shutil.rmtree(folder)
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
