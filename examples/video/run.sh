#!/usr/bin/env bash
# Videos: LLaVA-OneVision on 255K questions and captions of ShareGPTVideo. See README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

MODEL=${MODEL:-models/llava-onevision-qwen2-7b-ov-hf}
DATA=${DATA:-data} # holds train_video_and_instruction, its videos unpacked
OUTPUT=${OUTPUT:-out/video}
SAMPLES=255000
FRAMES=${FRAMES:-32}
BATCH=128
. examples/toy.sh video.json

[ -e "$OUTPUT/start" ] || python tools/convert_checkpoint.py --from hf --to megatron \
    --load "$MODEL" --save "$OUTPUT/start"
[ -e "$OUTPUT/store.json" ] || python tools/preprocess_data.py \
    --input examples/recipes/sharegptvideo_255k.yaml \
    --data-root "$DATA" \
    --video-folder "$DATA/train_video_and_instruction/train_300k" \
    --frames-upbound "$FRAMES" \
    --force-sample \
    --add-time-instruction \
    --tokenizer-model "$MODEL" \
    --conversation-template qwen_1_5 \
    --output-prefix "$OUTPUT/store" \
    --workers 16

torchrun --nproc-per-node 8 -m megatron_llava.train \
    --model llava-onevision-qwen2-7b \
    --pretrained-checkpoint "$OUTPUT/start" \
    --load "$OUTPUT/run" \
    --save "$OUTPUT/run" \
    --save-interval 1000 \
    --save-total-limit 2 \
    --data-path "$OUTPUT/store" \
    --seq-length 8192 \
    --packing-window 1 \
    --global-batch-size "$BATCH" \
    --train-iters $(((SAMPLES + BATCH - 1) / BATCH)) \
    --mm-spatial-pool-mode bilinear \
    --mm-spatial-pool-stride 2 \
    --mm-newline-position one_token \
    --lr 1e-5 \
    --mm-vision-tower-lr 2e-6 \
    --lr-decay-style cosine \
    --lr-warmup-fraction 0.03 \
    --weight-decay 0 \
    --bf16 \
    --tensor-model-parallel-size 4 \
    --sequence-parallel \
    --use-distributed-optimizer \
    --recompute-granularity full \
    --recompute-method uniform \
    --recompute-num-layers 1 \
    --log-interval 10 \
    --log-file "$OUTPUT/log.jsonl"

[ -e "$OUTPUT/hf" ] || python tools/convert_checkpoint.py --from megatron --to hf \
    --load "$OUTPUT/run" --save "$OUTPUT/hf"
