#!/usr/bin/env bash
# Stage 3 of seed 004: everything learns, on images of text with up to five tiles. See README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

LANGUAGE_MODEL=${LANGUAGE_MODEL:-models/vicuna-7b-v1.5}
DATA=${DATA:-data} # holds high_resolution.json, TextVQA, DocVQA and ChartQA as LLaVA records
OUTPUT=${OUTPUT:-out/llava-next}
SAMPLES=${SAMPLES:-100000} BATCH=64
. examples/toy.sh

[ -e "$OUTPUT/stage3-store.json" ] || python tools/preprocess_data.py \
    --input "$DATA/high_resolution.json" \
    --image-folder "$DATA" \
    --tokenizer-model "$LANGUAGE_MODEL" \
    --conversation-template v1 \
    --output-prefix "$OUTPUT/stage3-store" \
    --workers 16

torchrun --nproc-per-node 8 -m megatron_llava.train \
    --model llava-next-vicuna-7b \
    --pretrained-checkpoint "$OUTPUT/stage2" \
    --load "$OUTPUT/stage3" \
    --save "$OUTPUT/stage3" \
    --save-interval 1000 \
    --save-total-limit 1 \
    --data-path "$OUTPUT/stage3-store" \
    --image-grid-pinpoints max_patches=5 \
    --grid-choice aspect_ratio \
    --mm-patch-merge-type flat \
    --seq-length 4096 \
    --packing-window 1 \
    --global-batch-size "$BATCH" \
    --train-iters $(((SAMPLES + BATCH - 1) / BATCH)) \
    --mm-tunable-parts mm_vision_tower,mm_mlp_adapter,mm_language_model \
    --lr 2e-5 \
    --lr-decay-style cosine \
    --lr-warmup-fraction 0.03 \
    --weight-decay 0 \
    --bf16 \
    --tensor-model-parallel-size 2 \
    --sequence-parallel \
    --use-distributed-optimizer \
    --overlap-grad-reduce \
    --overlap-param-gather \
    --recompute-granularity full \
    --recompute-method uniform \
    --recompute-num-layers 1 \
    --log-interval 10 \
    --log-file "$OUTPUT/stage3.jsonl"
