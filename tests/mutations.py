"""Break the code on purpose, one line at a time, and see that a test notices.

    python tests/mutations.py               # all of them: allow half an hour on two cores
    python tests/mutations.py NAME...       # some of them, by name
    python tests/mutations.py --list

A mutation is a pattern that matches exactly once in a room (or a file) of the package, what to put
in its place, and the tests that should fail then. Each is applied to a copy of the repository in a
temporary folder. First the tests have to pass on the copy as it is. Exit status: 0 if every
mutation was noticed, 1 if one survived or could not be tried.

It is no part of the test suite, which checks only that every pattern still matches
(test_mutations.py).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
COPIED = ("stagecli", "tests", "recipes", "docs")  # folders; files beside them are copied too
TIMEOUT = 900  # seconds for the tests of one mutation


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """room: a folder or a file under stagecli/; tests: what is given to pytest, under tests/."""

    name: str
    room: str
    pattern: str
    replacement: str
    tests: tuple[str, ...]

    def matches(self, repository: Path) -> list[tuple[Path, re.Match[str]]]:
        """Every place in the room that the pattern matches."""
        room = repository / "stagecli" / self.room
        files = sorted(room.rglob("*.py")) if room.is_dir() else [room.with_suffix(".py")]
        return [
            (path, match)
            for path in files
            if path.exists()
            for match in re.finditer(self.pattern, path.read_text(encoding="utf-8"))
        ]

    def mutated(self, repository: Path) -> tuple[Path, str]:
        """The file and its mutated text. Raises ValueError unless the pattern matches once."""
        matches = self.matches(repository)
        if len(matches) != 1:
            places = (
                ", ".join(str(path.relative_to(repository)) for path, _ in matches) or "nowhere"
            )
            raise ValueError(f"{self.name}: {self.pattern!r} has to match once, matches: {places}")
        path, match = matches[0]
        text = path.read_text(encoding="utf-8")
        return path, text[: match.start()] + match.expand(self.replacement) + text[match.end() :]


MUTATIONS = (
    # What is trained
    Mutation(
        name="velocity-target-sign",
        room="flow",
        pattern=r"\(noise_BTC - x0_BTC\)",
        replacement="(x0_BTC - noise_BTC)",
        tests=("test_objective_sampler.py",),
    ),
    Mutation(
        name="kept-band-is-learnt",
        room="condition",
        pattern=r"\(~band_BC\)",
        replacement="(band_BC | ~band_BC)",
        tests=("test_frames.py",),
    ),
    Mutation(
        name="padding-is-learnt",
        room="data",
        pattern=r"""batch\["mask"\]\[\.\.\., None\]\.float\(\)""",
        replacement=r"""(batch["mask"][..., None] >= 0).float()""",
        tests=("test_frames.py",),
    ),
    Mutation(
        name="noise-ignores-the-example",
        room="data",
        pattern=r"stream\(self\.seed, NOISE, \w+\)",
        replacement="stream(self.seed, NOISE, 0)",
        tests=("test_examples.py",),
    ),
    Mutation(
        name="caption-dropout-inverted",
        room="data",
        pattern=r"(DROP, \w+\)\.random\(\)) < ",
        replacement=r"\1 >= ",
        tests=("test_examples.py",),
    ),
    Mutation(
        name="every-epoch-in-the-same-order",
        room="data",
        pattern=r"_permutation\(seed, clips, epoch\)\[",
        replacement="_permutation(seed, clips, 0)[",
        tests=("test_examples.py",),
    ),
    Mutation(
        name="t-not-stratified",
        room="data",
        pattern=r"\(rng\.permutation\(batch_size\) \+ rng\.random\(batch_size\)\) / batch_size",
        replacement="rng.random(batch_size)",
        tests=("test_examples.py",),
    ),
    Mutation(
        name="gradient-not-divided-by-accumulation",
        room="train",
        pattern=r", weight_B\) / [\w.]*\.accumulate",
        replacement=", weight_B)",
        tests=("test_resume.py",),
    ),
    Mutation(
        name="step-draws-from-the-global-generator",
        room="train",
        pattern=r"\n( +)(self\.accelerator\.backward\()",
        replacement=r"\n\1torch.rand(1)\n\1\2",
        tests=("test_train_step.py",),
    ),
    Mutation(
        name="warm-up-begins-at-zero",
        room="flow",
        pattern=r"(\w+\.lr) \* \(step \+ 1\) / ",
        replacement=r"\1 * step / ",
        tests=("test_model.py", "test_golden.py", "test_resume.py"),
    ),
    Mutation(
        name="ema-takes-the-complement",
        room="model",
        pattern=r"current, 1 - decay\)",
        replacement="current, decay)",
        tests=("test_model.py",),
    ),
    Mutation(
        name="ema-without-warm-up",
        room="model",
        pattern=r"min\(self\.decay, \(1 \+ self\.updates\) / \(10 \+ self\.updates\)\)",
        replacement="self.decay",
        tests=("test_model.py",),
    ),
    Mutation(
        name="embeddings-decay",
        room="model",
        pattern=r"(\.ndim >= 2) and (?:\"embed\"|id\(\w+\)) not in \w+",
        replacement=r"\1",
        tests=("test_model.py",),
    ),
    # What is measured while training
    Mutation(
        name="validation-of-the-raw-weights",
        room="train",
        pattern=r"with (?:self|state)\.ema\.applied\([\w.]+\):(\n +[\w.]+ = validate\()",
        replacement=r"if True:\1",
        tests=("test_validation_weights.py",),
    ),
    Mutation(
        name="evaluation-of-the-raw-weights",
        room="train",
        pattern=r"with (?:self|state)\.ema\.applied\([\w.]+\):(\n[^\n]*scorer\.measure\()",
        replacement=r"if True:\1",
        tests=("test_evaluation_in_training.py",),
    ),
    Mutation(
        name="speed-includes-validation",
        room="train",
        pattern=r"self\.began \+= seconds",
        replacement="pass",
        tests=("test_train_step.py",),
    ),
    Mutation(
        name="probe-noise-changes",
        room="train",
        pattern=r"stream\(VALID_SEED, PROBE_NOISE, clip, k, draw\)",
        replacement="np.random.default_rng()",
        tests=("test_probe.py",),
    ),
    Mutation(
        name="older-of-equals-is-best",
        room="metrics",
        pattern=r"""sign \* value > sign \* before\["value"\]""",
        replacement=r"""sign * value >= sign * before["value"]""",
        tests=("test_evaluation_in_training.py",),
    ),
    # Checkpoints, resume, files, caches
    Mutation(
        name="rotation-removes-the-best",
        room="runs",
        pattern=r"if step != best_step:",
        replacement="if True:",
        tests=("test_checkpoint.py",),
    ),
    Mutation(
        name="files-written-in-place",
        room="files",
        pattern=r"""partial = path\.with_name\([^\n]*""",
        replacement="partial = path",
        tests=("test_files.py",),
    ),
    Mutation(
        name="rename-before-the-data-are-on-disk",
        room="files",
        pattern=r"os\.fsync\(file\.fileno\(\)\)",
        replacement="pass",
        tests=("test_files.py",),
    ),
    Mutation(
        name="torn-line-not-ended",
        room="files",
        pattern=r"torn = size > 0 and ",
        replacement="torn = size < 0 and ",
        tests=("test_files.py",),
    ),
    Mutation(
        name="resume-without-the-optimizer",
        room="train",
        pattern=r"self\.optimizer\.load_state_dict\([^\n]*\)",
        replacement="pass",
        tests=("test_resume.py",),
    ),
    Mutation(
        name="resume-without-the-log-window",
        room="train",
        pattern=r"\n +(?:self\.)?log_window\.load_state_dict\([^\n]*\)",
        replacement="",
        tests=("test_resume.py",),
    ),
    Mutation(
        name="two-processes-write-one-run",
        room="runs",
        pattern=r"fcntl\.flock\(file, fcntl\.LOCK_EX \| fcntl\.LOCK_NB\)",
        replacement="pass",
        tests=("test_harm_lock.py",),
    ),
    Mutation(
        name="text-cache-ignores-the-weights",
        room="train",
        pattern=r""""weights": weights_hash\(text\.network\)""",
        replacement='"weights": "same"',
        tests=("test_text_cache.py",),
    ),
    Mutation(
        name="text-cache-ignores-the-tokenizer",
        room="train",
        pattern=r'"tokenizer": text\.tokenizer_hash\(\)',
        replacement='"tokenizer": "same"',
        tests=("test_text_cache.py",),
    ),
    Mutation(
        name="frame-cache-ignores-the-weights",
        room="train",
        pattern=r""""weights": weights_hash\(codec\)""",
        replacement='"weights": "same"',
        tests=("test_networks.py", "test_codec_neural.py", "test_cache.py"),
    ),
    # Sampling
    Mutation(
        name="cfg-scale-off-by-one",
        room="flow",
        pattern=r"(\w+) \+ scale \* \(v - \1\)",
        replacement=r"v + scale * (v - \1)",
        tests=("test_objective_sampler.py",),
    ),
    Mutation(
        name="cfg-outside-its-interval",
        room="flow",
        pattern=r" or not low <= t <= high",
        replacement="",
        tests=("test_objective_sampler.py",),
    ),
    Mutation(
        name="sampler-does-not-keep-the-band",
        room="flow",
        pattern=r"torch\.where\(mask, \(x_BTC - kept_BTC\) / t, velocity\(x_BTC, t\)\)",
        replacement="velocity(x_BTC, t)",
        tests=("test_objective_sampler.py",),
    ),
    Mutation(
        name="input-not-spliced-in",
        room="generate",
        pattern=r"splice\(\w+, (\w+ / gain), [^)]*\)",
        replacement=r"\1",
        tests=("test_model.py", "test_cli.py", "test_evaluate.py"),
    ),
    Mutation(
        name="sampling-noise-ignores-the-clip",
        room="generate",
        pattern=r"stream\(seed, (\w+), index\)",
        replacement=r"stream(seed, \1, 0)",
        tests=("test_sampling_noise.py",),
    ),
    # Metrics
    Mutation(
        name="kad-kernel-too-narrow",
        room="metrics",
        pattern=r"gamma = -0\.5 / bandwidth\*\*2(?=\n +\(?n, dim\)? = )",
        replacement="gamma = -1.0 / bandwidth**2",
        tests=("test_metrics_sets.py",),
    ),
    Mutation(
        name="kad-bandwidth-of-the-generated-set",
        room="metrics",
        pattern=r"median_pairwise_distance\(x\)",
        replacement="median_pairwise_distance(y)",
        tests=("test_metrics_sets.py",),
    ),
    Mutation(
        name="lsd-clamp",
        room="metrics",
        pattern=r"""("clamp",\s+(?:floor=)?)1e-8""",
        replacement=r"\g<1>1e-10",
        tests=("test_metrics.py", "test_metrics_pairs.py"),
    ),
    Mutation(
        name="si-sdr-depends-on-the-scale",
        room="metrics",
        pattern=r"scale = \(x \* y\)\.sum\(-1\) / energy\.masked_fill\(silent, 1\.0\)",
        replacement="scale = torch.ones_like(energy)",
        tests=("test_metrics.py", "test_metrics_pairs.py"),
    ),
    Mutation(
        name="covariance-without-ddof",
        room="metrics",
        pattern=r"return self\.scatter_DD / \(self\.count - 1\)",
        replacement="return self.scatter_DD / self.count",
        tests=("test_metrics_sets.py",),
    ),
    # Mechanisms
    Mutation(
        name="mechanism-not-registered",
        room="stage/registry",
        pattern=r"""    "structure": "stagecli\.stage\.structure:[^\n]*\n""",
        replacement="",
        tests=("test_structure.py",),
    ),
    Mutation(
        name="align-moves-the-teacher-too",
        room="stage",
        pattern=r"(result\.hidden\[teacher\])\.detach\(\)",
        replacement=r"\1",
        tests=("test_structure_actions.py",),
    ),
    Mutation(
        name="checkpoint-of-other-mechanisms-accepted",
        room="stage",
        pattern=r"if set\(state\) != set\(self\.mechanisms\):",
        replacement="if False:",
        tests=("test_stage_state.py",),
    ),
    Mutation(
        name="guidance-ends-late",
        room="stage",
        pattern=r"share = max\(0\.0, r - self\.fade\) /",
        replacement="share = max(0.0, r - self.fade) / 2 /",
        tests=("test_guidance.py",),
    ),
    # Recipe and command line
    Mutation(
        name="signature-depends-on-evaluate",
        room="recipe",
        pattern=r"""    "evaluate": None,\n""",
        replacement="",
        tests=("test_recipe.py", "test_run.py", "test_evaluation_in_training.py"),
    ),
    Mutation(
        name="interrupt-exits-with-one",
        room="errors",
        pattern=r"EXIT_INTERRUPTED = 130",
        replacement="EXIT_INTERRUPTED = 1",
        tests=("test_resume.py",),
    ),
)


