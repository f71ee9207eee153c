#!/usr/bin/env bash
# Run the tests of the kernels under compute-sanitizer: wrong addresses, races, uninitialised reads.
#
#   bash tests/gpu/sanitize.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# Without the caching allocator every tensor is an allocation of its own, whose end is seen.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
# A graph's memory comes from the cache, and a stream that sleeps takes minutes under the tools.
for tool in memcheck racecheck synccheck; do
    echo "== $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 1 \
        python -m pytest tests/gpu/test_kernels.py -q -k "not graph and not stream and not ten_runs" "$@"
done
