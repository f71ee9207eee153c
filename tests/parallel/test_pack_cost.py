"""What packs are ordered by: FLOPs as pipeline stages are estimated, or measured costs."""

from tiny_model import tiny_config

from megatron_llava.data.pack_sizes import PackSizes
from megatron_llava.data.packing import Balance
from megatron_llava.parallel.pack_cost import pack_balance
from megatron_llava.parallel.pipeline_cost import pipeline_cost


def test_a_row_and_its_attention_cost_what_they_cost_a_stage():
    config = tiny_config()

    def layer(**sizes):
        nothing = {"packs": 1, "views": 0, "rows": 0, "attended": 0, "loss_rows": 0}
        return pipeline_cost(config, PackSizes(**{**nothing, **sizes})).layer

    balance = pack_balance(config)
    assert balance.row * layer(attended=10) == balance.attended * layer(rows=10) > 0


def test_measured_costs_are_taken():
    config = tiny_config(pack_cost=(700.0, 1.0, 90_000.0), balance_packs=16)
    assert pack_balance(config) == Balance(group=16, row=700, attended=1, view=90_000)
    assert pack_balance(tiny_config(balance_packs=0)) is None
