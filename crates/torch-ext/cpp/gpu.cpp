// Compiles kernels.cu with NVRTC, which libtorch brings, and launches what comes out. NVRTC and the driver are looked up when
// they are first needed: a program built for CUDA starts on a machine without.

#include "gpu.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

// What a program is compiled with, an option each.
using Options = std::vector<std::string>;

#ifdef TE_CUDA
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda.h>

#include <dlfcn.h>

#include <filesystem>
#include <map>
#include <mutex>
#include <system_error>

namespace {

const char *SOURCE =
#include "kernels.inc"
    ;

// The parts of NVRTC's and the driver's interfaces that are used, by their documentation.
struct Libraries {
  using Program = struct Opaque *;
  int (*nvrtcCreateProgram)(Program *, const char *, const char *, int, const char *const *, const char *const *);
  int (*nvrtcCompileProgram)(Program, int, const char *const *);
  int (*nvrtcGetProgramLogSize)(Program, size_t *);
  int (*nvrtcGetProgramLog)(Program, char *);
  int (*nvrtcGetCUBINSize)(Program, size_t *);
  int (*nvrtcGetCUBIN)(Program, char *);
  int (*nvrtcDestroyProgram)(Program *);
  decltype(&::cuCtxGetDevice) cuCtxGetDevice;
  decltype(&::cuDeviceGetAttribute) cuDeviceGetAttribute;
  decltype(&::cuModuleLoadData) cuModuleLoadData;
  decltype(&::cuModuleGetFunction) cuModuleGetFunction;
  decltype(&::cuLaunchKernel) cuLaunchKernel;
  bool found = true;

  static const Libraries &get() {
    static const Libraries libraries;
    return libraries;
  }

private:
  Libraries() {
    // libtorch's own library has been told where NVRTC lies; once that is here, its name finds it.
    dlopen("libcaffe2_nvrtc.so", RTLD_LAZY);
    void *nvrtc = dlopen("libnvrtc.so.13", RTLD_LAZY), *driver = dlopen("libcuda.so.1", RTLD_LAZY);
    if (!nvrtc) nvrtc = dlopen("libnvrtc.so.12", RTLD_LAZY);
    load_builtins(nvrtc);
    auto look = [&](void *library, const char *name, auto &function) {
      function = library ? reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name)) : nullptr;
      found = found && function;
    };
#define NVRTC(NAME) look(nvrtc, #NAME, NAME)
#define DRIVER(NAME) look(driver, #NAME, NAME)
    NVRTC(nvrtcCreateProgram), NVRTC(nvrtcCompileProgram), NVRTC(nvrtcGetProgramLogSize), NVRTC(nvrtcGetProgramLog);
    NVRTC(nvrtcGetCUBINSize), NVRTC(nvrtcGetCUBIN), NVRTC(nvrtcDestroyProgram);
    DRIVER(cuCtxGetDevice), DRIVER(cuDeviceGetAttribute), DRIVER(cuModuleLoadData), DRIVER(cuModuleGetFunction);
    DRIVER(cuLaunchKernel);
#undef NVRTC
#undef DRIVER
  }

  // NVRTC opens a library of its own by name, and finds it beside itself only if it is here already.
  static void load_builtins(void *nvrtc) {
    Dl_info place;
    void *known = nvrtc ? dlsym(nvrtc, "nvrtcVersion") : nullptr;
    if (!known || !dladdr(known, &place)) return;
    std::error_code no;
    for (const auto &entry : std::filesystem::directory_iterator(std::filesystem::path(place.dli_fname).parent_path(), no))
      if (entry.path().filename().string().rfind("libnvrtc-builtins.so", 0) == 0) dlopen(entry.path().c_str(), RTLD_LAZY);
  }
};

void check(int code, const char *what) { TORCH_CHECK(code == 0, "a GPU's kernel: ", what, " failed with code ", code); }

