"""Every rule, by the flags and numbers in its message."""

import dataclasses

import pytest

from megatron_llava.config.cli import config_to_yaml, parse_args
from megatron_llava.config.run import RunConfig, all_fields
from megatron_llava.config.validate import validate

FULL = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}
PROFILE = {"profile": True, "train_iters": 20}
FP8 = {"fp8_format": "hybrid", "transformer_impl": "transformer_engine", "bf16": True}
TP2 = {"tensor_model_parallel_size": 2}


ACCEPTED = pytest.mark.parametrize(
    ("changes", "world_size"),
    [
        ({}, 1),
        ({"fp16": True, "hysteresis": 3}, 1),
        ({"bf16": True, "lora_rank": 8, "lora_dropout": 0.0}, 1),
        ({"loss_spike_factor": 3.0, "loss_spike_window": 5}, 1),
        ({}, 3),
        ({**TP2, "pipeline_model_parallel_size": 2, "sequence_parallel": True}, 8),
        # More tensor-parallel ranks than query groups, one a multiple of the other, as in core.
        ({"tensor_model_parallel_size": 4}, 4),
        ({"num_query_groups": None, "kv_channels": 16, "hidden_size": 100}, 1),
        ({"global_batch_size": 12}, 4),
        (
            {
                "decoder_first_pipeline_num_layers": 1,
                "pipeline_model_parallel_size": 2,
                "num_layers": 3,
            },
            2,
        ),
        ({"min_lr": 1e-4, "mm_vision_tower_lr": 1e-5}, 1),
        # Positions restart in each sample, so a pack may be longer than the model's reach.
        ({"seq_length": 5120}, 1),
        ({**FULL, "recompute_num_layers": 2, "pipeline_model_parallel_size": 2}, 2),
        ({"recompute_activations": True, "recompute_granularity": "selective"}, 1),
        ({**FP8, "device": "cuda", "fp8_recipe": "blockwise"}, 1),
        ({"bf16": True, "grad_reduce_in_bf16": True}, 1),
        ({"bf16": True, "accumulate_allreduce_grads_in_fp32": True}, 1),
        (
            {
                "use_distributed_optimizer": True,
                "overlap_grad_reduce": True,
                "overlap_param_gather": True,
            },
            1,
        ),
        ({"lr_warmup_iters": 99}, 1),
        ({"lr_warmup_fraction": 0.03, "lr_decay_iters": 50, "lr_decay_style": "cosine"}, 1),
        ({"mm_tunable_parts": ("mm_mlp_adapter",), "mm_projector_lr": 1e-3}, 1),
        ({"valid_data_path": "valid", "eval_interval": 10}, 1),
        ({"save": "out", "save_interval": 10, "load": "out", "pretrained_checkpoint": "in"}, 1),
        ({"save": "out", "save_interval": 10, "load": "out", "load_hf": "in"}, 1),
        ({"load": "in", "finetune": True, "no_load_rng": True, "ckpt_step": 7}, 1),
        ({"image_aspect_ratio": "square", "image_grid_pinpoints": None}, 1),
        ({"vision_num_layers": 6, "mm_vision_select_layer": -5}, 1),
    ],
)


@ACCEPTED
def test_valid_configurations_pass(make_config, changes, world_size):
    validate(make_config(**changes), world_size)


