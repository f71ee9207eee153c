from types import SimpleNamespace

import pytest
from tiny_model import tiny_config

pytestmark = pytest.mark.usefixtures("cpu_platform")


def check(longest, allowed):
    from megatron_llava.training.run import _check_positions

    config = tiny_config(max_position_embeddings=allowed, seq_length=4096)
    schedule = SimpleNamespace(longest_sample=longest)
    _check_positions(config, schedule, SimpleNamespace(prefix="stores/data"))


def test_a_sample_beyond_the_reach_of_the_model_is_an_error():
    with pytest.raises(ValueError) as caught:
        check(longest=513, allowed=512)
    message = str(caught.value)
    assert message.startswith("store stores/data: the longest sample has 513 positions")
    assert "--max-position-embeddings 512" in message
    assert "--seq-length 512" in message and "--max-bad-records" in message
    assert "\n" not in message


def test_a_sample_of_the_full_reach_and_a_longer_pack_are_fine():
    check(longest=512, allowed=512)
