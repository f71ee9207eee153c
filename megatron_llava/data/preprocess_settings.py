"""What preprocessing is asked for, and what it says it did."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from megatron_llava.data.quality import QualityFilters
from megatron_llava.data.visual_flags import visual_settings
from megatron_llava.data.visuals import VisualSettings


@dataclass(frozen=True, kw_only=True)
class PreprocessSettings(QualityFilters):
    """The flags of tools/preprocess_data.py, under their names."""

    input: Path
    data_root: Path | None = None
    image_folder: Path | None = None
    video_folder: Path | None = None
    tokenizer_model: str
    tokenizer_type: str = "auto"
    conversation_template: str = "qwen_1_5"
    label_compat: str = "none"
    multi_image_placement: str = "interleaved"
    output_prefix: Path
    workers: int = 1
    max_bad_records: int = 0
    overwrite: bool = False
    verify_images: str = "full"
    video_fps: int = 1
    frames_upbound: int = 32
    force_sample: bool = False
    all_frames: bool = False
    frame_sampler: str | None = None
    add_time_instruction: bool = False
    seed: int = 0
    shard: tuple[int, int] = (0, 1)
    drop_exact_duplicates: bool = False
    split_turns: int = 0

    def given(self) -> dict[str, Any]:
        """What is not left at its default and decides what is stored, as JSON has it."""
        silent = ("workers", "overwrite", "output_prefix")
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in silent}
        defaults = {f.name: f.default for f in fields(self)}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in found.items()
            if value != defaults[name]
        }

    def visuals(self) -> VisualSettings:
        """Those of images and videos. ValueError for a value out of range."""
        return visual_settings(self, verify=self.verify_images == "full")


@dataclass(frozen=True, kw_only=True)
class PreprocessSummary:
    """What a run wrote.

    Attributes:
        tokens: text tokens, without image placeholders.
        left_out: records that a quality filter left out, and samples that a duplicate's flag did,
            by that flag.
        split_records: records that became several samples.
    """

    samples: int
    images: int
    tokens: int
    supervised_tokens: int
    bad_records: int
    left_out: dict[str, int]
    split_records: int
    seconds: float

    def __str__(self) -> str:
        left_out = "".join(f"{n} left out by {flag}, " for flag, n in self.left_out.items())
        split = f"{self.split_records} records split, " if self.split_records else ""
        return (
            f"{self.samples} samples, {self.images} images, {self.tokens} tokens, "
            f"{self.supervised_tokens} supervised tokens, {self.bad_records} bad records, "
            f"{left_out}{split}{self.seconds:.1f} s"
        )
