// The row code of the visual packing operator, the same on the CPU and on the GPU.
//
// A row is worked on in vectors of N elements, by `lanes` threads of which this one is `lane`. On the
// CPU one thread does whole rows (lane 0 of 1); on the GPU a warp does a slice of a row.
#pragma once

#include "visual_pack.h"

namespace megatron_llava {
namespace {

// The part of a row that one piece of work covers, in vectors, and this thread's place in it.
struct Span {
  int64_t first;
  int64_t last;
  int lane;
  int lanes;
};

// Vectors of one row that a thread holds at the same time: loads must be under way together.
constexpr int kInFlight = 4;

template <typename T, int N>
HOST_DEVICE void copy_row(const T* source, T* out, Span span) {
  for (int64_t v = span.first + span.lane; v < span.last; v += kInFlight * span.lanes) {
    Vector<T, N> read[kInFlight] = {};
    UNROLL_LOOP
    for (int u = 0; u < kInFlight; ++u) {
      const int64_t at = v + u * span.lanes;
      if (at < span.last) read[u] = load<T, N>(source + at * N);
    }
    UNROLL_LOOP
    for (int u = 0; u < kInFlight; ++u) {
      const int64_t at = v + u * span.lanes;
      if (at < span.last) store(out + at * N, read[u]);
    }
  }
}

template <typename T, int N>
HOST_DEVICE void zero_row(T* out, Span span) {
  for (int64_t v = span.first + span.lane; v < span.last; v += span.lanes) {
    store(out + v * N, Vector<T, N>{});
  }
}

// The sum of exactly TAPS rows, in the order of the taps.
template <typename T, int N, int TAPS>
HOST_DEVICE void sum_taps(const T* const* sources, const Sum<T>* weights, T* out, Span span) {
  for (int64_t v = span.first + span.lane; v < span.last; v += span.lanes) {
    Vector<T, N> read[TAPS];
    UNROLL_LOOP
    for (int k = 0; k < TAPS; ++k) read[k] = load<T, N>(sources[k] + v * N);
    Vector<T, N> result;
    UNROLL_LOOP
    for (int i = 0; i < N; ++i) {
      Sum<T> sum = weights[0] * widen(read[0].values[i]);
      UNROLL_LOOP
      for (int k = 1; k < TAPS; ++k) sum += weights[k] * widen(read[k].values[i]);
      narrow(sum, result.values[i]);
    }
    store(out + v * N, result);
  }
}

template <typename T>
HOST_DEVICE const T* table_row(const PackForward& args, int64_t row) {
  const void* table = args.features;
  if (row >= args.num_features) {
    row -= args.num_features;
    table = args.specials;
    if (row >= args.num_specials) {
      row -= args.num_specials;
      table = args.text;
    }
  }
  return static_cast<const T*>(table) + row * args.hidden;
}

// The row that is added to a table row by the position of its tile, or null.
template <typename T>
HOST_DEVICE const T* position_row(const PackForward& args, int64_t row) {
  if (args.feature_positions == nullptr || row >= args.num_features) return nullptr;
  const int64_t position = args.feature_positions[row];
  return position < 0 ? nullptr : static_cast<const T*>(args.positions) + position * args.hidden;
}

// The taps of one packed row that are in use.
template <typename T>
struct UsedTaps {
  const T* sources[kTaps];
  const T* positions[kTaps];  // rows to add to the sources, or null
  Sum<T> weights[kTaps];
  int count;
  bool has_positions;
};

template <typename T>
HOST_DEVICE UsedTaps<T> used_taps(const PackForward& args, int64_t row) {
  UsedTaps<T> used{};
  UNROLL_LOOP
  for (int k = 0; k < kTaps; ++k) {
    const float weight = args.weights[row * kTaps + k];
    if (weight != 0.0f) {
      const int64_t tap = args.taps[row * kTaps + k];
      const T* source = table_row<T>(args, tap);
      const T* position = position_row<T>(args, tap);
      used.has_positions |= position != nullptr;
      // Not indexed by count: on the GPU that would put the array into slow local memory.
      UNROLL_LOOP
      for (int place = 0; place <= k; ++place) {
        if (place == used.count) {
          used.sources[place] = source;
          used.positions[place] = position;
          used.weights[place] = weight;
        }
      }
      ++used.count;
    }
  }
  return used;
}

// The same where rows are added to sources: the sources, then what is added to them.
template <typename T, int N>
HOST_DEVICE void sum_with_positions(const UsedTaps<T>& used, T* out, Span span) {
  for (int64_t v = span.first + span.lane; v < span.last; v += span.lanes) {
    Sum<T> sums[N] = {};
    UNROLL_LOOP
    for (int k = 0; k < kTaps; ++k) {
      if (k >= used.count) continue;
      const Vector<T, N> source = load<T, N>(used.sources[k] + v * N);
      UNROLL_LOOP
      for (int i = 0; i < N; ++i) sums[i] += used.weights[k] * widen(source.values[i]);
    }
    UNROLL_LOOP
    for (int k = 0; k < kTaps; ++k) {
      if (k >= used.count || used.positions[k] == nullptr) continue;
      const Vector<T, N> position = load<T, N>(used.positions[k] + v * N);
      UNROLL_LOOP
      for (int i = 0; i < N; ++i) sums[i] += used.weights[k] * widen(position.values[i]);
    }
    Vector<T, N> result;
    UNROLL_LOOP
    for (int i = 0; i < N; ++i) narrow(sums[i], result.values[i]);
    store(out + v * N, result);
  }
}

template <typename T, int N>
HOST_DEVICE void forward_row(const UsedTaps<T>& used, T* out, Span span) {
  if (used.has_positions) return sum_with_positions<T, N>(used, out, span);
  switch (used.count) {
    case 0:
      return zero_row<T, N>(out, span);
    case 1:
      if (used.weights[0] == 1) return copy_row<T, N>(used.sources[0], out, span);
      return sum_taps<T, N, 1>(used.sources, used.weights, out, span);
    case 2:
      return sum_taps<T, N, 2>(used.sources, used.weights, out, span);
    case 3:
      return sum_taps<T, N, 3>(used.sources, used.weights, out, span);
    default:
      return sum_taps<T, N, 4>(used.sources, used.weights, out, span);
  }
}

// Entries of the transpose whose sum one piece of work forms, and where it goes.
template <typename T>
struct Entries {
  int64_t begin;
  int64_t end;
  T* out;        // a whole row of a gradient, or null
  Sum<T>* part;  // a part of the sum of a special row or of a view, or null
  bool is_copy;  // one entry of weight 1
};

// Part `part` of `parts` of the entries from begin to end.
template <typename T>
HOST_DEVICE Entries<T> part_of(int64_t begin, int64_t end, int64_t part, int64_t parts, Sum<T>* out) {
  const int64_t length = end - begin;
  return {begin + length * part / parts, begin + length * (part + 1) / parts, nullptr, out, false};
}

template <typename T>
HOST_DEVICE Entries<T> backward_item(const PackBackward& args, int64_t item) {
  const int64_t special_items = args.num_specials * kSpecialParts;
  if (item < special_items) {
    // First, as these are the longest.
    const int64_t row = args.first_special + item / kSpecialParts;
    return part_of<T>(args.offsets[row], args.offsets[row + 1], item % kSpecialParts, kSpecialParts,
                      static_cast<Sum<T>*>(args.parts) + item * args.hidden);
  }
  item -= special_items;
  const int64_t view_items = args.num_views * kViewParts;
  if (item < view_items) {
    // The features of a view are table rows one after the other, and so are their uses.
    const int64_t* bounds = args.view_bounds + item / kViewParts;
    return part_of<T>(args.offsets[bounds[0]], args.offsets[bounds[1]], item % kViewParts, kViewParts,
                      static_cast<Sum<T>*>(args.view_parts) + item * args.hidden);
  }
  item -= view_items;
  int64_t row = item;
  void* table = args.grad_features;
  if (item >= args.num_features) {
    item -= args.num_features;
    row = args.first_text + item;
    table = args.grad_text;
  }
  const int64_t begin = args.offsets[row], end = args.offsets[row + 1];
  return {begin, end, static_cast<T*>(table) + item * args.hidden, nullptr,
          end == begin + 1 && args.weights[begin] == 1.0f};
}

// The sum of entries, in their order.
template <typename T, int N>
HOST_DEVICE void sum_entries(const PackBackward& args, const Entries<T>& entries, Span span) {
  const T* grad = static_cast<const T*>(args.grad);
  if (entries.is_copy) {
    return copy_row<T, N>(grad + args.rows[entries.begin] * args.hidden, entries.out, span);
  }
  for (int64_t v = span.first + span.lane; v < span.last; v += span.lanes) {
    Sum<T> sums[N] = {};
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
    for (int64_t entry = entries.begin; entry < entries.end; ++entry) {
      const Sum<T> weight = args.weights[entry];
      const Vector<T, N> read = load<T, N>(grad + args.rows[entry] * args.hidden + v * N);
      UNROLL_LOOP
      for (int i = 0; i < N; ++i) sums[i] += weight * widen(read.values[i]);
    }
    if (entries.out == nullptr) {
      constexpr int kPiece = N * sizeof(Sum<T>) < 16 ? N : 16 / sizeof(Sum<T>);
      UNROLL_LOOP
      for (int i = 0; i < N; i += kPiece) {
        store(entries.part + v * N + i, load_own<Sum<T>, kPiece>(sums + i));
      }
    } else {
      Vector<T, N> result;
      UNROLL_LOOP
      for (int i = 0; i < N; ++i) narrow(sums[i], result.values[i]);
      store(entries.out + v * N, result);
    }
  }
}

// One element of a special row's gradient: its parts, in their order.
template <typename T>
HOST_DEVICE void sum_special(const PackBackward& args, int64_t special, int64_t element) {
  const Sum<T>* part =
      static_cast<const Sum<T>*>(args.parts) + special * kSpecialParts * args.hidden + element;
  Sum<T> sum = 0;
#ifdef __CUDA_ARCH__
#pragma unroll 16
#endif
  for (int p = 0; p < kSpecialParts; ++p) sum += part[p * args.hidden];
  narrow(sum, static_cast<T*>(args.grad_specials)[special * args.hidden + element]);
}

// One element of a position's gradient: the parts of the views at it, in their order.
template <typename T>
HOST_DEVICE void sum_position(const PackBackward& args, int64_t position, int64_t element) {
  Sum<T> sum = 0;
  for (int64_t view = 0; view < args.num_views; ++view) {
    const int64_t first = args.view_bounds[view];
    // This rank may have none of a view's features.
    if (first == args.view_bounds[view + 1] || args.feature_positions[first] != position) continue;
    const Sum<T>* part =
        static_cast<const Sum<T>*>(args.view_parts) + view * kViewParts * args.hidden + element;
    UNROLL_LOOP
    for (int p = 0; p < kViewParts; ++p) sum += part[p * args.hidden];
  }
  narrow(sum, static_cast<T*>(args.grad_positions)[position * args.hidden + element]);
}

// One element of a row that the second pass adds up: special rows, then positions.
template <typename T>
HOST_DEVICE void sum_parts(const PackBackward& args, int64_t row, int64_t element) {
  if (row < args.num_specials) return sum_special<T>(args, row, element);
  sum_position<T>(args, row - args.num_specials, element);
}

}  // namespace
}  // namespace megatron_llava
