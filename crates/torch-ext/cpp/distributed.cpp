// c10d behind plain functions: the rendezvous store, a process group with Gloo for CPU tensors and NCCL for CUDA ones
// (where the build has it: TE_CUDA), the collectives that are used here, and DDP's bucketing Reducer.

#define USE_C10D_GLOO
#ifdef TE_CUDA
#define USE_C10D_NCCL
#endif

#include "guarded.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Flags.h>
#include <c10/util/Logging.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#ifdef TE_CUDA
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include <algorithm>
#include <cstdlib>

C10_DECLARE_int(caffe2_log_level);

namespace {

using Type = c10d::ProcessGroup::BackendType;
using Pg = c10::intrusive_ptr<c10d::ProcessGroup>;

struct Group {
  c10::intrusive_ptr<c10d::Store> store;
  Pg pg;
  std::chrono::milliseconds timeout;
};

// [n, ...] of each rank -> [world * n, ...], without gradient.
at::Tensor gathered(const Pg &pg, const at::Tensor &local) {
  at::Tensor in = local.detach().contiguous();
  auto sizes = in.sizes().vec();
  sizes.at(0) *= pg->getSize();
  at::Tensor out = at::empty(sizes, in.options());
  pg->all_gather_single(out, in)->wait();
  return out;
}

// Every rank's loss depends on every rank's rows, so a rank's gradient is the sum of what all have for its rows.
struct AllGather : torch::autograd::Function<AllGather> {
  static at::Tensor forward(torch::autograd::AutogradContext *ctx, const at::Tensor &local, const Pg &pg) {
    ctx->saved_data["group"] = c10::IValue(pg);
    return gathered(pg, local);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *ctx,
                                                 torch::autograd::variable_list grads) {
    Pg pg = ctx->saved_data["group"].toCustomClass<c10d::ProcessGroup>();
    at::Tensor in = grads.at(0).contiguous();
    auto sizes = in.sizes().vec();
    sizes.at(0) /= pg->getSize();
    at::Tensor out = at::empty(sizes, in.options());
    pg->reduce_scatter_single(out, in)->wait();
    return {out, at::Tensor()};
  }
};

} // namespace

extern "C" {

// Meets the other ranks at host:port. The store is served by rank 0, or already by the launcher (`served`).
char *te_group_new(const char *host, uint16_t port, int rank, int world, bool served, int64_t timeout_ms,
                   Group **group) {
  return guarded([&] {
    // c10d logs every failure with a stack besides throwing it; the message that we return says it once.
    if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
    std::chrono::milliseconds timeout(timeout_ms);
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = rank == 0 && !served;
    options.numWorkers = world;
    options.timeout = timeout;
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    auto pg = c10::make_intrusive<c10d::ProcessGroup>(store, rank, world);
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>("gloo", store), rank,
                                                            world, c10d::ProcessGroupGloo::Options::create_default(timeout));
    pg->setBackend(c10::DeviceType::CPU, Type::GLOO, gloo);
    pg->setDefaultBackend(Type::GLOO);
    *group = new Group{store, pg, timeout};
  });
}

void te_group_free(Group *group) { delete group; }

// Makes collectives of tensors on CUDA device `index` possible, and that device the current one.
char *te_group_use_cuda(Group *group, int index) {
  return guarded([&] {
#ifdef TE_CUDA
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(index));
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = group->timeout;
    auto store = c10::make_intrusive<c10d::PrefixStore>("nccl", group->store);
    auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, group->pg->getRank(), group->pg->getSize(), options);
    group->pg->setBackend(c10::DeviceType::CUDA, Type::NCCL, nccl);
#else
    (void)group;
    (void)index;
    TORCH_CHECK(false, "this program was built without NCCL (libtorch_cuda.so or nccl.h was not found)");
#endif
  });
}

// In place: the sum (0) or the maximum (1) over the ranks.
char *te_all_reduce(Group *group, at::Tensor *tensor, int op) {
  return guarded([&] {
    c10d::AllreduceOptions options;
    options.reduceOp = op == 1 ? c10d::ReduceOp::MAX : c10d::ReduceOp::SUM;
    std::vector<at::Tensor> tensors{*tensor};
    group->pg->allreduce(tensors, options)->wait();
  });
}

// In place: rank 0's values, many tensors a message.
char *te_broadcast(Group *group, at::Tensor *const *tensors, int64_t n) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> detached;
    for (auto &tensor : list(tensors, n)) detached.push_back(tensor.detach());
    c10d::broadcast_coalesced(group->pg, detached, 250 << 20, 0);
  });
}

char *te_all_gather(Group *group, at::Tensor *local, at::Tensor **out) {
  return guarded([&] { *out = new at::Tensor(AllGather::apply(*local, group->pg)); });
}

// A Reducer over parameters that are equal on all ranks already.
char *te_ddp_new(Group *group, at::Tensor *const *params, int64_t n, c10d::Reducer **reducer) {
  return guarded([&] {
    auto list_ = list(params, n);
    constexpr int64_t first = c10d::kDefaultFirstBucketBytes, cap = c10d::kDefaultBucketBytesCap;
    auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(list_, {first, cap}));
    // Gradients come from the last layer first; after one step the buckets follow their true order.
    std::reverse(buckets.begin(), buckets.end());
    *reducer = new c10d::Reducer(list_, buckets, group->pg, std::vector<bool>(n, false), cap,
                                 /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/true, /*param_names=*/{},
                                 first, /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
                                 /*bucket_bytes_cap_list=*/{});
  });
}

void te_ddp_free(c10d::Reducer *reducer) { delete reducer; }

// loss.backward(); with `reduce` the gradients, those gathered before included, are averaged over the ranks meanwhile.
char *te_ddp_backward(c10d::Reducer *reducer, at::Tensor *loss, bool reduce) {
  return guarded([&] {
    if (reduce) {
      reducer->prepare_for_forward();
      if (reducer->should_rebuild_buckets()) reducer->rebuild_buckets();
      reducer->prepare_for_backward({});
    }
    loss->backward();
  });
}
}
