"""The regime of a run as short texts for tables: facts, the slope of Dn, and its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagecli.errors import counted
from stagecli.files import JsonRow, number
from stagecli.report.formats import ascii_text, bar, duration, significant
from stagecli.stage.regime_alarm import NEEDED
from stagecli.stage.regime_progress import SPOKEN
from stagecli.stage.regime_variable import REFINEMENT

FACTS = (
    "stage",
    "r",
    "r now",
    "Dn",
    "D",
    "scale of D",
    "slope of Dn",
    "source of r",
    "monitor",
    "probes",
    "probe time",
)
LEVEL_COLUMNS = ("t", "Dn", "made", "to come", "r")
BAR_WIDTH = 12


def legend(reference: str) -> tuple[str, ...]:
    """The words of the regime, one line each; reference: what Dn = 1 stands for."""
    return (
        "r: share of the semantic progress within the budget that has been made; r now: the"
        " present estimate, while r never falls",
        f"Dn: distance of predictions to their targets (0: the codec's own error, 1: {reference});"
        " D: the same before scaling",
        f"stage: waiting for {SPOKEN} probes, then acquisition, and refinement once r is at least"
        f" {REFINEMENT} for {NEEDED} probes in a row",
        "probe: a measurement of D on the same clips and noise each time, by an encoder, the"
        " monitor",
        "t: noise level (1 is noise); made, to come: fall of Dn so far, and until the last step at"
        " the present slope",
    )


def legend_in_short(reference: str) -> tuple[str, ...]:
    """The words of the live view, in lines that 76 columns hold."""
    return (
        f"r: progress made; Dn: distance, 0 the codec's own error, 1 {reference}",
        f"acquisition: r is below {REFINEMENT}; then refinement; t: noise level, 1 is noise",
        "to come: fall of Dn to the last step; probe: same clips and noise each time",
    )


def stage_text(row: Mapping[str, Any]) -> str:
    """The stage of a probe's row or a regime document, in words that never contradict its r."""
    stage = str(row.get("stage") or "unknown stage")
    r = number(row.get("r"))
    if stage == "waiting":
        return "waiting for probes"
    if stage == "acquisition" and r is not None and r >= REFINEMENT:
        return f"turning to refinement ({NEEDED} probes in a row decide)"
    return stage


def regime_facts(regime: JsonRow | None, ascii_only: bool = False) -> dict[str, str]:
    """The regime as label -> text; every label is there, with `-` for what is not known."""
    if regime is None:
        return dict.fromkeys(FACTS, "-")
    level = regime["r"]
    now = regime["r_now"]
    values = (
        _stage(regime),
        "-" if level is None else f"{level:.3f} {bar(level, BAR_WIDTH, ascii_only)}",
        "-" if now is None else f"{now:.3f}",
        _distance(regime),
        "-" if regime["D"] is None else f"{regime['D']:.3f}",
        _scale(regime),
        rate_text(regime["rate"]),
        _source(regime),
        regime["monitor"] or "-",
        _probes(regime),
        cost_text(regime["seconds"], regime["share"]),
    )
    return {
        label: ascii_text(value, ascii_only) for label, value in zip(FACTS, values, strict=True)
    }


def _stage(regime: JsonRow) -> str:
    text = stage_text(regime) if regime["stage"] else "unknown"
    if len(regime["stages"]) > 1:
        text += f" since step {regime['stages'][-1]['from_step']:,}"
    return ", ".join([text, *state_flags(regime)])


def state_flags(row: Mapping[str, Any]) -> list[str]:
    """What keeps r from following the measurement, of a probe's row or a regime document."""
    flags = []
    if row.get("frozen") is True:
        flags.append("r is frozen because D is rising")
    return flags


def _source(regime: JsonRow) -> str:
    source = regime["source"] or "-"
    return f"{source}, by the rule of an earlier version" if regime["old_rule"] else source


def level_rows(regime: JsonRow | None) -> list[list[str]]:
    """Dn, progress made and to come, and r of each noise level as text, in `LEVEL_COLUMNS`.

    Empty where progress has not been measured.
    """
    if regime is None:
        return []
    return [
        [t, *(_value(level[name]) for name in ("Dn", "made", "to_come", "r"))]
        for t, level in regime["by_t"].items()
        if level["made"] is not None
    ]


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _distance(regime: JsonRow) -> str:
    if regime["Dn"] is None:
        return "-"
    text = f"{regime['Dn']:.3f}"
    if regime["last_step_with_number"] < regime["last_step"]:
        text += f" at step {regime['last_step_with_number']:,}; later probes have no value"
    return text


def _scale(regime: JsonRow) -> str:
    """D where Dn is 0 and where it is 1."""
    ends = []
    if regime["d_ceiling"] is not None:
        ends.append(f"codec {regime['d_ceiling']:.3g}")
    if regime["d_ref"] is not None:
        ends.append(f"{regime['reference']} {regime['d_ref']:.3g}")
    return ", ".join(ends) or "-"


def _probes(regime: JsonRow) -> str:
    text = f"{regime['probes']:,}"
    if regime["every"] is not None:
        text += f", every {counted(round(regime['every']), 'step')}"
    if regime["without_number"]:
        text += f", {regime['without_number']} without a value"
    return text


def rate_text(rate: JsonRow | None) -> str:
    """`-0.0042 ± 0.0008 per 1,000 steps`, from `regime.dn_rate`; `-` for None."""
    if rate is None:
        return "-"
    return f"{rate['change']:+.2g} ± {rate['error']:.1g} per {counted(rate['per_steps'], 'step')}"


def cost_text(seconds: float | None, share: float | None) -> str:
    """`3m 10s, 2.1 % of training`."""
    if share is None:
        return duration(seconds)
    return f"{duration(seconds)}, {significant(100 * share, 2)} % of training"


def regime_timeline(events: Sequence[JsonRow]) -> list[JsonRow]:
    """Events as {"step", "change", "reason", "evidence"}; repeats without a change are merged."""
    entries: list[JsonRow] = []
    previous: tuple[Any, Any] | None = None
    for event in events:
        before = event.get("from")
        after = event.get("to")
        unchanged = before == after
        if unchanged and entries and previous == (before, after):
            entries[-1]["times"] += 1
            entries[-1]["to_step"] = event["step"]
            continue
        previous = (before, after)
        entries.append(
            {
                "step": event["step"],
                "to_step": event["step"],
                "times": 1,
                "change": change_text(event),
                "reason": str(event.get("reason") or ""),
                "evidence": evidence_text(event.get("evidence")),
            }
        )
    for entry in entries:
        if entry["times"] > 1:
            entry["change"] += f" ({entry['times']} times, the last at step {entry['to_step']:,})"
    return entries


def change_text(event: Mapping[str, Any]) -> str:
    """`acquisition -> refinement`, `still waiting`, or the state alone if there was none before."""
    before = event.get("from")
    after = event.get("to") or "-"
    if before == after:
        return f"still {after}"
    return f"{before} -> {after}" if before else str(after)


def evidence_text(evidence: Any) -> str:
    """The numbers behind an event: `Dn 0.412, q 0.08 ± 0.03`; anything else is omitted."""
    if not isinstance(evidence, Mapping):
        return ""
    texts = []
    for key, raw in evidence.items():
        value = number(raw)
        if value is None or str(key).endswith("_se"):
            continue
        text = f"{raw:,}" if type(raw) is int else significant(value, 3)
        error = number(evidence.get(f"{key}_se"))
        if error is not None:
            text += f" ± {significant(2 * error, 2)}"
        texts.append(f"{key} {text}")
    return ", ".join(texts)
