// The positions of a canvas along one side: which features each is made of, and the other way round.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan_layout.h"

namespace megatron_llava::plan {

// Two sources of a position along one side, as view * patches + patch, and their weights.
struct Pair {
  int64_t at[2];
  float weight[2];
};

// The pairs of both sides of a canvas of views of `patches` features a side. A product of weights
// below 0 says that the position is the largest of its sources.
std::vector<Pair> pairs_down(const Canvas& canvas, int64_t patches);
std::vector<Pair> pairs_across(const Canvas& canvas, int64_t patches);

// Whether each position is one source, as it is.
bool is_copy(const std::vector<Pair>& pairs);

// The positions that each source of one side is part of, ascending, with their weights: those of
// source s are elements begin[s] to begin[s + 1].
struct Inverse {
  std::vector<int64_t> begin, position;
  std::vector<float> weight;
  int64_t uses() const { return static_cast<int64_t>(position.size()); }
};

// No position has the same source twice: merges never enlarge.
Inverse inverse_of(const std::vector<Pair>& pairs, int64_t sources);

}  // namespace megatron_llava::plan
