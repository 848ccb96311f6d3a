// VRF's mix of two classifiers (arXiv 2411.06966), row by row:
//
//     ω = sigmoid(−(d − a)/b),   P = ω·softmax(z_ft/T_ft) + (1 − ω)·softmax(z_zs/T_zs)
//
// Forward reads 2·Q·K logits and writes Q·K; backward reads 3·Q·K and writes 2·Q·K. A row is swept
// three times (maximum, exponentials, result) while it is in cache; its exponentials, or the two
// log terms, wait in 2·K floats of workspace.
//
// log P = logaddexp(A, B) with A = log ω + log softmax(z_ft/T_ft) and B likewise, so it stays
// finite where a probability underflows. A class whose logit is −Inf has probability 0 and log
// −Inf; a NaN, a +Inf, or a row of −Inf alone makes its whole row NaN.
#include "vrf.hpp"

#include <cmath>

#include "exp.hpp"
#include "parallel.hpp"
#include "simd.hpp"

namespace robustft {
namespace {

constexpr float kInf = __builtin_inff();
constexpr int64_t kTile = 1024;  // columns added in float32 before the sum moves on in double

template <class T>
const T* row(const Matrix& x, int64_t i) {
  return static_cast<const T*>(x.data) + i * x.stride;
}

// Offset of the next row, or 0 after the last. A row of logits is too short for the processor to
// see a stream in it, so each sweep fetches ahead: 36 ms instead of 25 without, for 50,000 × 1,000
// on two cores.
int64_t ahead(const VrfInput& in, int64_t i, int64_t stride) {
  return i + 1 < in.rows ? stride : 0;
}

// Sweep a row in tiles; `flush` moves float32 partial sums on after each.
template <class Body, class Flush>
inline void sweep_tiles(int64_t n, Body body, Flush flush) {
  for (int64_t begin = 0; begin < n; begin += kTile) {
    sweep(begin, begin + kTile < n ? begin + kTile : n, body);
    flush();
  }
}

// ω and 1 − ω with their logarithms, each from its own formula: neither loses digits near 0.
struct Weight {
  double omega, rest, log_omega, log_rest;
};

Weight weight(double distance, double a, double b) {
  const double t = (distance - a) / b;
  const double e = ::exp(-std::fabs(t));
  const double small = e / (1 + e), large = 1 / (1 + e);
  const double log_large = -::log1p(e), log_small = log_large - std::fabs(t);
  if (t > 0) return {small, large, log_small, log_large};
  return {large, small, log_large, log_small};  // also for NaN, where all four are NaN
}

// The largest entry that is not NaN. Four maxima at once: each waits four cycles for itself.
template <class T>
float largest(const T* z, int64_t classes) {
  Vec top[4] = {splat(-kInf), splat(-kInf), splat(-kInf), splat(-kInf)};
  int64_t i = 0;
  for (; i + 4 * W <= classes; i += 4 * W) {
    for (int k = 0; k < 4; ++k) top[k] = max(load(z + i + k * W), top[k]);
  }
  sweep(i, classes, [&](int64_t j, auto part) {
    top[0] = max(fill_rest(load(z + j, part), -kInf, part), top[0]);
  });
  return max(max(max(top[0], top[1]), max(top[2], top[3])));
}

// Softmax of one row: exponentials e^((z − top)·rate), padded with 0, and their sum. The row at
// z + next is fetched.
struct Softmax {
  float top, rate;
  double total;
};

template <class T>
Softmax softmax(const T* z, int64_t next, int64_t classes, double temperature,
                float* exponentials) {
  Softmax s{0, static_cast<float>(1 / temperature), 0};
  s.top = largest(z, classes);
  Vec tile{};
  sweep_tiles(
      classes,
      [&](int64_t i, auto part) {
        __builtin_prefetch(z + next + i, 0, 2);
        const Vec e = exp(fill_rest((load(z + i, part) - s.top) * s.rate, -kInf, part));
        tile += e;
        store(exponentials + i, e);
      },
      [&] {
        s.total += sum(tile);
        tile = Vec{};
      });
  return s;
}

// A: the logarithm of a weight times a softmax.
struct LogTerm {
  float top, rate, offset;
};

LogTerm log_term(const Softmax& s, double log_weight) {
  return {s.top, s.rate, static_cast<float>(log_weight - ::log(s.total))};
}

inline Vec apply(const LogTerm& t, Vec z) { return (z - t.top) * t.rate + t.offset; }

template <class T>
void forward_row(const VrfInput& in, int64_t i, float* e, T* out) {
  const T *z = row<T>(in.finetuned, i), *y = row<T>(in.zeroshot, i);
  float *ez = e, *ey = e + padded(in.classes);
  const Weight w = weight(in.distance[i], in.a, in.b);
  const Softmax p =
      softmax(z, ahead(in, i, in.finetuned.stride), in.classes, in.temperature_finetuned, ez);
  const Softmax q =
      softmax(y, ahead(in, i, in.zeroshot.stride), in.classes, in.temperature_zeroshot, ey);
  const int64_t next = ahead(in, i, in.classes);
  if (!in.log) {
    const float wp = static_cast<float>(w.omega / p.total);
    const float wq = static_cast<float>(w.rest / q.total);
    sweep(0, in.classes, [&](int64_t k, auto part) {
      __builtin_prefetch(out + next + k, 1);
      store(out + k, fma(load(ez + k), splat(wp), load(ey + k) * wq), part);
    });
    return;
  }
  const LogTerm tp = log_term(p, w.log_omega), tq = log_term(q, w.log_rest);
  sweep(0, in.classes, [&](int64_t k, auto part) {
    const Vec a = apply(tp, load(z + k, part)), b = apply(tq, load(y + k, part));
    const Vec sum = max(a, b) + log1p(exp(-abs(a - b)));
    __builtin_prefetch(out + next + k, 1);
    store(out + k, select((a == -kInf) & (b == -kInf), a, sum), part);
  });
}

// With p and q the softmaxes and G the gradient that came in: of P,
//   ∂z_ft = (ω/T)·p∘(G − <G, p>),   ∂d = −<G, p − q>·ω(1−ω)/b;
// of log P, with r = ω·p/P the fine-tuned model's share of each class,
//   ∂z_ft = (1/T)·(G∘r − p·<G, r>),   ∂d = (ω·<G, 1−r> − (1−ω)·<G, r>)/b.
template <class T>
void backward_row(const VrfInput& in, int64_t i, const Matrix& grad_out, float* e, T* dz, T* dy,
                  float* dd) {
  const T* g = row<T>(grad_out, i);
  const int64_t next = ahead(in, i, in.classes), next_g = ahead(in, i, grad_out.stride);
  const T *z = row<T>(in.finetuned, i), *y = row<T>(in.zeroshot, i);
  float *ez = e, *ey = e + padded(in.classes);
  const Weight w = weight(in.distance[i], in.a, in.b);
  const Softmax p =
      softmax(z, ahead(in, i, in.finetuned.stride), in.classes, in.temperature_finetuned, ez);
  const Softmax q =
      softmax(y, ahead(in, i, in.zeroshot.stride), in.classes, in.temperature_zeroshot, ey);
  const float np = static_cast<float>(1 / p.total), nq = static_cast<float>(1 / q.total);
  double along_p = 0, along_q = 0;
  Vec tile_p{}, tile_q{};
  const auto flush = [&] {
    along_p += sum(tile_p);
    along_q += sum(tile_q);
    tile_p = tile_q = Vec{};
  };
  if (!in.log) {
    sweep_tiles(
        in.classes,
        [&](int64_t k, auto part) {
          __builtin_prefetch(g + next_g + k, 0, 2);
          const Vec gk = load(g + k, part);
          tile_p += gk * load(ez + k);
          tile_q += gk * load(ey + k);
        },
        flush);
    along_p /= p.total;
    along_q /= q.total;
    const float wp = static_cast<float>(w.omega) * p.rate * np, ap = static_cast<float>(along_p);
    const float wq = static_cast<float>(w.rest) * q.rate * nq, aq = static_cast<float>(along_q);
    sweep(0, in.classes, [&](int64_t k, auto part) {
      const Vec gk = load(g + k, part);
      __builtin_prefetch(dz + next + k, 1);
      __builtin_prefetch(dy + next + k, 1);
      store(dz + k, wp * load(ez + k) * (gk - ap), part);
      store(dy + k, wq * load(ey + k) * (gk - aq), part);
    });
    *dd = static_cast<float>(-(along_p - along_q) * w.omega * w.rest / in.b);
    return;
  }
  const LogTerm tp = log_term(p, w.log_omega), tq = log_term(q, w.log_rest);
  // r and 1 − r of one vector of classes; both 0 where a class is masked in both.
  const auto shares = [&](int64_t k, auto part, Vec& r, Vec& rest) {
    const Vec a = apply(tp, load(z + k, part)), b = apply(tq, load(y + k, part));
    const Vec e = exp(-abs(a - b));
    const Vec large = 1.0f / (1.0f + e), small = e * large;
    const IVec masked = (a == -kInf) & (b == -kInf);
    r = select(masked, Vec{}, select(a > b, large, small));
    rest = select(masked, Vec{}, select(a > b, small, large));
  };
  sweep_tiles(
      in.classes,
      [&](int64_t k, auto part) {
        __builtin_prefetch(g + next_g + k, 0, 2);
        const Vec gk = load(g + k, part);
        Vec r, rest;
        shares(k, part, r, rest);
        tile_p += gk * r;
        tile_q += gk * rest;
      },
      flush);
  const float ap = static_cast<float>(along_p) * np, aq = static_cast<float>(along_q) * nq;
  sweep(0, in.classes, [&](int64_t k, auto part) {
    const Vec gk = load(g + k, part);
    Vec r, rest;
    shares(k, part, r, rest);
    __builtin_prefetch(dz + next + k, 1);
    __builtin_prefetch(dy + next + k, 1);
    store(dz + k, (gk * r - load(ez + k) * ap) * p.rate, part);
    store(dy + k, (gk * rest - load(ey + k) * aq) * q.rate, part);
  });
  *dd = static_cast<float>((w.omega * along_q - w.rest * along_p) / in.b);
}

// Call `one_row(i, scratch)` for every row, by blocks.
template <class Row>
void for_rows(const VrfInput& in, float* workspace, Row one_row) {
  const Blocks blocks = vrf_blocks(in.rows, in.classes);
  // Workers are kept apart: two that first touch one large page at once would both clear it.
  const int64_t lanes = worker_count(blocks.count, in.threads);
  const int64_t length = (blocks.count + lanes - 1) / lanes;
  auto body = [&](int64_t index, int worker) {
    const int64_t block = index % lanes * length + index / lanes;
    const int64_t begin = block * blocks.rows;
    const int64_t end = begin + blocks.rows < in.rows ? begin + blocks.rows : in.rows;
    float* scratch = workspace + 2 * padded(in.classes) * worker;
    for (int64_t i = begin; i < end; ++i) one_row(i, scratch);
  };
  parallel(lanes * length, in.threads, body);
}

void vrf_forward(const VrfInput& in, float* workspace, void* out) {
  ROBUSTFT_DISPATCH(in.dtype, T, {
    for_rows(in, workspace, [&](int64_t i, float* scratch) {
      forward_row<T>(in, i, scratch, static_cast<T*>(out) + i * in.classes);
    });
  })
}

void vrf_backward(const VrfInput& in, Matrix grad_out, float* workspace, void* grad_finetuned,
                  void* grad_zeroshot, float* grad_distance) {
  ROBUSTFT_DISPATCH(in.dtype, T, {
    for_rows(in, workspace, [&](int64_t i, float* scratch) {
      backward_row<T>(in, i, grad_out, scratch, static_cast<T*>(grad_finetuned) + i * in.classes,
                      static_cast<T*>(grad_zeroshot) + i * in.classes, grad_distance + i);
    });
  })
}

}  // namespace

extern const VrfKernels ROBUSTFT_JOIN(vrf_, ROBUSTFT_ISA);
const VrfKernels ROBUSTFT_JOIN(vrf_, ROBUSTFT_ISA) = {vrf_forward, vrf_backward};

}  // namespace robustft
