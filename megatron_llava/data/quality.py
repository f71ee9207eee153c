"""Which readable records are worth training on: thresholds, and a function of the user's own.

What a filter leaves out is no bad record: it is counted by its reason and not named. Videos are
judged by their text alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image

from megatron_llava.config.user_function import load_function
from megatron_llava.data.records import Record
from megatron_llava.data.visuals import ReadRecord
from megatron_llava.text.constants import IMAGE_PLACEHOLDER
from megatron_llava.vision.tiles import open_image

KeepRecord = Callable[[Record], bool]
"""True to keep a checked record; runs in every worker process."""


@dataclass(frozen=True, kw_only=True)
class QualityFilters:
    """Thresholds, of which 0 leaves everything in. The limit itself is kept.

    Attributes:
        min_text_length: characters of all answers together, white space at their ends not counted.
        min_image_side: pixels of an image's shorter side.
        max_image_aspect_ratio: longer side over shorter side.
        min_image_entropy: bits of the histogram of grey values, 0 for one colour to 8.
        min_image_sharpness: variance of the Laplacian of grey values, which blur makes small
            (Pech-Pacheco et al. 2000); it depends on an image's size.
        keep_record: `package.module:function`, a `KeepRecord`.
    """

    min_text_length: int = 0
    min_image_side: int = 0
    max_image_aspect_ratio: float = 0.0
    min_image_entropy: float = 0.0
    min_image_sharpness: float = 0.0
    keep_record: str | None = None

    def __post_init__(self) -> None:
        for name, value in self._thresholds().items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{_flag(name)} {value}: expected 0 or more")
        if 0 < self.max_image_aspect_ratio < 1:
            raise ValueError(
                f"{_flag('max_image_aspect_ratio')} {self.max_image_aspect_ratio}: longer over "
                "shorter side is never below 1"
            )

    def _thresholds(self) -> dict[str, float]:
        return {
            f.name: getattr(self, f.name) for f in fields(QualityFilters) if f.name != "keep_record"
        }


def add_quality_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of QualityFilters."""
    helps = {
        "min_text_length": (int, "leave out records whose answers have fewer characters"),
        "min_image_side": (int, "... with an image whose shorter side has fewer pixels"),
        "max_image_aspect_ratio": (float, "... whose longer side is more times the shorter one"),
        "min_image_entropy": (float, "... whose grey values have fewer bits, of 8"),
        "min_image_sharpness": (float, "... whose Laplacian varies less: blurred"),
        "keep_record": (str, "MODULE:FUNCTION that is given a record and says whether to keep it"),
    }
    for name, (kind, text) in helps.items():
        default = getattr(QualityFilters, name)
        parser.add_argument(_flag(name), type=kind, default=default, help=text)


class Quality:
    """The filters with the user's function loaded.

    Raises:
        ValueError: there is no such function.
    """

    def __init__(self, filters: QualityFilters) -> None:
        self._filters = filters
        name = filters.keep_record
        self._keep = None if name is None else load_function("--keep-record", name)
        self._pixels = filters.min_image_entropy > 0 or filters.min_image_sharpness > 0

    def reason_against(self, record: Record, read: ReadRecord) -> str | None:
        """The flag by which a record is left out, None to keep it.

        Raises:
            ValueError: an image cannot be decoded, or the user's function failed; one line that
                starts with the record's source.
        """
        filters = self._filters
        answers = "".join(turn.text.strip() for turn in record.turns if turn.role == "gpt")
        if len(answers.replace(IMAGE_PLACEHOLDER, "")) < filters.min_text_length:
            return _flag("min_text_length")
        images = [
            (data, size) for data, size in zip(read.items, read.sizes, strict=True) if size[1]
        ]
        for _, size in images:
            if min(size) < filters.min_image_side:
                return _flag("min_image_side")
            if 0 < filters.max_image_aspect_ratio < max(size) / min(size):
                return _flag("max_image_aspect_ratio")
        if self._pixels:
            for data, _ in images:
                if name := self._low(open_image(data, record.source)):
                    return _flag(name)
        return _flag("keep_record") if self._unwanted(record) else None

    def _low(self, image: Image.Image) -> str | None:
        grey = image.convert("L")
        if grey.entropy() < self._filters.min_image_entropy:
            return "min_image_entropy"
        least = self._filters.min_image_sharpness
        if least and sharpness(grey) < least:
            return "min_image_sharpness"
        return None

    def _unwanted(self, record: Record) -> bool:
        if self._keep is None:
            return False
        try:
            answer = self._keep(record)
        except Exception as error:  # the user's code
            raise ValueError(
                f"{record.source}: --keep-record {self._filters.keep_record} failed: "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if not isinstance(answer, bool):
            raise ValueError(
                f"{record.source}: --keep-record {self._filters.keep_record} returned {answer!r}, "
                "expected True or False"
            )
        return not answer


def sharpness(grey: Image.Image) -> float:
    """Variance of the Laplacian (four neighbours, borders left out) of a grey image.

    0 for an image without an inner pixel.
    """
    x_HW = np.asarray(grey, dtype=np.float32)
    if min(x_HW.shape) < 3:
        return 0.0
    inner = x_HW[1:-1, 1:-1]
    around = x_HW[:-2, 1:-1] + x_HW[2:, 1:-1] + x_HW[1:-1, :-2] + x_HW[1:-1, 2:]
    return float((around - 4 * inner).var(dtype=np.float64))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
