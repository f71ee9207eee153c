// The CPU's row loops for any processor, and the choice of those for the processor at hand.
#include "visual_pack_level.h"

namespace megatron_llava {

const PackLoops kPackLoopsBase = kLoops;

namespace {

const PackLoops& loops() {
#ifdef __x86_64__
  static const PackLoops& chosen =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
          ? kPackLoopsAvx512
          : __builtin_cpu_supports("avx2") ? kPackLoopsAvx2 : kPackLoopsBase;
  return chosen;
#else
  return kPackLoopsBase;
#endif
}

}  // namespace

void pack_forward_cpu(Element element, const PackForward& args, int64_t begin, int64_t end) {
  loops().forward(element, args, begin, end);
}

void pack_backward_cpu(Element element, const PackBackward& args, int64_t begin, int64_t end) {
  loops().backward(element, args, begin, end);
}

void pack_specials_cpu(Element element, const PackBackward& args, int64_t begin, int64_t end) {
  loops().specials(element, args, begin, end);
}

}  // namespace megatron_llava