// The program for the current GPU.
CUmodule compiled(const Options &options) {
  const auto &l = Libraries::get();
  TORCH_CHECK(l.found, "NVRTC (libnvrtc.so) or the driver (libcuda.so.1) was not found");
  CUdevice device;
  int major, minor;
  check(l.cuCtxGetDevice(&device), "cuCtxGetDevice");
  check(l.cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device), "cuDeviceGetAttribute");
  check(l.cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device), "cuDeviceGetAttribute");
  auto arch = "-arch=sm_" + std::to_string(major) + std::to_string(minor);
  std::vector<const char *> arguments{arch.c_str(), "-std=c++17"};
  for (const auto &option : options) arguments.push_back(option.c_str());
  Libraries::Program program;
  check(l.nvrtcCreateProgram(&program, SOURCE, "kernels.cu", 0, nullptr, nullptr), "nvrtcCreateProgram");
  if (l.nvrtcCompileProgram(program, static_cast<int>(arguments.size()), arguments.data()) != 0) {
    size_t size = 0;
    l.nvrtcGetProgramLogSize(program, &size);
    std::string log(size, '\0');
    l.nvrtcGetProgramLog(program, log.data());
    l.nvrtcDestroyProgram(&program);
    TORCH_CHECK(false, "kernels.cu: ", c10::Join(" ", options), ": ", log.c_str());
  }
  size_t size = 0;
  check(l.nvrtcGetCUBINSize(program, &size), "nvrtcGetCUBINSize");
  std::string binary(size, '\0');
  check(l.nvrtcGetCUBIN(program, binary.data()), "nvrtcGetCUBIN");
  l.nvrtcDestroyProgram(&program);
  CUmodule module;
  check(l.cuModuleLoadData(&module, binary.data()), "cuModuleLoadData");
  return module;
}

// Kernel `name` of the program compiled with `options`, on the current GPU; programs stay for the life of the process.
CUfunction kernel(const char *name, const Options &options) {
  static std::mutex lock;
  static std::map<std::pair<int, Options>, CUmodule> programs;
  std::lock_guard guard(lock);
  auto [place, fresh] = programs.try_emplace({c10::cuda::current_device(), options}, nullptr);
  if (fresh) {
    try {
      place->second = compiled(options);
    } catch (...) {
      programs.erase(place);
      throw;
    }
  }
  CUfunction function;
  check(Libraries::get().cuModuleGetFunction(&function, place->second, name), "cuModuleGetFunction");
  return function;
}

template <class... Arguments>
void launch(CUfunction function, int64_t blocks, int64_t threads, Arguments... arguments) {
  if (blocks == 0) return;
  void *pointers[] = {&arguments...};
  auto stream = c10::cuda::getCurrentCUDAStream().stream();
  check(Libraries::get().cuLaunchKernel(function, static_cast<unsigned>(blocks), 1, 1, static_cast<unsigned>(threads), 1, 1,
                                        0, stream, pointers, nullptr),
        "cuLaunchKernel");
}

} // namespace

bool gpu::compiles() { return Libraries::get().found; }

#else

namespace {

void *kernel(const char *, const Options &) { throw std::logic_error("this program was built without CUDA"); }
template <class... Arguments> void launch(void *, int64_t, int64_t, Arguments...) {}
} // namespace

bool gpu::compiles() { return false; }

#endif

namespace {

std::string type(const char *name, at::ScalarType kind) {
  return std::string("-D") + name + (kind == at::kBFloat16 ? "=Bf16" : "=float");
}

std::string number(const char *name, int64_t value) { return std::string("-D") + name + "=" + std::to_string(value); }

void *pointer(const at::Tensor &x) { return x.defined() ? x.data_ptr() : nullptr; }

// How a row of `width` numbers is shared: four vectors of four numbers for a thread, at most.
struct Row {
  int64_t width, threads;

  explicit Row(int64_t width) : width(width), threads((vectors() + 4 * 32 - 1) / (4 * 32) * 32) {}
  int64_t vectors() const { return width / 4; }

  // With `kind`, which kernels they are, and their types.
  Options options(const char *kind, Options types) const {
    int64_t per = (vectors() + threads - 1) / threads;
    types.insert(types.end(), {kind, number("D", width), number("THREADS", threads), number("PER", per)});
    return types;
  }

  // Of a pass back, each with sums of its own: enough for any GPU, and the same number on all.
  int64_t blocks(int64_t rows) const { return std::min<int64_t>(rows, 131072 / threads); }
};

} // namespace

