#!/usr/bin/env bash
# Stage 2 of LLaVA-NeXT: everything learns, from what stage1.sh saved. See README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

LANGUAGE_MODEL=${LANGUAGE_MODEL:-models/vicuna-7b-v1.5}
DATA=${DATA:-data} # as examples/recipes says
OUTPUT=${OUTPUT:-out/llava-next}
RECIPE=${RECIPE:-llava_next_790k} SAMPLES=${SAMPLES:-779289} BATCH=${BATCH:-64}
parts=(--mm-tunable-parts mm_vision_tower,mm_mlp_adapter,mm_language_model
    --mm-vision-tower-lr 2e-6)
[ "${TOWER:-}" != frozen ] || parts=(--mm-tunable-parts mm_mlp_adapter,mm_language_model)
. examples/toy.sh

[ -e "$OUTPUT/stage2-store.json" ] || python tools/preprocess_data.py \
    --input "examples/recipes/$RECIPE.yaml" \
    --data-root "$DATA" \
    --image-folder "$DATA" \
    --tokenizer-model "$LANGUAGE_MODEL" \
    --conversation-template v1 \
    --output-prefix "$OUTPUT/stage2-store" \
    --workers 16

torchrun --nproc-per-node 8 -m megatron_llava.train \
    --model llava-next-vicuna-7b \
    --pretrained-checkpoint "$OUTPUT/stage1" \
    --load "$OUTPUT/stage2" \
    --save "$OUTPUT/stage2" \
    --save-interval 1000 \
    --save-total-limit 1 \
    --data-path "$OUTPUT/stage2-store" \
    --seq-length 4096 \
    --packing-window 1 \
    --global-batch-size "$BATCH" \
    --train-iters $(((SAMPLES + BATCH - 1) / BATCH)) \
    "${parts[@]}" \
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
    --log-file "$OUTPUT/stage2.jsonl"

[ -e "$OUTPUT/hf" ] || python tools/convert_checkpoint.py --from megatron --to hf \
    --load "$OUTPUT/stage2" --save "$OUTPUT/hf"
