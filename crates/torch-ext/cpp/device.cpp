// What a GPU does while the host goes on: its memory, and calls that would wait for it.

#include "gpu.h"
#include "guarded.h"

#include <c10/core/CachingDeviceAllocator.h>
#ifdef TE_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

namespace {

c10::DeviceAllocator &allocator() { return *c10::getDeviceAllocator(c10::DeviceType::CUDA); }

} // namespace

extern "C" {

char *te_peak_memory(int index, int64_t *bytes) {
  return guarded([&] {
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *bytes = allocator().getDeviceStats(static_cast<c10::DeviceIndex>(index)).allocated_bytes[all].peak;
  });
}

char *te_reset_peak_memory(int index) {
  return guarded([&] { allocator().resetPeakStats(static_cast<c10::DeviceIndex>(index)); });
}

bool te_gpu_takes(int64_t width) { return gpu::takes(width) && gpu::compiles(); }

// x [..] on the CPU -> on the GPU, through pinned memory and without waiting.
char *te_upload(at::Tensor *x, int index, at::Tensor **out) {
  return guarded([&] {
    at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
    *out = new at::Tensor(x->pin_memory().to(device, /*non_blocking=*/true));
  });
}

char *te_forbid_waiting(bool forbidden) {
  return guarded([&] {
#ifdef TE_CUDA
    using Mode = c10::cuda::SyncDebugMode;
    c10::cuda::warning_state().set_sync_debug_mode(forbidden ? Mode::L_ERROR : Mode::L_DISABLED);
#else
    (void)forbidden;
#endif
  });
}
}
