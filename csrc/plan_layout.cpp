#include "plan_layout.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace megatron_llava::plan {
namespace {

constexpr double kShrinkAbove = 1.1;

// int(value), or int(round(value, 7)) of Python for value >= 0.
//
// Python rounds the exact value to 7 decimals, so it reaches the next integer from half a step of
// the 7th decimal below it. No double lies exactly there, and the difference is exact where it is
// that small.
int64_t truncate(double value, bool to_7_digits) {
  const double whole = std::floor(value);
  const bool up = to_7_digits && (whole + 1.0) - value < 0.5e-7;
  return static_cast<int64_t>(whole) + up;
}

// Python's a // b of two positive floats.
int64_t floor_divide(double a, double b) {
  const double quotient = (a - std::fmod(a, b)) / b;
  const double floored = std::floor(quotient);
  return static_cast<int64_t>(quotient - floored > 0.5 ? floored + 1.0 : floored);
}

int64_t integer_sqrt(int64_t value) {
  auto root = static_cast<int64_t>(std::sqrt(static_cast<double>(value)));
  while (root * root > value) --root;
  while ((root + 1) * (root + 1) <= value) ++root;
  return root;
}

// The canvas that keeps the most pixels and, among equals, wastes the fewest: the first of the
// list wins a full tie. Returns {width, height} in pixels.
const int64_t* select_pinpoint(int64_t image_width, int64_t image_height,
                               const ImageSettings& settings) {
  const int64_t* best = settings.pinpoints;
  int64_t best_kept = -1, best_waste = 0;
  for (int64_t i = 0; i < settings.num_pinpoints; ++i) {
    const int64_t* pinpoint = settings.pinpoints + 2 * i;
    const double scale =
        std::min(static_cast<double>(pinpoint[0]) / static_cast<double>(image_width),
                 static_cast<double>(pinpoint[1]) / static_cast<double>(image_height));
    const auto width = static_cast<int64_t>(static_cast<double>(image_width) * scale);
    const auto height = static_cast<int64_t>(static_cast<double>(image_height) * scale);
    const int64_t kept = std::min(width * height, image_width * image_height);
    const int64_t waste = pinpoint[0] * pinpoint[1] - kept;
    if (kept > best_kept || (kept == best_kept && waste < best_waste)) {
      best = pinpoint, best_kept = kept, best_waste = waste;
    }
  }
  return best;
}

// The canvas whose aspect ratio is nearest to the image's, a waste of tiles counted in: the first of
// the list wins a tie. Returns {width, height} in pixels.
const int64_t* select_grid(int64_t image_width, int64_t image_height,
                           const ImageSettings& settings) {
  const double ratio = static_cast<double>(image_width) / static_cast<double>(image_height);
  const int64_t side = settings.tile_size;
  int64_t most = 0;
  for (int64_t i = 0; i < settings.num_pinpoints; ++i) {
    const int64_t* pinpoint = settings.pinpoints + 2 * i;
    most = std::max(most, pinpoint[0] / side * (pinpoint[1] / side));
  }
  const int64_t* best = settings.pinpoints;
  double best_score = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < settings.num_pinpoints; ++i) {
    const int64_t* pinpoint = settings.pinpoints + 2 * i;
    const int64_t columns = pinpoint[0] / side, rows = pinpoint[1] / side;
    auto waste = static_cast<double>(most - columns * rows);
    if (settings.waste_is_share != 0) waste /= static_cast<double>(most);
    const double of_grid = static_cast<double>(columns) / static_cast<double>(rows);
    const double score = std::abs(of_grid - ratio) + settings.waste_weight * waste;
    if (score < best_score) best = pinpoint, best_score = score;
  }
  return best;
}

Canvas stacked(int64_t first_view, int64_t views, int64_t side) {
  return {first_view, 1, side, {0, views * side, views * side}, {0, side, side}, 0};
}

// What is left of one side of a canvas of `length` positions after `covered` of it are kept in the
// middle; an odd remainder stays.
Side unpadded(int64_t length, int64_t covered) {
  const int64_t start = (length - covered) / 2;
  return {start, length - 2 * start, length - 2 * start};
}

// Crops the canvas to the part that the image covers.
void unpad(int64_t image_width, int64_t image_height, bool to_7_digits, Canvas* canvas) {
  const auto width = static_cast<double>(canvas->horizontal.kept);
  const auto height = static_cast<double>(canvas->vertical.kept);
  const auto w = static_cast<double>(image_width), h = static_cast<double>(image_height);
  if (w / h > width / height) {
    canvas->vertical = unpadded(canvas->vertical.kept, truncate(h * (width / w), to_7_digits));
  } else {
    canvas->horizontal = unpadded(canvas->horizontal.kept, truncate(w * (height / h), to_7_digits));
  }
}

