// What each thread of the GPU does, given its place in the grid. The kernels call this with their own
// place; a test on the CPU goes through all places.
#pragma once

#include "visual_pack_rows.h"

namespace megatron_llava {
namespace {

// A warp does a slice of a row: as many vectors as its lanes hold at the same time. A pack of a few
// hundred rows fills the chip that way, and one of many rows keeps enough loads under way.
constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;
constexpr int kSlice = kLanes * kInFlight;

struct Place {
  int64_t block;
  int64_t blocks;
  int thread;
};

HOST_DEVICE int64_t slices_of(int64_t vectors) { return (vectors + kSlice - 1) / kSlice; }

// The slices that a warp does: every so many of all slices of all items.
struct Steps {
  int64_t vectors;
  int64_t slices;
  int64_t end;
  int64_t step;
  int64_t stride;
  int lane;

  HOST_DEVICE Steps(int64_t items, int64_t row_vectors, Place place)
      : vectors(row_vectors),
        slices(slices_of(row_vectors)),
        end(items * slices),
        step(place.block * kWarps + place.thread / kLanes),
        stride(place.blocks * kWarps),
        lane(place.thread % kLanes) {}

  HOST_DEVICE int64_t item() const { return step / slices; }

  HOST_DEVICE Span span() const {
    const int64_t first = step % slices * kSlice;
    return {first, first + kSlice < vectors ? first + kSlice : vectors, lane, kLanes};
  }
};

template <typename T, int N>
HOST_DEVICE void forward_thread(const PackForward& args, Place place) {
  for (Steps s(args.num_rows, args.hidden / N, place); s.step < s.end; s.step += s.stride) {
    const int64_t row = s.item();
    T* out = static_cast<T*>(args.out) + row * args.hidden;
    forward_row<T, N>(used_taps<T>(args, row), out, s.span());
  }
}

template <typename T, int N>
HOST_DEVICE void backward_thread(const PackBackward& args, Place place) {
  const int64_t items = args.num_specials * kSpecialParts + args.num_views * kViewParts +
                        args.num_features + args.num_text;
  for (Steps s(items, args.hidden / N, place); s.step < s.end; s.step += s.stride) {
    sum_entries<T, N>(args, backward_item<T>(args, s.item()), s.span());
  }
}

template <typename T>
HOST_DEVICE void specials_thread(const PackBackward& args, Place place) {
  const int64_t elements = (args.num_specials + args.num_positions) * args.hidden;
  for (int64_t at = place.block * kThreads + place.thread; at < elements;
       at += place.blocks * kThreads) {
    sum_parts<T>(args, at / args.hidden, at % args.hidden);
  }
}

// Whether rows can be read and written in 16 bytes at a time: all lie at multiples of 16 bytes.
// Where they do not, a thread takes one element at a time.
template <typename... Pointers>
bool in_16_bytes(int64_t row_bytes, Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) | ... | static_cast<uintptr_t>(row_bytes)) & 15) == 0;
}

}  // namespace
}  // namespace megatron_llava
