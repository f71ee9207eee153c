"""One stored sample as text for a person: what is trained on, and how long it becomes."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from megatron_llava.config.image import ImageSettings
from megatron_llava.config.video import video_settings
from megatron_llava.data.row_plan import is_video, visuals_of_samples
from megatron_llava.data.row_plan_library import row_planner
from megatron_llava.data.sample import Sample, SampleStore
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.text.tokenizer import Tokenizer


def describe_sample(
    store: SampleStore, index: int, tokenizer: Tokenizer, settings: ImageSettings
) -> str:
    """Images, counts and text of a sample; supervised text stands between `[[` and `]]`.

    A special token, which has no text, is shown as its id in angle brackets.

    Raises:
        ValueError: no such sample, or the store was written with another tokenizer.
    """
    if not 0 <= index < len(store):
        raise ValueError(f"store {store.prefix}: no sample {index}, it has {len(store)} (from 0)")
    store.check_tokenizer(tokenizer.fingerprint())
    sample = store.load(index, with_images=False)
    lines = [sample.source, *describe_visuals(sample, settings)]
    positions = int(store.text_lengths[index]) + int(visual_tokens(sample, settings)[0].sum())
    lines.append(
        f"{positions} positions, of them {store.text_lengths[index]} text tokens, "
        f"{int(sample.label_mask.sum())} supervised"
    )
    text = ""
    marked = zip(sample.token_ids.tolist(), sample.label_mask.tolist(), strict=True)
    for supervised, run in groupby(marked, key=lambda pair: pair[1]):
        part = text_of([token for token, _ in run], tokenizer)
        text += f"[[{part}]]" if supervised else part
    return "\n".join([*lines, text])


def visual_tokens(
    sample: Sample, settings: ImageSettings
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens and views of each image and video of a sample."""
    visuals = visuals_of_samples([sample.image_sizes], settings)
    return row_planner().count(visuals, settings, video_settings(settings))


def describe_visuals(sample: Sample, settings: ImageSettings) -> list[str]:
    """One line for each image and video of a sample."""
    tokens, views = visual_tokens(sample, settings)
    return [
        (
            f"video {number}: {size[0]} frames, "
            if is_video(size)
            else f"image {number}: {size[0]}x{size[1]} pixels, {views[number]} views, "
        )
        + f"{tokens[number]} visual tokens"
        for number, size in enumerate(sample.image_sizes)
    ]


def text_of(token_ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Text of token ids; images and special tokens, which have no text, in angle brackets."""

    def is_plain(token: int) -> bool:
        return token != IMAGE_TOKEN_INDEX and tokenizer.decode([token]) != ""

    parts = []
    for plain, run in groupby(token_ids, key=is_plain):
        if plain:
            parts.append(tokenizer.decode(list(run)))
        else:
            parts += ["<image>" if token == IMAGE_TOKEN_INDEX else f"<{token}>" for token in run]
    return "".join(parts)
