#include "../cpu/rsa.hpp"

#include <vector>

#include "common.hpp"

namespace robustft {
namespace {

int64_t rsa_panel() { return isa().rsa->panel; }

void rsa_pack(Address rows, int64_t stride, int dtype, int64_t count, int64_t dim, Address mean,
              Address factors, double scale, int threads, Address panels, Address squares) {
  require_at_least(0, "count", count);
  require_at_least(1, "dim", dim);
  if (count > 0) {
    for (const Address each : {rows, mean, factors, panels, squares}) {
      require_address("rows, mean, factors or result", each);
    }
  }
  isa().rsa->pack({at(rows), stride}, dtype_of(dtype), count, dim, at<double>(mean),
                  at<double>(factors), scale, threads, at<float>(panels), at<float>(squares));
}

RsaInput rsa_input(Address a, Address a_squares, int64_t a_dim, double a_shift, Address b,
                   Address b_squares, int64_t b_dim, double b_shift, int64_t rows, bool cosine,
                   int threads) {
  require_at_least(1, "rows", rows);
  require_at_least(1, "a_dim", a_dim);
  require_at_least(1, "b_dim", b_dim);
  for (const Address each : {a, a_squares, b, b_squares}) require_address("panels", each);
  return {{{at<float>(a), at<float>(a_squares), a_dim, static_cast<float>(a_shift)},
           {at<float>(b), at<float>(b_squares), b_dim, static_cast<float>(b_shift)}},
          rows,
          cosine,
          threads};
}

// The bins of both sets, whose arrays lie one after the other.
struct BothBins {
  RsaBins of[2];

  BothBins(Address edges, Address starts, Address ranks, int64_t count, int64_t cells,
           int64_t edges_stride, int64_t base_a, int drop_a, int width_a, int64_t base_b,
           int drop_b, int width_b)
      : of{{at<float>(edges), at<uint16_t>(starts), at<float>(ranks), base_a, cells, drop_a,
            width_a},
           {at<float>(edges) + edges_stride, at<uint16_t>(starts) + cells, at<float>(ranks) + count,
            base_b, cells, drop_b, width_b}} {
    for (const Address each : {edges, starts, ranks}) require_address("bins", each);
    require_at_least(1, "count", count);
    require_at_least(1, "cells", cells);
    for (const RsaBins& bins : of) {
      require(bins.drop >= 0 && bins.drop < 32, "drop", bins.drop, "0 to 31");
      require(bins.width >= 1 && (bins.width & (bins.width - 1)) == 0, "width", bins.width,
              "a power of two");
    }
  }
};

int rsa_workers(const RsaInput& in) { return worker_count(rsa_jobs(in.rows), in.threads); }

std::vector<float> rsa_scratch(const RsaInput& in) {
  return std::vector<float>(rsa_workspace(in.set[0].dim, in.set[1].dim, rsa_workers(in)));
}

void moments(const RsaInput& in, const RsaBins* bins, Address sums) {
  std::vector<double> all(rsa_jobs(in.rows) * kRsaSums);
  isa().rsa->moments(in, bins, rsa_scratch(in).data(), all.data());
  for (int k = 0; k < kRsaSums; ++k) at<double>(sums)[k] = all[k];
}

void rsa_moments(Address a, Address a_squares, int64_t a_dim, double a_shift, Address b,
                 Address b_squares, int64_t b_dim, double b_shift, int64_t rows, bool cosine,
                 int threads, Address sums) {
  moments(
      rsa_input(a, a_squares, a_dim, a_shift, b, b_squares, b_dim, b_shift, rows, cosine, threads),
      nullptr, sums);
}

void rsa_rank_moments(Address a, Address a_squares, int64_t a_dim, double a_shift, Address b,
                      Address b_squares, int64_t b_dim, double b_shift, int64_t rows, bool cosine,
                      int threads, Address edges, Address starts, Address ranks, int64_t count,
                      int64_t cells, int64_t edges_stride, int64_t base_a, int drop_a, int width_a,
                      int64_t base_b, int drop_b, int width_b, Address sums) {
  const BothBins bins(edges, starts, ranks, count, cells, edges_stride, base_a, drop_a, width_a,
                      base_b, drop_b, width_b);
  moments(
      rsa_input(a, a_squares, a_dim, a_shift, b, b_squares, b_dim, b_shift, rows, cosine, threads),
      bins.of, sums);
}

void rsa_count(Address a, Address a_squares, int64_t a_dim, double a_shift, Address b,
               Address b_squares, int64_t b_dim, double b_shift, int64_t rows, bool cosine,
               int threads, Address edges, Address starts, Address ranks, int64_t count,
               int64_t cells, int64_t edges_stride, int64_t base_a, int drop_a, int width_a,
               int64_t base_b, int drop_b, int width_b, Address counts) {
  const RsaInput in =
      rsa_input(a, a_squares, a_dim, a_shift, b, b_squares, b_dim, b_shift, rows, cosine, threads);
  const BothBins bins(edges, starts, ranks, count, cells, edges_stride, base_a, drop_a, width_a,
                      base_b, drop_b, width_b);
  const int workers = rsa_workers(in);
  std::vector<int64_t> own(2 * count * workers);
  isa().rsa->count(in, bins.of, count, rsa_scratch(in).data(), own.data());
  for (int64_t k = 0; k < 2 * count; ++k) {
    int64_t total = 0;
    for (int w = 0; w < workers; ++w) total += own[2 * count * w + k];
    at<int64_t>(counts)[k] = total;
  }
}

}  // namespace

void bind_rsa(nanobind::module_& m) {
  m.def("rsa_panel", &rsa_panel);
  m.def("rsa_pack", interruptible(&rsa_pack));
  m.def("rsa_moments", interruptible(&rsa_moments));
  m.def("rsa_rank_moments", interruptible(&rsa_rank_moments));
  m.def("rsa_count", interruptible(&rsa_count));
}

}  // namespace robustft
