"""`stagecli demo`: a page on this machine to try a trained model. The only Gradio code."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from stagecli.bounds import CFG_SCALE, SAMPLER_STEPS
from stagecli.errors import EXIT_FAILED, StageError
from stagecli.generate.model import Audio, Model, load
from stagecli.report.samples import prompts_of

__all__ = ["Trial", "build_page", "open_trial", "require_gradio", "serve"]

ADDRESS = "127.0.0.1"  # nobody else on the network gets to the model
EXAMPLES = 6
KEPT_SECONDS = 3600  # Gradio's own copies of sounds
MOST_STEPS = 100.0  # of the slider
MOST_CFG_SCALE = 10.0
FONTS = ["system-ui", "sans-serif"]  # Gradio's own are fetched from the network


@dataclass
class Trial:
    """A model to try, as the page calls it.

    folder: for the sounds; notes: what the model said was doubtful since the last call.
    """

    model: Model
    folder: Path
    notes: list[str] = field(default_factory=list)
    calls: int = 0

    def generate(
        self,
        prompt: str,
        seconds: float | None,
        steps: float,
        cfg_scale: float,
        seed: float | None,
    ) -> tuple[str, str]:
        """(a sound for a prompt, notes); None: a field that was emptied. Raises StageError."""
        self.notes.clear()
        audio = self.model.generate(
            prompt, seconds=seconds, steps=round(steps), cfg_scale=cfg_scale, seed=int(seed or 0)
        )
        return self._saved(audio)

    def restore(
        self, file: str | None, cutoff: float | None, steps: float, seed: float | None
    ) -> tuple[str, str]:
        """(a file with its high band restored, notes); cutoff: 0 or None to measure it.

        Raises StageError.
        """
        self.notes.clear()
        if not file:
            raise StageError("there is no file yet", hint="drop one on the page")
        audio = self.model.restore(
            file, cutoff=cutoff or None, steps=round(steps), seed=int(seed or 0)
        )
        return self._saved(audio)

    def _saved(self, audio: Audio) -> tuple[str, str]:
        """As a file, turned down if it is too loud; Gradio would raise an array to full scale."""
        self.calls += 1
        (path,) = audio.save(self.folder / f"{self.calls:04d}.wav")
        return str(path), "  \n".join(self.notes)


@contextmanager
def open_trial(run: str, checkpoint: str, warn: Callable[[str], None]) -> Iterator[Trial]:
    """Load a model to try; its sounds are deleted at the end. Raises StageError."""
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="stagecli-demo-") as folder:
        model = load(run, checkpoint=checkpoint, warn=notes.append)
        for note in notes:
            warn(note)
        yield Trial(model, Path(folder), notes)


def require_gradio() -> Any:
    """The package. Raises StageError where it is not installed."""
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise StageError(
            "stagecli demo needs the package `gradio`", hint="pip install 'stagecli[demo]'"
        ) from error


def build_page(trial: Trial) -> Any:
    """The page as Gradio's blocks; nothing is served yet."""
    gradio = require_gradio()
    model = trial.model
    task = "text to audio" if model.task == "t2a" else "super-resolution"
    title = f"{model.home.name}, step {model.step:,}"
    with gradio.Blocks(
        title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gradio.Markdown(f"# {escape(title)}\n{task}, {model.sample_rate:,} Hz, on {model.device}")
        fill = _prompt_page if model.task == "t2a" else _file_page
        fill(gradio, trial)
    return page


def _prompt_page(gradio: Any, trial: Trial) -> None:
    model = trial.model
    options = model.recipe.evaluate
    prompt = gradio.Textbox(label="Prompt", lines=2)
    examples = prompts_of(model.home)[:EXAMPLES]
    if examples:
        gradio.Examples([[text] for text in examples], inputs=[prompt], label="From training")
    with gradio.Row():
        seconds = gradio.Number(label="Seconds", value=model.recipe.data.seconds)
        steps = _slider(gradio, "Steps", SAMPLER_STEPS.low, MOST_STEPS, options.steps, step=1)
        scale = _slider(
            gradio, "cfg_scale", CFG_SCALE.low, MOST_CFG_SCALE, options.cfg_scale, step=0.1
        )
        seed = gradio.Number(label="Seed", value=0, precision=0)
    button = gradio.Button("Generate", variant="primary")
    inputs = [prompt, seconds, steps, scale, seed]
    _on_click(gradio, [button.click, prompt.submit], trial.generate, inputs)


def _file_page(gradio: Any, trial: Trial) -> None:
    options = trial.model.recipe.evaluate
    file = gradio.Audio(label="File", type="filepath", sources=["upload"], buttons=[])
    with gradio.Row():
        cutoff = gradio.Number(label="Cutoff in Hz (0: measured in the file)", value=0)
        steps = _slider(gradio, "Steps", SAMPLER_STEPS.low, MOST_STEPS, options.steps, step=1)
        seed = gradio.Number(label="Seed", value=0, precision=0)
    button = gradio.Button("Restore", variant="primary")
    _on_click(gradio, [button.click], trial.restore, [file, cutoff, steps, seed])


def _slider(gradio: Any, label: str, low: float, high: float, value: float, *, step: float) -> Any:
    return gradio.Slider(low, max(high, value), value=value, step=step, label=label)


def _on_click(
    gradio: Any,
    events: Sequence[Callable[..., Any]],
    work: Callable[..., tuple[str, str]],
    inputs: list[Any],
) -> None:
    """Where the sound and the notes go; errors that the user can act on are shown as such."""
    sound = gradio.Audio(
        label="Result",
        type="filepath",
        interactive=False,
        buttons=["download"],  # without the one that would publish it
    )
    notes = gradio.Markdown()

    def run(*values: Any) -> tuple[str, str]:
        try:
            path, text = work(*values)
        except StageError as error:
            text = escape(error_text(error))
            raise gradio.Error(text, duration=None, print_exception=False) from error
        return path, escape(text)

    for event in events:
        event(run, inputs=inputs, outputs=[sound, notes])


def error_text(error: StageError) -> str:
    """An error in one paragraph."""
    problems = (f"{problem.where}: {problem.what}" for problem in error.problems)
    return ". ".join([error.message, *problems, *([error.hint] if error.hint else [])])


@contextmanager
def serve(page: Any, port: int | None) -> Iterator[str]:
    """Serve a page on this machine and yield its address.

    port: default: the first free one from 7860. Raises StageError.
    """
    gradio = require_gradio()
    theme = gradio.themes.Default(font=FONTS, font_mono=["monospace"])
    try:
        _, address, _ = page.launch(
            server_name=ADDRESS,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            theme=theme,
            footer_links=[],
        )
    except OSError as error:
        raise StageError(
            f"cannot serve on {ADDRESS}: {error}",
            hint="choose another port with --port, or leave it out",
            exit_code=EXIT_FAILED,
        ) from error
    try:
        yield address
    finally:
        page.close(verbose=False)
