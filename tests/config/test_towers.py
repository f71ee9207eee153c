"""The table of towers and the flag that names them."""

from typing import get_args, get_type_hints

from megatron_llava.config.model import VisionConfig
from megatron_llava.config.towers import TOWERS


def test_every_kind_can_be_named():
    # A Literal cannot be written from the table, so that a new kind is entered twice.
    given, _ = get_args(get_type_hints(VisionConfig)["vision_model_type"])
    assert get_args(given) == tuple(TOWERS)
