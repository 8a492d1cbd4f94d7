// Activation checkpointing: a part of a network keeps its input alone, and runs again when its gradient is wanted.

#include "guarded.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <mutex>
#include <string>

namespace {

// y of x, whose handles become the closure's and the caller's; false where it panicked, and then `why` is said.
using Call = bool (*)(void *closure, at::Tensor *x, at::Tensor **y, std::string *why);

// Rust's closure.
struct Part : torch::CustomClassHolder {
  void *closure;
  Call call;
  void (*drop)(void *closure);

  ~Part() override { drop(closure); }

  at::Tensor operator()(const at::Tensor &x) const {
    at::Tensor *y = nullptr;
    std::string why;
    TORCH_CHECK(call(closure, new at::Tensor(x), &y, &why), why);
    at::Tensor out = *y;
    delete y;
    return out;
  }
};

// Autocast as it was in the forward pass. Where it still is nothing changes, and cached casts live on.
struct Autocast {
  at::DeviceType device;
  bool was, entered;

  Autocast(at::DeviceType device, bool on)
      : device(device), was(at::autocast::is_autocast_enabled(device)), entered(was != on) {
    if (!entered) return;
    at::autocast::set_autocast_enabled(device, on);
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    if (!entered) return;
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device, was);
  }
};

// The generator's draws since `state`, once more.
struct Replayed {
  at::Generator generator;
  at::Tensor now;

  static at::Tensor state(at::Generator generator) {
    std::lock_guard<std::mutex> lock(generator.mutex());
    return generator.get_state();
  }
  void set(const at::Tensor &state) {
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(state);
  }
  Replayed(const at::Device &device, const at::Tensor &then)
      : generator(at::globalContext().defaultGenerator(device)), now(state(generator)) {
    set(then);
  }
  ~Replayed() { set(now); }
};

struct Checkpoint : torch::autograd::Function<Checkpoint> {
  // With gradients on, so that autocast caches casts that know their weights; what the part keeps goes with its output.
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &x,
                            const c10::intrusive_ptr<Part> &part) {
    auto device = x.device();
    context->save_for_backward({x});
    context->saved_data["part"] = c10::IValue::make_capsule(part);
    context->saved_data["autocast"] = at::autocast::is_autocast_enabled(device.type());
    context->saved_data["random"] = Replayed::state(at::globalContext().defaultGenerator(device));
    at::AutoGradMode on(true);
    return (*part)(x.detach()).detach();
  }

  // The part's own parameters get their gradients in a backward pass inside of this one.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list grads) {
    auto saved = context->get_saved_variables();
    auto capsule = context->saved_data["part"].toCapsule();
    const auto &part = static_cast<const Part &>(*capsule);
    auto x = saved[0].detach().requires_grad_(saved[0].requires_grad());
    at::Tensor y;
    {
      Autocast autocast(x.device().type(), context->saved_data["autocast"].toBool());
      Replayed replayed(x.device(), context->saved_data["random"].toTensor());
      at::AutoGradMode on(true);
      y = part(x);
    }
    torch::autograd::backward({y}, {grads[0]});
    return {x.grad(), at::Tensor()};
  }
};

} // namespace

extern "C" {

void te_say(std::string *why, const char *text, size_t length) { why->assign(text, length); }

// call(closure, x), which runs once more in the backward pass. The closure is dropped in any case.
char *te_checkpoint(at::Tensor *x, void *closure, Call call, void (*drop)(void *), at::Tensor **out) {
  return guarded([&] {
    auto part = c10::make_intrusive<Part>();
    part->closure = closure;
    part->call = call;
    part->drop = drop;
    // Else nothing would ask for the gradients of what is inside.
    TORCH_CHECK(x->requires_grad(), "checkpoint wants an input that a gradient is wanted of");
    *out = new at::Tensor(Checkpoint::apply(*x, part));
  });
}
}
