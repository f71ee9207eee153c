#!/usr/bin/env bash
# LoRA of LLaVA-OneVision on two 4090s of 48 GB, one epoch of 474,080 samples. See README.md.
# A second run skips what is done and resumes an interrupted training.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

MODEL=${MODEL:-models/llava-onevision-qwen2-7b-ov-hf}
DATA=${DATA:-data} # holds LLaVA-OneVision-Data
OUTPUT=${OUTPUT:-out/lora}
SAMPLES=474080
BATCH=32 # of samples: 2 GPUs x 4 x 4
. examples/toy.sh

[ -e "$OUTPUT/start" ] || python tools/convert_checkpoint.py --from hf --to megatron \
    --load "$MODEL" --save "$OUTPUT/start"
[ -e "$OUTPUT/store.json" ] || python tools/preprocess_data.py \
    --input examples/recipes/onevision_subset_474k.yaml \
    --data-root "$DATA" \
    --tokenizer-model "$MODEL" \
    --conversation-template qwen_1_5 \
    --output-prefix "$OUTPUT/store" \
    --workers 16

torchrun --nproc-per-node 2 -m megatron_llava.train \
    --model llava-onevision-qwen2-7b \
    --pretrained-checkpoint "$OUTPUT/start" \
    --load "$OUTPUT/run" \
    --save "$OUTPUT/run" \
    --save-interval 1000 \
    --save-total-limit 20 \
    --data-path "$OUTPUT/store" \
    --seq-length 32768 \
    --packing-window 1 \
    --global-batch-size "$BATCH" \
    --train-iters $(((SAMPLES + BATCH - 1) / BATCH)) \
    --image-aspect-ratio nobase \
    --image-grid-pinpoints "(1x1),...,(6x6)" \
    --mm-patch-merge-type spatial_unpad \
    --lora-rank 32 \
    --lora-alpha 64 \
    --lora-dropout 0.05 \
    --lr 1e-5 \
    --lr-decay-style cosine \
    --lr-warmup-fraction 0.03 \
    --weight-decay 0 \
    --bf16 \
    --use-distributed-optimizer \
    --recompute-granularity full \
    --recompute-method uniform \
    --recompute-num-layers 1 \
    --log-interval 100 \
    --log-file "$OUTPUT/log.jsonl"

[ -e "$OUTPUT/peft" ] || python tools/lora.py export \
    --load "$OUTPUT/run" --save "$OUTPUT/peft" --base-model "$MODEL"
