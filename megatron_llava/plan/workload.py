"""What the packs of a planned run hold, from sizes that the user gives."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.data.pack_sizes import PackSizes
from megatron_llava.plan.pack_load import PackLoad
from megatron_llava.vision.settings import image_settings
from megatron_llava.vision.token_layout import image_layout

TEXT_TOKENS = 256
"""Of a sample of which nothing else is said: a few turns."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Packs of a run."""

    largest: PackLoad
    """The most of everything that one pack holds."""

    sizes: PackSizes
    """What some packs hold together."""

    samples_per_pack: float

    samples: int | None = None
    """Taken of an epoch of the store, None without one."""

    packs: int | None = None
    """Likewise."""

    said: str
    """Where it is from, in words."""


@dataclass(frozen=True, kw_only=True)
class SampleSizes:
    """A typical sample, where there is no store.

    Attributes:
        image_size: (width, height) of its image in pixels, None for text only.
        tokens: positions of the decoder, those of the image included; None for TEXT_TOKENS more
            than those.
        loss_tokens: of them with a loss; None for all text.
    """

    image_size: tuple[int, int] | None
    tokens: int | None
    loss_tokens: int | None


def workload_of_samples(config: RunConfig, sample: SampleSizes) -> Workload:
    """Packs filled with copies of a sample.

    Raises:
        ValueError: the sample does not fit into a pack, or its image has more tokens than it.
    """
    length = known(config.data.seq_length)
    visual = views = maxima = 0
    if sample.image_size is not None:
        settings = image_settings(config)
        layout = image_layout(sample.image_size, settings)
        visual, views, maxima = len(layout.taps), layout.num_views, layout.num_maxima
    tokens = visual + TEXT_TOKENS if sample.tokens is None else sample.tokens
    if tokens <= visual:
        raise ValueError(
            f"--tokens-per-sample {tokens} leaves no text beside the {visual} tokens of an "
            f"image: give more, or another --image-size"
        )
    if tokens > length:
        raise ValueError(
            f"--seq-length {length} is less than the {tokens} tokens of a sample: give a longer "
            "pack, or another --image-size or --tokens-per-sample"
        )
    count = length // tokens
    text = tokens - visual
    loss = text if sample.loss_tokens is None else sample.loss_tokens
    if loss > text:
        raise ValueError(
            f"--loss-tokens-per-sample {loss} are more than the {text} tokens of text in a sample "
            f"of {tokens}: give less, or more --tokens-per-sample"
        )
    largest = PackLoad(
        rows=length,
        loss_rows=max(count * loss, 1),
        text_tokens=count * text,
        views=max(count * views, 1),
        features=0,
        samples=count,
        maxima=count * maxima,
    )
    sizes = PackSizes(
        packs=1,
        views=largest.views,
        rows=count * tokens,
        attended=count * tokens**2,
        loss_rows=largest.loss_rows,
        view_pairs=max(count * views**2, 1),
        frames=1,
        frame_pairs=1,
        sample_rows=count**2 * tokens,
        sample_labels=count * largest.loss_rows,
    )
    said = f"packs of {count} samples of {tokens} tokens, {visual} of them from {views} views"
    return Workload(largest=largest, sizes=sizes, samples_per_pack=count, said=said)
