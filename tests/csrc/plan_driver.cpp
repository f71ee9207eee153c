// Runs the plan builder on random packs, for the sanitizers: every buffer has exactly the size that
// the header promises to keep to. Prints the number of packs and of rows.
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "plan.h"

using namespace megatron_llava::plan;

namespace {

std::mt19937_64 engine(7);

int64_t draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(engine);
}

VideoSettings random_video(int64_t patches) {
  const int64_t pooling = patches > 1 ? draw(kBilinear, kMax) : kBilinear;
  const int64_t stride = draw(1, pooling == kBilinear ? 3 : 2);
  const int64_t up = pooling == kBilinear ? stride - 1 : 0;
  return {patches, (patches + up) / stride, pooling, draw(kGrid, kNoToken), draw(0, 1)};
}

ImageSettings random_image(std::vector<int64_t>* pinpoints) {
  ImageSettings image = {};
  image.patches_per_side = draw(1, 9);
  image.tile_size = image.patches_per_side * 14 + draw(0, 13);
  image.merged_side = image.patches_per_side;
  image.uses_grid = draw(0, 3) > 0;
  image.has_base_view = draw(0, 1);
  image.merges_base = draw(0, 1);
  image.family = draw(kFlat, kUnpad);
  image.rounds_to_7_digits = draw(0, 1);
  image.max_merged_views = draw(0, 1) ? draw(1, 6) : 0;
  const int64_t tokens = image.patches_per_side * image.patches_per_side;
  image.token_threshold = draw(0, 1) && !image.max_merged_views ? draw(2, 9) * tokens : 0;
  if (!image.max_merged_views && !image.token_threshold) {
    const VideoSettings pooled = random_video(image.patches_per_side);
    image.pools_canvas = draw(0, 1);
    if (!image.pools_canvas) image.merged_side = pooled.pooled_side, image.pooling = pooled.pooling;
  }
  image.chooses_by_aspect_ratio = draw(0, 1);
  image.waste_is_share = draw(0, 1);
  image.waste_weight = 0.1;
  image.image_separator = draw(0, 1);
  image.image_start_end = draw(0, 1);
  for (int64_t i = draw(1, 12); i > 0; --i) {
    pinpoints->push_back(draw(1, 6) * image.tile_size);
    pinpoints->push_back(draw(1, 6) * image.tile_size);
  }
  image.num_pinpoints = static_cast<int64_t>(pinpoints->size() / 2);
  image.pinpoints = pinpoints->data();
  return image;
}

// Rows of the pack, or -1 where a visual has no layout.
int64_t run_pack() {
  std::vector<int64_t> pinpoints;
  const ImageSettings image = random_image(&pinpoints);
  const VideoSettings video = random_video(image.patches_per_side);
  std::vector<Visual> visuals(static_cast<std::size_t>(draw(0, 4)));
  for (Visual& visual : visuals) {
    const int64_t largest = draw(0, 20) ? 2000 : (int64_t{1} << 31) - 1;
    visual = {draw(0, 40) ? draw(1, largest) : 0, draw(1, largest), kImage, draw(0, 1), draw(0, 1)};
    if (draw(0, 3) == 0) visual = {draw(1, 5), 0, kVideo, 0, 0};
  }
  const auto n = static_cast<int64_t>(visuals.size());
  std::vector<int64_t> tokens(visuals.size()), views(visuals.size());
  if (megatron_llava_plan_count(&image, &video, n, visuals.data(), tokens.data(), views.data()) < n)
    return -1;
  std::vector<int64_t> visual_rows, text_rows;
  int64_t row = 0, num_features = 0;
  const auto add_text = [&] {
    for (int64_t i = draw(0, 6); i > 0; --i) text_rows.push_back(row++);
    row += draw(0, 2);  // padding
  };
  add_text();
  for (std::size_t i = 0; i < visuals.size(); ++i) {
    visual_rows.push_back(row);
    row += tokens[i];
    num_features += views[i] * image.patches_per_side * image.patches_per_side;
    add_text();
  }
  const auto rows = static_cast<std::size_t>(row);
  std::vector<int64_t> taps(rows * kMaxTaps, -9);
  std::vector<float> weights(rows * kMaxTaps, -9.0F);
  const auto num_text = static_cast<int64_t>(text_rows.size());
  const int64_t table = num_features + 4 + num_text;
  const int64_t known = megatron_llava_plan_rows(
      &image, &video, n, visuals.data(), visual_rows.data(), num_text, text_rows.data(), num_features,
      4, row, taps.data(), weights.data());
  for (const int64_t tap : taps) {
    if (tap < 0 || tap >= (table ? table : 1)) return -2;
  }
  std::vector<int64_t> offsets(static_cast<std::size_t>(table + 1));
  const int64_t uses =
      megatron_llava_plan_offsets(row, table, taps.data(), weights.data(), offsets.data());
  if (known != uses) return -2;
  std::vector<int64_t> use_rows(static_cast<std::size_t>(uses));
  std::vector<float> use_weights(static_cast<std::size_t>(uses));
  megatron_llava_plan_uses(row, taps.data(), weights.data(), offsets.data(), use_rows.data(),
                           use_weights.data());
  std::vector<int64_t> direct_offsets(offsets.size(), -9), direct_rows(use_rows.size(), -9);
  std::vector<float> direct_weights(use_weights.size(), -9.0F);
  megatron_llava_plan_pack_uses(&image, &video, n, visuals.data(), visual_rows.data(), num_text,
                                text_rows.data(), num_features, 4, direct_offsets.data(),
                                direct_rows.data(), direct_weights.data());
  if (direct_offsets != offsets || direct_rows != use_rows || direct_weights != use_weights) return -2;
  return offsets.back() == uses && offsets.front() == 0 ? row : -2;
}

}  // namespace

int main() {
  int64_t packs = 0, rows = 0;
  for (int i = 0; i < 3000; ++i) {
    const int64_t here = run_pack();
    if (here == -2) {
      std::printf("pack %d is wrong\n", i);
      return 1;
    }
    packs += here >= 0;
    rows += here >= 0 ? here : 0;
  }
  std::printf("%lld packs %lld rows\n", static_cast<long long>(packs), static_cast<long long>(rows));
  return 0;
}
