"""Image settings of the published models."""

from dataclasses import replace

from megatron_llava.config.image import ImageSettings
from megatron_llava.vision.anyres import parse_grid_pinpoints

# LLaVA-NeXT (llava-v1.6-*): CLIP-L/336 and five grids.
NEXT = ImageSettings(
    tile_size=336,
    patch_size=14,
    image_aspect_ratio="anyres",
    grid_pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
    mm_patch_merge_type="spatial_unpad",
    unpad_round="hf",
    resize_mode="shortest_edge_crop",
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)
# LLaVA-OneVision: SigLIP SO400M/384 and 36 grids.
ONEVISION = replace(
    NEXT,
    tile_size=384,
    image_aspect_ratio="anyres_max_9",
    grid_pinpoints=parse_grid_pinpoints("(1x1),...,(6x6)", 384),
    resize_mode="squash",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
