"""How the weights are changed: optimizer, batches, steps and recomputation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from megatron_llava.config.fields import flag

TUNABLE_PARTS = ("mm_mlp_adapter", "mm_vision_tower", "mm_language_model")
CROSS_IMAGE_ATTENTION = "cross_image_attention"
TEMPORAL_ENCODER = "temporal_encoder"
"""The modules of --cross-image-attention and --temporal-encoder-layers in LlavaModel; they learn as
the projector does."""
PARTS_WITH_ADAPTERS = ("mm_mlp_adapter", "mm_language_model")
"""What learns in a run with adapters that does not say: LLaVA's LoRA training freezes the tower."""


def part_of(name: str) -> str:
    """The tunable part that a parameter of LlavaModel belongs to.

    As in LLaVA-NeXT's trainer, ``mm_language_model`` is everything outside the tower and the
    projector: also the embeddings, the output layer and ``image_newline``.
    """
    if name.startswith("vision_model."):
        return "mm_vision_tower"
    if name.startswith(("vision_projection.", f"{CROSS_IMAGE_ATTENTION}.", f"{TEMPORAL_ENCODER}.")):
        return "mm_mlp_adapter"
    return "mm_language_model"


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """The optimizer and its learning-rate schedule."""

    optimizer: Literal["adam"] = flag("adam", "Optimizer; adam decays weights decoupled (AdamW)")
    lr: float | None = flag(None, "Peak learning rate", above=0)
    min_lr: float = flag(0.0, "Learning rate at the end of the decay", minimum=0)
    mm_projector_lr: float | None = flag(
        None, "Peak learning rate of the projector", above=0, default_text="--lr"
    )
    mm_vision_tower_lr: float | None = flag(
        None, "Peak learning rate of the vision tower", above=0, default_text="--lr"
    )
    weight_decay: float = flag(0.01, "Weight decay", minimum=0)
    adam_beta1: float = flag(0.9, "Decay of the gradient's mean", minimum=0, below=1)
    adam_beta2: float = flag(0.999, "Decay of the squared gradient's mean", minimum=0, below=1)
    adam_eps: float = flag(1e-8, "Added to the denominator of the update", above=0)
    clip_grad: float = flag(1.0, "Largest global gradient norm; 0 turns clipping off", minimum=0)
    lr_decay_style: Literal["constant", "linear", "cosine"] = flag(
        "linear", "Shape of the decay after warmup; linear is Megatron's default, cosine LLaVA's"
    )
    lr_decay_iters: int | None = flag(
        None, "Step at which the decay ends", minimum=1, default_text="--train-iters"
    )
    lr_warmup_iters: int = flag(0, "Steps of linear warmup from 0", minimum=0)
    lr_warmup_fraction: float | None = flag(
        None, "Warmup as a share of the decay steps, rounded up", minimum=0, below=1
    )

    use_precision_aware_optimizer: bool = flag(
        False,
        "Let Transformer Engine's Adam hold the main weights and moments, in the types of "
        "--main-params-dtype, --exp-avg-dtype and --exp-avg-sq-dtype; needs "
        "--use-distributed-optimizer",
    )
    main_params_dtype: Literal["fp32", "fp16"] = flag(
        "fp32", "With --use-precision-aware-optimizer: type of the main weights"
    )
    exp_avg_dtype: Literal["fp32", "fp16", "bf16", "fp8"] = flag(
        "fp32", "With --use-precision-aware-optimizer: type of the gradient's mean"
    )
    exp_avg_sq_dtype: Literal["fp32", "fp16", "bf16", "fp8"] = flag(
        "fp32", "With --use-precision-aware-optimizer: type of the squared gradient's mean"
    )
    optimizer_cpu_offload: bool = flag(
        False,
        "Keep main weights and moments in the memory of the host and update them there; needs "
        "--use-precision-aware-optimizer and --bf16",
    )
    optimizer_offload_fraction: float = flag(1.0, "Share of --optimizer-cpu-offload, by parameters")
    overlap_cpu_optimizer_d2h_h2d: bool = flag(
        False, "With --optimizer-cpu-offload, copy parameter by parameter while others are updated"
    )

    def decay_iters(self, train_iters: int) -> int:
        """Step at which the decay ends: ``lr_decay_iters``, else ``train_iters``."""
        return train_iters if self.lr_decay_iters is None else self.lr_decay_iters

    def warmup_iters(self, train_iters: int) -> int:
        """Steps of warmup.

        A fraction is ``ceil(decay_steps * fraction)`` in double precision, the number of steps that
        transformers' ``warmup_ratio`` (and so LLaVA's training) takes.
        """
        if self.lr_warmup_fraction is None:
            return self.lr_warmup_iters
        return math.ceil(self.decay_iters(train_iters) * self.lr_warmup_fraction)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Batches, steps, and which parts of the model learn."""

    micro_batch_size: int = flag(
        1, "Packs per forward pass; a pack already holds many samples, so this is 1", minimum=1
    )
    global_batch_size: int | None = flag(
        None, "Packs per optimizer step", minimum=1, default_text="one per data-parallel rank"
    )
    train_iters: int | None = flag(None, "Optimizer steps of the run", minimum=1)
    seed: int = flag(1234, "Seed of initialisation, dropout and data order", minimum=0, below=2**31)
    mm_tunable_parts: tuple[str, ...] = flag(
        TUNABLE_PARTS,
        "Parts that are trained, comma-separated; the others are frozen. With --lora-rank "
        "mm_language_model is its adapters and the learned rows of images",
        default_text=",".join(TUNABLE_PARTS) + "; with --lora-rank not mm_vision_tower",
    )
    loss_reduction: Literal["token", "sample", "microbatch-mean"] = flag(
        "token",
        "What weighs alike in a global batch: every supervised token, every sample, or every pack "
        "(the mean of means of older trainers)",
    )
    loss_function: str | None = flag(
        None,
        "MODULE:FUNCTION that takes the megatron_llava.training.user_loss.LossRows of a microbatch "
        "and returns the loss of each row in place of the cross entropy; evaluation keeps that",
        default_text="cross entropy",
    )
    text_loss_coeff: float = flag(
        1.0, "Weight of the text loss; 0 leaves --align-loss-coeff alone", minimum=0
    )
    align_loss_coeff: float = flag(
        0.0,
        "Weight of the alignment loss of stage 1: the mean squared difference between the mean "
        "image feature and the mean embedding of the supervised tokens of a sample; 0 turns it off",
        minimum=0,
    )
    align_loss_pooling: Literal["mean", "token"] = flag(
        "mean",
        "token compares feature by feature in samples with as many supervised tokens as image "
        "rows, and means in the others",
    )
    max_skipped_steps: int = flag(
        10,
        "Steps with a loss or gradient that is not finite, or with a loss beyond "
        "--loss-spike-factor, that a run may skip, without any change of the weights, before it "
        "ends; 0 ends it at the first",
        minimum=0,
    )
    loss_spike_factor: float | None = flag(
        None,
        "Skip a step, counted in --max-skipped-steps, whose loss is more than this many times the "
        "median of the last --loss-spike-window losses",
        above=1,
        default_text="off",
    )
    loss_spike_window: int = flag(
        100,
        "Losses that --loss-spike-factor takes the median of; no step is skipped before there are "
        "as many",
        minimum=1,
    )
    eval_interval: int | None = flag(
        None, "Steps between evaluations on --valid-data-path", minimum=1, default_text="never"
    )
    eval_iters: int = flag(100, "Global batches in one evaluation", minimum=1)
    exit_signal_handler: bool = flag(
        True,
        "With --save: on SIGTERM finish the step, save and exit with code 75; without --save, or "
        "turned off, SIGTERM ends the run at once",
    )
    exit_interval: int | None = flag(
        None,
        "Save and leave at each step that is a multiple of this",
        minimum=1,
        default_text="never",
    )


@dataclass(frozen=True, kw_only=True)
class RecomputeConfig:
    """Which activations are kept for the backward pass, and how many there are at a time."""

    recompute_activations: bool = flag(False, "Same as --recompute-granularity selective")
    recompute_granularity: Literal["full", "selective"] | None = flag(
        None, "Recompute whole layers, or only the core of attention", default_text="off"
    )
    recompute_vision: bool = flag(
        False, "Recompute the vision tower's layers as well, in the same way"
    )
    vision_views_at_once: int | None = flag(
        None,
        "Views that the vision tower encodes together, one group after the other",
        minimum=1,
        default_text="all of a pack",
    )
    recompute_method: Literal["uniform", "block"] | None = flag(
        None, "With full: recompute in chunks of layers, or the first layers of each stage"
    )
    recompute_num_layers: int | None = flag(
        None,
        "With full: layers in a chunk (uniform) or in a stage (block); a vision tower whose layers "
        "uniform chunks do not divide has chunks of one",
        minimum=1,
    )

    @property
    def granularity(self) -> Literal["full", "selective"] | None:
        """``recompute_granularity`` with ``recompute_activations`` taken into account."""
        return "selective" if self.recompute_activations else self.recompute_granularity
