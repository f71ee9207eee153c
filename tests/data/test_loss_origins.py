"""Which token of which sample a loss belongs to, of whole packs and of shares of them."""

import numpy as np
import pytest
from tiny_model import mixed_samples, tiny_config

from megatron_llava.data.collate import collate
from megatron_llava.data.loss_origins import with_loss_origins
from megatron_llava.data.pad import pad_batch
from megatron_llava.data.share import Share, share_of_pack
from megatron_llava.vision.settings import image_settings

SETTINGS = image_settings(tiny_config())
IDS = np.array([40, 3, 3, 11, 0, 8])


def expected(samples):
    """(sample, place, label) of every supervised token that has one before it."""
    return [
        (number, place, label)
        for number, sample in zip(IDS.tolist(), samples, strict=True)
        for place, label in enumerate(
            sample.token_ids[1:][sample.label_mask[1:] == 1].tolist(),
        )
    ]


def found(batch):
    rows = zip(batch.loss_origins.tolist(), batch.loss_labels.tolist(), strict=True)
    return [(sample, place, label) for (sample, place), label in rows]


def test_places_are_counted_within_each_sample():
    samples = mixed_samples()
    samples[1].label_mask[:] = 0
    batch = collate(samples, SETTINGS, with_pixels=False)
    assert batch.loss_origins is None
    batch = with_loss_origins(batch, IDS)
    assert found(batch) == expected(samples)
    assert found(pad_batch(batch, len(batch.position_ids) + 7)) == expected(samples)
    assert batch.to_torch().loss_origins.tolist() == batch.loss_origins.tolist()


@pytest.mark.parametrize("context", [2, 3])
def test_shares_keep_their_places_in_the_whole_sample(context):
    samples = mixed_samples()
    multiple = 2 * context
    batch = collate(samples, SETTINGS, sequence_multiple=multiple, pad_multiple=multiple)
    ranks = [
        Share(context_rank=r, context_size=context, view_rank=r, view_size=context)
        for r in range(context)
    ]
    tokens = SETTINGS.tokens_per_view
    assert share_of_pack(batch, ranks[0], tokens).loss_origins is None
    whole = with_loss_origins(batch, IDS)
    parts = [found(share_of_pack(whole, rank, tokens)) for rank in ranks]
    assert all(part for part in parts)
    assert sorted(sum(parts, [])) == sorted(expected(samples))


def test_a_pack_of_nothing():
    batch = with_loss_origins(collate([], SETTINGS), np.zeros(0, dtype=np.int64))
    assert batch.loss_origins.shape == (0, 2)
