"""The names of WordNet's synsets, from its database files: wndb(5WN).

NLTK's reader names a synset the same way, but it opens folders below its own data path only, and
takes another WordNet from there as well. WordNet 3.0 has 117,659 synsets of 86,571 names. These cut
at their first dot, 86,554, and the numbers 0 to 99 are MetaCLIP's 86,654.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from megatron_llava.curation.text_files import numbered_lines

_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_MARKER = re.compile(r"\((a|p|ip)\)$")  # the place of an adjective, not part of its word


def synset_names(path: Path) -> Iterator[str]:
    """The first word of every synset in lower case, `_` read as a space; repeated as it is there.

    Args:
        path: a `dict` folder, or a text file of lemmas, one a line, whose case is kept.

    Raises:
        ValueError: neither is there, or a line is none of the format.
    """
    if path.is_file():
        for _, line in numbered_lines(path):
            yield line.strip().replace("_", " ")
        return
    missing = [name for name in _FILES if not (path / name).is_file()]
    if missing:
        raise ValueError(
            f"--wordnet {path}: expected a text file, or WordNet's dict folder; it lacks "
            f"{', '.join(missing)}"
        )
    for name in _FILES:
        for where, line in numbered_lines(path / name):
            if not line.startswith("  "):  # the licence
                yield _first_word(line, where)


def _first_word(line: str, where: str) -> str:
    # synset_offset lex_filenum ss_type w_cnt word lex_id ...
    fields = line.split()
    if len(fields) < 6 or not fields[0].isdecimal() or fields[2] not in ("n", "v", "a", "s", "r"):
        raise ValueError(f"{where}: expected a synset of WordNet's data files")
    return _MARKER.sub("", fields[4]).lower().replace("_", " ")
