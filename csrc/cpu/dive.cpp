// DiVE's losses (arXiv 2511.09973), one pass over four [B, D] inputs each way.
//
//     u = n(f) − n(f0),  v = n(g) − n(g0),  m = α·m_prev + (1−α)·mean of all u and v
//     AVL = (1/B) Σ (|u − m|² + |v − m|²),  PVL = (1/B) Σ |u − v|²
//
// Forward: 4·B·D elements read. m is known only at the end, so the sums are taken about a centre c
// and moved: Σ|u − m|² = Σ|u − c|² − 2<Σ(u − c), δ> + B|δ|² with δ = m − c. The move must not
// cancel, so c is a guess of m from 16 rows spread over the batch: then δ is a sampling error.
// (About m_prev, a batch that shares one shift would cancel completely at α = 0.)
// Backward: the same reads and 2·B·D elements written; each row is swept three times in cache.
//
// Numerics: n(x) − n(x0) = (x − x0)/|x| + x0·(1/|x| − 1/|x0|), where the second difference comes
// from Σ(x − x0)(x + x0): early in fine-tuning f is close to f0, and this keeps the digits that the
// difference of two rounded unit vectors loses; equal rows give exactly 0. Elements are float32,
// added over at most 32 rows or one row; everything beyond is double.
#include "dive.hpp"

#include <cmath>

#include "parallel.hpp"
#include "simd.hpp"

namespace robustft {
namespace {

constexpr double kEps = 1e-12;  // as torch.nn.functional.normalize: shorter rows are divided by it
constexpr double kFloatMax = 3.4028234663852886e38;
constexpr int kFlushRows = 32;
constexpr int64_t kSampleRows = 16;

template <class T>
const T* row(const Matrix& x, int64_t j) {
  return static_cast<const T*>(x.data) + j * x.stride;
}

// |x|², |x0|² and their difference.
struct Squares {
  double x, x0, difference;
};

template <class T>
Squares squares(const T* x, const T* x0, int64_t dim) {
  Vec a{}, b{}, c{};
  sweep(0, dim, [&](int64_t i, auto part) {
    const Vec p = load(x + i, part), q = load(x0 + i, part);
    a += p * p;
    b += q * q;
    c += (p - q) * (p + q);
  });
  Squares s{sum(a), sum(b), sum(c)};
  if (s.x < kFloatMax && s.x0 < kFloatMax && std::fabs(s.difference) < kFloatMax) return s;
  // A square left float32's range, or there is a NaN or Inf: once more in double.
  s = {0, 0, 0};
  for (int64_t i = 0; i < dim; ++i) {
    const double p = scalar(x + i), q = scalar(x0 + i);
    s.x += p * p;
    s.x0 += q * q;
    s.difference += (p - q) * (p + q);
  }
  return s;
}

// u = (x − keep·x0)·inverse + x0·shift; and for the backward pass 1/|x|² (0 where |x| is clamped).
struct Unit {
  float inverse, keep, shift;
  double inverse_square;
};

template <class T>
Unit unit(const T* x, const T* x0, int64_t dim, bool normalize) {
  if (!normalize) return {1.0f, 1.0f, 0.0f, 0.0};
  const Squares s = squares(x, x0, dim);
  if (!std::isfinite(s.x) || !std::isfinite(s.x0)) {
    const double nan = __builtin_nan("");
    return {__builtin_nanf(""), 1.0f, __builtin_nanf(""), nan};
  }
  const bool clamped = s.x < kEps * kEps, clamped0 = s.x0 < kEps * kEps;
  const double norm = clamped ? kEps : std::sqrt(s.x);
  const double norm0 = clamped0 ? kEps : std::sqrt(s.x0);
  const double inverse = 1 / norm, inverse0 = 1 / norm0;
  const double inverse_square = clamped ? 0 : inverse * inverse;
  // x − x0 is worth taking only between rows of like length.
  if (clamped || clamped0 || norm > 2 * norm0 || norm0 > 2 * norm) {
    return {static_cast<float>(inverse), 0.0f, static_cast<float>(-inverse0), inverse_square};
  }
  const double shift = -s.difference * inverse * inverse0 / (norm + norm0);
  return {static_cast<float>(inverse), 1.0f, static_cast<float>(shift), inverse_square};
}

inline Vec difference(Vec x, Vec x0, const Unit& s) {
  return (x - s.keep * x0) * s.inverse + x0 * s.shift;
}

struct Forward {
  const DiveInput& in;
  float* centre;   // [dim], padded with 0
  float* partial;  // one padded row per worker
  double* sums;    // per block: Σ (u − c) + (v − c) by column, padded; then the two scalars
  int64_t width;   // padded(dim)

