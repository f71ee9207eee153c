// Tiles to patches on the CPU.
#include "tiles_to_patches.h"

namespace megatron_llava {
namespace {

// A patch is kChannels * patch runs of `patch` pixels, each in one piece in the tile and in the row.
template <typename Word>
void patch_rows(const TilesToPatches& args, int64_t begin, int64_t end) {
  const int64_t per_view = int64_t{args.grid} * args.grid;
  const int64_t plane = int64_t{args.side} * args.side;
  Word* out = static_cast<Word*>(args.out) + begin * row_elements(args);
  for (int64_t patch_row = begin; patch_row < end; ++patch_row) {
    const int64_t view = patch_row / per_view, number = patch_row % per_view;
    const int64_t corner = number / args.grid * args.patch * args.side;
    const uint8_t* pixels = args.tiles + view * kChannels * plane + corner;
    pixels += number % args.grid * args.patch;
    const Word* table = static_cast<const Word*>(args.table);
    for (int c = 0; c < kChannels; ++c, pixels += plane, table += kLevels) {
      for (int i = 0; i < args.patch; ++i) {
        const uint8_t* run = pixels + int64_t{i} * args.side;
        for (int j = 0; j < args.patch; ++j) *out++ = table[run[j]];
      }
    }
  }
}

}  // namespace

void patches_cpu(const TilesToPatches& args, int64_t begin, int64_t end) {
  switch (args.element_bytes) {
    case 2:
      return patch_rows<uint16_t>(args, begin, end);
    case 4:
      return patch_rows<uint32_t>(args, begin, end);
    default:
      return patch_rows<uint64_t>(args, begin, end);
  }
}

}  // namespace megatron_llava
