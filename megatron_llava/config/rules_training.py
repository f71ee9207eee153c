"""Rules of ``validate`` about batches, schedules and checkpoints."""

from __future__ import annotations

from megatron_llava.config.checkpoint import CheckpointConfig
from megatron_llava.config.rules_model import known
from megatron_llava.config.rules_pipeline import layers_of_stages, smallest_stage
from megatron_llava.config.run import RunConfig, all_fields
from megatron_llava.config.training import TUNABLE_PARTS


def check_batch(config: RunConfig, world_size: int) -> None:
    """The ranks divide into model replicas, and the packs among those."""
    micro = config.training.micro_batch_size
    if micro != 1:
        raise ValueError(
            f"--micro-batch-size {micro}: must be 1, for a pack already holds many samples; "
            "raise --seq-length or --global-batch-size instead"
        )
    if config.data.group_by_modality_length and config.training.global_batch_size is None:
        raise ValueError(
            "--group-by-modality-length deals packs to global batches, whose size must not follow "
            "from the number of ranks: give --global-batch-size"
        )
    if config.data.drop_last and config.training.global_batch_size is None:
        raise ValueError(
            "--drop-last leaves out what fills no global batch, whose size must not follow from "
            "the number of ranks: give --global-batch-size"
        )
    config.num_microbatches(world_size)


def check_pack_cost(config: RunConfig) -> None:
    """Three whole numbers, so that every machine orders packs alike."""
    cost = config.data.pack_cost
    if cost is None:
        return
    if len(cost) != 3 or any(value < 0 or value % 1 for value in cost) or not any(cost):
        raise ValueError(
            f"--pack-cost {','.join(f'{value:g}' for value in cost)}: expected three whole numbers "
            "of at least 0, of a row, a pair of rows and a view, such as 700,1,90000"
        )
    if not config.data.balance_packs:
        raise ValueError("--pack-cost orders nothing with --balance-packs 0: drop one of them")


def check_schedule(config: RunConfig) -> None:
    """Warmup, decay and rates follow each other."""
    optimizer = config.optimizer
    if optimizer.lr_warmup_fraction is not None and optimizer.lr_warmup_iters > 0:
        raise ValueError(
            f"--lr-warmup-fraction {optimizer.lr_warmup_fraction} contradicts --lr-warmup-iters "
            f"{optimizer.lr_warmup_iters}: give one"
        )
    train_iters = known(config.training.train_iters)
    decay, warmup = optimizer.decay_iters(train_iters), optimizer.warmup_iters(train_iters)
    if warmup >= decay:
        decay_flag = "--train-iters" if optimizer.lr_decay_iters is None else "--lr-decay-iters"
        warmup_flag = (
            f"--lr-warmup-iters {warmup}"
            if optimizer.lr_warmup_fraction is None
            else f"--lr-warmup-fraction {optimizer.lr_warmup_fraction} = {warmup} steps"
        )
        raise ValueError(
            f"{warmup_flag} leaves nothing of {decay_flag} {decay} to decay: "
            f"warm up for fewer than {decay} steps"
        )
    # A module's own rate decays towards --min-lr in proportion to its ratio to --lr.
    if optimizer.lr is not None and optimizer.lr < optimizer.min_lr:
        raise ValueError(
            f"--min-lr {optimizer.min_lr} is more than --lr {optimizer.lr}: the rate decays "
            "towards it; give less"
        )


def check_tunable_parts(config: RunConfig) -> None:
    """Something known is trained, and every rate belongs to a trained part."""
    parts = config.training.mm_tunable_parts
    names = ", ".join(TUNABLE_PARTS)
    if not parts:
        raise ValueError(f"--mm-tunable-parts is empty: name at least one of {names}")
    for part in parts:
        if part not in TUNABLE_PARTS:
            raise ValueError(f"--mm-tunable-parts: {part!r} is not one of {names}")
        if parts.count(part) > 1:
            raise ValueError(f"--mm-tunable-parts names {part} {parts.count(part)} times: once")
    for name, part in (
        ("mm_projector_lr", "mm_mlp_adapter"),
        ("mm_vision_tower_lr", "mm_vision_tower"),
    ):
        if config.get(name) is not None and part not in parts:
            raise ValueError(
                f"{all_fields()[name].option} {config.get(name)} is for {part}, which is not in "
                f"--mm-tunable-parts {','.join(parts)}: add the part, or drop the rate"
            )


def check_recompute(config: RunConfig) -> None:
    """Full recomputation says how; anything else does not."""
    recompute = config.recompute
    if recompute.recompute_activations and recompute.recompute_granularity == "full":
        raise ValueError(
            "--recompute-activations (selective) contradicts --recompute-granularity full: give one"
        )
    if recompute.recompute_vision and recompute.granularity is None:
        raise ValueError(
            "--recompute-vision follows --recompute-granularity, and recomputation is off: add "
            "--recompute-activations or --recompute-granularity full"
        )
    options = {
        "--recompute-method": recompute.recompute_method,
        "--recompute-num-layers": recompute.recompute_num_layers,
    }
    for option, value in options.items():
        if recompute.granularity == "full" and value is None:
            raise ValueError(f"--recompute-granularity full needs {option}: add it")
        if recompute.granularity != "full" and value is not None:
            kind = recompute.granularity or "off"
            raise ValueError(
                f"{option} {value} is for --recompute-granularity full, and recomputation is "
                f"{kind}: drop it, or recompute in full"
            )
    if (
        config.parallel.overlap_grad_reduce
        and recompute.recompute_vision
        and recompute.granularity == "full"
        and recompute.vision_views_at_once is not None
        and "mm_vision_tower" in config.training.mm_tunable_parts
    ):
        raise ValueError(
            "--overlap-grad-reduce counts the gradients of the tower, which come once for each "
            f"--vision-views-at-once {recompute.vision_views_at_once} of a pack where its layers "
            "run again (--recompute-vision, --recompute-granularity full): drop one of them"
        )
    stage = smallest_stage(config)
    layers = recompute.recompute_num_layers
    if layers is not None and layers > stage:
        raise ValueError(
            f"--recompute-num-layers {layers} is more than the {stage} layers of a pipeline stage: "
            f"give {stage} or less"
        )
    if layers is None or recompute.recompute_method != "uniform" or _placed_later(config):
        return
    for count in sorted(set(layers_of_stages(config))):
        held = count // (config.virtual_stages or 1)
        if held % layers != 0:
            raise ValueError(
                f"--recompute-method uniform: --recompute-num-layers {layers} does not divide the "
                f"{held} layers of a pipeline stage: give a divisor of {held}, or block"
            )


