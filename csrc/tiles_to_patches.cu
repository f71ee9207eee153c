// Tiles to patches on the GPU: one launch; the table is read from shared memory.
#include "cuda_launch.h"
#include "tiles_to_patches.h"

namespace megatron_llava {
namespace {

constexpr int kThreads = 256;

template <typename Word, int N>
__global__ void __launch_bounds__(kThreads) patches_kernel(TilesToPatches args) {
  __shared__ Word table[kChannels * kLevels];
  for (int at = threadIdx.x; at < kChannels * kLevels; at += kThreads) {
    table[at] = static_cast<const Word*>(args.table)[at];
  }
  __syncthreads();
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  patch_thread<Word, N>(args, table, thread, int64_t{gridDim.x} * kThreads);
}

template <typename Word>
void launch(const TilesToPatches& args, cudaStream_t stream) {
  constexpr int kElements = 16 / sizeof(Word);
  const int64_t elements = args.views * args.grid * args.grid * row_elements(args);
  const int64_t threads = (elements + kElements - 1) / kElements;
  if (threads == 0) return;
  const int blocks = grid_for((threads + kThreads - 1) / kThreads);
  if (reinterpret_cast<uintptr_t>(args.out) % 16 == 0) {
    patches_kernel<Word, kElements><<<blocks, kThreads, 0, stream>>>(args);
  } else {
    patches_kernel<Word, 1><<<blocks, kThreads, 0, stream>>>(args);
  }
}

}  // namespace

const char* patches_cuda(const TilesToPatches& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.element_bytes) {
    case 2:
      launch<uint16_t>(args, on);
      break;
    case 4:
      launch<uint32_t>(args, on);
      break;
    default:
      launch<uint64_t>(args, on);
  }
  return launch_error();
}

}  // namespace megatron_llava
