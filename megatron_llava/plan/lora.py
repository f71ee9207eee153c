"""Parameters of low-rank adapters (Hu et al., arXiv:2106.09685) on the seven projections of a
decoder layer: two matrices [q, in] and [out, q] beside each of query, key, value, output, gate, up
and down projection."""

from __future__ import annotations

from megatron_llava.config.rules_model import known
from megatron_llava.config.run import RunConfig


def adapter_parameters(config: RunConfig, rank: int | None) -> int:
    """Adapter parameters of one layer on one tensor-parallel rank, which splits the side of each
    projection that it splits.

    Args:
        config: a configuration whose model fields are filled.
        rank: of the adapters; None for none.
    """
    if rank is None:
        return 0
    language, tensor = config.language, config.parallel.tensor_model_parallel_size
    hidden, ffn = known(language.hidden_size), known(language.ffn_hidden_size)
    width = known(language.head_width)
    query = known(language.num_attention_heads) * width
    key = max(known(language.query_groups), tensor) * width
    column = [query, key, key, ffn, ffn]
    row = [query, ffn]
    split = sum(column) + sum(row)
    whole = hidden * (len(column) + len(row))
    return rank * (split // tensor + whole)
