"""Every parameter of a model is a part of a checkpoint's, by a name of its own."""

import pytest
import torch
from tiny_model import VOCAB_SIZE, tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.mark.parametrize("untied", [True, False])
def test_one_rank_holds_every_parameter_whole(untied):
    from megatron_llava.parallel.model_shards import model_shards
    from megatron_llava.parallel.shards import keys_of, merge

    model = tiny_model(tiny_config(untie_embeddings_and_output_weights=untied))
    shards = model_shards([model])
    parameters = dict(model.named_parameters())
    assert len(keys_of([shards])) == len(parameters)
    for name, parameter in parameters.items():
        # A checkpoint names a norm after the product that follows it, as Transformer Engine does.
        key = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
        key = key.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
        whole = torch.from_numpy(merge([shards], key))
        rows = (
            VOCAB_SIZE if name.endswith(("word_embeddings.weight", "output_layer.weight")) else None
        )
        assert torch.equal(whole, parameter.detach()[:rows]), name


def test_shards_stay_as_they_were_when_training_goes_on():
    from megatron_llava.parallel.model_shards import model_shards

    model = tiny_model(tiny_config())
    (newline,) = [part for part in model_shards([model]) if part.key == "image_newline"]
    before = newline.array.copy()
    model.image_newline.data += 1
    assert (newline.array == before).all()
