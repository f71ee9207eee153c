// The operators on the GPU: the tensors' own device, and torch's current stream of it.
#ifdef CUDA_ARCHS
#include <torch/csrc/stable/accelerator.h>

#include "torch_arguments.h"
#include "torch_stream.h"

namespace megatron_llava {
namespace {

void check_launch(const char* error, const char* name) {
  STD_TORCH_CHECK(error == nullptr, name, ": ", error);
}

Tensor visual_pack_cuda(Tensor features, Tensor specials, Tensor text, Tensor positions, Tensor taps,
                        Tensor weights, Tensor, Tensor, Tensor, Tensor feature_positions, Tensor) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  auto [args, out] =
      prepare_forward(features, specials, text, positions, taps, weights, feature_positions);
  check_launch(pack_forward_cuda(element_of(features), args, current_stream(features)),
               "visual_pack");
  return out;
}

Gradients visual_pack_backward_cuda(Tensor grad, Tensor offsets, Tensor rows, Tensor weights,
                                    Tensor feature_positions, Tensor view_bounds,
                                    int64_t num_features, int64_t num_specials,
                                    int64_t num_positions, bool wants_features,
                                    bool wants_specials, bool wants_text, bool wants_positions) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Backward b = prepare_backward(grad, offsets, rows, weights, feature_positions, view_bounds,
                                      num_features, num_specials, num_positions,
                                      {wants_features, wants_specials, wants_text, wants_positions});
  check_launch(pack_backward_cuda(element_of(grad), b.args, current_stream(grad)),
               "visual_pack_backward");
  return {b.features, b.specials, b.text, b.positions};
}

Tensor tiles_to_patches_cuda(Tensor tiles, Tensor table, int64_t patch) {
  const torch::stable::accelerator::DeviceGuard guard(tiles.get_device_index());
  auto [args, out] = prepare_patches(tiles, table, patch);
  check_launch(patches_cuda(args, current_stream(tiles)), "tiles_to_patches");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(megatron_llava, CUDA, library) {
  library.impl("visual_pack", TORCH_BOX(&visual_pack_cuda));
  library.impl("visual_pack_backward", TORCH_BOX(&visual_pack_backward_cuda));
  library.impl("tiles_to_patches", TORCH_BOX(&tiles_to_patches_cuda));
}

}  // namespace megatron_llava
#endif
