#!/usr/bin/env bash
# A model in every format, and back: each line takes what the one before wrote. See README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

MODEL=${MODEL:-models/llava-v1.6-vicuna-7b-hf}
VISION_TOWER=${VISION_TOWER:-models/clip-vit-large-patch14-336}
OUTPUT=${OUTPUT:-out/convert}
. examples/toy.sh

# Hugging Face to Megatron-core: every tensor and the logits are compared.
python tools/convert_checkpoint.py --from hf --to megatron \
    --load "$MODEL" --save "$OUTPUT/megatron" --verify

# Megatron-core to the original code's folder, and its projector alone.
python tools/convert_checkpoint.py --from megatron --to llava \
    --load "$OUTPUT/megatron" --save "$OUTPUT/llava"
python tools/convert_checkpoint.py --from megatron --to mm_projector \
    --load "$OUTPUT/megatron" --save "$OUTPUT/projector"

# The original code's folder to Megatron-core and to Hugging Face.
python tools/convert_checkpoint.py --from llava --to megatron \
    --vision-tower "$VISION_TOWER" --load "$OUTPUT/llava" --save "$OUTPUT/megatron-again"
python tools/convert_checkpoint.py --from megatron --to hf \
    --load "$OUTPUT/megatron-again" --save "$OUTPUT/hf" --verify