def _placed_later(config: RunConfig) -> bool:
    """Whether the layers of stages are known only when the data has been read."""
    return config.parallel.pipeline_balance == "auto"


def check_evaluation(config: RunConfig) -> None:
    """Validation data and its interval come together."""
    interval, path = config.training.eval_interval, config.data.valid_data_path
    if interval is not None and path is None:
        raise ValueError(f"--eval-interval {interval} needs --valid-data-path: add it")
    if interval is None and path is not None:
        raise ValueError(f"--valid-data-path {path} is never read without --eval-interval: add it")


def check_saving(config: RunConfig) -> None:
    """A folder to write to and its interval come together."""
    checkpoint = config.checkpoint
    if checkpoint.save is not None and checkpoint.save_interval is None:
        raise ValueError(f"--save {checkpoint.save} needs --save-interval: add it")
    if checkpoint.save is None:
        if checkpoint.save_interval is not None:
            raise ValueError(f"--save-interval {checkpoint.save_interval} needs --save: add it")
        how = {
            "--save-total-limit": checkpoint.save_total_limit is not None,
            "--save-retain-interval": checkpoint.save_retain_interval is not None,
            "--no-save-optim": checkpoint.no_save_optim,
            "--async-save": checkpoint.async_save,
            "--no-ckpt-fully-parallel-save": checkpoint.no_ckpt_fully_parallel_save,
            "--dist-ckpt-optim-fully-reshardable": checkpoint.dist_ckpt_optim_fully_reshardable,
        }
        for option, given in how.items():
            if given:
                raise ValueError(f"{option} says how to write --save, which is not given: add it")
    _check_retained(checkpoint)
    distributed = config.parallel.use_distributed_optimizer
    if checkpoint.dist_ckpt_optim_fully_reshardable and not distributed:
        raise ValueError(
            "--dist-ckpt-optim-fully-reshardable is about the state of "
            "--use-distributed-optimizer, which is not given: add it, or drop the flag (other "
            "state resumes at any layout)"
        )


def _check_retained(checkpoint: CheckpointConfig) -> None:
    """What is to stay would be removed otherwise, and is written at all."""
    retained, interval = checkpoint.save_retain_interval, checkpoint.save_interval
    if retained is None:
        return
    if checkpoint.save_total_limit is None:
        raise ValueError(
            f"--save-retain-interval {retained} spares checkpoints from --save-total-limit, which "
            "is not given, so all stay: add it, or drop the flag"
        )
    if retained % known(interval):
        raise ValueError(
            f"--save-retain-interval {retained} is no multiple of --save-interval {interval}: such "
            "checkpoints are not written; give a multiple"
        )


def check_loading(config: RunConfig) -> None:
    """One place gives the starting weights."""
    checkpoint = config.checkpoint
    load, start = checkpoint.load, checkpoint.starting_flag
    how = {
        "--finetune": checkpoint.finetune,
        "--no-load-optim": checkpoint.no_load_optim,
        "--no-load-rng": checkpoint.no_load_rng,
        "--exit-on-missing-checkpoint": checkpoint.exit_on_missing_checkpoint,
        "--ckpt-step": checkpoint.ckpt_step is not None,
    }
    for option, given in how.items():
        if given and load is None:
            raise ValueError(f"{option} says how to read --load, which is not given: add it")
    pretrained, folder = checkpoint.pretrained_checkpoint, checkpoint.load_hf
    if checkpoint.ckpt_fully_parallel_load and load is None and pretrained is None:
        raise ValueError(
            "--ckpt-fully-parallel-load says how to read --load or --pretrained-checkpoint, and "
            "neither is given: add one"
        )
    if start is None:
        return
    if pretrained is not None and folder is not None:
        raise ValueError(
            f"--pretrained-checkpoint {pretrained} and --load-hf {folder} both give the starting "
            "weights: give one"
        )
    named = " ".join(start)
    if checkpoint.finetune and not config.lora.adapts:
        raise ValueError(
            f"--load {load} with --finetune and {named} both give the starting weights: give one"
        )
    if checkpoint.exit_on_missing_checkpoint:
        raise ValueError(
            f"{named} is for a --load without a checkpoint, where --exit-on-missing-checkpoint "
            "stops: give one"
        )
    if load == start[1]:
        raise ValueError(
            f"--load and {start[0]} are both {load}: --load resumes a run, {start[0]} starts a new "
            "one; give one"
        )
    if folder is not None and checkpoint.save == folder:
        raise ValueError(
            f"--save and --load-hf are both {folder}: checkpoints have another format; name "
            "another folder with --save"
        )
