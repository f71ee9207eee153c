"""Logs and answers as a run and an evaluation write them, made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def line(step: int, loss: float | None = None, **more: Any) -> dict[str, Any]:
    """One log interval."""
    rates = {"tokens/s": 900.0, "samples/s": 3.0, "s/step": 2.0, "skipped steps": 0}
    return {"iteration": step, "lm loss": 3.0 / step if loss is None else loss, **rates, **more}


def start(step: int, **more: Any) -> dict[str, Any]:
    """The line that a start writes."""
    environment = {"torch": "2.13.0", "device": "CPU", "host": "first"}
    told = {"time": "2026-01-02T03:04:05+00:00", "settings": "0" * 64, "environment": environment}
    return {"event": "start", "iteration": step, **told, **more}


def answer(index: int, kind: str, text: str, truth: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"q{index}",
        "kind": kind,
        "image": "images/a.png",
        "question": "<image>\nIs a < b?",
        "answer": text,
        "truth": truth,
        "truths": [truth],
        **more,
    }
