#!/usr/bin/env bash
# Training on several machines: run this on each of them, with the same RENDEZVOUS. slurm.sbatch and
# sky.yaml do. An interrupted run goes on from its last checkpoint, also with other NODES.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

START=${START:-out/onevision-7b/mid} # a Megatron checkpoint
STORE=${STORE:-out/onevision-7b/single_image-store}
OUTPUT=${OUTPUT:-out/cluster} # on a file system that all machines see
NODES=${NODES:-4}
RENDEZVOUS=${RENDEZVOUS:-localhost:29500} # the first machine
SAMPLES=3200000
BATCH=256
. examples/toy.sh
if [ "${TOY:-}" = 1 ]; then
    START="$OUTPUT/start" STORE="$OUTPUT/store"
    [ -e "$START" ] || python tools/convert_checkpoint.py --from hf --to megatron \
        --load "$MODEL" --save "$START"
    [ -e "$STORE.json" ] || python tools/preprocess_data.py \
        --tokenizer-model "$MODEL" --output-prefix "$STORE"
fi

# On SIGTERM the ranks save: torchrun waits for that, not for 30 seconds.
torchrun --nnodes "$NODES" --nproc-per-node 8 --rdzv-backend c10d --rdzv-id "${JOB:-1}" \
    --rdzv-endpoint "$RENDEZVOUS" --shutdown-timeout 540 -m megatron_llava.train \
    --model llava-onevision-qwen2-7b \
    --pretrained-checkpoint "$START" \
    --load "$OUTPUT/run" \
    --save "$OUTPUT/run" \
    --save-interval 500 \
    --save-total-limit 3 \
    --async-save \
    --dist-ckpt-optim-fully-reshardable \
    --ckpt-fully-parallel-load \
    --data-path "$STORE" \
    --data-cache-path "$OUTPUT/plans" \
    --seq-length 16384 \
    --packing-window 1 \
    --global-batch-size "$BATCH" \
    --train-iters $(((SAMPLES + BATCH - 1) / BATCH)) \
    --lr 1e-5 \
    --mm-vision-tower-lr 2e-6 \
    --lr-decay-style cosine \
    --lr-warmup-fraction 0.03 \
    --weight-decay 0 \
    --bf16 \
    --tensor-model-parallel-size 4 --sequence-parallel \
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather \
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 \
    --log-file "$OUTPUT/log.jsonl"
