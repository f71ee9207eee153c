#!/usr/bin/env bash
# Stage 1 of LLaVA-NeXT: the projector alone learns, on 558K captions. See README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

LANGUAGE_MODEL=${LANGUAGE_MODEL:-models/vicuna-7b-v1.5}
VISION_TOWER=${VISION_TOWER:-models/clip-vit-large-patch14-336}
DATA=${DATA:-data} # holds LLaVA-Pretrain, its images unpacked
OUTPUT=${OUTPUT:-out/llava-next}
SAMPLES=558000
BATCH=256
warmup=(--lr-warmup-fraction 0.03)
[ -z "${WARMUP_STEPS:-}" ] || warmup=(--lr-warmup-iters "$WARMUP_STEPS")
. examples/toy.sh

[ -e "$OUTPUT/start" ] || python tools/merge_checkpoint.py \
    --language-model "$LANGUAGE_MODEL" \
    --vision-tower "$VISION_TOWER" \
    --projector mlp2x_gelu \
    --conversation-template v1 \
    --save "$OUTPUT/start"
[ -e "$OUTPUT/stage1-store.json" ] || python tools/preprocess_data.py \
    --input examples/recipes/llava_pretrain_558k.yaml \
    --data-root "$DATA" \
    --image-folder "$DATA/LLaVA-Pretrain" \
    --tokenizer-model "$LANGUAGE_MODEL" \
    --conversation-template plain \
    --output-prefix "$OUTPUT/stage1-store" \
    --workers 16

torchrun --nproc-per-node 8 -m megatron_llava.train \
    --model llava-next-vicuna-7b \
    --pretrained-checkpoint "$OUTPUT/start" \
    --load "$OUTPUT/stage1" \
    --save "$OUTPUT/stage1" \
    --save-interval 1000 \
    --save-total-limit 1 \
    --data-path "$OUTPUT/stage1-store" \
    --seq-length 4096 \
    --packing-window 1 \
    --global-batch-size "$BATCH" \
    --train-iters $(((SAMPLES + BATCH - 1) / BATCH)) \
    --mm-tunable-parts mm_mlp_adapter \
    --lr 1e-3 \
    --lr-decay-style cosine \
    "${warmup[@]}" \
    --weight-decay 0 \
    --bf16 \
    --use-distributed-optimizer \
    --recompute-granularity full \
    --recompute-method uniform \
    --recompute-num-layers 1 \
    --log-interval 10 \
    --log-file "$OUTPUT/stage1.jsonl"
