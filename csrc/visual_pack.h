// The visual packing operator: what its kernels are given, on the CPU and on the GPU.
//
// out[r] = sum of at most 4 weight * row over three tables: features, special rows, text embeddings.
// Row t of all three, one below the other without being copied there, is called table row t.
//
// Optionally a learned row is added to every feature of a tile, by the tile's place in the image: a
// position of a fourth table. Features of a base view have position -1 and get none.
#pragma once

#include <cstdint>

#include "elements.h"

namespace megatron_llava {

constexpr int kTaps = 4;

// Special rows, such as image_newline, are used thousands of times in a pack. The sum of such a row's
// gradient is cut into this many parts, whatever its length, so that the size of the launch is known
// without reading the plan, and the order of the sum is always the same.
constexpr int kSpecialParts = 64;

// The same for the features of one view, whose uses add up to a part of their position's gradient.
constexpr int kViewParts = 8;

struct PackForward {
  const void* features;
  const void* specials;
  const void* text;
  int64_t num_features;
  int64_t num_specials;
  const int64_t* taps;   // [num_rows, kTaps], table rows
  const float* weights;  // [num_rows, kTaps], 0 for an unused tap
  void* out;             // [num_rows, hidden]
  int64_t num_rows;
  int64_t hidden;
  const void* positions;             // [P, hidden]
  const int64_t* feature_positions;  // [num_features], -1 for none; null where no row is added
};

// The transpose, by table row: entries offsets[t] to offsets[t + 1] are the rows that use row t.
// A table whose gradient is not wanted counts 0 rows here, and the table rows after it keep their
// numbers: first_special and first_text.
struct PackBackward {
  const void* grad;         // [R, hidden]
  const int64_t* offsets;   // [M + 1]
  const int64_t* rows;      // [entries]
  const float* weights;     // [entries]
  void* grad_features;
  void* grad_specials;
  void* grad_text;
  int64_t num_features;
  int64_t num_specials;
  int64_t num_text;
  int64_t first_special;
  int64_t first_text;
  int64_t hidden;
  void* parts;  // [num_specials, kSpecialParts, hidden], in the type that sums are formed in
  void* grad_positions;
  int64_t num_positions;             // 0 where no such gradient is wanted, and num_views with it
  int64_t num_views;
  const int64_t* view_bounds;        // [num_views + 1], the features of each view
  const int64_t* feature_positions;  // [features]
  void* view_parts;                  // [num_views, kViewParts, hidden], as parts
};

// Independent pieces of work of the backward's first pass: parts of special rows and of views, then
// whole rows. The second pass adds up the parts of each special row and of each position.
inline int64_t count_backward_items(const PackBackward& args) {
  return args.num_specials * kSpecialParts + args.num_views * kViewParts + args.num_features +
         args.num_text;
}

// Rows that the second pass adds up.
inline int64_t count_summed_rows(const PackBackward& args) {
  return args.num_specials + args.num_positions;
}

// CPU: packed rows, items of the backward, and elements of all summed rows from begin to end.
void pack_forward_cpu(Element element, const PackForward& args, int64_t begin, int64_t end);
void pack_backward_cpu(Element element, const PackBackward& args, int64_t begin, int64_t end);
void pack_specials_cpu(Element element, const PackBackward& args, int64_t begin, int64_t end);

// GPU, whole; the error's name, or null. `stream` is a cudaStream_t.
const char* pack_forward_cuda(Element element, const PackForward& args, void* stream);
const char* pack_backward_cuda(Element element, const PackBackward& args, void* stream);

}  // namespace megatron_llava
