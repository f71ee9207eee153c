# Sourced by the scripts of this folder: what DRY_RUN=1 and TOY=1 change. With neither, nothing.
#
#   . examples/toy.sh [RECORDS]      RECORDS: of examples/toy.py, images.json, several.json, video.json
#
# DRY_RUN=1 prints the commands, and of training what it comes to; it touches nothing.
# TOY=1 trains tiny random weights on drawn pictures, 3 steps on 2 ranks on the CPU, below
# TOY_OUT (examples/out). Tensor parallelism stays, with 2 ranks; other layouts become data-parallel.

toy_records="${1:-images.json}"
if [ "${DRY_RUN:-}" = 1 ]; then
    show() { printf '+'; printf ' %q' "$@"; echo; }
    python() { show python "$@"; }
    torchrun() {
        show torchrun "$@"
        command python examples/dry_run.py "$@"
    }
elif [ "${TOY:-}" = 1 ]; then
    TOY_OUT="${TOY_OUT:-examples/out}"
    [ -e "$TOY_OUT/vision_tower" ] || command python examples/toy.py "$TOY_OUT"
    MODEL="$TOY_OUT/hf" LANGUAGE_MODEL="$TOY_OUT/language_model" VISION_TOWER="$TOY_OUT/vision_tower"
    DATA="$TOY_OUT/data" OUTPUT="$TOY_OUT/$(basename "$(dirname "$0")")"
    export OMP_NUM_THREADS=1
    python() {
        if [ "$1" = tools/preprocess_data.py ]; then
            set -- "$@" --input "$DATA/$toy_records" --image-folder "$DATA" --video-folder "$DATA"
            set -- "$@" --workers 1
        fi
        command python "$@"
    }
    torchrun() {
        local flags=() tensor=1
        while [ "$1" != megatron_llava.train ]; do shift; done
        shift
        while [ $# -gt 0 ]; do
            case "$1" in
                # They are for the published model's sizes.
                --model | --image-grid-pinpoints | --vision-parallel) shift 2 ;;
                --pipeline-model-parallel-size | --context-parallel-size) shift 2 ;;
                --tensor-model-parallel-size) tensor=2; shift 2 ;;
                *) flags+=("$1"); shift ;;
            esac
        done
        command torchrun --standalone --nproc-per-node 2 -m megatron_llava.train "${flags[@]}" \
            --device cpu --tensor-model-parallel-size "$tensor" --seq-length 1024 \
            --global-batch-size 4 --train-iters 3 --save-interval 2 --log-interval 1 --num-workers 0
    }
fi
if [ "${DRY_RUN:-}${TOY:-}" = 1 ]; then
    srun() {
        while [[ "$1" == -* ]]; do shift; done
        "$@"
    }
    scontrol() { echo localhost; }
fi
