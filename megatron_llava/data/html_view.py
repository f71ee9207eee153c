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
from megatron_llava.data.describe import describe_visuals, text_of, visual_tokens
from megatron_llava.data.pack_pixels import views_of
from megatron_llava.data.sample import Sample, SampleStore
from megatron_llava.text.tokenizer import Tokenizer

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
    sections = "".join(sample_sections(store, indices, tokenizer, settings))
    title = html.escape(f"{store.prefix}: {len(indices)} of {len(store)} samples")
    return (
        f"<!doctype html><html><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{sections}</body></html>\n"
    )


def sample_sections(
    store: SampleStore, indices: Sequence[int], tokenizer: Tokenizer, settings: ImageSettings
) -> Iterator[str]:
    """One ``section`` element for each sample, to be put into a page.

    Raises:
        ValueError: as ``samples_page``.
    """
    store.check_tokenizer(tokenizer.fingerprint())
    for index in indices:
        if not 0 <= index < len(store):
            raise ValueError(
                f"store {store.prefix}: no sample {index}, it has {len(store)} (from 0)"
            )
    for index in indices:
        yield _section(store.load(index), tokenizer, settings)


def _section(sample: Sample, tokenizer: Tokenizer, settings: ImageSettings) -> str:
    images = "".join(_figures(sample, settings))
    visual = int(visual_tokens(sample, settings)[0].sum())
    positions = len(sample.token_ids) - len(sample.image_sizes) + visual
    counts = f"{positions} positions, {int(sample.label_mask.sum())} supervised"
    text = "".join(_marked(sample, tokenizer))
    title = html.escape(sample.source)
    return f"<section><h2>{title}</h2><p>{counts}</p>{images}<pre>{text}</pre></section>"


def _figures(sample: Sample, settings: ImageSettings) -> Iterator[str]:
    for number, caption in enumerate(describe_visuals(sample, settings)):
        shown = "".join(_image(view) for view in views_of(sample, number, settings))
        yield f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _image(view: np.ndarray) -> str:
    """A view [3, S, S] as an image element that holds its own bytes."""
    picture = Image.fromarray(view.transpose(1, 2, 0)).resize((_THUMBNAIL, _THUMBNAIL))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=85)
    data = base64.b64encode(encoded.getvalue()).decode()
    return f"<img alt='view' src='data:image/jpeg;base64,{data}' width='{_THUMBNAIL}'>"


def _marked(sample: Sample, tokenizer: Tokenizer) -> Iterator[str]:
    pairs = zip(sample.token_ids.tolist(), sample.label_mask.tolist(), strict=True)
    for supervised, run in groupby(pairs, key=lambda pair: pair[1]):
        text = html.escape(text_of([token for token, _ in run], tokenizer))
        yield f"<mark>{text}</mark>" if supervised else text
