"""One stored sample as text for a person: what is trained on, and how long it becomes."""

from collections.abc import Sequence
from itertools import groupby

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.store import SampleStore
from megatron_llava.text.constants import IMAGE_TOKEN_INDEX
from megatron_llava.text.tokenizer import Tokenizer
from megatron_llava.vision.token_layout import number_of_tokens, number_of_views


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
    single_view = settings.single_view(len(sample.image_sizes))
    lines, positions = [sample.source], int(store.text_lengths[index])
    for number, size in enumerate(sample.image_sizes):
        views = number_of_views(size, settings, single_view=single_view)
        tokens = number_of_tokens(size, settings, single_view=single_view, after_image=number > 0)
        positions += tokens
        lines.append(
            f"image {number}: {size[0]}x{size[1]} pixels, {views} views, {tokens} visual tokens"
        )
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
