"""What decides the visual tokens of a video."""

from dataclasses import dataclass
from functools import lru_cache

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.image_checks import (
    check_choice,
    check_merge_type,
    check_patch_size,
    check_pool_stride,
    pooled_side,
)

POOL_MODES = ("bilinear", "average", "max")
NEWLINE_POSITIONS = ("grid", "frame", "one_token", "no_token")


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """Resolved video settings: hashable, so that a layout can be cached on them.

    A frame is one view. Its projected features are pooled, then the frames follow each other.

    Raises:
        ValueError: one line naming the flag (or the field, where the vision tower decides it).
    """

    tile_size: int
    """S, side of the square view that the vision tower sees, in pixels."""

    patch_size: int
    """p, side of one vision patch in pixels; a frame has (S // p)^2 features."""

    mm_patch_merge_type: str
    """As for images. 'flat' has no newline, and the other types have one only with 'unpad'."""

    mm_spatial_pool_mode: str = "bilinear"
    """'bilinear' gives ceil(u / stride) tokens per side of a frame, 'average' and 'max' give
    u // stride."""

    mm_spatial_pool_stride: int = 2
    """Features per token along each side; 1 does not pool. LLaVA-NeXT always trains with 2."""

    mm_newline_position: str = "grid"
    """Where image_newline stands: 'grid' after each row of a frame, 'frame' after each frame,
    'one_token' at the end of the video, 'no_token' nowhere."""

    image_start_end: bool = False
    """Whether learned start and end rows stand around a video."""

    def __post_init__(self) -> None:
        check_patch_size(self.tile_size, self.patch_size)
        check_merge_type(self.mm_patch_merge_type)
        mode, stride = self.mm_spatial_pool_mode, self.mm_spatial_pool_stride
        check_choice("--mm-spatial-pool-mode", mode, POOL_MODES)
        check_choice("--mm-newline-position", self.mm_newline_position, NEWLINE_POSITIONS)
        check_pool_stride("--mm-spatial-pool-stride", stride, mode)
        if self.pooled_side == 0:
            raise ValueError(
                f"--mm-spatial-pool-stride {stride}: a frame has only {self.patches_per_side} "
                "features per side"
            )
        merge_type = self.mm_patch_merge_type
        if self.newline_position in ("grid", "frame") and "unpad" not in merge_type:
            raise ValueError(
                f"--mm-newline-position {self.mm_newline_position}: --mm-patch-merge-type "
                f"{merge_type} has no newline; set spatial_unpad, or no_token"
            )

    @property
    def patches_per_side(self) -> int:
        """u = S // p."""
        return self.tile_size // self.patch_size

    @property
    def tokens_per_view(self) -> int:
        """T = u^2, features of one frame before pooling."""
        return self.patches_per_side**2

    @property
    def pooled_side(self) -> int:
        """Tokens per side of a frame."""
        stride, mode = self.mm_spatial_pool_stride, self.mm_spatial_pool_mode
        return pooled_side(self.patches_per_side, stride, mode)

    @property
    def newline_position(self) -> str:
        """mm_newline_position as far as the merge type has newlines at all."""
        merge_type = self.mm_patch_merge_type
        if merge_type.startswith("flat"):
            return "no_token"
        if self.mm_newline_position == "one_token" and "unpad" not in merge_type:
            return "no_token"
        return self.mm_newline_position


@lru_cache(maxsize=64)
def video_settings(image: ImageSettings) -> VideoSettings:
    """What decides the tokens of the videos of a run with these image settings.

    Raises:
        ValueError: one line naming the flag.
    """
    return VideoSettings(
        tile_size=image.tile_size,
        patch_size=image.patch_size,
        mm_patch_merge_type=image.mm_patch_merge_type,
        mm_spatial_pool_mode=image.mm_spatial_pool_mode,
        mm_spatial_pool_stride=image.mm_spatial_pool_stride,
        mm_newline_position=image.mm_newline_position,
        image_start_end=image.image_start_end,
    )
