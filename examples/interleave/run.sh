#!/usr/bin/env bash
# Several images in a sample: LLaVA-NeXT-Interleave's training on M4-Instruct. See README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

MODEL=${MODEL:-models/llava-onevision-qwen2-7b-si-hf}
DATA=${DATA:-data} # holds M4-Instruct-Data and LLaVA-Instruct-150K, images and videos unpacked
OUTPUT=${OUTPUT:-out/interleave}
SAMPLES=1177000
BATCH=128
. examples/toy.sh several.json

[ -e "$OUTPUT/start" ] || python tools/convert_checkpoint.py --from hf --to megatron \
    --load "$MODEL" --save "$OUTPUT/start"
# Half of the samples keep their images among the words, half have them in front.
[ -e "$OUTPUT/store.json" ] || python tools/preprocess_data.py \
    --input examples/recipes/m4_instruct.yaml \
    --data-root "$DATA" \
    --image-folder "$DATA" \
    --multi-image-placement mixed:0.5 \
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
    --seq-length 16384 \
    --packing-window 1 \
    --global-batch-size "$BATCH" \
    --train-iters $(((SAMPLES + BATCH - 1) / BATCH)) \
    --multi-image-views one_padded \
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
