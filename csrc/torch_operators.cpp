// The operators as torch sees them, on LibTorch's stable ABI: one library for every torch from 2.10 on.
// Here for the CPU, in torch_operators_cuda.cpp for the GPU.
//
// Python adds the gradients' formulas and the shapes for tracing: megatron_llava/ops/operators.py.
#include "torch_arguments.h"

#include <algorithm>

#include "huge_pages.h"

namespace megatron_llava {
namespace {

// Bytes that a thread should at least have to write.
constexpr int64_t kGrainBytes = 1 << 16;

int64_t grain(int64_t row_bytes) { return kGrainBytes / std::max<int64_t>(row_bytes, 1) + 1; }

// Before anything is written to it.
void in_huge_pages(const Tensor& output) {
  ask_for_huge_pages(output.mutable_data_ptr(), output.numel() * output.element_size());
}

// On the CPU a wrong plan is an error; on the GPU it would take a synchronisation to tell.
void check_within(const int64_t* numbers, const float* weights, int64_t count, int64_t end) {
  bool within = true;
  for (int64_t at = 0; at < count; ++at) {
    const bool used = weights == nullptr || weights[at] != 0.0f;
    within &= !used || (numbers[at] >= 0 && numbers[at] < end);
  }
  STD_TORCH_CHECK(within, "the plan names a row outside of [0, ", end, ")");
}

// Positions are -1 or rows of the table of positions.
void check_positions(const Tensor& feature_positions, int64_t num_positions) {
  const int64_t* numbers = data<int64_t>(feature_positions);
  bool within = true;
  for (int64_t at = 0; at < feature_positions.numel(); ++at) {
    within &= numbers[at] >= -1 && numbers[at] < num_positions;
  }
  STD_TORCH_CHECK(within, "a feature has a position outside of [-1, ", num_positions, ")");
}

Tensor visual_pack_cpu(Tensor features, Tensor specials, Tensor text, Tensor positions, Tensor taps,
                       Tensor weights, Tensor, Tensor, Tensor, Tensor feature_positions, Tensor) {
  auto [args, out] =
      prepare_forward(features, specials, text, positions, taps, weights, feature_positions);
  if (args.feature_positions != nullptr) check_positions(feature_positions, positions.size(0));
  const int64_t table_rows = features.size(0) + specials.size(0) + text.size(0);
  check_within(args.taps, args.weights, taps.numel(), table_rows);
  const Element element = element_of(features);
  in_huge_pages(out);
  torch::stable::parallel_for(
      0, args.num_rows, grain(args.hidden * out.element_size()),
      [&, &args = args](int64_t begin, int64_t end) { pack_forward_cpu(element, args, begin, end); });
  return out;
}

void check_offsets(const int64_t* offsets, int64_t count, int64_t end) {
  bool ascending = offsets[0] == 0 && offsets[count] == end;
  for (int64_t at = 0; at < count; ++at) ascending &= offsets[at] <= offsets[at + 1];
  STD_TORCH_CHECK(ascending, "the plan's offsets must rise from 0 to ", end);
}

Gradients visual_pack_backward_cpu(Tensor grad, Tensor offsets, Tensor rows, Tensor weights,
                                   Tensor feature_positions, Tensor view_bounds,
                                   int64_t num_features, int64_t num_specials,
                                   int64_t num_positions, bool wants_features, bool wants_specials,
                                   bool wants_text, bool wants_positions) {
  const Backward b = prepare_backward(grad, offsets, rows, weights, feature_positions, view_bounds,
                                      num_features, num_specials, num_positions,
                                      {wants_features, wants_specials, wants_text, wants_positions});
  check_offsets(b.args.offsets, offsets.numel() - 1, rows.numel());
  check_within(b.args.rows, nullptr, rows.numel(), grad.size(0));
  if (b.args.num_positions > 0) {
    check_offsets(b.args.view_bounds, b.args.num_views, num_features);
    STD_TORCH_CHECK(feature_positions.numel() == num_features, "each feature has a position, or -1");
  }
  const Element element = element_of(grad);
  for (const Tensor* output : {&b.features, &b.text}) in_huge_pages(*output);
  torch::stable::parallel_for(
      0, count_backward_items(b.args), grain(b.args.hidden * grad.element_size()),
      [&](int64_t begin, int64_t end) { pack_backward_cpu(element, b.args, begin, end); });
  torch::stable::parallel_for(
      0, count_summed_rows(b.args) * b.args.hidden, grain(kSpecialParts * b.parts.element_size()),
      [&](int64_t begin, int64_t end) { pack_specials_cpu(element, b.args, begin, end); });
  return {b.features, b.specials, b.text, b.positions};
}

Tensor tiles_to_patches_cpu(Tensor tiles, Tensor table, int64_t patch) {
  auto [args, out] = prepare_patches(tiles, table, patch);
  in_huge_pages(out);
  torch::stable::parallel_for(
      0, out.size(0) * out.size(1), grain(out.size(2) * out.element_size()),
      [&args = args](int64_t begin, int64_t end) { patches_cpu(args, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(megatron_llava, library) {
  library.def(
      "visual_pack(Tensor features, Tensor specials, Tensor text, Tensor positions, Tensor taps, "
      "Tensor weights, Tensor csr_offsets, Tensor csr_rows, Tensor csr_weights, "
      "Tensor feature_positions, Tensor view_bounds) -> Tensor");
  library.def(
      "visual_pack_backward(Tensor grad, Tensor csr_offsets, Tensor csr_rows, Tensor csr_weights, "
      "Tensor feature_positions, Tensor view_bounds, int num_features, int num_specials, "
      "int num_positions, bool wants_features, bool wants_specials, bool wants_text, "
      "bool wants_positions) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def("tiles_to_patches(Tensor tiles, Tensor table, int patch) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(megatron_llava, CPU, library) {
  library.impl("visual_pack", TORCH_BOX(&visual_pack_cpu));
  library.impl("visual_pack_backward", TORCH_BOX(&visual_pack_backward_cpu));
  library.impl("tiles_to_patches", TORCH_BOX(&tiles_to_patches_cpu));
}

}  // namespace megatron_llava
