// Layers that only look forward: oneDNN's prepacked products with what follows them fused in.

#include "guarded.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cpu/Utils.h>
#include <ATen/native/CPUBlas.h>

namespace {

// An operator that has no C++ header; called through the dispatcher, which checks the types of its arguments.
at::Tensor call(const char *name, const char *overload, torch::jit::Stack stack) {
  auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
  op.callBoxed(&stack);
  return stack.at(0).toTensor();
}

c10::IValue maybe(const at::Tensor *tensor) { return tensor ? c10::IValue(*tensor) : c10::IValue(); }

} // namespace

extern "C" {

// Whether this CPU has tile registers for bf16 products, and the system and oneDNN's settings let this process use them.
bool te_cpu_has_tiles() {
  try {
    return at::cpu::init_amx() && at::native::cpublas::could_pack(at::kBFloat16);
  } catch (const std::exception &) {
    return false;
  }
}

// Whether oneDNN has products of bf16 numbers here: as far as the processor and ONEDNN_MAX_CPU_ISA allow.
bool te_cpu_has_bf16() {
  try {
    torch::jit::Stack stack;
    auto op = c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_is_mkldnn_bf16_supported", "");
    op.callBoxed(&stack);
    return stack.at(0).toBool();
  } catch (const std::exception &) {
    return false;
  }
}

// The weight [out, in] of a linear layer in the order in which oneDNN reads it.
char *te_pack_linear(at::Tensor *weight, at::Tensor **packed) {
  return guarded([&] {
    *packed = new at::Tensor(call("mkldnn::_reorder_linear_weight", "", {*weight, c10::IValue()}));
  });
}

// act(x W^T + b); `act` is one of oneDNN's ("none", "gelu", "swish").
char *te_packed_linear(at::Tensor *x, at::Tensor *packed, at::Tensor *bias, const char *act, at::Tensor **out) {
  return guarded([&] {
    std::string name = act;
    c10::List<std::optional<at::Scalar>> scalars;
    c10::IValue algorithm = name == "gelu" ? c10::IValue("none") : c10::IValue();
    *out = new at::Tensor(call("mkldnn::_linear_pointwise", "", {*x, *packed, maybe(bias), name, scalars, algorithm}));
  });
}

// other * (x W^T + b)
char *te_packed_linear_times(at::Tensor *x, at::Tensor *other, at::Tensor *packed, at::Tensor *bias, at::Tensor **out) {
  return guarded([&] {
    *out = new at::Tensor(
        call("mkldnn::_linear_pointwise", "binary", {*x, *other, *packed, maybe(bias), std::string("mul")}));
  });
}
}
