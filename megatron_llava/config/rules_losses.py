"""Rules of ``validate`` about losses."""

from __future__ import annotations

from megatron_llava.config.run import RunConfig


def check_spikes(config: RunConfig) -> None:
    """A window belongs to a factor, and a factor to the loss that is watched."""
    training = config.training
    if training.loss_spike_factor is not None and training.text_loss_coeff == 0:
        raise ValueError(
            f"--loss-spike-factor {training.loss_spike_factor:g} watches the text loss, which "
            "--text-loss-coeff 0 turns off: drop one of them"
        )
    if config.asks_for("loss_spike_window") and training.loss_spike_factor is None:
        raise ValueError(
            f"--loss-spike-window {training.loss_spike_window} is for --loss-spike-factor, which "
            "is not given: add it, or drop the flag"
        )


def check_loss_function(config: RunConfig) -> None:
    """What is minimised is the user's, and has no scale that a spike could be told by."""
    training = config.training
    if training.loss_function is None:
        return
    if training.text_loss_coeff == 0:
        raise ValueError(
            f"--loss-function {training.loss_function} takes the place of the text loss, which "
            "--text-loss-coeff 0 turns off: drop one of them"
        )
    if training.loss_spike_factor is not None:
        raise ValueError(
            f"--loss-spike-factor {training.loss_spike_factor:g} multiplies a median loss, which "
            f"--loss-function {training.loss_function} may make 0 or negative: drop one of them"
        )


def check_losses(config: RunConfig) -> None:
    """Something is learned from, and the alignment loss reaches the projector alone."""
    training = config.training
    text, align, parts = (
        training.text_loss_coeff,
        training.align_loss_coeff,
        ",".join(training.mm_tunable_parts),
    )
    if not align:
        if not text:
            raise ValueError(
                "--text-loss-coeff 0 without --align-loss-coeff leaves no loss: give one of them"
            )
        if training.align_loss_pooling != "mean":
            raise ValueError(
                f"--align-loss-pooling {training.align_loss_pooling} is for --align-loss-coeff, "
                "which is 0: give it, or drop the flag"
            )
        return
    if "mm_mlp_adapter" not in parts or "mm_vision_tower" in parts:
        raise ValueError(
            f"--align-loss-coeff {align:g} is a loss of the projector, with the tower frozen: "
            f"--mm-tunable-parts {parts} must name mm_mlp_adapter and not mm_vision_tower"
        )
    if not text and "mm_language_model" in parts:
        raise ValueError(
            "--text-loss-coeff 0: nothing teaches mm_language_model, which --mm-tunable-parts "
            f"{parts} names: leave it out, or give the text loss a weight"
        )
    context = config.parallel.context_parallel_size
    if training.align_loss_pooling == "token" and context > 1:
        raise ValueError(
            f"--align-loss-pooling token compares rows that --context-parallel-size {context} "
            "puts on different ranks: use mean, or one context-parallel rank"
        )
