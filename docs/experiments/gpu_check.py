"""The whole check of a GPU in one call; one table, printed last.

    python docs/experiments/gpu_check.py --json check.json          # 3 minutes on an H100
    python docs/experiments/gpu_check.py --json check.json --full   # 6 minutes

Needs no network, and no data but those of `synth` (or of ${STAGECLI_DATA}, where it is set). Each
check stands alone: an error is a row, and what there is no time for is a row that says so. Without
a GPU it runs on the CPU, with small sizes, and says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_large import ceilings, large_checks
from gpu_rows import CUDA, DEVICE, Place, Row, print_table, short
from step_cost import GUIDANCE, STRUCTURE, TIMESTEPS
from timed_session import Session

from stagecli.model.ema import EMA
from stagecli.train import trainer as trainer_module

SMALL = ("studies/digits", "fsdd-t2a")
STEPS = 50 if CUDA else 4  # of a measurement
ROUNDS = 2 if CUDA else 1


# -- is it right? ----------------------------------------------------------------------------------


def check_skipping(_: Place) -> Iterator[Row]:
    """The number on the device that keeps a step from changing anything."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(67, 129), torch.nn.Linear(129, 3)).to(DEVICE)
    skip = torch.zeros((), device=DEVICE)
    plain = EMA(network, 0.9)
    guarded = EMA(network, 0.9)
    for _ in range(5):
        for p in network.parameters():
            torch.nn.init.normal_(p)
        plain.update(network)
        guarded.update(network, skip)
    errors = [
        float((guarded.weights[n] - v).abs().max() / v.abs().max())
        for n, v in plain.weights.items()
    ]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=True)
    optimizer.found_inf = skip  # type: ignore[attr-defined]

    def step() -> None:
        network(torch.randn(4, 67, device=DEVICE)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        guarded.update(network, skip)

    def values() -> list[torch.Tensor]:
        moments = [v for state in optimizer.state.values() for v in state.values()]
        return [v.clone() for v in (*network.parameters(), *guarded.weights.values(), *moments)]

    step()
    skip.fill_(1)
    before = values()
    step()
    same = all(torch.equal(a, b) for a, b in zip(before, values(), strict=True))
    skip.fill_(0)
    step()
    moved = not torch.equal(before[0], next(iter(network.parameters())))
    words = f"{same}, and the next one moves: {moved}"
    yield Row("EMA by the fused kernel: error", f"{max(errors):.1e}", "< 1e-6", max(errors) < 1e-6)
    yield Row("a skipped step changes nothing", words, "True", same and moved)


def check_failure(place: Place) -> Iterator[Row]:
    """A step that is not finite is noticed in the interval, and undone."""
    session = place.session(SMALL[0], "train.log_every=10")
    flow_loss = trainer_module.flow_loss
    calls = 0

    def failing(*args: object, **keys: object) -> object:
        nonlocal calls
        calls += 1
        result = flow_loss(*args, **keys)  # type: ignore[arg-type]
        if calls == 7:
            result.loss_B = result.loss_B * math.nan
        return result

    trainer_module.flow_loss = failing  # type: ignore[assignment]
    message = "no error"
    try:
        session.take(20)
    except Exception as error:
        message = str(error).splitlines()[0]
    finally:
        trainer_module.flow_loss = flow_loss
    state = session.trainer.state
    finite = all(bool(torch.isfinite(p).all()) for p in state.network.parameters())
    words = f"{message[:60]}; state of step {state.step}, weights finite: {finite}"
    ok = "step 7" in message and state.step == 6 and finite
    yield Row("NaN at step 7 of 10", words, "step 7, state 6", ok)
    session.free()


def check_waits(place: Place) -> Iterator[Row]:
    """Places where the host waits for the device, in 20 steps within a log interval."""
    if not CUDA:
        yield Row("waits of the host per step", "no GPU")
        return
    for mode in ("none", "step"):
        extra = (f"train.compile={mode}", "train.log_every=500", "stage.regime.every=500")
        session = place.session(SMALL[0], *extra, compile_blocks=False)
        session.take(5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                session.take(20, warm=1)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = [w for w in caught if "synchroniz" in str(w.message)]
        places = {f"{Path(w.filename).name}:{w.lineno}" for w in waits}
        text = f"{len(waits) / 21:.2f} ({', '.join(sorted(places)[:6])})"
        yield Row(f"waits of the host per step, {mode}", text, "< 0.2", len(waits) < 4)
        session.free()


# -- how fast is it? -------------------------------------------------------------------------------


def check_precisions(place: Place) -> Iterator[Row]:
    """Step time and loss of the same steps in each precision."""
    for precision in ("fp32", "bf16", "fp16") if CUDA else ("fp32",):
        session = place.session(SMALL[0], f"train.precision={precision}", "train.log_every=10000")
        seconds = session.take(STEPS)[0]
        loss = session.loss()
        words = f"{1e3 * seconds:.1f} ms a step, loss {loss:.4f}"
        yield Row(f"digits, {precision}", words, "finite", math.isfinite(loss))
        session.free()


def check_graphs(place: Place) -> Iterator[Row]:
    """Step time of the small models, plain and with CUDA graphs of plain blocks."""
    for name in SMALL:
        yield step_row(place, name, "none")
        if CUDA:
            yield step_row(place, name, "step", compile_blocks=False)


def check_compiled(place: Place) -> Iterator[Row]:
    """Step time of the small models with compiled blocks, with CUDA graphs and without."""
    for name in SMALL if CUDA else ():
        for mode in ("step", "blocks"):
            yield step_row(place, name, mode)


def step_row(place: Place, name: str, mode: str, *, compile_blocks: bool = True) -> Row:
    label = f"{name}, {mode}" if compile_blocks else f"{name}, {mode} of plain blocks"
    if time.monotonic() > place.end:
        return Row(label, "no time left")
    began = time.perf_counter()
    try:
        session = place.session(name, f"train.compile={mode}", compile_blocks=compile_blocks)
        session.take(1, warm=1)
        first = time.perf_counter() - began
        seconds = session.take(STEPS, warm=8)[0]  # texts of another length compile once more
        session.free()
    except Exception as error:
        return Row(label, short(error), "runs", False)
    aim = "<= 10 ms" if mode == "step" else ""
    value = f"{1e3 * seconds:.1f} ms a step, {first:.0f} s until the first"
    return Row(label, value, aim, seconds <= 0.01 if aim else None)


REGIME = ("stage.regime.source=linear",)
ENDED = ("stage.guidance.schedule=stop", "stage.guidance.end=0.005")
VARIANTS = {
    "static": (),
    "regime": REGIME,
    "guidance": GUIDANCE,
    "guidance ended": ENDED,
    "timesteps": (*REGIME, *TIMESTEPS),
    "structure": (*REGIME, *STRUCTURE),
    "all": (*REGIME, *GUIDANCE, *TIMESTEPS, *STRUCTURE),
}


def check_mechanisms(place: Place) -> Iterator[Row]:
    """Cost of each mechanism over static, probes included; variants take turns."""
    name = "fsdd-t2a-static"
    labels = VARIANTS if place.full else ("static", "regime", "guidance", "all")
    sessions = {label: place.session(name, *VARIANTS[label]) for label in labels}
    for session in sessions.values():
        session.take(2, warm=4)
    times: dict[str, list[float]] = {label: [] for label in sessions}
    for _ in range(ROUNDS):
        for label, session in sessions.items():
            times[label].append(session.take(STEPS // 2)[0])
    for label, session in sessions.items():
        step = statistics.median(times[label])
        over = step / statistics.median(times["static"]) - 1
        aim = {"all": "<= 8 %", "guidance ended": "<= 1 %"}.get(label, "")
        ok = over <= float(aim.split()[1]) / 100 if aim else None
        yield Row(f"{name}, {label}", f"{1e3 * step:.1f} ms a step, {100 * over:+.1f} %", aim, ok)
        if label == "regime":
            yield probe_row(session, step)
        session.free()


def probe_row(session: Session, step: float) -> Row:
    """A probe, and what it takes of the training at the default interval."""
    seconds = session.probe_seconds()
    probes = session.trainer.state.probes
    assert probes is not None
    every = probes.settings.every
    share = seconds / (every * step)
    text = f"{1e3 * seconds:.0f} ms every {every} steps, {100 * share:.1f} %"
    return Row("a probe", text, "<= 3 %", share <= 0.03)


# -- all of it -------------------------------------------------------------------------------------


def check_ceilings(_: Place) -> Iterator[Row]:
    """What the device can do at most."""
    product, copy = ceilings(DEVICE)
    yield Row("matrix product, bf16", f"{product / 1e12:.1f} TFLOP/s")
    yield Row("copy", f"{copy / 1e12:.2f} TB/s")


def check_large(_: Place) -> Iterator[Row]:
    """The size L at 10 s of 44.1 kHz latents: share of the matrix product, memory, parts."""
    for check, value, aim, ok in large_checks(DEVICE, compile_blocks=False):
        yield Row(check, value, aim, ok)


def check_large_compiled(_: Place) -> Iterator[Row]:
    """The same with compiled blocks."""
    for check, value, aim, ok in large_checks(DEVICE, compile_blocks=True) if CUDA else ():
        yield Row(check, value, aim, ok)


# The quick ones first.
CHECKS: tuple[Callable[[Place], Iterator[Row]], ...] = (
    check_skipping,
    check_failure,
    check_waits,
    check_graphs,
    check_ceilings,
    check_large,
    check_mechanisms,
    check_large_compiled,
    check_compiled,
    check_precisions,
)


def run_checks(place: Place, path: Path | None) -> list[Row]:
    """The rows of all checks that begin in time; written to `path` after each one."""
    rows: list[Row] = []
    for check in CHECKS:
        name = check.__name__.removeprefix("check_")
        if time.monotonic() > place.end:
            rows.append(Row(name, "no time left"))
            continue
        began = time.monotonic()
        try:
            for row in check(place):
                row.seconds = time.monotonic() - began
                print(f"[{row.seconds:.0f} s] {row.check}: {row.value}", flush=True)
                rows.append(row)
        except Exception as error:
            traceback.print_exc()
            rows.append(Row(name, short(error), "runs", False, time.monotonic() - began))
        if path is not None:
            path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--full", action="store_true", help="6 minutes instead of 3")
    options = parser.parse_args()
    tiny = (
        "data.workers=0",
        "train.batch_size=4",
        "model.width=32",
        "model.heads=2",
        "train.precision=fp32",
    )
    data: tuple[str, ...] = ("data.workers=4",) if CUDA else tiny
    if not os.environ.get("STAGECLI_DATA"):
        os.environ["STAGECLI_DATA"] = "no-data"
        data = (*data, "data.source=synth")
    with tempfile.TemporaryDirectory() as folder:
        end = time.monotonic() + (300 if options.full else 130)
        place = Place(Path(folder), data, options.full, end)
        rows = run_checks(place, options.json)
    print_table(rows)


if __name__ == "__main__":
    main()