  template <class T>
  void block(int64_t index, int worker) const {
    const Blocks blocks = dive_blocks(in.rows, in.dim);
    const int64_t begin = index * blocks.rows;
    const int64_t end = begin + blocks.rows < in.rows ? begin + blocks.rows : in.rows;
    float* columns = partial + worker * width;
    double* total = sums + index * (width + 2);
    for (int64_t i = 0; i < width + 2; ++i) total[i] = 0;
    DVec about{}, apart{};
    for (int64_t j0 = begin; j0 < end && !stopping(); j0 += kFlushRows) {
      const int64_t j1 = j0 + kFlushRows < end ? j0 + kFlushRows : end;
      for (int64_t i = 0; i < width; ++i) columns[i] = 0;
      for (int64_t j = j0; j < j1; ++j) add_row<T>(j, columns, about, apart);
      for (int64_t i = 0; i < width; ++i) total[i] += columns[i];
    }
    total[width] = sum(about);
    total[width + 1] = sum(apart);
  }

  template <class T>
  void add_row(int64_t j, float* columns, DVec& about, DVec& apart) const {
    const T *f = row<T>(in.f, j), *f0 = row<T>(in.f0, j);
    const T *g = row<T>(in.g, j), *g0 = row<T>(in.g0, j);
    const Unit nf = unit(f, f0, in.dim, in.normalize);
    const Unit ng = unit(g, g0, in.dim, in.normalize);
    Vec a{}, b{}, p{};
    sweep(0, in.dim, [&](int64_t i, auto part) {
      const Vec u = difference(load(f + i, part), load(f0 + i, part), nf);
      const Vec v = difference(load(g + i, part), load(g0 + i, part), ng);
      const Vec c = load(centre + i);
      const Vec du = u - c, dv = v - c, d = u - v;
      a += du * du;
      b += dv * dv;
      p += d * d;
      store(columns + i, load(columns + i) + (du + dv));
    });
    about += widen(a) + widen(b);
    apart += widen(p);
  }

