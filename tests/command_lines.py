"""Runs command lines one after the other in this process, which imports torch and core only once.

Standard input: a JSON list of {"program", "arguments", "environment"}; a program is a module, a
.py file, or "code" with the text of a program as its argument. Standard output: a JSON list of
{"status", "out", "err"}.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from typing import Any


def run(program: str, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Exit status and output of one command line; an exception is a traceback with status 1."""
    out, err = io.StringIO(), io.StringIO()
    before = dict(os.environ)
    os.environ.update(environment)
    sys.argv = [program, *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = _status(program, arguments)
    os.environ.clear()
    os.environ.update(before)
    _leave_groups()
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def _status(program: str, arguments: list[str]) -> int:
    try:
        if program == "code":
            exec(arguments[0], {})
        elif program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _leave_groups() -> None:
    """Core's groups, which a program leaves to the end of its process."""
    if "megatron.core.parallel_state" in sys.modules:
        sys.modules["megatron.core.parallel_state"].destroy_model_parallel()


if __name__ == "__main__":
    print(json.dumps([run(**case) for case in json.load(sys.stdin)]))
