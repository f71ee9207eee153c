"""One sample, for comparing logits and answers."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.collate import collate
from megatron_llava.data.packed_batch import TensorBatch
from megatron_llava.data.sample import Sample


def batch_of(
    ids: Sequence[int], images: Sequence[Image.Image], settings: ImageSettings
) -> TensorBatch:
    """Token ids (IMAGE_TOKEN_INDEX at each image) and RGB images as training would see them."""
    return collate([sample_of(ids, images)], settings).to_torch()


def sample_of(ids: Sequence[int], images: Sequence[Image.Image]) -> Sample:
    """The same as a sample without labels."""
    return Sample(
        token_ids=np.array(ids, dtype=np.int32),
        label_mask=np.zeros(len(ids), dtype=np.uint8),
        image_sizes=tuple(image.size for image in images),
        images=tuple(_png(image) for image in images),
        source="the compared sample",
    )


def _png(image: Image.Image) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    return encoded.getvalue()
