// Runs what the GPU's threads do on the CPU, one thread after the other; for tests, through ctypes.
#include <type_traits>

#include "tiles_to_patches.h"
#include "visual_pack_threads.h"

using namespace megatron_llava;

namespace {

// Every thread of every block, first to last or last to first.
template <typename F>
void for_each_place(int64_t blocks, int threads, bool reversed, F f) {
  for (int64_t n = 0; n < blocks * threads; ++n) {
    const int64_t at = reversed ? blocks * threads - 1 - n : n;
    f(Place{at / threads, blocks, static_cast<int>(at % threads)});
  }
}

// Calls f with a zero of the type, and how many elements are 16 bytes or 1.
template <typename F>
void for_width(Element element, bool wide, F f) {
  for_element(element, [&](auto zero) {
    using T = decltype(zero);
    if (wide) {
      f(zero, std::integral_constant<int, 16 / sizeof(T)>{});
    } else {
      f(zero, std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace

extern "C" {

void forward_by_threads(int element, int wide, const PackForward* args, int64_t blocks,
                        int reversed) {
  for_width(static_cast<Element>(element), wide, [&](auto zero, auto width) {
    for_each_place(blocks, kThreads, reversed, [&](Place place) {
      forward_thread<decltype(zero), decltype(width)::value>(*args, place);
    });
  });
}

void backward_by_threads(int element, int wide, const PackBackward* args, int64_t blocks,
                         int reversed) {
  for_width(static_cast<Element>(element), wide, [&](auto zero, auto width) {
    using T = decltype(zero);
    for_each_place(blocks, kThreads, reversed, [&](Place place) {
      backward_thread<T, decltype(width)::value>(*args, place);
    });
    for_each_place(blocks, kThreads, reversed,
                   [&](Place place) { specials_thread<T>(*args, place); });
  });
}

// Words of 2 or 4 bytes, vectors of 16.
void patches_by_threads(const TilesToPatches* args, int64_t threads) {
  for (int64_t thread = 0; thread < threads; ++thread) {
    if (args->element_bytes == 2) {
      patch_thread<uint16_t, 8>(*args, static_cast<const uint16_t*>(args->table), thread, threads);
    } else {
      patch_thread<uint32_t, 4>(*args, static_cast<const uint32_t*>(args->table), thread, threads);
    }
  }
}
}
