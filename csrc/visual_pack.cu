// The visual packing operator on the GPU: a launch forward; a launch backward, and a small one that
// adds up the parts of the special rows' and the positions' gradients. No atomics: the same inputs give the same bits.
//
// No torch headers here: pointers and a stream come in, so that nvcc alone compiles this.
#include "cuda_launch.h"
#include "visual_pack_threads.h"

namespace megatron_llava {
namespace {

// 80 registers for each thread, so that an SM holds 768 threads with 48 KB of loads under way: twice
// what an H200's bandwidth times its latency asks for.
constexpr int kBlocksOnProcessor = 3;

// Elements of a 16-byte vector. float64 is for checks of gradients, and goes one by one.
template <typename T>
constexpr int kVector = sizeof(T) == 8 ? 1 : 16 / sizeof(T);

__device__ Place here() {
  return {blockIdx.x, gridDim.x, static_cast<int>(threadIdx.x)};
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, kBlocksOnProcessor) forward_kernel(PackForward args) {
  forward_thread<T, N>(args, here());
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, kBlocksOnProcessor) backward_kernel(PackBackward args) {
  backward_thread<T, N>(args, here());
}

template <typename T>
__global__ void __launch_bounds__(kThreads) specials_kernel(PackBackward args) {
  specials_thread<T>(args, here());
}

int64_t blocks_for(int64_t warps) { return (warps + kWarps - 1) / kWarps; }

template <typename T, int N>
void launch_forward(const PackForward& args, cudaStream_t stream) {
  const int64_t warps = args.num_rows * slices_of(args.hidden / N);
  if (warps == 0) return;
  forward_kernel<T, N><<<grid_for(blocks_for(warps)), kThreads, 0, stream>>>(args);
}

template <typename T, int N>
void launch_backward(const PackBackward& args, cudaStream_t stream) {
  const int64_t warps = count_backward_items(args) * slices_of(args.hidden / N);
  if (warps == 0) return;
  backward_kernel<T, N><<<grid_for(blocks_for(warps)), kThreads, 0, stream>>>(args);
  const int64_t elements = count_summed_rows(args) * args.hidden;
  if (elements == 0) return;
  const int64_t blocks = (elements + kThreads - 1) / kThreads;
  specials_kernel<T><<<grid_for(blocks), kThreads, 0, stream>>>(args);
}

}  // namespace

const char* pack_forward_cuda(Element element, const PackForward& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  for_element(element, [&](auto zero) {
    using T = decltype(zero);
    if (in_16_bytes(args.hidden * sizeof(T), args.features, args.specials, args.text, args.positions,
                    args.out)) {
      launch_forward<T, kVector<T>>(args, on);
    } else {
      launch_forward<T, 1>(args, on);
    }
  });
  return launch_error();
}

const char* pack_backward_cuda(Element element, const PackBackward& args, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  for_element(element, [&](auto zero) {
    using T = decltype(zero);
    if (in_16_bytes(args.hidden * sizeof(T), args.grad, args.grad_features, args.grad_text,
                    args.parts, args.view_parts)) {
      launch_backward<T, kVector<T>>(args, on);
    } else {
      launch_backward<T, 1>(args, on);
    }
  });
  return launch_error();
}

}  // namespace megatron_llava
