"""What the predicted communication is made of: parameters, shares of a collective, and the count.

That the prediction is what a training step sends is tested in distributed/test_communication.py.
"""

import pytest
import torch
import torch.distributed as dist
from tiny_model import tiny_config

pytestmark = pytest.mark.usefixtures("single_rank")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 3, "vision_num_layers": 4, "mm_vision_select_layer": -2},
        {"vision_model_type": "siglip"},
        {"add_qkv_bias": False, "untie_embeddings_and_output_weights": False},
        {"num_query_groups": None, "kv_channels": 12, "vocab_size": 300},
        {"lora_rank": 3},
        {"lora_rank": 2, "lora_target_modules": ("q_proj", "v_proj", "down_proj")},
    ],
    ids=str,
)
@pytest.mark.parametrize("ends", [(True, True), (True, False), (False, True), (False, False)])
def test_parameters_are_those_of_the_model(changes, ends):
    from megatron_llava.models.build import build_llava_model
    from megatron_llava.observe.parameters import part_parameters

    config, (first, last) = tiny_config(**changes), ends
    model = build_llava_model(config, pre_process=first, post_process=last)
    expected = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    layers = config.language.num_layers
    assert part_parameters(config, layers=layers, first=first, last=last) == expected


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("all-reduce", 1200),
        ("all-gather", 600),
        ("reduce-scatter", 600),
        ("broadcast", 600),
        ("all-to-all", 800),
        ("send", 800),
    ],
)
def test_what_a_rank_of_four_sends(operation, expected):
    from megatron_llava.observe.traffic_kinds import bytes_sent

    assert bytes_sent(operation, 800, 4) == expected


def test_nothing_is_sent_by_one_rank():
    from megatron_llava.observe.collective_counter import CollectiveCounter, payload_by_kind
    from megatron_llava.observe.communication import communication
    from megatron_llava.observe.microbatch_sizes import MicrobatchSizes

    with CollectiveCounter() as counter:
        dist.all_reduce(torch.ones(3))
    assert payload_by_kind(counter) == ({}, 0)
    sizes = MicrobatchSizes(rows=8, text_tokens=4, loss_rows=2, views=1, tile_bytes=9, features=4)
    assert communication(tiny_config(), 1, [sizes]) == {}


def test_an_operation_that_is_not_known_is_an_error():
    from megatron_llava.observe.collective_counter import CollectiveCounter

    with pytest.raises(KeyError, match="reduce_"), CollectiveCounter():
        dist.reduce(torch.ones(3), 0)
