"""Where a view lies in its image, for the learned rows that are added by position.

Sizes in shapes: V views of an image.
"""

from __future__ import annotations

from megatron_llava.config.image import ImageSettings
from megatron_llava.vision.anyres import Size
from megatron_llava.vision.merge_shape import grid_of_image

NO_POSITION = -1
"""Of a base view, and of an image that is one view."""


def view_positions(image_size: Size, settings: ImageSettings, *, single_view: bool) -> list[int]:
    """[V], the position of each view of an image: row * columns + column, or NO_POSITION.

    Rows and columns are counted in the largest grids (``settings.position_grid``), so that a place
    has the same position in a small grid and in a large one.

    Args:
        image_size: (W, H) in pixels.
        settings: image settings with tile positions.
        single_view: the image shares its sample with others: one padded view in every mode.
    """
    if single_view or not settings.uses_grid:
        return [NO_POSITION]
    columns, rows = grid_of_image(image_size, settings)
    _, stride = settings.position_grid
    tiles = [row * stride + column for row in range(rows) for column in range(columns)]
    return [NO_POSITION, *tiles] if settings.has_base_view else tiles
