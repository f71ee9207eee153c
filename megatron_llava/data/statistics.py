"""What a store holds, in numbers and a histogram."""

from __future__ import annotations

import numpy as np

from megatron_llava.config.image import ImageSettings
from megatron_llava.data.merged_store import MergedStore
from megatron_llava.data.packing import sample_sizes
from megatron_llava.data.store import Store

_QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)
_BAR = 50


def statistics(store: Store | MergedStore, settings: ImageSettings) -> str:
    """Counts, quantiles and a histogram of the lengths that the settings give the samples.

    Raises:
        ValueError: an image that the settings leave no token of.
    """
    lengths, views = sample_sizes(store, settings)
    counts = store.manifest["counts"]
    per_sample = np.diff(store.image_offsets)
    supervised = store.supervised_counts
    lines = [
        f"{len(store):,} samples, {counts['images']:,} images "
        f"({counts['image_bytes']:,} bytes, {counts.get('videos', 0):,} of them videos), "
        f"{counts['tokens']:,} text tokens, {counts['supervised_tokens']:,} of them supervised",
        f"samples without an image: {int((per_sample == 0).sum()):,}, with several: "
        f"{int((per_sample > 1).sum()):,}; without a supervised token: "
        f"{int((supervised == 0).sum()):,}",
        "",
        f"{'quantile':<22}" + "".join(f"{q:>9}%" for q in _QUANTILES),
    ]
    rows = {
        "positions": lengths,
        "text tokens": store.text_lengths,
        "supervised tokens": supervised,
        "views": views,
    }
    for name, values in rows.items():
        found = np.percentile(values, _QUANTILES, method="inverted_cdf")
        lines.append(f"{name:<22}" + "".join(f"{int(value):>10,}" for value in found))
    return "\n".join([*lines, "", "positions of a sample", *histogram(lengths)])


def histogram(values: np.ndarray) -> list[str]:
    """Bars of the counts between powers of two, from the smallest to the largest value."""
    edges = 2 ** np.arange(int(values.min()).bit_length() - 1, int(values.max()).bit_length() + 1)
    counts, _ = np.histogram(values, np.append(edges[:-1], edges[-1]))
    width = len(f"{edges[-1]:,}")
    return [
        f"{low:>{width},} to {high - 1:>{width},} {count:>12,} {'#' * round(_BAR * share)}".rstrip()
        for low, high, count, share in zip(
            edges[:-1], edges[1:], counts.tolist(), counts / counts.max(), strict=True
        )
    ]
