#include "plan.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "plan_rows.h"

using megatron_llava::plan::ImageSettings;
using megatron_llava::plan::kMaxTaps;
using megatron_llava::plan::Merge;
using megatron_llava::plan::merge_visual;
using megatron_llava::plan::Output;
using megatron_llava::plan::Uses;
using megatron_llava::plan::VideoSettings;
using megatron_llava::plan::Visual;
using megatron_llava::plan::write_feature_uses;
using megatron_llava::plan::write_rows;
using megatron_llava::plan::write_special_uses;

namespace {

// Counts of uses, behind the first element, to where the uses of each row begin; returns their sum.
int64_t begins_of(int64_t* offsets, int64_t table_rows) {
  int64_t uses = 0;
  for (int64_t* here = offsets + 1; here <= offsets + table_rows; ++here) {
    uses += std::exchange(*here, uses);
  }
  return uses;
}

// Calls use(row, i) for each element i of the taps that is used, in ascending order.
template <typename Use>
void for_each_use(int64_t num_rows, const float* weights, const Use& use) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* of_row = weights + row * kMaxTaps;
    // Most rows are copies: one test finds that the last three weights are all 0.
    std::uint32_t bits[kMaxTaps];
    std::memcpy(bits, of_row, sizeof bits);
    if ((bits[1] | bits[2] | bits[3]) == 0) {
      if (of_row[0] != 0.0F) use(row, row * kMaxTaps);
      continue;
    }
    for (int64_t k = 0; k < kMaxTaps; ++k) {
      if (of_row[k] != 0.0F) use(row, row * kMaxTaps + k);
    }
  }
}

}  // namespace

int64_t megatron_llava_plan_count(const ImageSettings* image, const VideoSettings* video, int64_t n,
                                  const Visual* visuals, int64_t* tokens, int64_t* views) {
  Merge merge;
  for (int64_t i = 0; i < n; ++i) {
    if (!merge_visual(visuals[i], *image, video, &merge)) return i;
    tokens[i] = merge.num_tokens();
    views[i] = merge.num_views;
  }
  return n;
}

int64_t megatron_llava_plan_rows(const ImageSettings* image, const VideoSettings* video, int64_t n,
                                 const Visual* visuals, const int64_t* visual_rows,
                                 int64_t num_text, const int64_t* text_rows, int64_t num_features,
                                 int64_t num_specials, int64_t total_rows, int64_t* taps,
                                 float* weights) {
  // A row that is neither text nor of a visual is padding and has no tap.
  int64_t written = 0;
  const auto zero_until = [&](int64_t row) {
    std::fill(taps + kMaxTaps * written, taps + kMaxTaps * row, 0);
    std::fill(weights + kMaxTaps * written, weights + kMaxTaps * row, 0.0F);
  };
  const int64_t tokens_per_view = image->patches_per_side * image->patches_per_side;
  const int64_t first_text = num_features + num_specials;
  const Output out = {taps, weights};
  int64_t text = 0, first_feature = 0, uses = num_text;
  const auto write_text_until = [&](int64_t row) {
    for (; text < num_text && text_rows[text] < row; ++text) {
      const int64_t here = text_rows[text];
      zero_until(here);
      out.copy(here, first_text + text);
      written = here + 1;
    }
    zero_until(row);
    written = row;
  };
  Merge merge;
  for (int64_t i = 0; i < n; ++i) {
    if (!merge_visual(visuals[i], *image, video, &merge)) return -1 - i;
    const int64_t row = visual_rows[i];
    write_text_until(row);
    uses += write_rows(merge, image->patches_per_side, first_feature, num_features, row, out);
    written = row + merge.num_tokens();
    first_feature += merge.num_views * tokens_per_view;
  }
  write_text_until(total_rows);
  return uses;
}

void megatron_llava_plan_pack_uses(const ImageSettings* image, const VideoSettings* video, int64_t n,
                                   const Visual* visuals, const int64_t* visual_rows,
                                   int64_t num_text, const int64_t* text_rows, int64_t num_features,
                                   int64_t num_specials, int64_t* offsets, int64_t* rows,
                                   float* weights) {
  offsets[0] = 0;
  Uses uses = {offsets + 1, rows, weights};
  std::vector<Merge> merges(static_cast<std::size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    Merge& merge = merges[static_cast<std::size_t>(i)];
    merge_visual(visuals[i], *image, video, &merge);
    write_feature_uses(merge, image->patches_per_side, visual_rows[i], &uses);
  }
  // A pack without visuals has the features of a dummy view.
  while (uses.end <= offsets + num_features) uses.end_row();
  for (int64_t special = 0; special < num_specials; ++special) {
    for (int64_t i = 0; i < n; ++i) {
      write_special_uses(merges[static_cast<std::size_t>(i)], -1 - special, visual_rows[i], &uses);
    }
    uses.end_row();
  }
  for (int64_t i = 0; i < num_text; ++i) {
    uses.add(text_rows[i], 1.0F);
    uses.end_row();
  }
}

int64_t megatron_llava_plan_offsets(int64_t num_rows, int64_t table_rows, const int64_t* taps,
                                    const float* weights, int64_t* offsets) {
  std::fill_n(offsets, table_rows + 1, 0);
  int64_t* const begin_of = offsets + 1;
  for_each_use(num_rows, weights, [&](int64_t, int64_t i) { ++begin_of[taps[i]]; });
  return begins_of(offsets, table_rows);
}

void megatron_llava_plan_uses(int64_t num_rows, const int64_t* taps, const float* weights,
                              int64_t* offsets, int64_t* rows, float* use_weights) {
  // Where the uses of t begin is counted up to where they end, which is where those of t + 1 begin.
  int64_t* const next_of = offsets + 1;
  for_each_use(num_rows, weights, [&](int64_t row, int64_t i) {
    const int64_t use = next_of[taps[i]]++;
    rows[use] = row;
    use_weights[use] = weights[i];
  });
}
