#!/usr/bin/env bash
# Everything that waits for a GPU, on a machine where the package and its needs can be imported.
#
#   bash tests/gpu/run.sh OUTPUT_FOLDER
#
# Tests first, then benchmarks, whose tables go to the output folder. Goes on after a failure and
# says at the end what failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
output="$1"
failed=()
step() {
    local name="$1"
    shift
    echo "== $name: $*"
    local start=$SECONDS
    "$@" 2>&1 | tee "$output/$name.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$name")
    echo "== $name took $((SECONDS - start)) s"
}
step kernels timeout 180 python3 -m pytest -q -m gpu tests/gpu/test_kernels.py tests/vision/test_tiles.py
step four_bit timeout 100 python3 -m pytest -q -m gpu tests/gpu/test_four_bit.py
step model timeout 100 python3 -m pytest -q -m gpu tests/gpu/test_model.py
for dtype in bfloat16 float32; do
    step "visual_pack_$dtype" timeout 100 python3 benchmarks/visual_pack.py --device cuda \
        --dtype "$dtype" --tokens 8192 32768 --output "$output/visual_pack_$dtype.md"
done
step training timeout 600 python3 -m pytest -q -m gpu tests/gpu/test_cuda.py
echo "failed: ${failed[*]:-nothing}"
[ "${#failed[@]}" = 0 ]
