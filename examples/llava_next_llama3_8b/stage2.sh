#!/usr/bin/env bash
# Stage 2 of LLaVA-NeXT with Llama 3 8B: everything learns, from what stage1.sh saved.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

LANGUAGE_MODEL=${LANGUAGE_MODEL:-models/Meta-Llama-3-8B-Instruct}
DATA=${DATA:-data} # as examples/recipes/llava_next_760k.yaml says
OUTPUT=${OUTPUT:-out/llava-next-llama3}
SAMPLES=747712
BATCH=64 # 4 x 1 on each of 16 GPUs
NODES=2
RENDEZVOUS=${RENDEZVOUS:-localhost:29500} # the first node, the same on all
. examples/toy.sh

[ -e "$OUTPUT/stage2-store.json" ] || python tools/preprocess_data.py \
    --input examples/recipes/llava_next_760k.yaml \
    --data-root "$DATA" \
    --image-folder "$DATA" \
    --tokenizer-model "$LANGUAGE_MODEL" \
    --conversation-template llava_llama_3 \
    --output-prefix "$OUTPUT/stage2-store" \
    --workers 16

torchrun --nnodes "$NODES" --nproc-per-node 8 --rdzv-backend c10d --rdzv-id 1 \
    --rdzv-endpoint "$RENDEZVOUS" -m megatron_llava.train \
    --model llava-next-llama-3-8b \
    --pretrained-checkpoint "$OUTPUT/stage1" \
    --load "$OUTPUT/stage2" \
    --save "$OUTPUT/stage2" \
    --save-interval 3000 \
    --save-total-limit 1 \
    --data-path "$OUTPUT/stage2-store" \
    --seq-length 8192 \
    --packing-window 1 \
    --global-batch-size "$BATCH" \
    --drop-last \
    --train-iters $((SAMPLES / BATCH)) \
    --mm-tunable-parts mm_vision_tower,mm_mlp_adapter,mm_language_model \
    --lr 1e-5 \
    --mm-vision-tower-lr 2e-6 \
    --lr-decay-style cosine \
    --lr-warmup-fraction 0.03 \
    --weight-decay 0 \
    --bf16 \
    --use-distributed-optimizer \
    --overlap-grad-reduce \
    --overlap-param-gather \
    --recompute-granularity full \
    --recompute-method uniform \
    --recompute-num-layers 1 \
    --recompute-vision \
    --log-interval 1 \
    --log-file "$OUTPUT/stage2.jsonl"

[ -e "$OUTPUT/hf" ] || python tools/convert_checkpoint.py --from megatron --to hf \
    --load "$OUTPUT/stage2" --save "$OUTPUT/hf"
