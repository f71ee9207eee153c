// The packed rows of one visual, and their transpose.
#pragma once

#include "plan_layout.h"

namespace megatron_llava::plan {

// Where packed rows are written. Unused taps are 0 with weight 0.
struct Output {
  int64_t* taps;
  float* weights;
  // A packed row that is one table row.
  void copy(int64_t row, int64_t tap) const {
    int64_t* const row_taps = taps + row * kMaxTaps;
    float* const row_weights = weights + row * kMaxTaps;
    row_taps[0] = tap, row_taps[1] = row_taps[2] = row_taps[3] = 0;
    row_weights[0] = 1.0F, row_weights[1] = row_weights[2] = row_weights[3] = 0.0F;
  }
};

// Writes the merge.num_tokens() rows of a visual from `row` on. Features are counted from
// first_feature on, and special row s becomes first_special + s. Returns how many taps are used.
int64_t write_rows(const Merge& merge, int64_t patches_per_side, int64_t first_feature,
                   int64_t first_special, int64_t row, const Output& out);

// Where the transpose is written, in the order of the table rows: the uses of the row that ends
// next go from `use` on.
struct Uses {
  int64_t* end;  // where the next table row's uses end
  int64_t* rows;
  float* weights;
  int64_t use = 0;
  void add(int64_t row, float weight) {
    rows[use] = row;
    weights[use++] = weight;
  }
  void end_row() { *end++ = use; }
};

// The uses of the features of a visual whose rows begin at `row`, view by view.
void write_feature_uses(const Merge& merge, int64_t patches_per_side, int64_t row, Uses* uses);

// The uses of one special row by a visual, which `tap` names.
void write_special_uses(const Merge& merge, int64_t tap, int64_t row, Uses* uses);

}  // namespace megatron_llava::plan
