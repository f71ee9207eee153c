// The visual tokens of one image or video: how many, and from which feature each one comes.
//
// The same rules, numbers and rounding as megatron_llava/vision/merge_shape.py and token_layout.py,
// which explain them; a property test keeps the two equal bit for bit. Plain C++17 without state:
// any number of threads may call it.
#pragma once

#include <cstdint>

namespace megatron_llava::plan {

constexpr int kMaxTaps = 4;

// Taps of the special rows: special row s is tap -1 - s.
constexpr int64_t kNewline = -1, kSeparator = -2, kImageStart = -3, kImageEnd = -4;

// Mirrors of config/image.py's and config/video.py's settings, with which ctypes shares the layout.
struct ImageSettings {
  int64_t tile_size;            // pixels
  int64_t patches_per_side;     // u
  int64_t merged_side;          // tokens per side of a view, u or what pooling leaves of it
  int64_t pooling;              // of views: kBilinear, kAverage, kMax
  int64_t uses_grid;            // whether images are cut into tiles
  int64_t has_base_view;
  int64_t merges_base;          // off for the _nobase merge types
  int64_t family;               // kFlat, kSpatial, kUnpad
  int64_t pools_canvas;         // 2 x 2 by their largest, instead of cropping it
  int64_t rounds_to_7_digits;   // --unpad-round hf
  int64_t max_merged_views;     // N of anyres_max_N, 0 for none
  int64_t token_threshold;      // of anyres_thresholded_N, 0 for none
  int64_t image_separator;
  int64_t image_start_end;
  int64_t chooses_by_aspect_ratio;  // --grid-choice aspect_ratio
  int64_t waste_is_share;       // --grid-waste share
  int64_t num_pinpoints;
  double waste_weight;          // --grid-waste-weight
  const int64_t* pinpoints;     // [num_pinpoints, 2], (width, height) in pixels
};
constexpr int64_t kFlat = 0, kSpatial = 1, kUnpad = 2;
constexpr int64_t kBilinear = 0, kAverage = 1, kMax = 2;

struct VideoSettings {
  int64_t patches_per_side;     // u
  int64_t pooled_side;          // tokens per side of a frame
  int64_t pooling;              // kBilinear, kAverage, kMax
  int64_t newline_position;     // kGrid, kFrame, kOneToken, kNoToken
  int64_t image_start_end;
};
constexpr int64_t kGrid = 0, kFrame = 1, kOneToken = 2, kNoToken = 3;

// What stands at one placeholder: an image of width x height pixels, or a video of `width` frames.
struct Visual {
  int64_t width, height;
  int64_t kind;                 // kImage, or kVideo
  int64_t single_view;          // the image shares its sample with others
  int64_t after_image;          // the image is not the first of its sample
};
constexpr int64_t kImage = 0, kVideo = 1;

// Which positions of one side of a canvas are read: `kept` of them from `start` on, resized to
// `size`.
struct Side {
  int64_t start, kept, size;
};

// Views in a grid, each of side x side positions, of which a crop is read row by row.
struct Canvas {
  int64_t first_view;           // at the top left
  int64_t columns;              // views beside each other
  int64_t side;                 // u, or less where every view is resized on its own
  Side vertical, horizontal;
  int64_t newline_every;        // rows; 0 for no newline
  int64_t pooling = kBilinear;  // of the canvas, or of each view where side is not u
  int64_t num_tokens() const {
    const int64_t newlines = newline_every ? vertical.size / newline_every : 0;
    return vertical.size * horizontal.size + newlines;
  }
};

// A whole sequence: special rows, canvases, special rows.
struct Merge {
  int64_t num_views = 0;
  int num_before = 0, num_canvases = 0, num_after = 0;
  int64_t before[2], after[2];
  Canvas canvases[2];
  // Views of a canvas, whether it shows all of them or not: those up to the next canvas.
  int64_t views_of(int canvas) const {
    const int64_t end = canvas + 1 < num_canvases ? canvases[canvas + 1].first_view : num_views;
    return end - canvases[canvas].first_view;
  }
  int64_t num_tokens() const {
    int64_t tokens = num_before + num_after;
    for (int i = 0; i < num_canvases; ++i) tokens += canvases[i].num_tokens();
    return tokens;
  }
};

// The shape of a visual's sequence. False where the Python layout raises: a side below 1, or no
// token left. `video` may be null where no visual is a video.
bool merge_visual(const Visual& visual, const ImageSettings& image, const VideoSettings* video,
                  Merge* merge);

}  // namespace megatron_llava::plan
