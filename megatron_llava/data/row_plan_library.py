"""Row plans built in C++ (csrc/plan.cpp), called through ctypes, which releases the GIL.

Nothing is kept between packs: the closed form of an image costs less than looking it up, and its
rows are written where they belong as fast as they could be copied there.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.image_checks import MAXPOOL
from megatron_llava.config.video import NEWLINE_POSITIONS, POOL_MODES, VideoSettings
from megatron_llava.data.row_plan import (
    NoLayoutError,
    NumpyPlanner,
    RowPlan,
    RowPlanner,
    RowUses,
    Visuals,
    merge_of,
    num_special_rows,
)
from megatron_llava.platform.extension import library
from megatron_llava.vision.token_layout import MAX_TAPS

_FAMILIES = ("flat", "spatial", "spatial_unpad")
_LARGEST_SIDE = 2**31


@cache
def row_planner() -> RowPlanner:
    """The library's planner, or numpy's where the package was installed without a compiler."""
    compiled = library()
    return NumpyPlanner() if compiled is None else CompiledPlanner(compiled)


class CompiledPlanner:
    """RowPlanner of a library with the entry points of csrc/plan.h."""

    def __init__(self, compiled: ctypes.CDLL) -> None:
        self._count = compiled.megatron_llava_plan_count
        self._rows = compiled.megatron_llava_plan_rows
        self._pack_uses = compiled.megatron_llava_plan_pack_uses
        self._offsets = compiled.megatron_llava_plan_offsets
        self._uses = compiled.megatron_llava_plan_uses
        size, array = ctypes.c_int64, ctypes.c_void_p
        visuals: list[Any] = [
            ctypes.POINTER(_ImageSettings),
            ctypes.POINTER(_VideoSettings),
            size,
            array,
        ]
        self._count.argtypes = [*visuals, array, array]
        pack = [*visuals, array, size, array, size, size]
        self._rows.argtypes = [*pack, size, array, array]
        self._pack_uses.argtypes = [*pack, array, array, array]
        self._offsets.argtypes = [size, size, array, array, array]
        self._uses.argtypes = [size, array, array, array, array, array]
        for function in (self._count, self._rows, self._offsets):
            function.restype = size
        self._uses.restype = self._pack_uses.restype = None

    def count(
        self, visuals: Visuals, image: ImageSettings, video: VideoSettings | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See RowPlanner."""
        visuals = _checked(visuals)
        n = len(visuals)
        tokens, views = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
        given = *_settings(image, video), n, _address(visuals)
        done = self._count(*given, _address(tokens), _address(views))
        if done < n:
            _raise_for(visuals, done, image, video)
        return tokens, views

    def plan(
        self,
        visuals: Visuals,
        image: ImageSettings,
        *,
        visual_rows: NDArray[np.int64],
        text_rows: NDArray[np.int64],
        num_features: int,
        total_rows: int,
        video: VideoSettings | None = None,
    ) -> RowPlan:
        """See RowPlanner."""
        visuals = _checked(visuals)
        visual_rows, text_rows = map(np.ascontiguousarray, (visual_rows, text_rows))
        assert visual_rows.dtype == text_rows.dtype == np.int64
        assert len(visual_rows) == len(visuals)
        num_specials = num_special_rows(image, video)
        table_rows = num_features + num_specials + len(text_rows)
        taps = np.empty((total_rows, MAX_TAPS), dtype=np.int64)
        weights = np.empty((total_rows, MAX_TAPS), dtype=np.float32)
        pack = (
            *_settings(image, video),
            len(visuals),
            _address(visuals),
            _address(visual_rows),
            len(text_rows),
            _address(text_rows),
            num_features,
            num_specials,
        )
        uses = self._rows(*pack, total_rows, _address(taps), _address(weights))
        if uses < 0:
            _raise_for(visuals, -1 - uses, image, video)
        transpose = _new_uses(table_rows, uses)
        self._pack_uses(*pack, *(_address(array) for array in transpose))
        return RowPlan(taps, weights, transpose)

    def transpose(
        self, taps: NDArray[np.int64], weights: NDArray[np.float32], table_rows: int
    ) -> RowUses:
        """See RowPlanner."""
        taps, weights = np.ascontiguousarray(taps), np.ascontiguousarray(weights)
        assert taps.shape == weights.shape and taps.shape[1:] == (MAX_TAPS,)
        assert taps.dtype == np.int64 and weights.dtype == np.float32
        offsets = np.empty(table_rows + 1, dtype=np.int64)
        plan = _address(taps), _address(weights), _address(offsets)
        uses = self._offsets(len(taps), table_rows, *plan)
        transpose = _new_uses(table_rows, uses)._replace(offsets=offsets)
        self._uses(len(taps), *plan, _address(transpose.rows), _address(transpose.weights))
        return transpose


