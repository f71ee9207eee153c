// The row loops of the visual packing operator as compiled for different processors.
#pragma once

#include "visual_pack.h"

namespace megatron_llava {

struct PackLoops {
  void (*forward)(Element, const PackForward&, int64_t begin, int64_t end);
  void (*backward)(Element, const PackBackward&, int64_t begin, int64_t end);
  void (*specials)(Element, const PackBackward&, int64_t begin, int64_t end);
};

extern const PackLoops kPackLoopsBase;
#ifdef __x86_64__
extern const PackLoops kPackLoopsAvx2;
extern const PackLoops kPackLoopsAvx512;
#endif

}  // namespace megatron_llava
