"""What lies beside a run's checkpoints, for conversion and evaluation to understand them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from megatron_llava.convert.hf_start import write_hf_beside
from megatron_llava.convert.root_files import CONVERSION_FILE, HF_FOLDER
from megatron_llava.parallel.checkpoint_directory import HF, SIDE_FILES, Iteration


def write_side_files(
    source: tuple[str, Iteration] | None, root: str, texts: Mapping[str, str]
) -> None:
    """Put beside a run's checkpoints what conversion and evaluation need to understand them.

    Each file is complete under its name or not there; of ``source`` one that is there already is
    left alone.

    Args:
        source: what the run started from, whose Hugging Face files and untrained tensors travel
            along; None for a run from random weights.
        root: what --save names.
        texts: files of the run by their names.
    """
    for name, text in texts.items():
        target = Path(root) / name
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            with _complete_or_absent(target) as written:
                written.write_text(text, encoding="utf-8")
    if source is None:
        return
    if source[1] != HF:
        _copy_missing(Path(source[0]), Path(root))
    elif not (Path(root) / HF_FOLDER / CONVERSION_FILE).exists():  # which comes last
        with _converted(source[0], Path(root)) as folder:
            _copy_missing(folder, Path(root))


def _copy_missing(source: Path, root: Path) -> None:
    for name in SIDE_FILES:
        origin = source / name
        paths = origin.rglob("*") if origin.is_dir() else [origin]
        for path in sorted(paths, key=lambda path: path.name == CONVERSION_FILE):
            copy = root / path.relative_to(source)
            if path.is_file() and not copy.exists():
                with _complete_or_absent(copy) as written:
                    shutil.copy2(path, written)


@contextmanager
def _converted(hf_folder: str, root: Path) -> Iterator[Path]:
    """A folder with what a conversion of ``hf_folder`` puts beside the weights, for a while."""
    made = root / "hf.partial"
    shutil.rmtree(made, ignore_errors=True)  # of a run that was killed
    made.mkdir(parents=True)
    try:
        write_hf_beside(hf_folder, made)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _complete_or_absent(target: Path) -> Iterator[Path]:
    """A name to write to, which becomes ``target`` if the block ends well, else vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = target.with_name(target.name + ".partial")
    try:
        yield written
        os.replace(written, target)
    finally:
        written.unlink(missing_ok=True)
