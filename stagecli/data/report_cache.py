"""The report on a large data set, computed once: its facts depend on the clips alone. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stagecli.data import snapshot
from stagecli.data.cache import FeatureCache
from stagecli.data.clip_table import ClipView
from stagecli.data.report import DataReport, Expectations
from stagecli.data.rows import Split
from stagecli.data.source import Source
from stagecli.files import finite, parse_json

VERSION = 1  # raise it when a report on the same clips changes


def report_once(
    source: Source,
    splits: Sequence[Split],
    expected: Expectations,
    *,
    cut: str,
    cache_dir: Path,
    compute: Callable[[], DataReport],
) -> DataReport:
    """The report that `compute` makes, from the cache where the data set is large and unchanged.

    cut: which text encoder cuts the captions.
    """
    views = [source.clips(split) for split in splits]
    tables = [view.table for view in views if isinstance(view, ClipView)]
    if len(tables) < len(views) or len(tables[0]) < snapshot.SMALLEST:
        return compute()
    config = {
        "version": VERSION,
        "clips": tables[0].identity(),
        "splits": list(splits),
        "left_out": len(source.skipped),
        "passed_over": source.passed_over,
        "cut": cut,
        "sample_rate": expected.sample_rate,
        "restores": expected.restores,
        "narrow": expected.narrow,
        "max_length": expected.max_length,
    }
    cache = FeatureCache(cache_dir, "report", config)
    content = cache.get("report")
    if content is not None:
        return DataReport(**parse_json(content.tobytes()))
    report = compute()
    if not report.refused:
        document = {"facts": report.facts, "doubts": report.doubts, "twins": report.twins}
        cache.put("report", np.frombuffer(json.dumps(finite(document)).encode(), np.uint8))
    return report
