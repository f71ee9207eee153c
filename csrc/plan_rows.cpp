#include "plan_rows.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "plan_sides.h"

namespace megatron_llava::plan {
namespace {

// The packed row of the first position of each row of a canvas that begins at `first`, and behind
// them where the canvas ends.
std::vector<int64_t> line_starts(const Canvas& canvas, int64_t first) {
  std::vector<int64_t> starts;
  starts.reserve(static_cast<std::size_t>(canvas.vertical.size) + 1);
  int64_t until_newline = canvas.newline_every;
  for (int64_t y = 0; y <= canvas.vertical.size; ++y) {
    starts.push_back(first);
    first += canvas.horizontal.size;
    if (--until_newline == 0) {
      ++first;
      until_newline = canvas.newline_every;
    }
  }
  return starts;
}

// Sources of one side, view * patches + patch, as offsets of features.
void place(std::vector<Pair>* pairs, int64_t patches, int64_t view_step, int64_t patch_step) {
  for (Pair& pair : *pairs) {
    for (int64_t& at : pair.at) {
      const auto source = static_cast<uint32_t>(at), in_view = static_cast<uint32_t>(patches);
      at = source / in_view * view_step + source % in_view * patch_step;
    }
  }
}

// Taps and weights of a position that is resized.
void sum_of(const Pair& row, const Pair& column, int64_t upper, int64_t lower, int64_t* taps,
            float* weights) {
  for (int k = 0; k < kMaxTaps; ++k) weights[k] = row.weight[k / 2] * column.weight[k % 2];
  if (row.weight[1] != 0.0F && column.weight[1] != 0.0F) {
    // The usual case, without a look at each weight: the first of a pair is never 0.
    taps[0] = upper + column.at[0], taps[1] = upper + column.at[1];
    taps[2] = lower + column.at[0], taps[3] = lower + column.at[1];
    return;
  }
  for (int k = 0; k < kMaxTaps; ++k) {
    taps[k] = weights[k] == 0.0F ? 0 : (k < 2 ? upper : lower) + column.at[k % 2];
  }
}

// Writes the rows of a canvas from `at` on; returns how many taps are used.
int64_t write_canvas(const Canvas& canvas, int64_t patches, int64_t first_feature, int64_t newline,
                     int64_t at, const Output& out) {
  const int64_t tokens = patches * patches;
  auto rows = pairs_down(canvas, patches);
  auto columns = pairs_across(canvas, patches);
  const bool copies = is_copy(rows) && is_copy(columns);
  place(&rows, patches, canvas.columns * tokens, patches);
  place(&columns, patches, tokens, 1);
  const int64_t first = first_feature + canvas.first_view * tokens;
  int64_t until_newline = canvas.newline_every, used = 0;
  for (const Pair& row : rows) {
    const int64_t upper = first + row.at[0], lower = first + row.at[1];
    if (copies) {
      for (const Pair& column : columns) out.copy(at++, upper + column.at[0]);
    } else {
      for (const Pair& column : columns) {
        sum_of(row, column, upper, lower, out.taps + at * kMaxTaps, out.weights + at * kMaxTaps);
        ++at;
      }
    }
    if (--until_newline == 0) {
      out.copy(at++, newline);
      until_newline = canvas.newline_every;
      ++used;
    }
  }
  const auto used_of = [](const std::vector<Pair>& pairs) {
    int64_t count = 0;
    for (const Pair& pair : pairs) count += (pair.weight[0] != 0.0F) + (pair.weight[1] != 0.0F);
    return count;
  };
  return used + used_of(rows) * used_of(columns);
}

// The uses of a row of features of a view, `sources` of one side being `across` from `left` on: each
// is part of the lines from `line` to `last_line`, with their weights.
void write_line_uses(const Inverse& across, int64_t left, int64_t patches, const int64_t* line,
                     const int64_t* last_line, const float* line_weight, Uses* uses) {
  const int64_t* const begin = &across.begin[static_cast<std::size_t>(left)];
  const int64_t* const position = across.position.data();
  const float* const weight = across.weight.data();
  int64_t* const rows = uses->rows;
  float* const weights = uses->weights;
  int64_t use = uses->use;
  for (int64_t x = 0; x < patches; ++x) {
    for (int64_t i = 0; i < last_line - line; ++i) {
      for (int64_t j = begin[x]; j < begin[x + 1]; ++j) {
        rows[use] = line[i] + position[j];
        weights[use++] = line_weight[i] * weight[j];
      }
    }
    uses->end[x] = use;
  }
  uses->use = use;
  uses->end += patches;
}

// The same for one line that is a copy: positions follow each other.
void write_copied_line(const Inverse& across, int64_t left, int64_t patches, int64_t line,
                       Uses* uses) {
  const int64_t* const begin = &across.begin[static_cast<std::size_t>(left)];
  const int64_t count = begin[patches] - begin[0];
  for (int64_t x = 0; x < patches; ++x) uses->end[x] = uses->use + begin[x + 1] - begin[0];
  if (count > 0) {
    const int64_t first = line + across.position[static_cast<std::size_t>(begin[0])];
    int64_t* const rows = uses->rows + uses->use;
    for (int64_t k = 0; k < count; ++k) rows[k] = first + k;
    std::fill_n(uses->weights + uses->use, count, 1.0F);
  }
  uses->use += count;
  uses->end += patches;
}

// The uses of the features of a canvas, all of its views.
void write_canvas_uses(const Canvas& canvas, int64_t views, int64_t patches, int64_t row,
                       Uses* uses) {
  const int64_t view_rows = views / canvas.columns;
  const auto rows = pairs_down(canvas, patches);
  const auto columns = pairs_across(canvas, patches);
  const Inverse down = inverse_of(rows, view_rows * patches);
  const Inverse across = inverse_of(columns, canvas.columns * patches);
  const bool copies = is_copy(rows) && is_copy(columns);
  // The lines that each use of a source down is in.
  const auto starts = line_starts(canvas, row);
  std::vector<int64_t> lines(down.position.size());
  std::transform(down.position.begin(), down.position.end(), lines.begin(),
                 [&](int64_t y) { return starts[static_cast<std::size_t>(y)]; });
  for (int64_t view = 0; view < views; ++view) {
    const int64_t top = view / canvas.columns * patches, left = view % canvas.columns * patches;
    for (int64_t y = top; y < top + patches; ++y) {
      const int64_t begin = down.begin[static_cast<std::size_t>(y)];
      const int64_t end = down.begin[static_cast<std::size_t>(y) + 1];
      if (copies && end > begin) {
        write_copied_line(across, left, patches, lines[static_cast<std::size_t>(begin)], uses);
      } else {
        write_line_uses(across, left, patches, lines.data() + begin, lines.data() + end,
                        down.weight.data() + begin, uses);
      }
    }
  }
}

}  // namespace

int64_t write_rows(const Merge& merge, int64_t patches_per_side, int64_t first_feature,
                   int64_t first_special, int64_t row, const Output& out) {
  // Special row s is tap -1 - s.
  const int64_t special = first_special - 1;
  int64_t used = merge.num_before + merge.num_after;
  for (int i = 0; i < merge.num_before; ++i) out.copy(row++, special - merge.before[i]);
  for (int i = 0; i < merge.num_canvases; ++i) {
    const Canvas& canvas = merge.canvases[i];
    used += write_canvas(canvas, patches_per_side, first_feature, special - kNewline, row, out);
    row += canvas.num_tokens();
  }
  for (int i = 0; i < merge.num_after; ++i) out.copy(row++, special - merge.after[i]);
  return used;
}

void write_feature_uses(const Merge& merge, int64_t patches_per_side, int64_t row, Uses* uses) {
  const int64_t tokens = patches_per_side * patches_per_side;
  const auto unused_until = [&](int64_t view, int64_t* from) {
    for (int64_t left = (view - *from) * tokens; left > 0; --left) uses->end_row();
    *from = view;
  };
  int64_t view = 0;
  row += merge.num_before;
  for (int i = 0; i < merge.num_canvases; ++i) {
    const Canvas& canvas = merge.canvases[i];
    unused_until(canvas.first_view, &view);
    write_canvas_uses(canvas, merge.views_of(i), patches_per_side, row, uses);
    view += merge.views_of(i);
    row += canvas.num_tokens();
  }
  unused_until(merge.num_views, &view);
}

void write_special_uses(const Merge& merge, int64_t tap, int64_t row, Uses* uses) {
  const auto add_if = [&](int64_t here) {
    if (here == tap) uses->add(row, 1.0F);
    ++row;
  };
  for (int i = 0; i < merge.num_before; ++i) add_if(merge.before[i]);
  for (int i = 0; i < merge.num_canvases; ++i) {
    const Canvas& canvas = merge.canvases[i];
    if (tap == kNewline && canvas.newline_every > 0) {
      const auto starts = line_starts(canvas, row);
      for (int64_t y = canvas.newline_every; y <= canvas.vertical.size; y += canvas.newline_every) {
        uses->add(starts[static_cast<std::size_t>(y)] - 1, 1.0F);
      }
    }
    row += canvas.num_tokens();
  }
  for (int i = 0; i < merge.num_after; ++i) add_if(merge.after[i]);
}

}  // namespace megatron_llava::plan
