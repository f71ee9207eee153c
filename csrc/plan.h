// The plan of a pack: which rows of the virtual table [features | special rows | text] each packed
// row is the sum of, and the transpose of that. Called from Python through ctypes, which releases
// the GIL; nothing here keeps state, and only a lack of memory ends it early.
#pragma once

#include <cstdint>

#include "plan_layout.h"

extern "C" {

// Tokens and views of n visuals. Returns n, or the first visual that has no layout.
int64_t megatron_llava_plan_count(const megatron_llava::plan::ImageSettings* image,
                                  const megatron_llava::plan::VideoSettings* video, int64_t n,
                                  const megatron_llava::plan::Visual* visuals, int64_t* tokens,
                                  int64_t* views);

// Taps and weights [total_rows, 4] of a pack, every element of which is written.
//   visual_rows [n], text_rows [num_text]: the first packed row of each visual, and that of each
//   text token, both ascending.
// Returns the number of uses, or -1 - i for the first visual i that has no layout.
int64_t megatron_llava_plan_rows(const megatron_llava::plan::ImageSettings* image,
                                 const megatron_llava::plan::VideoSettings* video, int64_t n,
                                 const megatron_llava::plan::Visual* visuals,
                                 const int64_t* visual_rows, int64_t num_text,
                                 const int64_t* text_rows, int64_t num_features,
                                 int64_t num_specials, int64_t total_rows, int64_t* taps,
                                 float* weights);

// The transpose of the same pack, without reading it: offsets [num_features + num_specials +
// num_text + 1], and the packed row and the weight of each use, ordered by table row, packed row,
// tap. All visuals have a layout.
void megatron_llava_plan_pack_uses(const megatron_llava::plan::ImageSettings* image,
                                   const megatron_llava::plan::VideoSettings* video, int64_t n,
                                   const megatron_llava::plan::Visual* visuals,
                                   const int64_t* visual_rows, int64_t num_text,
                                   const int64_t* text_rows, int64_t num_features,
                                   int64_t num_specials, int64_t* offsets, int64_t* rows,
                                   float* weights);

// The transpose of any taps and weights, such as a share of a pack. First half of the transpose: offsets [table_rows + 1] to where the uses of each table row begin,
// one place too far on. Returns the number of uses.
int64_t megatron_llava_plan_offsets(int64_t num_rows, int64_t table_rows, const int64_t* taps,
                                    const float* weights, int64_t* offsets);

// Second half: the packed row and the weight of each use, ordered by table row, packed row, tap; and
// offsets in their place, those of table row t being offsets[t] to offsets[t + 1].
void megatron_llava_plan_uses(int64_t num_rows, const int64_t* taps, const float* weights,
                              int64_t* offsets, int64_t* rows, float* use_weights);
}
