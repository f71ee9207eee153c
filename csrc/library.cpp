// What the library says of itself; called through ctypes.

extern "C" {

// Names the state of csrc/ that this was compiled from.
const char* megatron_llava_csrc_hash() { return CSRC_HASH; }

// GPU architectures with machine code in here, such as "80;90"; empty without CUDA.
const char* megatron_llava_cuda_archs() {
#ifdef CUDA_ARCHS
  return CUDA_ARCHS;
#else
  return "";
#endif
}
}
