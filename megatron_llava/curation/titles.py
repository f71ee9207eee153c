"""Titles of pages with how often they were viewed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from megatron_llava.curation.sorted_counts import SortedCounts
from megatron_llava.curation.text_files import numbered_lines

_NUMBER = re.compile(r"[0-9]{1,18}")


def count_views(files: Sequence[Path], folder: Path, keys_in_memory: int) -> SortedCounts:
    """The views of each title, those of several lines and files added up.

    Args:
        files: lines of a title, a tab, and a whole number, plain or .gz; `_` is read as a space, as
            Wikipedia's own lists write it.

    Raises:
        ValueError: another line.
    """
    views = SortedCounts(folder, keys_in_memory)
    for path in files:
        for where, line in numbered_lines(path):
            title, tab, number = line.partition("\t")
            title = title.replace("_", " ").strip()
            if not tab or not title or not _NUMBER.fullmatch(number.strip()):
                raise ValueError(f"{where}: expected a title, a tab and a number of views")
            views.add_count(title, int(number))
    return views
