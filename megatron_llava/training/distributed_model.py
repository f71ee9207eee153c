"""The model of this rank, in core's mixed-precision and data-parallel wrappers."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.tensor_parallel import (
    set_defaults_if_not_set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.module import Float16Module

from megatron_llava.config.run import RunConfig
from megatron_llava.models.build import build_llava_model
from megatron_llava.models.llava import LlavaModel
from megatron_llava.platform.device import compiled
from megatron_llava.training.freeze import freeze_parts


def build_distributed_model(
    config: RunConfig, device: torch.device
) -> tuple[list[LlavaModel], list[DistributedDataParallel]]:
    """Build this pipeline rank's parts and wrap each: one, or as many as it has virtual stages.

    Returns:
        The bare models (names and layout as in a checkpoint) and the wrapped ones that are trained.
    """
    stages = config.virtual_stages
    models, wrapped = [], []
    for number, vp_stage in enumerate(range(stages) if stages else [None]):
        model = _build_part(config, vp_stage, device)
        module = Float16Module(model.config, model) if config.precision.is_half else model
        models.append(model)
        wrapped.append(
            DistributedDataParallel(
                model.config,
                _ddp_config(config),
                module,
                # The reduction of later parts is overlapped with earlier parts' backward anyway.
                disable_bucketing=number > 0,
            )
        )
    _connect_overlaps(config, wrapped)
    return models, wrapped


def _build_part(config: RunConfig, vp_stage: int | None, device: torch.device) -> LlavaModel:
    """One part of this rank's model, with what is frozen in it."""
    ends = {"ignore_virtual": False, "vp_stage": vp_stage}
    model = build_llava_model(
        config,
        pre_process=parallel_state.is_pipeline_first_stage(**ends),
        post_process=parallel_state.is_pipeline_last_stage(**ends),
        vp_stage=vp_stage,
    )
    if device.type == "cuda":
        model.cuda(device)
    if model.pre_process and config.parallel.vision_parallel == "data":
        model.vision_model.equalize()
    freeze_parts(model, config.training.mm_tunable_parts, adapts=config.lora.adapts)
    if model.pre_process and config.parallel.torch_compile:
        model.vision_model.forward = compiled(model.vision_model.forward)
    for parameter in model.parameters():
        # Core's optimizer needs to know which parameters tensor-parallel ranks share.
        set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
    return model


def _ddp_config(config: RunConfig) -> DistributedDataParallelConfig:
    parallel = config.parallel
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=config.precision.reduce_grads_in_fp32,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        bucket_size=parallel.ddp_bucket_size,
        check_for_nan_in_grad=False,
    )


def _connect_overlaps(config: RunConfig, wrapped: list[DistributedDataParallel]) -> None:
    """Tell core's schedules how to delay, start and finish the reduction of gradients.

    The schedules ask the first part's configuration.
    """
    core = wrapped[0].module.config
    core.finalize_model_grads_func = finalize_model_grads
    if config.parallel.overlap_grad_reduce:
        pauses = [part.no_sync for part in wrapped]
        core.no_sync_func = pauses if len(pauses) > 1 else pauses[0]