// anyres_max_N: divides both sides by t = sqrt(h * w / (N * T)) where t > 1.1.
void shrink(const ImageSettings& settings, Canvas* canvas) {
  if (settings.max_merged_views == 0) return;
  const int64_t u = settings.patches_per_side;
  const auto budget = static_cast<double>(settings.max_merged_views * u * u);
  const int64_t height = canvas->vertical.kept, width = canvas->horizontal.kept;
  const double ratio = std::sqrt(static_cast<double>(height * width) / budget);
  if (ratio <= kShrinkAbove) return;
  canvas->vertical.size = floor_divide(static_cast<double>(height), ratio);
  canvas->horizontal.size = floor_divide(static_cast<double>(width), ratio);
}

// Positions per side of each merged view; 0 where the threshold leaves none.
int64_t side_of_view(const ImageSettings& settings, int64_t merged_views) {
  const int64_t u = settings.patches_per_side, threshold = settings.token_threshold;
  if (threshold == 0 || merged_views * u * u <= threshold) return settings.merged_side;
  return integer_sqrt(threshold / merged_views);
}

bool add_grid(const Visual& visual, const ImageSettings& settings, Merge* merge) {
  const auto select = settings.chooses_by_aspect_ratio != 0 ? select_grid : select_pinpoint;
  const int64_t* pinpoint = select(visual.width, visual.height, settings);
  const int64_t columns = pinpoint[0] / settings.tile_size;
  const int64_t rows = pinpoint[1] / settings.tile_size;
  const int64_t first_tile = settings.has_base_view ? 1 : 0;
  const int64_t first_merged = settings.merges_base ? 0 : first_tile;
  merge->num_views = first_tile + columns * rows;
  const int64_t merged_views = merge->num_views - first_merged;
  const int64_t side = side_of_view(settings, merged_views);
  if (side == 0) return false;
  if (settings.family == kFlat) {
    merge->canvases[merge->num_canvases++] = stacked(first_merged, merged_views, side);
    return true;
  }
  const bool has_base = first_merged < first_tile;
  if (has_base) merge->canvases[merge->num_canvases++] = stacked(0, 1, side);
  Canvas canvas = {first_tile, columns, side,
                   {0, rows * side, rows * side}, {0, columns * side, columns * side}, 0};
  if (settings.pools_canvas) {
    canvas.pooling = kMax;
    canvas.vertical.size /= 2, canvas.horizontal.size /= 2;
  } else if (settings.family == kUnpad) {
    canvas.newline_every = 1;
    unpad(visual.width, visual.height, settings.rounds_to_7_digits != 0, &canvas);
    shrink(settings, &canvas);
  }
  merge->canvases[merge->num_canvases++] = canvas;
  const bool is_empty = canvas.vertical.size * canvas.horizontal.size == 0;
  const bool was_empty = canvas.vertical.kept * canvas.horizontal.kept == 0;
  return !is_empty || (has_base && was_empty);
}

bool merge_image(const Visual& visual, const ImageSettings& settings, Merge* merge) {
  if (visual.width < 1 || visual.height < 1) return false;
  if (visual.after_image && settings.image_separator) {
    merge->before[merge->num_before++] = kSeparator;
  }
  if (settings.image_start_end) merge->before[merge->num_before++] = kImageStart;
  if (visual.single_view || !settings.uses_grid) {
    merge->num_views = 1;
    merge->canvases[merge->num_canvases++] = stacked(0, 1, settings.merged_side);
    if (settings.family == kUnpad) merge->after[merge->num_after++] = kNewline;
  } else if (!add_grid(visual, settings, merge)) {
    return false;
  }
  if (settings.image_start_end) merge->after[merge->num_after++] = kImageEnd;
  if (settings.merged_side != settings.patches_per_side) {
    for (int i = 0; i < merge->num_canvases; ++i) merge->canvases[i].pooling = settings.pooling;
  }
  return true;
}

bool merge_video(const Visual& visual, const VideoSettings& settings, Merge* merge) {
  if (visual.width < 1) return false;
  merge->num_views = visual.width;
  Canvas frames = stacked(0, visual.width, settings.pooled_side);
  frames.pooling = settings.pooling;
  if (settings.newline_position == kGrid) frames.newline_every = 1;
  if (settings.newline_position == kFrame) frames.newline_every = settings.pooled_side;
  if (settings.image_start_end) merge->before[merge->num_before++] = kImageStart;
  merge->canvases[merge->num_canvases++] = frames;
  if (settings.newline_position == kOneToken) merge->after[merge->num_after++] = kNewline;
  if (settings.image_start_end) merge->after[merge->num_after++] = kImageEnd;
  return true;
}

}  // namespace

bool merge_visual(const Visual& visual, const ImageSettings& image, const VideoSettings* video,
                  Merge* merge) {
  *merge = Merge();
  if (visual.kind == kVideo) return video != nullptr && merge_video(visual, *video, merge);
  return merge_image(visual, image, merge);
}

}  // namespace megatron_llava::plan
