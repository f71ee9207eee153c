"""Planned bytes of what the first stage keeps, where a whole step would hide them."""

from dataclasses import replace

import pytest
from memory_jobs import SavedTensors
from tiny_model import pack, tiny_config, tiny_model, tiny_sample

from megatron_llava.parallel.trained import trained
from megatron_llava.plan.pack_load import PackLoad
from megatron_llava.plan.vision_memory import vision_memory

pytestmark = pytest.mark.usefixtures("single_rank")


def test_what_the_largest_of_features_keep():
    config = tiny_config(image_aspect_ratio="anyres", mm_patch_merge_type="spatial_maxpool2x2")
    model, batch = tiny_model(config), pack(config, [tiny_sample([(84, 84)], 7, 0)])
    maxima = len(batch.max_taps)
    load = PackLoad(rows=1, loss_rows=1, text_tokens=1, views=1, features=1)
    counted, planned = [], []
    for seen, number in ((batch, maxima), (replace(batch, max_taps=None), 0)):
        with SavedTensors(outside={0}) as saved:
            assert model.visual_features(seen).requires_grad
        counted.append(saved.most)
        memory = vision_memory(config, replace(load, maxima=number), trained(config))
        # The row plan, which packing keeps, has an offset for each row of the table.
        planned.append(memory.kept - 8 * number)
    assert counted[0] - counted[1] == planned[0] - planned[1] > 0
