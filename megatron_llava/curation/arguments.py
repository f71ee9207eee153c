"""The flags that tools share which read records and write those that they keep."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class KeptRecordsSettings:
    """What these flags say, under their names."""

    input: Path
    data_root: Path | None = None
    seed: int = 0
    output: Path
    overwrite: bool = False


def add_records(parser: argparse.ArgumentParser) -> None:
    """Add ``--input`` and ``--data-root``."""
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        help="records: .json, .jsonl, {a,b}, {00..99} or * in the name, or a .yaml mixture of them",
    )
    parser.add_argument(
        "--data-root", type=Path, help="relative paths in a mixture are relative to it"
    )


def add_kept(
    parser: argparse.ArgumentParser,
    seed_of: str,
    output: str = "the output",
    written: str = "the records that are kept",
) -> None:
    """Add ``--seed``, ``--output`` and ``--overwrite``.

    Args:
        seed_of: what the seed decides.
        output: what ``--overwrite`` replaces.
        written: what ``--output`` gets.
    """
    parser.add_argument("--seed", type=int, default=0, help=f"of {seed_of} (default: 0)")
    parser.add_argument("--output", type=Path, required=True, help=f"{written}, a .jsonl file")
    parser.add_argument("--overwrite", action="store_true", help=f"replace {output}")