  // A guess of m: the update with the mean of a few rows. `scratch` holds `dim` doubles.
  template <class T>
  void guess_centre(const float* mean, double momentum, double* scratch) const {
    for (int64_t i = 0; i < in.dim; ++i) scratch[i] = 0;
    const int64_t count = in.rows < kSampleRows ? in.rows : kSampleRows;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t j = k * in.rows / count;
      const T *f = row<T>(in.f, j), *f0 = row<T>(in.f0, j);
      const T *g = row<T>(in.g, j), *g0 = row<T>(in.g0, j);
      const Unit nf = unit(f, f0, in.dim, in.normalize);
      const Unit ng = unit(g, g0, in.dim, in.normalize);
      sweep(0, in.dim, [&](int64_t i, auto part) {
        float lanes[W];
        store(lanes, difference(load(f + i, part), load(f0 + i, part), nf) +
                         difference(load(g + i, part), load(g0 + i, part), ng));
        for (int64_t lane = 0; lane < W && i + lane < in.dim; ++lane) {
          scratch[i + lane] += lanes[lane];
        }
      });
    }
    const double share = (1 - momentum) / static_cast<double>(2 * count);
    for (int64_t i = 0; i < width; ++i) {
      centre[i] = i < in.dim ? static_cast<float>(momentum * mean[i] + share * scratch[i]) : 0.0f;
    }
  }
};

void dive_forward(const DiveInput& in, const float* mean, double momentum, double* workspace,
                  float* avl, float* pvl, float* new_mean) {
  const Blocks blocks = dive_blocks(in.rows, in.dim);
  const int64_t width = padded(in.dim);
  const int workers = worker_count(blocks.count, in.threads);
  float* rows = reinterpret_cast<float*>(workspace);
  const Forward pass{in, rows, rows + width, workspace + width / 2 * (1 + workers), width};
  ROBUSTFT_DISPATCH(in.dtype, T, {
    pass.guess_centre<T>(mean, momentum, pass.sums);
    auto body = [&](int64_t block, int worker) { pass.block<T>(block, worker); };
    parallel(blocks.count, in.threads, body);
  })
  double* total = pass.sums;
  for (int64_t k = 1; k < blocks.count; ++k) {
    const double* other = pass.sums + k * (width + 2);
    for (int64_t i = 0; i < width + 2; ++i) total[i] += other[i];
  }
  const double batch = static_cast<double>(in.rows);
  double moved = 0, square = 0;
  for (int64_t i = 0; i < in.dim; ++i) {
    const double c = pass.centre[i];
    const double m = momentum * mean[i] + (1 - momentum) * (c + total[i] / (2 * batch));
    moved += total[i] * (m - c);
    square += (m - c) * (m - c);
    new_mean[i] = static_cast<float>(m);
  }
  *avl = static_cast<float>((total[width] - 2 * moved) / batch + 2 * square);
  *pvl = static_cast<float>(total[width + 1] / batch);
}

// ∂/∂f = through n of (2/B)·[ ∂avl·(u − m) + ∂pvl·(u − v) ]; ∂/∂g likewise with v and v − u.
template <class T>
void backward_row(const DiveInput& in, int64_t j, const float* mean, float weight_avl,
                  float weight_pvl, T* grad_f, T* grad_g) {
  const T *f = row<T>(in.f, j), *f0 = row<T>(in.f0, j);
  const T *g = row<T>(in.g, j), *g0 = row<T>(in.g0, j);
  const Unit nf = unit(f, f0, in.dim, in.normalize);
  const Unit ng = unit(g, g0, in.dim, in.normalize);
  const auto gradients = [&](int64_t i, auto part, Vec x, Vec y, Vec& du, Vec& dv) {
    const Vec u = difference(x, load(f0 + i, part), nf);
    const Vec v = difference(y, load(g0 + i, part), ng);
    const Vec m = load(mean + i, part);
    const Vec apart = weight_pvl * (u - v);
    du = weight_avl * (u - m) + apart;
    dv = weight_avl * (v - m) - apart;
  };
  float along_f = 0, along_g = 0;  // n(x)·<n(x), ∂u> is this times x, over |x|
  if (in.normalize) {
    Vec a{}, b{};
    sweep(0, in.dim, [&](int64_t i, auto part) {
      const Vec x = load(f + i, part), y = load(g + i, part);
      Vec du, dv;
      gradients(i, part, x, y, du, dv);
      a += x * du;
      b += y * dv;
    });
    along_f = static_cast<float>(nf.inverse_square * sum(a));
    along_g = static_cast<float>(ng.inverse_square * sum(b));
  }
  sweep(0, in.dim, [&](int64_t i, auto part) {
    const Vec x = load(f + i, part), y = load(g + i, part);
    Vec du, dv;
    gradients(i, part, x, y, du, dv);
    store(grad_f + i, (du - x * along_f) * nf.inverse, part);
    store(grad_g + i, (dv - y * along_g) * ng.inverse, part);
  });
}

void dive_backward(const DiveInput& in, const float* mean, double grad_avl, double grad_pvl,
                   void* grad_f, void* grad_g) {
  const Blocks blocks = dive_blocks(in.rows, in.dim);
  const float weight_avl = static_cast<float>(2 * grad_avl / static_cast<double>(in.rows));
  const float weight_pvl = static_cast<float>(2 * grad_pvl / static_cast<double>(in.rows));
  ROBUSTFT_DISPATCH(in.dtype, T, {
    auto body = [&](int64_t block, int) {
      const int64_t begin = block * blocks.rows;
      const int64_t end = begin + blocks.rows < in.rows ? begin + blocks.rows : in.rows;
      for (int64_t j = begin; j < end; ++j) {
        if (j % kFlushRows == 0 && stopping()) return;
        backward_row<T>(in, j, mean, weight_avl, weight_pvl, static_cast<T*>(grad_f) + j * in.dim,
                        static_cast<T*>(grad_g) + j * in.dim);
      }
    };
    parallel(blocks.count, in.threads, body);
  })
}

}  // namespace

extern const DiveKernels ROBUSTFT_JOIN(dive_, ROBUSTFT_ISA);
const DiveKernels ROBUSTFT_JOIN(dive_, ROBUSTFT_ISA) = {dive_forward, dive_backward};

}  // namespace robustft
