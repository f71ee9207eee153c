"""What a pack costs, by the model's sizes: how packs are ordered so that ranks wait little."""

from __future__ import annotations

from math import gcd

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig
from megatron_llava.data.packing import Balance
from megatron_llava.vision.hf_tower import layer_weights


def pack_balance(config: RunConfig) -> Balance | None:
    """The order that --balance-packs asks for; None where it is 0.

    Costs are what --pack-cost says. By default they are the forward's matrix-product FLOPs of a
    decoder row, of a pair of rows of one sample (half of them masked) and of a view in the tower:
    those of the architecture alone, for what is frozen or recomputed may change in a run, the order
    of its packs may not.
    """
    if not config.data.balance_packs:
        return None
    if config.data.pack_cost is not None:
        row, attended, view = map(int, config.data.pack_cost)
        return Balance(group=config.data.balance_packs, row=row, attended=attended, view=view)
    language, vision = config.language, config.vision
    hidden, ffn = known(language.hidden_size), known(language.ffn_hidden_size)
    head, layers = known(language.head_width), known(language.num_layers)
    query = known(language.num_attention_heads) * head
    weights = 2 * hidden * (query + known(language.query_groups) * head) + 3 * hidden * ffn
    row, attended = 2 * layers * weights, 2 * layers * query
    width = known(vision.vision_hidden_size)
    tokens = (known(vision.vision_image_size) // known(vision.vision_patch_size)) ** 2
    per_token = 2 * layer_weights(vision) + 4 * tokens * width
    view = known(vision.built_layers) * tokens * per_token
    # Only ratios count; small numbers leave room for long packs in 64 bits.
    common = gcd(gcd(row, attended), view)
    return Balance(
        group=config.data.balance_packs,
        row=row // common,
        attended=attended // common,
        view=view // common,
    )
