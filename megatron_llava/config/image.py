"""What decides the views, the pixels and the visual tokens of an image."""

import math
import re
from dataclasses import dataclass

from megatron_llava.config.image_checks import (
    MAXPOOL,
    check_channels,
    check_choice,
    check_merge_type,
    check_patch_size,
    check_pool_stride,
    pooled_side,
)

UNPAD_ROUNDINGS = ("llava", "hf")
RESIZE_MODES = ("shortest_edge_crop", "squash")
GRID_CHOICES = ("resolution", "aspect_ratio")
GRID_WASTES = ("share", "tiles")
MULTI_IMAGE_VIEWS = ("one_padded", "as_single")
_ANYRES_NUMBER = re.compile(r"anyres_(max|thresholded)_([1-9][0-9]*)")


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Resolved image settings: hashable, so that a layout can be cached on them.

    Two runs with equal settings cut the same views out of an image and give them the same tokens.

    Raises:
        ValueError: one line naming the flag (or the field, where the vision tower decides it).
    """

    tile_size: int
    """S, side of the square view that the vision tower sees, in pixels (336, 384)."""

    patch_size: int
    """p, side of one vision patch in pixels; a view has (S // p)^2 tokens."""

    image_aspect_ratio: str
    """'square' | 'pad' | 'anyres' | 'anyres_max_N' | 'anyres_thresholded_N' | 'nobase'.

    'square' and 'pad' give one view. 'anyres' gives a base view and a grid of tiles. 'anyres_max_N'
    also shrinks an unpadded canvas of more than about N views. 'anyres_thresholded_N' shrinks every
    view, the base view too, where together they have more tokens than N + 1 views. 'nobase' is
    'anyres' without the base view, neither encoded nor merged.
    """

    grid_pinpoints: tuple[tuple[int, int], ...]
    """Allowed canvas sizes, (width, height) in pixels, multiples of S; empty for square and pad."""

    mm_patch_merge_type: str
    """'flat' | 'spatial' | 'spatial_unpad', each also with '_nobase' (base view not merged);
    'spatial_maxpool2x2' and 'spatial_unpad_maxpool2x2' take the largest of 2 x 2 features of a
    canvas of tiles, which is not cropped and has no newlines."""

    unpad_round: str
    """'llava' truncates the unpadded side; 'hf' rounds it to 7 digits first (transformers)."""

    resize_mode: str
    """What 'square' does: 'shortest_edge_crop' (CLIP) or 'squash' (SigLIP)."""

    image_mean: tuple[float, float, float]
    """Mean of the red, green and blue channel, in [0, 1]."""

    image_std: tuple[float, float, float]
    """Standard deviation of the red, green and blue channel, in units of the [0, 1] range."""

    multi_image_views: str = "one_padded"
    """What each image of a sample that has several gives: 'one_padded' view, or 'as_single' the
    views of an image alone."""

    pad_aspect_ratio: float = 1.0
    """Width over height that a padded view is padded to before it is scaled to S x S."""

    pad_tolerance: float = 0.0
    """An image is not padded where its ratio differs from that by less."""

    grid_choice: str = "resolution"
    """'resolution' (LLaVA-NeXT's choice), or 'aspect_ratio'; see vision/anyres.py."""

    grid_waste_weight: float = 0.1
    grid_waste: str = "share"
    """Of 'aspect_ratio': what unused tiles count, as a 'share' of the most or by 'tiles'."""

    image_newline: bool = True
    """Whether the model has the learned row that ends unpadded rows."""

    image_separator: bool = False
    """Whether a learned row stands before each image of a sample but the first."""

    image_start_end: bool = False
    """Whether learned rows stand before and behind the tokens of each image."""

    tile_position_embedding: bool = False
    """Whether a learned row is added to the features of a tile, by its place in the grid."""

    image_pool_stride: int = 1
    """Features per token along each side of a view, pooled as mm_spatial_pool_mode says."""

    mm_spatial_pool_mode: str = "bilinear"
    mm_spatial_pool_stride: int = 2
    mm_newline_position: str = "one_token"
    """Of the frames of a video: see VideoSettings."""

    def __post_init__(self) -> None:
        check_patch_size(self.tile_size, self.patch_size)
        if not self._is_known_aspect_ratio():
            raise ValueError(
                f"--image-aspect-ratio {self.image_aspect_ratio}: expected square, pad, anyres, "
                "anyres_max_N, anyres_thresholded_N (N a positive integer without leading zeros) "
                "or nobase"
            )
        check_merge_type(self.mm_patch_merge_type)
        check_choice("--unpad-round", self.unpad_round, UNPAD_ROUNDINGS)
        check_choice("resize_mode", self.resize_mode, RESIZE_MODES)
        check_choice("--multi-image-views", self.multi_image_views, MULTI_IMAGE_VIEWS)
        if "unpad" in self.mm_patch_merge_type and not self.image_newline:
            raise ValueError(
                f"--mm-patch-merge-type {self.mm_patch_merge_type} ends rows with a learned one, "
                "which --no-image-newline leaves out: give --image-newline, or flat or spatial"
            )
        self._check_pinpoints()
        self._check_grid_choice()
        self._check_padding()
        self._check_pooling()
        if self.tile_position_embedding and not self.uses_grid:
            raise ValueError(
                f"--tile-position-embedding needs tiles, which --image-aspect-ratio "
                f"{self.image_aspect_ratio} never makes: choose an anyres mode or drop it"
            )
        check_channels("image_mean", self.image_mean, minimum=0.0)
        check_channels("image_std", self.image_std, minimum=math.ulp(0.0))

    @property
    def patches_per_side(self) -> int:
        """u = S // p; where p does not divide S, the last pixels are not seen by the tower."""
        return self.tile_size // self.patch_size

    @property
    def tokens_per_view(self) -> int:
        """T = u^2, tokens of one view before merging."""
        return self.patches_per_side**2

    @property
    def merged_side(self) -> int:
        """Tokens per side of a view in the sequence, before a mode shrinks them: u, or what pooling
        leaves of it."""
        return pooled_side(self.patches_per_side, self.image_pool_stride, self.mm_spatial_pool_mode)

    @property
    def uses_grid(self) -> bool:
        """Whether an image is cut into a grid of tiles (anyres, anyres_max_N, nobase)."""
        return self.image_aspect_ratio not in ("square", "pad")

    @property
    def pools_canvas(self) -> bool:
        """Whether a canvas of tiles is pooled by the largest of 2 x 2 features."""
        return MAXPOOL in self.mm_patch_merge_type

    @property
    def pools_by_max(self) -> bool:
        """Whether tokens of images or frames are the largest of some features."""
        return self.pools_canvas or self.mm_spatial_pool_mode == "max"

    @property
    def has_base_view(self) -> bool:
        """Whether the tiles of a grid are preceded by a view of the whole image."""
        return self.image_aspect_ratio != "nobase"

    @property
    def max_merged_views(self) -> int | None:
        """N of anyres_max_N, None for other modes."""
        return self._number_of("max")

    @property
    def token_threshold(self) -> int | None:
        """(N + 1) * T of anyres_thresholded_N, None for other modes."""
        number = self._number_of("thresholded")
        return None if number is None else (number + 1) * self.tokens_per_view

    def single_view(self, num_images: int) -> bool:
        """Whether each image of a sample of so many gives one padded view in every mode."""
        return num_images > 1 and self.multi_image_views == "one_padded"

    @property
    def num_special_rows(self) -> int:
        """Learned rows that tokens may name: image_newline, separator, start, end, up to the last
        one in use."""
        if self.image_start_end:
            return 4
        return 2 if self.image_separator else 1

    @property
    def position_grid(self) -> tuple[int, int]:
        """(rows, columns) that tiles have places in, of the largest grids; (0, 0) where positions
        are off."""
        if not self.tile_position_embedding:
            return 0, 0
        pinpoints = self.grid_pinpoints
        columns, rows = (max(sides) // self.tile_size for sides in zip(*pinpoints, strict=True))
        return rows, columns

    def _number_of(self, mode: str) -> int | None:
        match = _ANYRES_NUMBER.fullmatch(self.image_aspect_ratio)
        return int(match.group(2)) if match and match.group(1) == mode else None

    def _is_known_aspect_ratio(self) -> bool:
        plain = ("square", "pad", "anyres", "nobase")
        known = self.image_aspect_ratio in plain
        return known or _ANYRES_NUMBER.fullmatch(self.image_aspect_ratio) is not None

    def _check_pinpoints(self) -> None:
        if self.uses_grid and not self.grid_pinpoints:
            raise ValueError(
                f"--image-aspect-ratio {self.image_aspect_ratio} needs a list of canvas sizes: "
                "set --image-grid-pinpoints, such as '(1x1),...,(6x6)'"
            )
        if not self.uses_grid and self.grid_pinpoints:
            raise ValueError(
                f"--image-grid-pinpoints has {len(self.grid_pinpoints)} sizes that "
                f"--image-aspect-ratio {self.image_aspect_ratio} never reads: leave it empty"
            )
        for width, height in self.grid_pinpoints:
            if min(width, height) <= 0 or width % self.tile_size or height % self.tile_size:
                raise ValueError(
                    f"--image-grid-pinpoints: ({width}, {height}) is not a positive multiple of "
                    f"the tile size {self.tile_size} in both directions"
                )

    def _check_grid_choice(self) -> None:
        check_choice("--grid-choice", self.grid_choice, GRID_CHOICES)
        check_choice("--grid-waste", self.grid_waste, GRID_WASTES)
        weight = self.grid_waste_weight
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"--grid-waste-weight {weight}: expected a number of at least 0")
        if self.grid_choice == "aspect_ratio" and not self.uses_grid:
            raise ValueError(
                f"--grid-choice aspect_ratio needs grids, which --image-aspect-ratio "
                f"{self.image_aspect_ratio} never makes: choose an anyres mode or drop it"
            )

    def _check_padding(self) -> None:
        ratio, tolerance = self.pad_aspect_ratio, self.pad_tolerance
        if not (math.isfinite(ratio) and ratio > 0):
            raise ValueError(f"--pad-aspect-ratio {ratio}: expected a number above 0")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"--pad-tolerance {tolerance}: expected a number of at least 0")
        pads = self.image_aspect_ratio == "pad" or self.multi_image_views == "one_padded"
        if not pads and (ratio, tolerance) != (1.0, 0.0):
            raise ValueError(
                f"--pad-aspect-ratio {ratio} and --pad-tolerance {tolerance} are of padded views, "
                f"which --image-aspect-ratio {self.image_aspect_ratio} with --multi-image-views "
                f"{self.multi_image_views} never makes: drop them, or choose pad or one_padded"
            )

    def _check_pooling(self) -> None:
        stride, mode = self.image_pool_stride, self.mm_spatial_pool_mode
        resizes = self.max_merged_views is not None or self.token_threshold is not None
        if self.pools_canvas and (stride > 1 or resizes):
            other = (
                f"--image-pool-stride {stride}"
                if stride > 1
                else f"--image-aspect-ratio {self.image_aspect_ratio}"
            )
            raise ValueError(
                f"--mm-patch-merge-type {self.mm_patch_merge_type} with {other}: both resize the "
                "features of an image; drop one of them"
            )
        if self.tile_position_embedding and (self.pools_canvas or (stride > 1 and mode == "max")):
            largest = (
                f"--mm-patch-merge-type {self.mm_patch_merge_type} takes"
                if self.pools_canvas
                else f"--image-pool-stride {stride} with --mm-spatial-pool-mode max takes"
            )
            raise ValueError(
                f"--tile-position-embedding is added to features, of which {largest} the largest: "
                "drop one of them"
            )
        if stride == 1:
            return
        check_pool_stride("--image-pool-stride", stride, mode)
        if self.merged_side == 0:
            raise ValueError(
                f"--image-pool-stride {stride}: a view has only {self.patches_per_side} features "
                "per side"
            )
        if resizes:
            raise ValueError(
                f"--image-pool-stride {stride} with --image-aspect-ratio "
                f"{self.image_aspect_ratio}: both resize the features of an image; choose anyres "
                "or drop the stride"
            )
