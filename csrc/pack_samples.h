// Which samples share a pack, under two budgets. Called from Python through ctypes.
#pragma once

#include <cstdint>

extern "C" {

// Packs n samples of lengths[i] rows (1 to capacity) and, where views is given, views[i] views
// (0 to max_views), window by window (0: all at once).
//
// Samples are shuffled by a hash of `seed` and their number. A pack takes them in that order while
// what is left of it stays at least as long as a quarter of the window's samples are; then it is
// completed by the longest sample that fits, again and again. Where even without regard to views
// that leaves more than a 4096th of the pack, each of the next 16 samples is tried with the longest
// one that then fits: the two that leave least are taken if they leave no more than that. If none
// do, and the sample taken last in the order was not the pack's first, it is put back once, and two
// that leave less than the longest sample did take its place. Then the packs are shuffled.
//
//   sample_ids [n]: pack k holds sample_ids[pack_offsets[k]] to sample_ids[pack_offsets[k + 1] - 1]
//   pack_offsets [n + 1], of which the number of packs and one are written
//
// Returns the number of packs.
int64_t megatron_llava_pack_samples(int64_t n, const int64_t* lengths, const int64_t* views,
                                    int64_t capacity, int64_t max_views, uint64_t seed,
                                    int64_t window, int32_t shuffle, int64_t* sample_ids,
                                    int64_t* pack_offsets);
}
