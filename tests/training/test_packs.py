"""The store of a run, as far as it decides whether anything can learn."""

import pytest
from tiny_model import tiny_config, tiny_sample

from megatron_llava.data.store_writer import StoreWriter
from megatron_llava.training.packs import opened_store
from megatron_llava.vision.settings import image_settings


@pytest.fixture
def store_of(tmp_path):
    def write(*samples):
        path = tmp_path / "store"
        with StoreWriter(path, tokenizer_fingerprint="none", conversation_template="v1") as store:
            for sample in samples:
                arguments = sample.token_ids, sample.label_mask, sample.images, sample.image_sizes
                store.add(*arguments, sample.source)
            store.finish()
        return str(path)

    return write


def opened(path, *parts):
    config = tiny_config(mm_tunable_parts=parts)
    return opened_store(path, config, image_settings(config), print)


def test_a_projector_does_not_learn_from_text(store_of):
    path = store_of(tiny_sample([], 9, 1), tiny_sample([], 7, 2))
    assert len(opened(path, "mm_mlp_adapter", "mm_language_model")) == 2
    with pytest.raises(ValueError) as caught:
        opened(path, "mm_mlp_adapter", "mm_vision_tower")
    message = str(caught.value)
    assert message.startswith(f"store {path}: has no images, and without them nothing learns")
    assert "--mm-tunable-parts mm_mlp_adapter,mm_vision_tower" in message and "\n" not in message


def test_one_image_is_enough(store_of):
    path = store_of(tiny_sample([], 9, 1), tiny_sample([(30, 20)], 7, 2))
    assert len(opened(path, "mm_mlp_adapter")) == 2
