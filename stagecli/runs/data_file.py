"""data.json of a run: the report on its data, and the fingerprint that a resume is compared with.

No torch.
"""

from __future__ import annotations

import json
from pathlib import Path

from stagecli.data.fingerprint import Fingerprint, as_json, from_json
from stagecli.data.report import DataReport
from stagecli.errors import Problem, StageError
from stagecli.files import write_json

NAME = "data.json"
SCHEMA = 1


def write_data_file(run_dir: Path, prints: Fingerprint, report: DataReport) -> None:
    """Write data.json. Raises OSError."""
    document = {
        "schema": SCHEMA,
        "report": {**report.facts, "doubts": report.doubts},
        "fingerprint": as_json(prints),
    }
    write_json(run_dir / NAME, document, indent=None)


def read_fingerprint(run_dir: Path) -> Fingerprint | None:
    """The clips that a run was trained on; None where an earlier version did not store them.

    Raises StageError where the file is damaged.
    """
    path = run_dir / NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return from_json(document.get("fingerprint") if isinstance(document, dict) else None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StageError(
            "cannot tell which data the run was trained on",
            problems=[Problem(str(path), f"is damaged: {reason}")],
            hint="if the data are those of the run, go on with --accept-data, "
            "which writes the file again",
        ) from error