def _new_uses(table_rows: int, uses: int) -> RowUses:
    """Memory for the transpose of a plan."""
    return RowUses(
        np.empty(table_rows + 1, dtype=np.int64),
        np.empty(uses, dtype=np.int64),
        np.empty(uses, dtype=np.float32),
    )


_Memory = ctypes.c_char * 0


def _address(array: NDArray[Any]) -> Any:
    """What ctypes takes for a pointer to the elements of an array."""
    if array.flags.writeable:
        # Four times as fast as asking numpy, which counts in plans of a tenth of a millisecond.
        return _Memory.from_buffer(cast(Any, array))
    return array.__array_interface__["data"][0]


def _checked(visuals: Visuals) -> Visuals:
    """The visuals as the library reads them."""
    visuals = np.ascontiguousarray(visuals)
    assert visuals.dtype == np.int64 and visuals.shape[1:] == (5,)
    # The product of both sides must fit in 64 bits.
    assert visuals.max(initial=0) < _LARGEST_SIDE, visuals.max()
    return visuals


def _raise_for(
    visuals: Visuals, number: int, image: ImageSettings, video: VideoSettings | None
) -> None:
    """Raise what the Python layout says of a visual that the library refused."""
    try:
        merge = merge_of(visuals[number], image, video)
    except ValueError as error:
        raise NoLayoutError(number, str(error)) from error
    raise AssertionError(f"the library refuses {visuals[number]}, the token layout says {merge}")


class _ImageSettings(ctypes.Structure):
    """ImageSettings of csrc/plan_layout.h."""

    _fields_ = [
        *[
            (name, ctypes.c_int64)
            for name in (
                "tile_size",
                "patches_per_side",
                "merged_side",
                "pooling",
                "uses_grid",
                "has_base_view",
                "merges_base",
                "family",
                "pools_canvas",
                "rounds_to_7_digits",
                "max_merged_views",
                "token_threshold",
                "image_separator",
                "image_start_end",
                "chooses_by_aspect_ratio",
                "waste_is_share",
                "num_pinpoints",
            )
        ],
        ("waste_weight", ctypes.c_double),
        ("pinpoints", ctypes.c_void_p),
    ]


class _VideoSettings(ctypes.Structure):
    """VideoSettings of csrc/plan_layout.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "patches_per_side",
            "pooled_side",
            "pooling",
            "newline_position",
            "image_start_end",
        )
    ]


@lru_cache(maxsize=16)
def _image_settings(image: ImageSettings) -> _ImageSettings:
    pinpoints = np.array(image.grid_pinpoints, dtype=np.int64).reshape(-1, 2)
    merge_type = image.mm_patch_merge_type
    settings = _ImageSettings(
        tile_size=image.tile_size,
        patches_per_side=image.patches_per_side,
        merged_side=image.merged_side,
        pooling=POOL_MODES.index(image.mm_spatial_pool_mode),
        uses_grid=image.uses_grid,
        has_base_view=image.has_base_view,
        merges_base="nobase" not in merge_type,
        family=_FAMILIES.index(merge_type.removesuffix("_nobase").removesuffix(f"_{MAXPOOL}")),
        pools_canvas=image.pools_canvas,
        rounds_to_7_digits=image.unpad_round == "hf",
        max_merged_views=image.max_merged_views or 0,
        token_threshold=image.token_threshold or 0,
        image_separator=image.image_separator,
        image_start_end=image.image_start_end,
        chooses_by_aspect_ratio=image.grid_choice == "aspect_ratio",
        waste_is_share=image.grid_waste == "share",
        waste_weight=image.grid_waste_weight,
        num_pinpoints=len(pinpoints),
        pinpoints=pinpoints.ctypes.data,
    )
    # The structure holds an address only.
    settings.keeps_alive = pinpoints
    return settings


@lru_cache(maxsize=16)
def _video_settings(video: VideoSettings) -> _VideoSettings:
    return _VideoSettings(
        patches_per_side=video.patches_per_side,
        pooled_side=video.pooled_side,
        pooling=POOL_MODES.index(video.mm_spatial_pool_mode),
        newline_position=NEWLINE_POSITIONS.index(video.newline_position),
        image_start_end=video.image_start_end,
    )


def _settings(
    image: ImageSettings, video: VideoSettings | None
) -> tuple[_ImageSettings, _VideoSettings | None]:
    """Both settings as the library reads them."""
    if video is None:
        return _image_settings(image), None
    assert video.patches_per_side == image.patches_per_side, "one vision tower"
    return _image_settings(image), _video_settings(video)
