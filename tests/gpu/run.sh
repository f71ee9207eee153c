#!/usr/bin/env bash
# Everything that waits for a GPU, on a machine where the package and its needs can be imported.
#
#   bash tests/gpu/run.sh OUTPUT_FOLDER [STEP...]
#
# Without steps, all of them, the unseen first; each takes at most ten minutes, which is what one
# call of some machines may last. Tables of benchmarks and all that is said go to the output folder.
# Goes on after a failure and says at the end what failed.
#
# Needs megatron-core, transformer-engine with its torch extension, bitsandbytes, pytest-xdist and
# hypothesis, and csrc/ compiled there: python3 setup.py build_ext --inplace. What is missing is said
# first, for its tests are skipped then.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
output="$1"
shift
mkdir -p "$output"
wanted="$*"
failed=()
step() {
    local name="$1" seconds="$2"
    shift 2
    [[ -z "$wanted" || " $wanted " = *" $name "* ]] || return 0
    echo "== $name: $*"
    local start=$SECONDS
    timeout "$seconds" "$@" 2>&1 | tee "$output/$name.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$name")
    echo "== $name took $((SECONDS - start)) s"
}
missing() {
    python3 - <<'PYTHON'
from importlib.util import find_spec

from megatron_llava.platform.extension import cuda_archs

needed = ("megatron", "transformer_engine", "bitsandbytes", "xdist", "hypothesis")
print("not installed:", ", ".join(name for name in needed if find_spec(name) is None) or "nothing")
print("csrc/ is compiled for:", cuda_archs() or "no GPU")
PYTHON
}
tests() {
    local name="$1" seconds="$2"
    shift 2
    step "$name" "$seconds" python3 -m pytest -v -rs --durations=5 -p no:cacheprovider -m gpu "$@"
}
missing
tests fp8 580 -n 4 --dist load tests/gpu/test_cuda.py \
    -k "(fp8 or transformer_engine) and not resumes"
tests optimizers 580 -n 4 --dist load tests/gpu/test_cuda.py -k "precision or resumes"
tests training 580 -n 4 --dist load tests/gpu/test_cuda.py \
    -k "not (fp8 or transformer_engine or precision or resumes)"
tests model 150 tests/gpu/test_model.py tests/gpu/test_loader.py tests/gpu/test_four_bit.py
tests kernels 200 tests/gpu/test_kernels.py tests/vision/test_tiles.py
for dtype in bfloat16 float32; do
    step "visual_pack_$dtype" 120 python3 benchmarks/visual_pack.py --device cuda \
        --dtype "$dtype" --tokens 8192 32768 --output "$output/visual_pack_$dtype.md"
done
echo "failed: ${failed[*]:-nothing}"
[ "${#failed[@]}" = 0 ]
