"""The quickstart's last step reads what the steps before it write."""

import importlib.util
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("report_tool", ROOT / "tools" / "report.py")
assert SPEC is not None and SPEC.loader is not None
report_tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(report_tool)

# Prints a call of a step's programs instead of making it.
PRINTED = """
python() { printf '%s\\n' "$@"; }; torchrun() { printf '%s\\n' "$@"; }
output=out train_iters=600
"""


def arguments_of(step: str) -> list[str]:
    """The program and its arguments, as the step of run.sh calls it."""
    script = (ROOT / "examples" / "quickstart" / "run.sh").read_text()
    functions = "\n".join(re.findall(r"^\w+\(\) \{.*?^\}", script, re.DOTALL | re.MULTILINE))
    code = f"set -eu\n{functions}\n{PRINTED}\n{step}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_the_report_is_of_what_was_trained_and_answered(monkeypatch):
    program, *flags = arguments_of("report")
    assert ROOT / program == Path(report_tool.__file__)
    monkeypatch.setattr("sys.argv", [program, *flags])
    given = report_tool.parse_arguments()
    trained = arguments_of("train")
    assert given.load == value(trained, "--save") and given.overwrite
    assert given.log_file == value(trained, "--log-file")
    assert given.data_path == value(trained, "--data-path")
    assert given.data_path == value(arguments_of("preprocess train"), "--output-prefix")
    asked = arguments_of("evaluate answers.jsonl")
    assert given.answers == value(asked, "--output")
    assert str(given.image_folder) == value(asked, "--image-folder")
    # Both evaluations, without and with --blank-images.
    both = arguments_of("evaluate_both")
    outputs = [both[index + 1] for index, flag in enumerate(both) if flag == "--output"]
    assert outputs == [given.answers, given.blank_answers] and both[-1] == "--blank-images"
