#include "plan_sides.h"

#include <algorithm>

namespace megatron_llava::plan {
namespace {

// Position i of a bilinear resize, as torch.nn.functional.interpolate computes it on float32 with
// align_corners=False. Doubles hold the product and the difference exactly.
Pair bilinear(int64_t size, int64_t new_size, int64_t i) {
  if (size == new_size) return {{i, i}, {1.0F, 0.0F}};
  const double scale = static_cast<float>(size) / static_cast<float>(std::max<int64_t>(new_size, 1));
  const double exact = (static_cast<double>(i) + 0.5) * scale - 0.5;
  const auto position = static_cast<float>(std::max(exact, 0.0));
  const auto low = static_cast<int64_t>(position);
  const float high_weight = position - static_cast<float>(low);
  return {{low, std::min(low + 1, size - 1)}, {1.0F - high_weight, high_weight}};
}

// Position i of `size` resized to `new_size`, by twos of this weight, or bilinearly where that is 0.
Pair resized(int64_t size, int64_t new_size, int64_t i, float of_two) {
  if (of_two == 0.0F || size == new_size) return bilinear(size, new_size, i);
  return {{2 * i, 2 * i + 1}, {of_two, of_two}};
}

std::vector<Pair> side_pairs(const Side& side, int64_t view_side, int64_t patches, float of_two) {
  std::vector<Pair> pairs(static_cast<std::size_t>(side.size));
  for (int64_t i = 0; i < side.size; ++i) {
    Pair& pair = pairs[static_cast<std::size_t>(i)];
    int64_t first = side.start;
    if (view_side == patches) {
      pair = resized(side.kept, side.size, i, of_two);
    } else {
      // Views are resized one by one, or their canvas is, but never both.
      const int64_t view = (i + side.start) / view_side, inside = (i + side.start) % view_side;
      pair = resized(patches, view_side, inside, of_two);
      first = view * patches;
    }
    for (int64_t& at : pair.at) at += first;
  }
  return pairs;
}

}  // namespace

std::vector<Pair> pairs_down(const Canvas& canvas, int64_t patches) {
  const float of_two = canvas.pooling == kMax ? -0.5F : canvas.pooling == kAverage ? 0.5F : 0.0F;
  return side_pairs(canvas.vertical, canvas.side, patches, of_two);
}

std::vector<Pair> pairs_across(const Canvas& canvas, int64_t patches) {
  const float of_two = canvas.pooling == kBilinear ? 0.0F : 0.5F;
  return side_pairs(canvas.horizontal, canvas.side, patches, of_two);
}

bool is_copy(const std::vector<Pair>& pairs) {
  return std::all_of(pairs.begin(), pairs.end(), [](const Pair& p) { return p.weight[1] == 0.0F; });
}

Inverse inverse_of(const std::vector<Pair>& pairs, int64_t sources) {
  Inverse inverse;
  inverse.begin.assign(static_cast<std::size_t>(sources) + 1, 0);
  const auto for_each_used = [&](auto use) {
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      for (int k = 0; k < 2; ++k) {
        if (pairs[i].weight[k] != 0.0F) use(static_cast<int64_t>(i), pairs[i], k);
      }
    }
  };
  for_each_used([&](int64_t, const Pair& pair, int k) {
    ++inverse.begin[static_cast<std::size_t>(pair.at[k]) + 1];
  });
  for (std::size_t s = 1; s < inverse.begin.size(); ++s) inverse.begin[s] += inverse.begin[s - 1];
  inverse.position.resize(static_cast<std::size_t>(inverse.begin.back()));
  inverse.weight.resize(inverse.position.size());
  std::vector<int64_t> next(inverse.begin.begin(), inverse.begin.end() - 1);
  for_each_used([&](int64_t i, const Pair& pair, int k) {
    const auto use = static_cast<std::size_t>(next[static_cast<std::size_t>(pair.at[k])]++);
    inverse.position[use] = i;
    inverse.weight[use] = pair.weight[k];
  });
  return inverse;
}

}  // namespace megatron_llava::plan
