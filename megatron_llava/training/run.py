"""Put a training run together and run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_llava.config.cli import config_to_yaml
from megatron_llava.config.image import ImageSettings
from megatron_llava.config.run import RunConfig
from megatron_llava.data.sample import SampleStore
from megatron_llava.data.sampled_packs import pack_sizes
from megatron_llava.data.schedule import EvaluationSchedule, Schedule
from megatron_llava.models.llava import LlavaModel
from megatron_llava.ops.operators import plain_torch_remark
from megatron_llava.parallel.checkpoint_directory import Iteration
from megatron_llava.parallel.groups import (
    destroy_groups,
    initialize_groups,
    seed_dropout,
    set_seed,
)
from megatron_llava.parallel.pipeline_cost import balanced
from megatron_llava.peft.four_bit_linears import quantize_base
from megatron_llava.platform.device import connections_remark
from megatron_llava.platform.memory_history import memory_history, snapshot_file
from megatron_llava.platform.stop_signal import StopSignal
from megatron_llava.training.batches import BatchSource
from megatron_llava.training.checkpointing import (
    TrainingState,
    load_training_state,
    load_weights,
)
from megatron_llava.training.distributed_model import build_distributed_model
from megatron_llava.training.loop import Trainer
from megatron_llava.training.optimizer import build_optimizer, build_scheduler
from megatron_llava.training.packs import (
    epoch_remark,
    most_left_out,
    opened_store,
    training_schedule,
)
from megatron_llava.training.reporter import Reporter, RunReporter
from megatron_llava.training.run_saves import RunSaves, check_state_can_be_saved
from megatron_llava.training.skipping import SkippedSteps
from megatron_llava.training.start import (
    adapted_checkpoint,
    adapter_record,
    resumes,
    starting_checkpoint,
)
from megatron_llava.training.user_loss import user_loss
from megatron_llava.training.watching import profile_window, spike_guard, step_times
from megatron_llava.training.whole_weights import load_whole_weights
from megatron_llava.vision.settings import image_settings, nobase_remark


def run_training(
    config: RunConfig,
    device: torch.device,
    reporter: RunReporter,
    stop_signal: StopSignal | None = None,
) -> Trainer:
    """Train; torch.distributed must be running.

    Args:
        stop_signal: ends the run early with a save; without it SIGTERM does what it did.

    Returns:
        The trainer as it stopped.

    Raises:
        ValueError: one line for the user: data, checkpoint or divergence.
    """
    with ExitStack() as stack:
        if config.profiling.record_memory_history:
            file = snapshot_file(config.profiling.memory_snapshot_path, dist.get_rank())
            stack.enter_context(memory_history(file))
        trainer = stack.enter_context(open_trainer(config, device, reporter))
        # The trainer's settings: --pipeline-balance has placed the layers.
        reporter.started(trainer.iteration, config_to_yaml(trainer.config), device)
        trainer.run(stop_signal)
    return trainer


@contextmanager
def open_trainer(config: RunConfig, device: torch.device, reporter: Reporter) -> Iterator[Trainer]:
    """A trainer at its starting point, with core's process groups until the block ends.

    Raises:
        ValueError: one line for the user.
    """
    initialize_groups(config.parallel, config.virtual_stages)
    try:
        yield build_trainer(config, device, reporter)
    finally:
        destroy_groups()


def build_trainer(config: RunConfig, device: torch.device, reporter: Reporter) -> Trainer:
    """Build data, model and optimizer, and load the starting checkpoint.

    Raises:
        ValueError: one line for the user.
    """
    settings = image_settings(config)
    _remark(config, settings, device, reporter)
    num_microbatches = config.num_microbatches(dist.get_world_size())
    store = opened_store(config.data.data_path, config, settings, reporter.message)
    schedule = training_schedule(config, settings, store)
    _check_positions(config, schedule, store)
    _report_dropped(config, store, schedule, reporter)
    left = epoch_remark(config, schedule)
    if left is not None:
        reporter.message(left)
    validation = _validation(config, settings, num_microbatches, device, reporter)
    if config.parallel.pipeline_balance == "auto":
        config, message = balanced(config, pack_sizes(store, settings, schedule))
        reporter.message(message)
    set_seed(config.training.seed)
    models, wrapped = build_distributed_model(config, device)
    start = starting_checkpoint(config)
    resume = resumes(config, start)
    _load_weights(config, start if not resume else None, models, reporter)
    quantize_base(models, config.lora)
    seed_dropout(config.training.seed)
    optimizer = build_optimizer(config, wrapped)
    own_loss = user_loss(config)
    source = BatchSource(
        store,
        settings,
        schedule,
        config,
        num_microbatches=num_microbatches,
        device=device,
        loss_origins=own_loss is not None,
    )
    state = TrainingState(
        models=models,
        optimizer=optimizer,
        scheduler=build_scheduler(config, optimizer),
        iteration=0,
        consumed_packs=0,
        data_fingerprint=schedule.fingerprint,
        skipped_steps=0,
    )
    if resume:
        _resume(config, start, state, reporter)
        source.resume_at(state.consumed_packs)
    else:
        reporter.message(_beginning(start))
    check_state_can_be_saved(config, optimizer)
    return Trainer(
        config=config,
        device=device,
        models=models,
        wrapped=wrapped,
        optimizer=optimizer,
        scheduler=state.scheduler,
        source=source,
        make_validation=validation,
        reporter=reporter,
        saves=_saves(config, start, reporter),
        skipped_steps=SkippedSteps(
            limit=config.training.max_skipped_steps, count=state.skipped_steps
        ),
        user_loss=own_loss,
        spike_guard=spike_guard(config, state.recent_losses),
        profile=profile_window(config),
        times=step_times(config, models, device),
        iteration=state.iteration,
        saved_at=state.iteration if resume else None,
    )


def _beginning(start: tuple[str, Iteration] | None) -> str:
    """What a run that resumes none begins with, in words."""
    if start is None:
        return "starting from random weights: no checkpoint was given"
    return f"starting from {start[0]} ({start[1]})"


def _saves(config: RunConfig, start: tuple[str, Iteration] | None, reporter: Reporter) -> RunSaves:
    return RunSaves(
        config=config,
        message=reporter.message,
        side_files=start,
        adapter_record=adapter_record(config),
        started_from=_started_from(config, start),
    )


def _remark(
    config: RunConfig, settings: ImageSettings, device: torch.device, reporter: Reporter
) -> None:
    """Say what of the machine and the settings a user may want to know."""
    for remark in (
        connections_remark(device.type, config.parallel.tensor_model_parallel_size),
        plain_torch_remark(device.type),
        nobase_remark(settings),
    ):
        if remark is not None:
            reporter.message(remark)


def _started_from(config: RunConfig, start: tuple[str, Iteration] | None) -> Iteration | None:
    """The iteration in --save that the run started from, None where it started elsewhere."""
    save = config.checkpoint.save
    if start is None or save is None or Path(start[0]).resolve() != Path(save).resolve():
        return None
    return start[1]


def _load_weights(
    config: RunConfig,
    start: tuple[str, Iteration] | None,
    models: list[LlavaModel],
    reporter: Reporter,
) -> None:
    """Load what the run starts from, and what its adapters stand beside.

    Args:
        start: None where the run starts from random weights, or from what ``_resume`` loads.
    """
    parallel = config.checkpoint.ckpt_fully_parallel_load
    base = adapted_checkpoint(config)
    whole = start if base is None else base
    if whole is not None:
        fresh = load_whole_weights(*whole, config, models, fully_parallel=parallel)
        if fresh:
            reporter.message(f"{whole[0]} has no {', '.join(fresh)}: starts with new values")
    if start is not None and start != whole:
        load_weights(*start, models, fully_parallel=parallel, of_adapters=True)


def _resume(
    config: RunConfig, start: tuple[str, Iteration], state: TrainingState, reporter: Reporter
) -> None:
    """Load the run that ``start`` holds into ``state``."""
    root, iteration = start
    remarks = load_training_state(
        root,
        int(iteration),
        state,
        with_optimizer=not config.checkpoint.no_load_optim,
        with_rng=not config.checkpoint.no_load_rng,
        fully_parallel=config.checkpoint.ckpt_fully_parallel_load,
    )
    for remark in [*remarks, f"resumed {root} at step {state.iteration}"]:
        reporter.message(remark)


def _report_dropped(
    config: RunConfig, store: SampleStore, schedule: Schedule, reporter: Reporter
) -> None:
    if schedule.num_dropped:
        allowed = (
            "--oversize-samples leave_out"
            if config.data.oversize_samples == "leave_out"
            else "--max-bad-records"
        )
        reporter.message(
            f"store {store.prefix}: {schedule.num_dropped} of {len(store)} samples are longer than "
            f"--seq-length {config.data.seq_length} and left out, as {allowed} allows"
        )


def _validation(
    config: RunConfig,
    settings: ImageSettings,
    num_microbatches: int,
    device: torch.device,
    reporter: Reporter,
) -> Callable[[], BatchSource] | None:
    """A maker of fresh sources over the held-out store, None where there is none."""
    data = config.data
    if data.valid_data_path is None:
        return None
    store = opened_store(data.valid_data_path, config, settings, reporter.message)
    schedule = EvaluationSchedule(
        store,
        settings,
        data.seq_length,
        packs_per_step=num_microbatches * config.data_parallel_size(dist.get_world_size()),
        window=data.packing_window,
        max_bad_records=most_left_out(config, store),
        max_views=data.max_views_per_pack,
    )
    _report_dropped(config, store, schedule, reporter)
    _check_positions(config, schedule, store)
    return lambda: BatchSource(
        store, settings, schedule, config, num_microbatches=num_microbatches, device=device
    )


def _check_positions(config: RunConfig, schedule: Schedule, store: SampleStore) -> None:
    """Positions restart in each sample, so it is the longest sample that the model must reach."""
    allowed = config.language.max_position_embeddings
    if schedule.longest_sample > allowed:
        raise ValueError(
            f"store {store.prefix}: the longest sample has {schedule.longest_sample} positions, "
            f"more than --max-position-embeddings {allowed}: lower the image resolution, or leave "
            f"such samples out with --seq-length {allowed} and --max-bad-records"
        )
