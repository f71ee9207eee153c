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
    text = tokens - visual
    loss = text if sample.loss_tokens is None else sample.loss_tokens
    if loss > text:
        raise ValueError(
            f"--loss-tokens-per-sample {loss} are more than the {text} tokens of text in a sample "
            f"of {tokens}: give less, or more --tokens-per-sample"
        )
    counts = _samples_of_packs(config, tokens, views)
    most, in_all = max(counts), sum(counts)
    largest = PackLoad(
        rows=length,
        loss_rows=max(most * loss, 1),
        text_tokens=most * text,
        views=max(most * views, 1),
        features=0,
        samples=most,
        maxima=most * maxima,
    )
    sizes = PackSizes(
        packs=len(counts),
        views=sum(max(count * views, 1) for count in counts),
        rows=in_all * tokens,
        attended=in_all * tokens**2,
        loss_rows=sum(max(count * loss, 1) for count in counts),
        view_pairs=sum(max(count * views**2, 1) for count in counts),
        frames=len(counts),
        frame_pairs=len(counts),
        sample_rows=sum(count**2 for count in counts) * tokens,
        sample_labels=sum(count**2 for count in counts) * loss,
    )
    number = in_all / len(counts)
    said = f"packs of {number:.3g} samples of {tokens} tokens, {visual} of them from {views} views"
    return Workload(largest=largest, sizes=sizes, samples_per_pack=number, said=said)


def _samples_of_packs(config: RunConfig, tokens: int, views: int) -> list[int]:
    """Samples of each of some packs: those of one --packing-window, which ends a pack that is not
    full.

    Raises:
        ValueError: a sample has more views than a pack may.
    """
    data = config.data
    count = known(data.seq_length) // tokens
    if data.max_views_per_pack is not None and views:
        if views > data.max_views_per_pack:
            raise ValueError(
                f"--max-views-per-pack {data.max_views_per_pack} is less than the {views} views "
                "of a sample: allow more, or give a smaller --image-size"
            )
        count = min(count, data.max_views_per_pack // views)
    full, rest = divmod(data.packing_window or count, count)
    return [count] * full + [rest] * (rest > 0)
