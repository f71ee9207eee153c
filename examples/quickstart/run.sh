#!/usr/bin/env bash
# Train a small LLaVA-NeXT from start to end on a CPU: pictures are drawn, a random Hugging Face
# checkpoint is converted, trained with Megatron-core on two tensor-parallel ranks, evaluated on
# held-out questions, exported, and asked again through transformers.
#
#   bash examples/quickstart/run.sh [--fresh] [--output DIR] [--train-iters N] [--train N] [--valid N]
#
# Finished steps are skipped on a second run, and an interrupted training goes on from its last
# checkpoint. --fresh starts over. DRY_RUN=1 prints the commands and what training comes to, and
# touches nothing; TOY=1 trains 3 steps on 240 questions, below TOY_OUT (examples/out). Neither
# installs anything.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

output=out train_questions=20000 valid_questions=600 train_iters=600 fresh=no
if [ "${TOY:-}" = 1 ]; then
    output="${TOY_OUT:-examples/out}/quickstart" train_questions=240 valid_questions=20 train_iters=3
fi
while [ $# -gt 0 ]; do
    case "$1" in
        --fresh) fresh=yes; shift ;;
        --output) output="${2:?--output needs a value}"; shift 2 ;;
        --train-iters) train_iters="${2:?--train-iters needs a value}"; shift 2 ;;
        --train) train_questions="${2:?--train needs a value}"; shift 2 ;;
        --valid) valid_questions="${2:?--valid needs a value}"; shift 2 ;;
        *) echo "run.sh: unknown argument $1; see the head of the file" >&2; exit 2 ;;
    esac
done
if [ "${DRY_RUN:-}" = 1 ]; then
    . examples/toy.sh
    # The sizes are those of the checkpoint, which is not there yet.
    torchrun() {
        show torchrun "$@"
        command python examples/dry_run.py "$@" --config examples/quickstart/model.yaml
    }
    rm() { :; }
    mkdir() { :; }
fi
[ "$fresh" = no ] || rm -rf "$output"
mkdir -p "$output/done" "$output/log"
settings="train $train_questions, valid $valid_questions, train-iters $train_iters"
if [ "$(cat "$output/settings" 2>/dev/null || echo "$settings")" != "$settings" ]; then
    echo "run.sh: $output was made with $(cat "$output/settings"), not $settings; use --fresh" >&2
    exit 2
fi
[ "${DRY_RUN:-}" = 1 ] || echo "$settings" > "$output/settings"

started=$SECONDS number=0 steps=9
step() { # NAME DESCRIPTION COMMAND...
    local name="$1" description="$2" began=$SECONDS
    shift 2
    number=$((number + 1))
    if [ "${DRY_RUN:-}" = 1 ]; then
        echo "[$number/$steps] $description"
        "$@"
        return
    fi
    if [ -e "$output/done/$name" ]; then
        echo "[$number/$steps] $description: done before"
        return
    fi
    echo "[$number/$steps] $description"
    "$@"
    echo "[$number/$steps] took $((SECONDS - began)) s"
    touch "$output/done/$name"
}

preprocess() { # SPLIT
    python tools/preprocess_data.py \
        --input "$output/data/$1.json" \
        --image-folder "$output/data" \
        --tokenizer-model "$output/hf" \
        --conversation-template qwen_1_5 \
        --output-prefix "$output/store/$1" \
        --workers 2 \
        --overwrite
}

preprocess_both() {
    mkdir -p "$output/store"
    preprocess train
    preprocess valid
}

make_checkpoint() {
    rm -rf "$output/hf"
    python examples/quickstart/make_checkpoint.py --output "$output/hf" --data "$output/data/train.json"
}

convert() {
    rm -rf "$output/megatron"
    python tools/convert_checkpoint.py --from hf --to megatron --load "$output/hf" \
        --save "$output/megatron" --verify
}

train() {
    # One thread a rank: two ranks share two cores.
    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 --master-port "${MASTER_PORT:-29531}" \
        -m megatron_llava.train \
        --tensor-model-parallel-size 2 \
        --use-distributed-optimizer \
        --overlap-grad-reduce \
        --overlap-param-gather \
        --pretrained-checkpoint "$output/megatron" \
        --load "$output/trained" \
        --save "$output/trained" \
        --save-interval 200 \
        --data-path "$output/store/train" \
        --valid-data-path "$output/store/valid" \
        --eval-interval 200 \
        --eval-iters 20 \
        --seq-length 2688 \
        --global-batch-size 1 \
        --train-iters "$train_iters" \
        --lr 1.5e-3 \
        --lr-decay-style cosine \
        --lr-warmup-iters $((train_iters / 15)) \
        --min-lr 3e-5 \
        --weight-decay 0.01 \
        --adam-beta2 0.98 \
        --clip-grad 1.0 \
        --num-workers 0 \
        --log-interval 10 \
        --log-file "$output/log/train.jsonl" \
        --tensorboard-dir "$output/log/tensorboard"
}

evaluate() { # FILE [FLAGS]
    local file="$1"
    shift
    python tools/evaluate.py \
        --load "$output/trained" \
        --input "$output/data/valid.json" \
        --image-folder "$output/data" \
        --conversation-template qwen_1_5 \
        --max-new-tokens 8 \
        --output "$output/$file" "$@"
}

evaluate_both() {
    echo "with the images:"
    evaluate answers.jsonl
    echo "with the images blanked:"
    evaluate blank.jsonl --blank-images
}

export_hf() {
    rm -rf "$output/exported"
    python tools/convert_checkpoint.py --from megatron --to hf --load "$output/trained" \
        --save "$output/exported" --verify
}

compare_hf() {
    python tools/compare_hf.py \
        --load "$output/trained" \
        --hf "$output/exported" \
        --input "$output/data/valid.json" \
        --image-folder "$output/data" \
        --conversation-template qwen_1_5 \
        --answers "$output/answers.jsonl" \
        --max-new-tokens 8
}

report() {
    python tools/report.py \
        --title "Quickstart report" \
        --load "$output/trained" \
        --log-file "$output/log/train.jsonl" \
        --data-path "$output/store/train" \
        --answers "$output/answers.jsonl" \
        --blank-answers "$output/blank.jsonl" \
        --image-folder "$output/data" \
        --output "$output/report.html" \
        --overwrite
}

if [ "${DRY_RUN:-}${TOY:-}" != 1 ]; then
    echo "[0/$steps] install (a virtual environment in .venv, unless one is active)"
    # shellcheck source=/dev/null
    . tools/bootstrap.sh
    echo "[0/$steps] took $SECONDS s"
fi
step data "draw $train_questions training and $valid_questions held-out questions" \
    python examples/quickstart/render_dataset.py --output "$output/data" \
    --train "$train_questions" --valid "$valid_questions" --seed 0
step checkpoint "make a random Hugging Face LLaVA-NeXT and train its tokenizer" make_checkpoint
step convert "convert it for Megatron-core" convert
step preprocess "tokenise and store the questions" preprocess_both
step train "train on two tensor-parallel ranks" train
step evaluate "answer the held-out questions, with and without the images" evaluate_both
step export "export to Hugging Face" export_hf
step compare "ask transformers the same questions from the exported folder" compare_hf
step report "write the report" report
[ "${DRY_RUN:-}" = 1 ] || echo "finished in $((SECONDS - started)) s: $output/report.html"
