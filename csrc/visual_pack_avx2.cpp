// Compiled with AVX2; setup.py gives the flag by the file's name.
#ifdef __x86_64__
#include "visual_pack_level.h"

namespace megatron_llava {
const PackLoops kPackLoopsAvx2 = kLoops;
}
#endif
