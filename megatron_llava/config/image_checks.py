"""What settings of images and of videos are both held to."""

import math

MERGE_TYPES = (
    "flat",
    "spatial",
    "spatial_unpad",
    "flat_nobase",
    "spatial_nobase",
    "spatial_unpad_nobase",
    "spatial_maxpool2x2",
    "spatial_maxpool2x2_nobase",
    "spatial_unpad_maxpool2x2",
    "spatial_unpad_maxpool2x2_nobase",
)
MAXPOOL = "maxpool2x2"


def pooled_side(side: int, stride: int, mode: str) -> int:
    """Tokens per side of a view of ``side`` features; 'average' and 'max' leave out what does not
    divide."""
    return -(-side // stride) if mode == "bilinear" else side // stride


def check_pool_stride(flag: str, stride: int, mode: str) -> None:
    """Refuse a stride that is none, or of more features than a token can name."""
    if stride < 1 or (mode != "bilinear" and stride > 2):
        expected = "1 or 2, as a token has at most 4 features" if stride > 2 else "at least 1"
        raise ValueError(f"{flag} {stride} with --mm-spatial-pool-mode {mode}: expected {expected}")


def check_patch_size(tile_size: int, patch_size: int) -> None:
    """Refuse a view without a whole patch."""
    if not 0 < patch_size <= tile_size:
        raise ValueError(
            f"tile_size {tile_size} and patch_size {patch_size}: "
            "expected 0 < patch_size <= tile_size"
        )


def check_merge_type(merge_type: str) -> None:
    """Refuse what is not in MERGE_TYPES."""
    check_choice("--mm-patch-merge-type", merge_type, MERGE_TYPES)


def check_choice(flag: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a value that is not among the known ones."""
    if value not in known:
        raise ValueError(f"{flag} {value}: expected one of {', '.join(known)}")


def check_channels(field: str, values: tuple[float, ...], minimum: float) -> None:
    if len(values) != 3 or not all(math.isfinite(v) and minimum <= v <= 1.0 for v in values):
        bounds = "above 0 and at most 1" if minimum > 0 else "from 0 to 1"
        raise ValueError(f"{field} {values}: expected three numbers {bounds}")