REFUSED = [
    # Each: changes, world size, what the message must hold.
    (
        TP2,
        3,
        "3 ranks|--tensor-model-parallel-size 2|--pipeline-model-parallel-size 1|multiple of 2",
    ),
    ({"pipeline_model_parallel_size": 3}, 3, "--num-layers 4|--pipeline-model-parallel-size 3"),
    ({"global_batch_size": 10}, 4, "--global-batch-size 10|4 data-parallel ranks|8 or 12"),
    ({"global_batch_size": 2}, 4, "--global-batch-size 2|= 4: give 4"),
    ({"micro_batch_size": 2}, 1, "--micro-batch-size 2|must be 1"),
    (
        {"tensor_model_parallel_size": 16},
        16,
        "--num-attention-heads 8|--tensor-model-parallel-size 16",
    ),
    ({"kv_channels": 7}, 1, "--kv-channels 7 is odd"),
    ({"hidden_size": 72}, 1, "--kv-channels 9|--hidden-size over --num-attention-heads"),
    (
        {"num_attention_heads": 12, "num_query_groups": 3, "kv_channels": 8, **TP2},
        2,
        "--num-query-groups 3|--tensor-model-parallel-size 2",
    ),
    ({"num_query_groups": 3}, 1, "--num-attention-heads 8|--num-query-groups 3"),
    ({"hidden_size": 100}, 1, "--hidden-size 100|--num-attention-heads 8"),
    ({"ffn_hidden_size": 129, **TP2}, 2, "--ffn-hidden-size 129|--tensor-model-parallel-size 2"),
    (
        {"vision_num_attention_heads": 1, **TP2},
        2,
        "--vision-num-attention-heads 1|--tensor-model-parallel-size 2",
    ),
    (
        {"vision_ffn_hidden_size": 65, **TP2},
        2,
        "--vision-ffn-hidden-size 65|--tensor-model-parallel-size 2",
    ),
    (
        {"vision_num_attention_heads": 5},
        1,
        "--vision-hidden-size 32|--vision-num-attention-heads 5",
    ),
    ({"vision_patch_size": 57}, 1, "--vision-patch-size 57|--vision-image-size 56"),
    (
        {"overlap_param_gather": True, "overlap_grad_reduce": True},
        1,
        "--overlap-param-gather|--use-distributed-optimizer",
    ),
    (
        {"overlap_param_gather": True, "use_distributed_optimizer": True},
        1,
        "--overlap-param-gather|--overlap-grad-reduce",
    ),
    ({"grad_reduce_in_bf16": True}, 1, "--grad-reduce-in-bf16 needs --bf16"),
    (
        {
            "bf16": True,
            "grad_reduce_in_bf16": True,
            "accumulate_allreduce_grads_in_fp32": True,
        },
        1,
        "--grad-reduce-in-bf16|--accumulate-allreduce-grads-in-fp32",
    ),
    (
        {"transformer_impl": "transformer_engine", "device": "cpu"},
        1,
        "--transformer-impl transformer_engine|--device is cpu",
    ),
    ({"fp8_recipe": "tensorwise"}, 1, "--fp8-recipe tensorwise needs --fp8-format"),
    ({"fp8_format": "e4m3", "device": "cpu"}, 1, "--fp8-format e4m3|--device is cpu"),
    ({**FP8, "transformer_impl": "local"}, 1, "--fp8-format hybrid|transformer_engine, not local"),
    ({**FP8, "bf16": False}, 1, "--fp8-format hybrid needs --bf16"),
    (
        {"sequence_parallel": True},
        1,
        "--sequence-parallel|--tensor-model-parallel-size 2 or more, not 1",
    ),
    (
        {"sequence_parallel": True, "seq_length": 255, **TP2},
        2,
        "--sequence-parallel|--seq-length 255|--tensor-model-parallel-size 2",
    ),
    (
        {"lr_warmup_iters": 3, "lr_warmup_fraction": 0.1},
        1,
        "--lr-warmup-fraction 0.1|--lr-warmup-iters 3",
    ),
    ({"lr_warmup_iters": 100}, 1, "--lr-warmup-iters 100|--train-iters 100"),
    (
        {"lr_warmup_iters": 20, "lr_decay_iters": 20},
        1,
        "--lr-warmup-iters 20|--lr-decay-iters 20",
    ),
    ({"lr_warmup_fraction": 0.999}, 1, "--lr-warmup-fraction 0.999 = 100 steps|--train-iters 100"),
    ({"min_lr": 1e-2}, 1, "--min-lr 0.01|--lr 0.001"),
    ({"mm_tunable_parts": ()}, 1, "--mm-tunable-parts is empty|mm_mlp_adapter"),
    (
        {"mm_tunable_parts": ("mm_resampler",)},
        1,
        "--mm-tunable-parts|'mm_resampler'|mm_language_model",
    ),
    (
        {"mm_tunable_parts": ("mm_mlp_adapter", "mm_mlp_adapter")},
        1,
        "--mm-tunable-parts|mm_mlp_adapter 2 times",
    ),
    (
        {"mm_tunable_parts": ("mm_mlp_adapter",), "mm_vision_tower_lr": 2e-6},
        1,
        "--mm-vision-tower-lr 2e-06|mm_vision_tower|--mm-tunable-parts mm_mlp_adapter",
    ),
    (
        {"mm_tunable_parts": ("mm_language_model",), "mm_projector_lr": 1e-3},
        1,
        "--mm-projector-lr 0.001|mm_mlp_adapter",
    ),
    ({"recompute_vision": True}, 1, "--recompute-vision|--recompute-granularity"),
    (
        {
            **FULL,
            "recompute_vision": True,
            "vision_views_at_once": 2,
            "overlap_grad_reduce": True,
        },
        1,
        "--overlap-grad-reduce|--vision-views-at-once 2|--recompute-vision",
    ),
    (
        {"decoder_first_pipeline_num_layers": 1},
        1,
        "--decoder-first-pipeline-num-layers 1|--pipeline-model-parallel-size 2 or more",
    ),
    (
        {"decoder_last_pipeline_num_layers": 2, "pipeline_model_parallel_size": 4, "num_layers": 7},
        4,
        "--decoder-last-pipeline-num-layers 2|leaves 5 of --num-layers 7|3 other",
    ),
    (
        {
            "decoder_first_pipeline_num_layers": 1,
            "decoder_last_pipeline_num_layers": 2,
            "pipeline_model_parallel_size": 2,
            "num_layers": 4,
        },
        2,
        "first-pipeline-num-layers 1 and --decoder-last-pipeline-num-layers 2|leaves 1 of",
    ),
    (
        {**FULL, "recompute_activations": True},
        1,
        "--recompute-activations|--recompute-granularity full",
    ),
    (
        {"recompute_activations": True, "recompute_method": "block"},
        1,
        "--recompute-method block|selective",
    ),
    (
        {"recompute_granularity": "selective", "recompute_num_layers": 2},
        1,
        "--recompute-num-layers 2|selective",
    ),
    ({"recompute_method": "uniform"}, 1, "--recompute-method uniform|recomputation is off"),
    (
        {**FULL, "recompute_method": None},
        1,
        "--recompute-granularity full needs --recompute-method",
    ),
    (
        {**FULL, "recompute_num_layers": None},
        1,
        "--recompute-granularity full needs --recompute-num-layers",
    ),
    (
        {**FULL, "recompute_num_layers": 3, "pipeline_model_parallel_size": 2},
        2,
        "--recompute-num-layers 3|2 layers of a pipeline stage",
    ),
    ({"loss_spike_window": 5}, 1, "--loss-spike-window 5|--loss-spike-factor"),
    (
        {
            "loss_spike_factor": 3.0,
            "text_loss_coeff": 0.0,
            "align_loss_coeff": 1.0,
            "mm_tunable_parts": ("mm_mlp_adapter",),
        },
        1,
        "--loss-spike-factor 3|--text-loss-coeff 0",
    ),
    ({"eval_interval": 5}, 1, "--eval-interval 5 needs --valid-data-path"),
    ({"valid_data_path": "v"}, 1, "--valid-data-path v|--eval-interval"),
    ({"save": "out"}, 1, "--save out needs --save-interval"),
    ({"save_interval": 5}, 1, "--save-interval 5 needs --save"),
    ({"no_save_optim": True}, 1, "--no-save-optim|--save,"),
    ({"save_total_limit": 20}, 1, "--save-total-limit|--save,"),
    ({"save_retain_interval": 20}, 1, "--save-retain-interval|--save,"),
    (
        {"save": "a", "save_interval": 5, "save_retain_interval": 20},
        1,
        "--save-retain-interval 20|--save-total-limit",
    ),
    (
        {"save": "a", "save_interval": 6, "save_total_limit": 1, "save_retain_interval": 20},
        1,
        "--save-retain-interval 20 is no multiple of --save-interval 6",
    ),
    ({"profile_step_start": 3}, 1, "--profile-step-start|--profile,"),
    ({"use_pytorch_profiler": True}, 1, "--use-pytorch-profiler|--profile,"),
    ({**PROFILE, "profile_step_start": 12}, 1, "--profile-step-start 12|-end 12"),
    ({**PROFILE, "train_iters": 11}, 1, "--profile-step-end 12|--train-iters 11"),
    ({**PROFILE, "profile_ranks": ("0", "2")}, 2, "--profile-ranks: '2'|0 to 1"),
    ({**PROFILE, "profile_ranks": ("all",)}, 2, "--profile-ranks: 'all'"),
    ({**PROFILE, "use_pytorch_profiler": True}, 1, "--use-pytorch-profiler|--tensorboard-dir"),
    ({**PROFILE, "device": "cpu"}, 1, "--profile on --device cpu|--use-pytorch-profiler"),
    ({"record_memory_history": True, "device": "cpu"}, 1, "--record-memory-history|--device"),
    ({"memory_snapshot_path": "a"}, 1, "--memory-snapshot-path a|--record-memory-history"),
    ({"wandb_exp_name": "a"}, 1, "--wandb-exp-name a|--wandb-project"),
    ({"wandb_save_dir": "a"}, 1, "--wandb-save-dir a|--wandb-project"),
    ({"async_save": True}, 1, "--async-save|--save,"),
    ({"no_ckpt_fully_parallel_save": True}, 1, "--no-ckpt-fully-parallel-save|--save,"),
    ({"finetune": True}, 1, "--finetune|--load"),
    ({"no_load_optim": True}, 1, "--no-load-optim|--load,"),
    ({"no_load_rng": True}, 1, "--no-load-rng|--load"),
    ({"ckpt_step": 0}, 1, "--ckpt-step|--load"),
    ({"exit_on_missing_checkpoint": True}, 1, "--exit-on-missing-checkpoint|--load"),
    (
        {"load": "a", "finetune": True, "pretrained_checkpoint": "b"},
        1,
        "--load a|--finetune|--pretrained-checkpoint b",
    ),
    (
        {"load": "a", "exit_on_missing_checkpoint": True, "pretrained_checkpoint": "b"},
        1,
        "--pretrained-checkpoint b|--exit-on-missing-checkpoint",
    ),
    ({"load": "a", "pretrained_checkpoint": "a"}, 1, "--load|--pretrained-checkpoint|both a"),
    ({"load": "a", "load_hf": "a"}, 1, "--load|--load-hf|both a"),
    ({"save": "a", "save_interval": 1, "load_hf": "a"}, 1, "--save|--load-hf|both a"),
    ({"pretrained_checkpoint": "a", "load_hf": "b"}, 1, "--pretrained-checkpoint a|--load-hf b"),
    ({"load": "a", "finetune": True, "load_hf": "b"}, 1, "--load a|--finetune|--load-hf b"),
    # Values outside their field's choices and bounds.
    ({"device": "tpu"}, 1, "--device|'tpu'|auto, cuda, cpu"),
    ({"lr_decay_style": "wsd"}, 1, "--lr-decay-style|'wsd'|constant, linear, cosine"),
    (
        {"tensor_model_parallel_size": 0},
        1,
        "--tensor-model-parallel-size|0 is too small|at least 1",
    ),
    ({"train_iters": 0}, 1, "--train-iters|0 is too small|at least 1"),
    ({"seq_length": -1}, 1, "--seq-length|-1 is too small"),
    ({"hidden_size": 0}, 1, "--hidden-size|0 is too small"),
    ({"lr": 0.0}, 1, "--lr|0.0 is too small|above 0"),
    ({"adam_beta2": 1.0}, 1, "--adam-beta2|1.0 is too large|below 1"),
    (
        {"vision_num_layers": 3, "mm_vision_select_layer": -4},
        1,
        "--mm-vision-select-layer -4|--vision-num-layers 3|-1 to -3",
    ),
    ({"mm_vision_select_layer": 0}, 1, "--mm-vision-select-layer|0 is too large|below 0"),
    ({"max_bad_records": -1}, 1, "--max-bad-records|-1|at least 0"),
    ({"pack_cost": (1.0, 2.0)}, 1, "--pack-cost 1,2|three whole numbers"),
    ({"pack_cost": (1.0, 0.5, 2.0)}, 1, "--pack-cost 1,0.5,2|three whole numbers"),
    (
        {"pack_cost": (1.0, 0.0, 2.0), "balance_packs": 0},
        1,
        "--pack-cost|--balance-packs 0",
    ),
    # What must be given.
    ({"train_iters": None}, 1, "--train-iters is required"),
    ({"lr": None}, 1, "--lr is required"),
    ({"data_path": None}, 1, "--data-path is required"),
    ({"seq_length": None}, 1, "--seq-length is required"),
    ({"num_layers": None}, 1, "--num-layers is not known|model.yaml|--pretrained-checkpoint"),
    ({"vision_hidden_act": None}, 1, "--vision-hidden-act is not known"),
    ({"mm_patch_merge_type": None}, 1, "--mm-patch-merge-type is not known"),
]


@pytest.mark.parametrize(("changes", "world_size", "expected"), REFUSED)
def test_refused_in_one_line_with_flags_and_numbers(make_config, changes, world_size, expected):
    with pytest.raises(ValueError) as raised:
        validate(make_config(**changes), world_size)
    message = str(raised.value)
    for part in expected.split("|"):
        assert part in message
    assert "\n" not in message


@ACCEPTED
def test_a_file_of_all_settings_is_accepted_again(make_config, tmp_path, changes, world_size):
    """The run.yaml beside checkpoints, and what --print-config prints: defaults are stated too."""
    config = make_config(**changes)
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(config))
    read = parse_args(["--config", str(path)])
    assert "initial_loss_scale" in read.explicit
    validate(read, world_size)
    assert all(read.get(name) == config.get(name) for name in all_fields())


def test_group_of_any_origin_is_checked(make_config):
    config = make_config()
    training = dataclasses.replace(config.training, seed=-1)
    with pytest.raises(ValueError, match="--seed: -1 is too small: give at least 0"):
        validate(dataclasses.replace(config, training=training), 1)


def test_defaults_alone_are_not_a_run():
    with pytest.raises(ValueError, match="--train-iters is required"):
        validate(RunConfig(), 1)
