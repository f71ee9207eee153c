"""Where the model runs and in which precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_llava.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """The device, the process grid and the data-parallel engine."""

    device: Literal["auto", "cuda", "cpu"] = flag(
        "auto", "Where to run; auto takes CUDA where a GPU is visible, else the CPU over gloo"
    )
    tensor_model_parallel_size: int = flag(
        1, "Ranks that share the weights of one layer", minimum=1
    )
    pipeline_model_parallel_size: int = flag(
        1, "Ranks that share the layers of one model, in order", minimum=1
    )
    decoder_first_pipeline_num_layers: int | None = flag(
        None,
        "Decoder layers of the first pipeline stage, which also runs the vision tower",
        minimum=1,
        default_text="an even share",
    )
    decoder_last_pipeline_num_layers: int | None = flag(
        None,
        "Decoder layers of the last pipeline stage, which also runs the output layer",
        minimum=1,
        default_text="an even share",
    )
    num_layers_per_virtual_pipeline_stage: int | None = flag(
        None,
        "Decoder layers of one virtual stage: each rank holds several of them, interleaved, "
        "which shrinks the pipeline's bubble",
        minimum=1,
        default_text="one stage per rank",
    )
    num_virtual_stages_per_pipeline_rank: int | None = flag(
        None,
        "The same said as a number of virtual stages on each rank; also for uneven stages",
        minimum=1,
        default_text="1",
    )
    no_overlap_p2p_communication: bool = flag(
        False, "With virtual stages, send and receive apart from the computation"
    )
    pipeline_balance: Literal["even", "auto"] = flag(
        "even",
        "Decoder layers of each pipeline stage: even shares, or auto: fewer on the first and last "
        "stage, by the estimated cost of the vision tower and of the output layer",
    )
    sequence_parallel: bool = flag(
        False, "Split norms and dropouts along the sequence over the tensor-parallel ranks"
    )
    context_parallel_size: int = flag(
        1, "Ranks that share the positions of one pack, and the views of its images", minimum=1
    )
    cp_comm_type: Literal["p2p", "a2a"] | None = flag(
        None,
        "How attention meets the positions of other ranks: a2a exchanges heads (needs them to "
        "divide), p2p passes keys and values around (Transformer Engine only)",
        default_text="p2p with Transformer Engine, else a2a",
    )
    vision_parallel: Literal["tensor", "data"] = flag(
        "tensor",
        "The vision tower over tensor-parallel ranks: split weights (tensor), or whole weights "
        "and a share of the views on each (data)",
    )
    distributed_timeout_minutes: int = flag(
        10, "Minutes after which a collective that does not end is an error", minimum=1
    )
    use_distributed_optimizer: bool = flag(
        False, "Shard the optimizer's state over the data-parallel ranks"
    )
    overlap_grad_reduce: bool = flag(
        False, "Reduce gradients bucket by bucket while the backward pass runs"
    )
    overlap_param_gather: bool = flag(
        False,
        "Gather parameters while the forward pass runs; needs --use-distributed-optimizer "
        "and --overlap-grad-reduce",
    )
    ddp_bucket_size: int | None = flag(
        None,
        "Parameters in one gradient bucket",
        minimum=1,
        default_text="Megatron-core's choice",
    )
    transformer_impl: Literal["local", "transformer_engine"] = flag(
        "local",
        "Layer implementation; Megatron's own default is transformer_engine, "
        "here Transformer Engine is used only when asked for",
    )
    attention_backend: Literal["auto", "flash", "fused", "unfused", "local"] = flag(
        "auto",
        "The attention of the decoder: flash (flash-attn, or without Transformer Engine torch's "
        "variable-length kernel), fused (cuDNN, Transformer Engine only), unfused (sequence by "
        "sequence), local (this project's, on torch alone), or the best that there is (auto)",
    )

    torch_compile: bool = flag(
        False,
        "Compile the vision tower with torch.compile (inductor), for any number of views; the "
        "first step takes a minute or more",
    )

    @property
    def context_exchange(self) -> str:
        """``--cp-comm-type``, or what it is by default."""
        if self.cp_comm_type is not None:
            return self.cp_comm_type
        return "p2p" if self.transformer_impl == "transformer_engine" else "a2a"

    @property
    def shares_views(self) -> bool:
        """Whether the views of a pack are dealt over several ranks."""
        over_tensor = self.vision_parallel == "data" and self.tensor_model_parallel_size > 1
        return over_tensor or self.context_parallel_size > 1


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """The number formats of weights, gradients and matrix products."""

    bf16: bool = flag(False, "Compute in bfloat16 with float32 master weights")
    fp16: bool = flag(
        False,
        "Compute in float16 with float32 master weights and a scaled loss; a step whose gradient "
        "overflows is skipped and the scale halved",
    )
    tf32: bool = flag(
        False,
        "Round the operands of float32 matrix products to TF32 on a GPU of compute capability 8.0 "
        "or more",
    )
    loss_scale: float | None = flag(
        None, "With --fp16, a scale that stays", above=0, default_text="one that adapts"
    )
    initial_loss_scale: float = flag(2.0**32, "First scale of the loss with --fp16", above=0)
    min_loss_scale: float = flag(
        1.0, "Lowest scale; a step that overflows at it counts as skipped", above=0
    )
    loss_scale_window: int = flag(
        1000, "Steps without overflow after which the scale doubles", minimum=1
    )
    hysteresis: int = flag(
        2, "Overflows since the last doubling from which on each halves the scale", minimum=1
    )
    accumulate_allreduce_grads_in_fp32: bool = flag(
        False, "Accumulate and reduce gradients in float32; --bf16 implies it"
    )
    grad_reduce_in_bf16: bool = flag(
        False, "With --bf16, accumulate and reduce gradients in bfloat16 instead of float32"
    )
    fp8_format: Literal["e4m3", "hybrid"] | None = flag(
        None,
        "FP8 matrix products in the language model's layers: e4m3 throughout, or hybrid (e4m3 "
        "forward, e5m2 backward); needs --bf16, and --transformer-impl transformer_engine on a GPU "
        "or --fp8-emulation",
        default_text="off",
    )
    fp8_emulation: bool = flag(
        False,
        "Round the operands of --fp8-format as Transformer Engine does and multiply with torch, on "
        "any device: to see what FP8 does to a recipe, not to be fast",
    )
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise"] = flag(
        "delayed",
        "How FP8 scales are chosen: from magnitudes of earlier passes, by tensor, or by block "
        "(no emulation)",
    )
    fp8_margin: int = flag(0, "Delayed FP8 scales are lower by 2 to this", minimum=0)
    fp8_amax_history_len: int = flag(
        1, "Passes whose largest magnitudes delayed FP8 scaling keeps", minimum=1
    )
    fp8_amax_compute_algo: Literal["most_recent", "max"] = flag(
        "most_recent", "Which magnitude of the history makes a delayed FP8 scale"
    )
    first_last_layers_bf16: bool = flag(
        False, "With --fp8-format, keep the first and last layers in bfloat16"
    )
    num_layers_at_start_in_bf16: int = flag(
        1, "First layers of --first-last-layers-bf16", minimum=0
    )
    num_layers_at_end_in_bf16: int = flag(1, "Last layers of --first-last-layers-bf16", minimum=0)

    @property
    def is_half(self) -> bool:
        """Whether weights and activations have 16 bits, beside float32 master weights."""
        return self.bf16 or self.fp16

    @property
    def reduce_grads_in_fp32(self) -> bool:
        """Whether gradients are accumulated and reduced in float32.

        bfloat16 training does so unless ``--grad-reduce-in-bf16``, float16 training only where
        asked to (Megatron's rules); float32 training has float32 gradients anyway.
        """
        if self.bf16 and not self.grad_reduce_in_bf16:
            return True
        return self.accumulate_allreduce_grads_in_fp32
