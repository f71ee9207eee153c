// Sizes of launches, and their errors.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace megatron_llava {
namespace {

// Blocks for so many blocks' worth of work: all of it at once, up to a few rounds of what the chip
// holds; beyond that each block does more.
inline int grid_for(int64_t wanted) {
  constexpr int kBlocksPerProcessor = 32;
  int device = 0, processors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return static_cast<int>(std::min<int64_t>(wanted, int64_t{processors} * kBlocksPerProcessor));
}

// The name of the error of the launch before, or null.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace
}  // namespace megatron_llava
