"""The entry point: ``torchrun -m megatron_llava.train ...`` (or ``python -m`` for one process)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_llava.config.cli import parse_args
from megatron_llava.config.exit_codes import RANK_LOST, STOPPED
from megatron_llava.config.run import RunConfig
from megatron_llava.config.tool_exit import interruptible
from megatron_llava.config.validate import validate
from megatron_llava.platform.job_exit import exit_job, on_first_rank_only
from megatron_llava.platform.torchrun import global_rank, world_size

_PROGRAM = "megatron_llava.train"


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says.

    A user error ends in one line; ``config.exit_codes`` has the exit codes.
    """
    with on_first_rank_only():
        config = parse_args(argv, prog=_PROGRAM)
    try:
        config = prepare(config)
    except ValueError as error:
        exit_job(str(error), _PROGRAM)
    from megatron_llava.platform.device import (
        join_process_group,
        leave_process_group,
        meet,
        set_up_device,
    )

    try:
        device = set_up_device(config.parallel.device, tf32=config.precision.tf32)
    except ValueError as error:
        exit_job(str(error), _PROGRAM)
    # These rooms, and perhaps a user's function, import Megatron-core, which must find its device
    # prepared.
    from megatron_llava.data.workers import lost_worker
    from megatron_llava.observe.metrics import Reporter, peak_flops
    from megatron_llava.observe.wandb_run import WandbRun
    from megatron_llava.platform.lost_ranks import RankWatch
    from megatron_llava.platform.stop_signal import StopSignal
    from megatron_llava.training.run import run_training
    from megatron_llava.training.start import how_to_go_on
    from megatron_llava.training.user_loss import user_loss

    try:
        user_loss(config)
    except ValueError as error:
        exit_job(str(error), _PROGRAM)
    saves = config.training.exit_signal_handler and config.checkpoint.save is not None
    stop_signal = StopSignal() if saves else None
    timeout, logging = config.parallel.distributed_timeout_minutes, config.logging
    try:
        store = meet(timeout)
        with RankWatch(store, global_rank(), world_size(), _PROGRAM, how_to_go_on(config)):
            join_process_group(config.parallel.device, timeout, store)
            first = global_rank() == 0
            reporter = Reporter(
                active=first,
                train_iters=config.training.train_iters,
                log_file=logging.log_file,
                tensorboard_dir=logging.tensorboard_dir,
                progress_bar=not logging.no_progress_bar,
                wandb=WandbRun(config) if first and logging.wandb_project is not None else None,
                ranks=world_size(),
                peak_flops=peak_flops(device, logging.peak_tflops),
            )
            trainer = run_training(config, device, reporter, stop_signal)
            reporter.close()
    except ValueError as error:
        exit_job(str(error), _PROGRAM)
    except RuntimeError as error:
        lost = lost_worker(error)
        if lost is None:
            raise
        exit_job(lost, _PROGRAM, RANK_LOST)
    finally:
        leave_process_group()
    if stop_signal is not None and trainer.stopped:
        stop_signal.ignore()
        raise SystemExit(STOPPED)


def prepare(config: RunConfig) -> RunConfig:
    """Resolve the device, take the architecture from the checkpoint, and check every rule.

    Raises:
        ValueError: one line naming the flags and numbers; nothing has been started or written.
    """
    # With torch imported above, --help and a wrong flag would take seconds.
    from megatron_llava.observe.wandb_run import check_wandb
    from megatron_llava.ops.four_bit import check_bitsandbytes
    from megatron_llava.platform.device import (
        check_compiler,
        check_flash_attention,
        check_fp8_device,
        check_precision_aware_optimizer,
        check_tf32,
        check_transformer_impl,
        select_device,
    )
    from megatron_llava.training.start import (
        architecture_from_checkpoint,
        check_adapters,
        check_outputs,
    )
    from megatron_llava.vision.settings import image_settings

    device = select_device(config.parallel.device)
    config = config.with_values({"device": device}, config.sources.get("device", "default"))
    check_transformer_impl(config.parallel.transformer_impl)
    config = architecture_from_checkpoint(config)
    validate(config, world_size())
    parallel, precision = config.parallel, config.precision
    check_flash_attention(parallel.transformer_impl, parallel.attention_backend)
    if precision.fp8_format is not None and not precision.fp8_emulation:
        check_fp8_device(device, precision.fp8_recipe)
    if precision.tf32:
        check_tf32(device)
    if config.optimizer.use_precision_aware_optimizer:
        check_precision_aware_optimizer()
    if parallel.torch_compile:
        check_compiler(device)
    check_wandb(config)
    check_bitsandbytes(config.lora)
    check_adapters(config)
    check_outputs(config)
    image_settings(config)
    return config


if __name__ == "__main__":
    with interruptible():
        main(sys.argv[1:])
