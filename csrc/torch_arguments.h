// What the operators are given, checked and put together with their outputs; for the CPU and the GPU.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>

#include "tiles_to_patches.h"
#include "visual_pack.h"

namespace megatron_llava {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Element element_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Element::kFloat32;
    case ScalarType::Double:
      return Element::kFloat64;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Half:
      return Element::kFloat16;
    default:
      STD_TORCH_CHECK(false, "visual_pack takes float32, float64, bfloat16 and float16 rows");
  }
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

inline void check_rows(const Tensor& rows, const Tensor& like) {
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(1) == like.size(1), "tables must be [rows, ",
                  like.size(1), "]");
  STD_TORCH_CHECK(rows.scalar_type() == like.scalar_type(), "tables must have one dtype");
  STD_TORCH_CHECK(rows.is_contiguous(), "tables must be contiguous");
}

inline void check_plan(const Tensor& indices, const Tensor& weights, const Tensor& rows) {
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long && indices.is_contiguous() &&
                      weights.scalar_type() == ScalarType::Float && weights.is_contiguous(),
                  "a plan must be contiguous int64 rows and float32 weights");
  STD_TORCH_CHECK(indices.numel() == weights.numel(), "a plan has a weight for each row");
  STD_TORCH_CHECK(indices.is_cuda() == rows.is_cuda() && weights.is_cuda() == rows.is_cuda(),
                  "plan and tables must be on one device");
}

inline void check_numbers(const Tensor& numbers, const Tensor& rows) {
  STD_TORCH_CHECK(numbers.scalar_type() == ScalarType::Long && numbers.dim() == 1 &&
                      numbers.is_contiguous() && numbers.is_cuda() == rows.is_cuda(),
                  "offsets, bounds and positions must be contiguous int64 on the rows' device");
}

inline Tensor new_rows(const Tensor& like, int64_t rows) {
  return torch::stable::new_empty(like, {rows, like.size(1)});
}

// The forward's arguments and its output, checked.
inline std::tuple<PackForward, Tensor> prepare_forward(const Tensor& features, const Tensor& specials,
                                                const Tensor& text, const Tensor& positions,
                                                const Tensor& taps, const Tensor& weights,
                                                const Tensor& feature_positions) {
  check_rows(features, features);
  check_rows(specials, features);
  check_rows(text, features);
  check_rows(positions, features);
  check_plan(taps, weights, features);
  check_numbers(feature_positions, features);
  const bool adds_positions = positions.size(0) > 0;
  STD_TORCH_CHECK(!adds_positions || feature_positions.numel() == features.size(0),
                  "there are positions of ", feature_positions.numel(), " features, and ",
                  features.size(0), " features");
  STD_TORCH_CHECK(taps.dim() == 2 && taps.size(1) == kTaps, "taps must be [rows, ", kTaps, "]");
  Tensor out = new_rows(features, taps.size(0));
  const PackForward args{
      features.const_data_ptr(), specials.const_data_ptr(), text.const_data_ptr(),
      features.size(0),          specials.size(0),          data<int64_t>(taps),
      data<float>(weights),      out.mutable_data_ptr(),    taps.size(0),
      features.size(1),          positions.const_data_ptr(),
      adds_positions ? data<int64_t>(feature_positions) : nullptr,
  };
  return {args, out};
}

struct Backward {
  PackBackward args;
  Tensor features, specials, text, positions, parts, view_parts;
};

// Which gradients are wanted.
struct Wanted {
  bool features, specials, text, positions;
};

// The backward's arguments and outputs, checked. A gradient that is not wanted has no rows.
inline Backward prepare_backward(const Tensor& grad, const Tensor& offsets, const Tensor& rows,
                          const Tensor& weights, const Tensor& feature_positions,
                          const Tensor& view_bounds, int64_t num_features, int64_t num_specials,
                          int64_t num_positions, Wanted wants) {
  check_rows(grad, grad);
  check_plan(rows, weights, grad);
  for (const Tensor* numbers : {&offsets, &feature_positions, &view_bounds}) {
    check_numbers(*numbers, grad);
  }
  const int64_t first_text = num_features + num_specials;
  const int64_t num_text = offsets.numel() - 1 - first_text;
  STD_TORCH_CHECK(num_features >= 0 && num_specials >= 0 && num_text >= 0, "the plan has ",
                  offsets.numel() - 1, " table rows, fewer than features and special rows");
  Tensor features = new_rows(grad, wants.features ? num_features : 0);
  Tensor specials = new_rows(grad, wants.specials ? num_specials : 0);
  Tensor text = new_rows(grad, wants.text ? num_text : 0);
  Tensor positions = new_rows(grad, wants.positions ? num_positions : 0);
  const int64_t num_views = positions.size(0) > 0 ? view_bounds.numel() - 1 : 0;
  STD_TORCH_CHECK(num_views >= 0, "view_bounds must have the first view's begin");
  const bool wide = grad.scalar_type() == ScalarType::Double;
  const ScalarType sums = wide ? ScalarType::Double : ScalarType::Float;
  Tensor parts =
      torch::stable::new_empty(grad, {specials.size(0), kSpecialParts, grad.size(1)}, sums);
  Tensor view_parts = torch::stable::new_empty(grad, {num_views, kViewParts, grad.size(1)}, sums);
  const PackBackward args{
      grad.const_data_ptr(),       data<int64_t>(offsets),      data<int64_t>(rows),
      data<float>(weights),        features.mutable_data_ptr(), specials.mutable_data_ptr(),
      text.mutable_data_ptr(),     features.size(0),            specials.size(0),
      text.size(0),                num_features,                first_text,
      grad.size(1),                parts.mutable_data_ptr(),
      positions.mutable_data_ptr(), positions.size(0),
      num_views,                   data<int64_t>(view_bounds),
      data<int64_t>(feature_positions), view_parts.mutable_data_ptr(),
  };
  return {args, features, specials, text, positions, parts, view_parts};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline std::tuple<TilesToPatches, Tensor> prepare_patches(const Tensor& tiles, const Tensor& table,
                                                   int64_t patch) {
  STD_TORCH_CHECK(tiles.scalar_type() == ScalarType::Byte && tiles.dim() == 4 &&
                      tiles.size(1) == kChannels && tiles.size(2) == tiles.size(3) &&
                      tiles.is_contiguous(),
                  "tiles must be contiguous uint8 [V, 3, S, S]");
  STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == kChannels && table.size(1) == kLevels &&
                      table.is_contiguous() && table.is_cuda() == tiles.is_cuda(),
                  "the table must be contiguous [3, 256], on the tiles' device");
  const int64_t side = tiles.size(2), bytes = table.element_size();
  STD_TORCH_CHECK(bytes == 2 || bytes == 4 || bytes == 8, "elements must have 2, 4 or 8 bytes");
  STD_TORCH_CHECK(patch > 0 && patch <= side && side < 1 << 14, "patches of ", patch,
                  " pixels do not fit tiles of ", side);
  const int64_t grid = side / patch;
  Tensor out = torch::stable::new_empty(
      table, {tiles.size(0), grid * grid, kChannels * patch * patch});
  const TilesToPatches args{
      data<uint8_t>(tiles),       table.const_data_ptr(),  out.mutable_data_ptr(),
      tiles.size(0),              static_cast<int>(side),  static_cast<int>(patch),
      static_cast<int>(grid),     static_cast<int>(bytes),
  };
  return {args, out};
}

}  // namespace
}  // namespace megatron_llava
