// The CPU's row loops. Compiled once for each level of x86-64 processors, and once for all others: a
// file of a level includes this and gives kLoops a name.
#pragma once

#include "visual_pack_levels.h"
#include "visual_pack_rows.h"

namespace megatron_llava {
namespace {

// Elements that a loop holds in registers. A sum of many rows takes longer pieces of each.
constexpr int kWidth = 16;
constexpr int kLongWidth = 64;

template <typename T>
void forward_rows(const PackForward& args, int64_t begin, int64_t end) {
  const int64_t vectors = args.hidden / kWidth;
  for (int64_t row = begin; row < end; ++row) {
    const UsedTaps<T> used = used_taps<T>(args, row);
    T* out = static_cast<T*>(args.out) + row * args.hidden;
    if (used.count == 1 && used.weights[0] == 1 && !used.has_positions) {
      memcpy(out, used.sources[0], args.hidden * sizeof(T));
      continue;
    }
    forward_row<T, kWidth>(used, out, {0, vectors, 0, 1});
    forward_row<T, 1>(used, out, {vectors * kWidth, args.hidden, 0, 1});
  }
}

template <typename T>
void backward_items(const PackBackward& args, int64_t begin, int64_t end) {
  const int64_t vectors = args.hidden / kLongWidth;
  for (int64_t item = begin; item < end; ++item) {
    const Entries<T> entries = backward_item<T>(args, item);
    if (entries.is_copy) {
      const T* grad = static_cast<const T*>(args.grad);
      memcpy(entries.out, grad + args.rows[entries.begin] * args.hidden, args.hidden * sizeof(T));
      continue;
    }
    sum_entries<T, kLongWidth>(args, entries, {0, vectors, 0, 1});
    sum_entries<T, 1>(args, entries, {vectors * kLongWidth, args.hidden, 0, 1});
  }
}

template <typename T>
void special_elements(const PackBackward& args, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; ++at) {
    sum_parts<T>(args, at / args.hidden, at % args.hidden);
  }
}

constexpr PackLoops kLoops = {
    [](Element element, const PackForward& args, int64_t begin, int64_t end) {
      for_element(element, [&](auto zero) { forward_rows<decltype(zero)>(args, begin, end); });
    },
    [](Element element, const PackBackward& args, int64_t begin, int64_t end) {
      for_element(element, [&](auto zero) { backward_items<decltype(zero)>(args, begin, end); });
    },
    [](Element element, const PackBackward& args, int64_t begin, int64_t end) {
      for_element(element, [&](auto zero) { special_elements<decltype(zero)>(args, begin, end); });
    },
};

}  // namespace
}  // namespace megatron_llava
