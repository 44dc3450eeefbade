"""A run in a few plain answers: what was trained, how far, whether it still learns, how good it is.

Every answer rests on numbers of the summary, and says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stagecli.files import JsonRow, number
from stagecli.report.evaluation import evaluation_label
from stagecli.report.formats import duration, percent, significant, step_of
from stagecli.report.sentences import UNMOVED

__all__ = ["headline"]

TASKS = {"t2a": "text-to-audio", "sr": "audio super-resolution"}
STATUS = {
    "finished": "finished",
    "running": "still running",
    "created": "not started yet",
    "interrupted": "interrupted; the same train command goes on",
    "failed": "failed",
}
SCORES_NAMED = 3  # of one kind ...
SCORES_FIRST = ("kad", "prompt_accuracy", "lsd")  # ... these before others
MODEL_SYSTEMS = ("samples", "model")  # rows of a document of scores that are the model's


def headline(summary: JsonRow) -> list[tuple[str, str]]:
    """Questions and answers about a run, from `summary.summarize_run`."""
    return [
        ("What was trained", _what(summary)),
        ("How far", _how_far(summary)),
        ("Is it still learning?", still_learning(summary)),
        ("Best scores", "; ".join(_scores(summary)) or "none yet: nothing has been measured"),
    ]


def _what(summary: JsonRow) -> str:
    task = TASKS.get(str(summary["task"]), "a model of an unknown task")
    parameters = number(summary["parameters"])
    size = "" if parameters is None else f", {significant(parameters / 1e6, 3)} million parameters"
    return f"{task}{size}"


def _how_far(summary: JsonRow) -> str:
    steps = f"step {step_of(summary['step'], summary['steps'])}"
    spent = summary["time"]["spent_s"]
    time = "" if spent is None else f", {duration(spent)} of training"
    status = STATUS.get(summary["status"], summary["status"])
    message = f" ({summary['message']})" if summary["message"] else ""
    left = summary["time"]["eta_s"]
    rest = f", about {duration(left)} left" if left else ""
    return f"{steps}{time}: {status}{message}{rest}"


def still_learning(summary: JsonRow) -> str:
    """Yes or no, by the first of these that can tell: the score that chooses the best checkpoint,
    the validation loss, the training loss.
    """
    evaluation = summary["evaluation"]
    if evaluation and evaluation["plateau"]:
        return _by_plateau(evaluation_label(evaluation["chosen"]), evaluation["plateau"])
    validation = summary["validation"]
    quarter = validation and validation["last_quarter"]
    if quarter:
        return _by_trend("validation loss", quarter, "the last quarter of the run")
    trend = summary["loss"]["trend"]
    if trend:
        answer = _by_trend("training loss", trend, "the last third of the run")
        return f"{answer}; too few validation losses to tell by them"
    return "too early to tell: too few losses have been measured"


def _by_plateau(name: str, plateau: JsonRow) -> str:
    if plateau["worse"]:
        best = plateau["best_step"]
        return f"no: {name} has not improved since step {best:,}, and is now worse than there"
    since = plateau["since_step"]
    return f"no: {name} has not improved beyond its noise since step {since:,}"


def _by_trend(name: str, trend: JsonRow, span: str) -> str:
    """direction: None where too few values were measured for a test."""
    direction = trend["direction"]
    if direction == "flat" or abs(trend["change"]) < UNMOVED:
        return f"hardly: {name} did not move beyond its noise over {span}"
    fell = trend["change"] < 0
    moved = f"{name} {'fell' if fell else 'rose'} by {percent(trend['change'])} over {span}"
    if direction is None:
        answer = "probably" if fell else "probably not"
        return f"{answer}: {moved}, by few measurements"
    return f"yes: {moved}" if fell else f"no, it is getting worse: {moved}"


def _scores(summary: JsonRow) -> Iterable[str]:
    """Validation loss, scores while training, and those of the newest `evaluate`."""
    validation = summary["validation"]
    if validation:
        step = validation["best_step"]
        yield f"validation loss {significant(validation['best'])} at step {step:,}"
    evaluation = summary["evaluation"]
    for name in list(evaluation["metrics"] if evaluation else ())[:SCORES_NAMED]:
        metric = evaluation["metrics"][name]
        yield (
            f"{evaluation_label(name)} {significant(metric['best'])} at step"
            f" {metric['best_step']:,} ({metric['better']} is better)"
        )
    scores = _newest_evaluate(summary["evals"])
    if scores:
        yield scores


def _newest_evaluate(evals: Sequence[JsonRow]) -> str:
    """The model's first row in the newest document of scores; empty if it has none."""
    for entry in reversed(evals):
        document = entry["document"]
        rows = document.get("rows") if isinstance(document, dict) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and row.get("system") in MODEL_SYSTEMS:
                return _evaluate_row(document, row)
    return ""


def _evaluate_row(document: JsonRow, row: JsonRow) -> str:
    metrics = row.get("metrics")
    values = {
        name: value
        for name, metric in (metrics.items() if isinstance(metrics, dict) else ())
        if isinstance(metric, dict) and (value := number(metric.get("value"))) is not None
    }
    if not values:
        return ""
    names = sorted(values, key=lambda name: name.partition(":")[0] not in SCORES_FIRST)
    cutoff = number(row.get("cutoff"))
    where = "" if cutoff is None else f" at {cutoff:,.0f} Hz"
    scores = (f"{name} {significant(values[name])}" for name in names[:SCORES_NAMED])
    return f"evaluate on {document.get('split', 'its clips')}{where}: {', '.join(scores)}"
