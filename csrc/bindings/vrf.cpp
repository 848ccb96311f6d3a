#include "../cpu/vrf.hpp"

#include <vector>

#include "common.hpp"

namespace robustft {
namespace {

VrfInput vrf_input(Address finetuned, int64_t finetuned_stride, Address zeroshot,
                   int64_t zeroshot_stride, Address distance, int64_t rows, int64_t classes,
                   double a, double b, double temperature_finetuned, double temperature_zeroshot,
                   int dtype, bool log, int threads) {
  require_at_least(0, "rows", rows);
  require_at_least(1, "classes", classes);
  for (const Address each : {finetuned, zeroshot, distance}) {
    if (rows > 0) require_address("logits or distance", each);
  }
  return {{at(finetuned), finetuned_stride},
          {at(zeroshot), zeroshot_stride},
          at<float>(distance),
          rows,
          classes,
          a,
          b,
          temperature_finetuned,
          temperature_zeroshot,
          dtype_of(dtype),
          log,
          threads};
}

std::vector<float> vrf_scratch(const VrfInput& in) {
  const int workers = worker_count(vrf_blocks(in.rows, in.classes).count, in.threads);
  return std::vector<float>(vrf_workspace(in.classes, workers));
}

void vrf_forward(Address finetuned, int64_t finetuned_stride, Address zeroshot,
                 int64_t zeroshot_stride, Address distance, int64_t rows, int64_t classes, double a,
                 double b, double temperature_finetuned, double temperature_zeroshot, int dtype,
                 bool log, int threads, Address out) {
  const VrfInput in =
      vrf_input(finetuned, finetuned_stride, zeroshot, zeroshot_stride, distance, rows, classes, a,
                b, temperature_finetuned, temperature_zeroshot, dtype, log, threads);
  isa().vrf->forward(in, vrf_scratch(in).data(), at(out));
}

void vrf_backward(Address finetuned, int64_t finetuned_stride, Address zeroshot,
                  int64_t zeroshot_stride, Address distance, int64_t rows, int64_t classes,
                  double a, double b, double temperature_finetuned, double temperature_zeroshot,
                  int dtype, bool log, int threads, Address grad_out, int64_t grad_out_stride,
                  Address grad_finetuned, Address grad_zeroshot, Address grad_distance) {
  const VrfInput in =
      vrf_input(finetuned, finetuned_stride, zeroshot, zeroshot_stride, distance, rows, classes, a,
                b, temperature_finetuned, temperature_zeroshot, dtype, log, threads);
  isa().vrf->backward(in, {at(grad_out), grad_out_stride}, vrf_scratch(in).data(),
                      at(grad_finetuned), at(grad_zeroshot), at<float>(grad_distance));
}

}  // namespace

void bind_vrf(nanobind::module_& m) {
  m.def("vrf_forward", interruptible(&vrf_forward));
  m.def("vrf_backward", interruptible(&vrf_backward));
}

}  // namespace robustft
