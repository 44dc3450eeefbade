"""How documents of scores and their rows are named in messages and tables."""

from __future__ import annotations

from stagecli.files import JsonRow


def document_title(document: JsonRow) -> str:
    """Run and checkpoint, or the generated folder."""
    name = document.get("run") or document["generated"]
    return f"{name} {document.get('checkpoint', '')}".rstrip()


def row_title(document: JsonRow, row: JsonRow) -> str:
    """The document's title, then the row's system, cutoff and group."""
    parts = [document_title(document), row["system"]]
    if "cutoff" in row:
        parts.append(f"cutoff {row['cutoff']:g} Hz")
    if "group" in row:
        parts.append(row["group"])
    return ", ".join(parts)
