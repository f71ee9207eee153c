// The CUDA stream that torch is on.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

namespace megatron_llava {
namespace {

// The current stream of a tensor's device, as a cudaStream_t.
//
// The function lies in libtorch_cuda.so. Linked against it, this library would not load under a torch
// for the CPU; so it is looked up in what the process has loaded, once.
inline void* current_stream(const torch::stable::Tensor& tensor) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found =
        torch_cuda == nullptr ? nullptr : dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Getter>(found);
  }();
  STD_TORCH_CHECK(getter != nullptr, "this torch has no aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(tensor.get_device_index(), &stream) == 0, "no current CUDA stream");
  return stream;
}

}  // namespace
}  // namespace megatron_llava