def copy_repository(target: Path) -> None:
    """The files that tests need, without byte code of the unchanged code."""
    target.mkdir()
    for path in REPOSITORY.iterdir():
        if path.is_dir() and path.name in COPIED:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, target / path.name, ignore=ignored)
        elif path.is_file():
            shutil.copy2(path, target / path.name)


def run_tests(repository: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """pytest's exit status and the end of its output; 1 where it takes too long."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    variables = {
        "PYTHONPATH": str(repository),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=repository,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return 1, "timed out"
    return done.returncode, done.stdout.strip()[-2000:]


@cache
def passes_unchanged(repository: Path, test: str) -> str:
    """Empty where a test file passes on the copy as it is, else what pytest printed."""
    status, output = run_tests(repository, (test,))
    return "" if status == 0 else output


def try_mutation(mutation: Mutation, repository: Path) -> str:
    """ "noticed", "SURVIVED", or why the mutation could not be tried."""
    for test in mutation.tests:
        if failure := passes_unchanged(repository, test):
            return f"NOT TRIED: {test} fails without the mutation\n{failure}"
    try:
        path, text = mutation.mutated(repository)
    except ValueError as error:
        return f"NOT TRIED: {error}"
    original = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    try:
        status, output = run_tests(repository, mutation.tests)
    finally:
        path.write_text(original, encoding="utf-8")
    if status == 1:
        return "noticed"
    return "SURVIVED" if status == 0 else f"NOT TRIED: pytest exited with {status}\n{output}"


def main(arguments: list[str] | None = None) -> int:
    """Try the mutations that are named, or all; the exit status."""
    parser = argparse.ArgumentParser(description="Break the code and see that a test notices.")
    parser.add_argument("names", nargs="*", help="mutations to try; default: all")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args(arguments)
    by_name = {mutation.name: mutation for mutation in MUTATIONS}
    if options.list:
        print("\n".join(by_name))
        return 0
    if unknown := set(options.names) - by_name.keys():
        parser.error(f"no such mutation: {', '.join(sorted(unknown))}")

    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        copy_repository(copy)
        for name in options.names or by_name:
            began = time.monotonic()
            outcome = try_mutation(by_name[name], copy)
            failures += outcome != "noticed"
            print(f"{name}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{failures} not noticed" if failures else "every mutation was noticed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
