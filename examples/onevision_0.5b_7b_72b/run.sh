#!/usr/bin/env bash
# One stage of LLaVA-OneVision at one size: SIZE 0.5b, 7b, 72b; STAGE stage1, mid, single_image,
# onevision, in this order. See README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

SIZE=${SIZE:-7b} STAGE=${STAGE:-stage1}
LANGUAGE_MODEL=${LANGUAGE_MODEL:-models/Qwen2-${SIZE^}-Instruct}
VISION_TOWER=${VISION_TOWER:-models/siglip-so400m-patch14-384}
DATA=${DATA:-data} # as examples/recipes says
OUTPUT=${OUTPUT:-out/onevision-$SIZE}
RENDEZVOUS=${RENDEZVOUS:-localhost:29500} # the first node, the same on all
BATCH=256
lr=1e-5 template=qwen_1_5
parts=(--mm-tunable-parts mm_vision_tower,mm_mlp_adapter,mm_language_model
    --mm-vision-tower-lr 2e-6)
case "$STAGE" in
    stage1) from=start recipe=llava_pretrain_558k samples=558000 lr=1e-3 template=plain
        parts=(--mm-tunable-parts mm_mlp_adapter) ;;
    mid) from=stage1 recipe=onevision_mid_stage samples=4000000 ;;
    single_image) from=mid recipe=onevision_single_image samples=3200000 ;;
    onevision) from=single_image recipe=onevision_final samples=1600000 ;;
    *) echo "STAGE=$STAGE: give stage1, mid, single_image or onevision" >&2; exit 2 ;;
esac
case "$SIZE" in
    0.5b) nodes=1 layout=(--tensor-model-parallel-size 1) ;;
    7b) nodes=4 layout=(--tensor-model-parallel-size 4 --sequence-parallel) ;;
    72b) nodes=16 layout=(--tensor-model-parallel-size 8 --sequence-parallel
        --pipeline-model-parallel-size 4) ;;
    *) echo "SIZE=$SIZE: give 0.5b, 7b or 72b" >&2; exit 2 ;;
esac
. examples/toy.sh

[ -e "$OUTPUT/start" ] || python tools/merge_checkpoint.py --model-type llava_onevision \
    --language-model "$LANGUAGE_MODEL" --vision-tower "$VISION_TOWER" \
    --conversation-template qwen_1_5 --save "$OUTPUT/start"
[ -e "$OUTPUT/$STAGE-store.json" ] || python tools/preprocess_data.py \
    --input "examples/recipes/$recipe.yaml" --data-root "$DATA" --image-folder "$DATA" \
    --tokenizer-model "$LANGUAGE_MODEL" --conversation-template "$template" \
    --output-prefix "$OUTPUT/$STAGE-store" --workers 16

torchrun --nnodes "$nodes" --nproc-per-node 8 --rdzv-backend c10d --rdzv-id "$STAGE" \
    --rdzv-endpoint "$RENDEZVOUS" -m megatron_llava.train \
    --model "llava-onevision-qwen2-$SIZE" \
    --pretrained-checkpoint "$OUTPUT/$from" \
    --load "$OUTPUT/$STAGE" --save "$OUTPUT/$STAGE" --save-interval 1000 --save-total-limit 2 \
    --data-path "$OUTPUT/$STAGE-store" \
    --seq-length 16384 --packing-window 1 \
    --global-batch-size "$BATCH" --train-iters $(((samples + BATCH - 1) / BATCH)) \
    "${parts[@]}" --lr "$lr" --lr-decay-style cosine --lr-warmup-fraction 0.03 --weight-decay 0 \
    --bf16 --use-distributed-optimizer "${layout[@]}" \
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 \
    --log-interval 10 --log-file "$OUTPUT/$STAGE.jsonl"

[ "$STAGE" != onevision ] || [ -e "$OUTPUT/hf" ] || python tools/convert_checkpoint.py \
    --from megatron --to hf --load "$OUTPUT/onevision" --save "$OUTPUT/hf"
