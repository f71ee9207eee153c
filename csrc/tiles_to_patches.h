// Tiles of pixels to the rows that the patch embedding multiplies, in one pass over memory.
//
// A pixel's normalised value depends on its channel and its byte alone, so it is looked up:
// out[v, y * grid + x, (c * patch + i) * patch + j] = table[c, tiles[v, c, y * patch + i, x * patch + j]].
// The order within a row is that of a convolution's weight. Pixels beyond the last whole patch are
// left out, as a convolution leaves them out.
#pragma once

#include <cstdint>

#include "elements.h"

namespace megatron_llava {

constexpr int kChannels = 3;
constexpr int kLevels = 256;  // values of a byte

struct TilesToPatches {
  const uint8_t* tiles;  // [views, kChannels, side, side]
  const void* table;     // [kChannels, kLevels]
  void* out;             // [views, grid * grid, kChannels * patch * patch]
  int64_t views;
  int side;
  int patch;
  int grid;           // side / patch
  int element_bytes;  // of table and out: 2, 4 or 8
};

// CPU: patch rows, of all views, from begin to end.
void patches_cpu(const TilesToPatches& args, int64_t begin, int64_t end);

// GPU, whole; the error's name, or null. `stream` is a cudaStream_t.
const char* patches_cuda(const TilesToPatches& args, void* stream);

namespace {

HOST_DEVICE int row_elements(const TilesToPatches& args) {
  return kChannels * args.patch * args.patch;
}

// One element's place: it steps through the rows of a patch, its channels, and then the patches.
struct PatchCursor {
  int64_t view;
  int row;
  int column;
  int channel;
  int i;
  int j;

  HOST_DEVICE PatchCursor(const TilesToPatches& args, int64_t element) {
    const int64_t patch_row = element / row_elements(args);
    int within = static_cast<int>(element - patch_row * row_elements(args));
    const int per_view = args.grid * args.grid;
    view = patch_row / per_view;
    const int patch_number = static_cast<int>(patch_row - view * per_view);
    row = patch_number / args.grid;
    column = patch_number % args.grid;
    channel = within / (args.patch * args.patch);
    within -= channel * args.patch * args.patch;
    i = within / args.patch;
    j = within % args.patch;
  }

  HOST_DEVICE int64_t pixel(const TilesToPatches& args) const {
    const int64_t line = (view * kChannels + channel) * args.side + row * args.patch + i;
    return line * args.side + column * args.patch + j;
  }

  HOST_DEVICE void advance(const TilesToPatches& args) {
    if (++j < args.patch) return;
    j = 0;
    if (++i < args.patch) return;
    i = 0;
    if (++channel < kChannels) return;
    channel = 0;
    if (++column < args.grid) return;
    column = 0;
    if (++row < args.grid) return;
    row = 0;
    ++view;
  }
};

// N elements that follow each other, from element `first`.
template <typename Word, int N>
HOST_DEVICE void patch_elements(const TilesToPatches& args, const Word* table, int64_t first) {
  PatchCursor cursor(args, first);
  Vector<Word, N> result;
  UNROLL_LOOP
  for (int n = 0; n < N; ++n) {
    result.values[n] = table[cursor.channel * kLevels + args.tiles[cursor.pixel(args)]];
    if (n + 1 < N) cursor.advance(args);
  }
  store(static_cast<Word*>(args.out) + first, result);
}

// What a thread of the GPU does: vectors of N elements, every so many of them; the last elements,
// which fill no vector, one by one.
template <typename Word, int N>
HOST_DEVICE void patch_thread(const TilesToPatches& args, const Word* table, int64_t thread,
                              int64_t threads) {
  const int64_t elements = args.views * args.grid * args.grid * row_elements(args);
  const int64_t vectors = elements / N;
  for (int64_t v = thread; v < vectors; v += threads) {
    patch_elements<Word, N>(args, table, v * N);
  }
  for (int64_t at = vectors * N + thread; at < elements; at += threads) {
    patch_elements<Word, 1>(args, table, at);
  }
}

}  // namespace
}  // namespace megatron_llava
