r"""Say which sources of mixtures are missing and how many records they should hold; read none.

python tools/check_mixture.py examples/recipes/*.yaml --data-root /data
"""

import argparse
import sys
from pathlib import Path

from megatron_llava.config.tool_exit import interruptible
from megatron_llava.data.mixture_check import check_mixture


def main() -> None:
    parser = argparse.ArgumentParser(
        description="List what YAML mixtures expect and what is missing of it; exits with 1 where "
        "something is."
    )
    add = parser.add_argument
    add("mixtures", nargs="+", type=Path, metavar="MIXTURE", help=".yaml files")
    add("--data-root", type=Path, default=Path(), help="relative paths are relative to it")
    arguments = parser.parse_args()
    root = arguments.data_root
    try:
        checks = {path: check_mixture(path, root) for path in arguments.mixtures}
    except ValueError as error:
        sys.exit(f"error: {error}")
    for path, check in checks.items():
        missing = f"{len(check.missing)} of {check.sources} sources missing below {root.resolve()}"
        print(f"{path}: {check.expected}; {missing}")
        for name in check.missing:
            print(f"  missing: {name}")
    sys.exit(any(check.missing for check in checks.values()))


if __name__ == "__main__":
    with interruptible():
        main()