namespace gpu {

void norm(const at::Tensor &x, const at::Tensor &branch, const at::Tensor &total, const at::Tensor &weight,
          const at::Tensor &bias, const at::Tensor &out, const at::Tensor &statistics, float eps) {
  c10::DeviceGuard on(x.device());
  Row row(x.size(-1));
  auto branch_type = branch.defined() ? branch.scalar_type() : at::kFloat;
  auto options = row.options("-DNORM", {type("BRANCH", branch_type), type("OUT", out.scalar_type())});
  launch(kernel("norm_rows", options), x.numel() / x.size(-1), row.threads, pointer(x), pointer(branch), pointer(total),
         pointer(weight), pointer(bias), pointer(out), pointer(statistics), eps);
}

at::Tensor norm_back(const at::Tensor &x, const at::Tensor &grad, const at::Tensor &stream, const at::Tensor &weight,
                     const at::Tensor &statistics, const at::Tensor &dx, const at::Tensor &narrow) {
  c10::DeviceGuard on(x.device());
  Row row(x.size(-1));
  auto options = row.options("-DNORM", {type("BRANCH", at::kFloat), type("OUT", grad.scalar_type())});
  long long rows = x.numel() / x.size(-1);
  auto sums = at::empty({row.blocks(rows), 2, x.size(-1)}, x.options());
  launch(kernel("norm_rows_back", options), sums.size(0), row.threads, pointer(x), pointer(grad), pointer(stream),
         pointer(weight), pointer(statistics), pointer(dx), pointer(narrow), pointer(sums), rows);
  return sums.sum(0);
}

void gate(const void *a, const void *b, int64_t step, const at::Tensor &out, const at::Tensor &statistics,
          const at::Tensor &weight, const at::Tensor &bias, float eps) {
  c10::DeviceGuard on(out.device());
  Row row(out.size(-1));
  auto options = row.options("-DGATE", {type("NUMBER", out.scalar_type())});
  launch(kernel("gate_rows", options), out.numel() / out.size(-1), row.threads, a, b, static_cast<long long>(step),
         pointer(out), pointer(statistics), pointer(weight), pointer(bias), eps);
}

at::Tensor gate_back(const void *a, const void *b, int64_t step, const at::Tensor &grad, void *da, void *db,
                     const at::Tensor &statistics, const at::Tensor &weight) {
  c10::DeviceGuard on(grad.device());
  Row row(grad.size(-1));
  auto options = row.options("-DGATE", {type("NUMBER", grad.scalar_type())});
  long long rows = grad.numel() / grad.size(-1);
  at::Tensor sums;
  if (weight.defined()) sums = at::empty({row.blocks(rows), 2, grad.size(-1)}, weight.options());
  launch(kernel("gate_rows_back", options), row.blocks(rows), row.threads, a, b, static_cast<long long>(step),
         pointer(grad), da, db, pointer(statistics), pointer(weight), pointer(sums), rows);
  return sums.defined() ? sums.sum(0) : sums;
}

void rotate(const at::Tensor &from, const at::Tensor &to, const at::Tensor &turns, float sign) {
  c10::DeviceGuard on(from.device());
  int64_t pairs = from.numel() / 2, tokens = from.size(1), heads = from.size(2), width = from.size(3);
  bool even = pairs < (int64_t{1} << 31);
  for (const auto *x : {&from, &to})
    for (int64_t i = 0; i < 3; ++i) even = even && x->stride(i) % 2 == 0 && x->storage_offset() % 2 == 0;
  TORCH_CHECK(even, "rotate: pairs of numbers lie at even places");
  Options options{"-DROTATE", number("WIDTH", width), number("HEADS", heads), type("NUMBER", from.scalar_type())};
  auto stride = [](const at::Tensor &x, int64_t i) { return static_cast<long long>(x.stride(i)); };
  long long each = turns.size(0) == 1 ? 0 : tokens * width;
  launch(kernel("rotate_pairs", options), (pairs + 255) / 256, 256, pointer(from), stride(from, 0), stride(from, 1),
         stride(from, 2), pointer(to), stride(to, 0), stride(to, 1), stride(to, 2), pointer(turns), each, sign,
         static_cast<int>(tokens), static_cast<int>(pairs));
}

} // namespace gpu
