"""Stored samples as one HTML page: text with its labels, images as the tower sees them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from PIL import Image

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.describe import text_of
from megatron_llava.data.store import Sample, SampleStore
from megatron_llava.text.tokenizer import Tokenizer
from megatron_llava.vision.tiles import image_views, open_image
from megatron_llava.vision.token_layout import number_of_tokens

_THUMBNAIL = 112
_STYLE = """
body { font: 14px sans-serif; margin: 2em; max-width: 70em }
section { border-top: 1px solid #bbb; padding: 1em 0 }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .8em }
mark { background: #b7eb8f }
figure { margin: .5em 0 } figcaption { color: #555 }
img { margin: 1px; vertical-align: top }
"""


def samples_page(
    store: SampleStore, indices: Sequence[int], tokenizer: Tokenizer, settings: ImageSettings
) -> str:
    """An HTML document, complete in itself. Supervised text is marked.

    Raises:
        ValueError: no such sample, a damaged image, or a store of another tokenizer.
    """
    store.check_tokenizer(tokenizer.fingerprint())
    for index in indices:
        if not 0 <= index < len(store):
            raise ValueError(
                f"store {store.prefix}: no sample {index}, it has {len(store)} (from 0)"
            )
    sections = (_section(store.load(i), tokenizer, settings) for i in indices)
    title = html.escape(f"{store.prefix}: {len(indices)} of {len(store)} samples")
    return (
        f"<!doctype html><html><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{''.join(sections)}</body></html>\n"
    )


def _section(sample: Sample, tokenizer: Tokenizer, settings: ImageSettings) -> str:
    images = "".join(_figures(sample, settings))
    positions = len(sample.token_ids) - len(sample.image_sizes) + sum(_tokens(sample, settings))
    counts = f"{positions} positions, {int(sample.label_mask.sum())} supervised"
    text = "".join(_marked(sample, tokenizer))
    title = html.escape(sample.source)
    return f"<section><h2>{title}</h2><p>{counts}</p>{images}<pre>{text}</pre></section>"


def _tokens(sample: Sample, settings: ImageSettings) -> list[int]:
    single_view = settings.single_view(len(sample.image_sizes))
    return [
        number_of_tokens(size, settings, single_view=single_view, after_image=number > 0)
        for number, size in enumerate(sample.image_sizes)
    ]


def _figures(sample: Sample, settings: ImageSettings) -> Iterator[str]:
    single_view = settings.single_view(len(sample.image_sizes))
    tokens = _tokens(sample, settings)
    assert sample.images is not None
    for number, (data, size) in enumerate(zip(sample.images, sample.image_sizes, strict=True)):
        image = open_image(data, f"{sample.source}: image {number}")
        views = image_views(image, settings, single_view=single_view)
        shown = "".join(_image(view) for view in views)
        caption = f"image {number}: {size[0]}x{size[1]} pixels, {len(views)} views, "
        caption += f"{tokens[number]} visual tokens"
        yield f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _image(view: np.ndarray) -> str:
    """A view [3, S, S] as an image element that holds its own bytes."""
    picture = Image.fromarray(view.transpose(1, 2, 0)).resize((_THUMBNAIL, _THUMBNAIL))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=85)
    data = base64.b64encode(encoded.getvalue()).decode()
    return f"<img src='data:image/jpeg;base64,{data}' width='{_THUMBNAIL}'>"


def _marked(sample: Sample, tokenizer: Tokenizer) -> Iterator[str]:
    pairs = zip(sample.token_ids.tolist(), sample.label_mask.tolist(), strict=True)
    for supervised, run in groupby(pairs, key=lambda pair: pair[1]):
        text = html.escape(text_of([token for token, _ in run], tokenizer))
        yield f"<mark>{text}</mark>" if supervised else text
