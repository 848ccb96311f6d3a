// dive.cpp against its formulas in double, on every instruction set and on 1 to 4 threads.
#include "../cpu/dive.hpp"

#include "../cpu/threads.hpp"
#include "matrices.hpp"

namespace robustft {
namespace {

using Values = std::vector<double>;

// n(x), and the length that it is divided by.
struct Unit {
  Values n;
  double length;
};

Unit unit(const Stored& x, int64_t j, int64_t dim, bool normalize) {
  Unit u{Values(static_cast<size_t>(dim)), 0};
  for (int64_t i = 0; i < dim; ++i) u.length += x.at(j, i) * x.at(j, i);
  u.length = normalize ? std::sqrt(u.length) : 1;
  for (int64_t i = 0; i < dim; ++i) u.n[static_cast<size_t>(i)] = x.at(j, i) / u.length;
  return u;
}

struct Truth {
  Values losses, mean, grad_f, grad_g;
};

// ∂/∂x of <n(x), w>: (w − n·<n, w>)/|x|.
void add_gradient(const Unit& x, const Values& w, bool normalize, Values& out) {
  double along = 0;
  for (size_t i = 0; i < w.size(); ++i) along += normalize ? x.n[i] * w[i] : 0;
  for (size_t i = 0; i < w.size(); ++i) out.push_back((w[i] - along * x.n[i]) / x.length);
}

Truth truth(const Stored (&x)[4], int64_t rows, int64_t dim, bool normalize, const Values& mean,
            double momentum, double weight_avl, double weight_pvl) {
  const size_t width = static_cast<size_t>(dim);
  const double batch = static_cast<double>(rows);
  std::vector<Unit> f, g;
  std::vector<Values> u, v;
  Truth t;
  t.mean.assign(width, 0);
  for (int64_t j = 0; j < rows; ++j) {
    f.push_back(unit(x[0], j, dim, normalize));
    g.push_back(unit(x[2], j, dim, normalize));
    const Unit f0 = unit(x[1], j, dim, normalize), g0 = unit(x[3], j, dim, normalize);
    u.push_back(f.back().n);
    v.push_back(g.back().n);
    for (size_t i = 0; i < width; ++i) {
      u.back()[i] -= f0.n[i];
      v.back()[i] -= g0.n[i];
      t.mean[i] += (u.back()[i] + v.back()[i]) / (2 * batch);
    }
  }
  for (size_t i = 0; i < width; ++i) t.mean[i] = momentum * mean[i] + (1 - momentum) * t.mean[i];
  double avl = 0, pvl = 0;
  for (size_t j = 0; j < u.size(); ++j) {
    Values du(width), dv(width);
    for (size_t i = 0; i < width; ++i) {
      const double a = u[j][i] - t.mean[i], b = v[j][i] - t.mean[i], apart = u[j][i] - v[j][i];
      avl += a * a + b * b;
      pvl += apart * apart;
      du[i] = 2 / batch * (weight_avl * a + weight_pvl * apart);
      dv[i] = 2 / batch * (weight_avl * b - weight_pvl * apart);
    }
    add_gradient(f[j], du, normalize, t.grad_f);
    add_gradient(g[j], dv, normalize, t.grad_g);
  }
  t.losses = {avl / batch, pvl / batch};
  return t;
}

void check(const Isa& isa, DType dtype, int64_t rows, int64_t dim, bool normalize,
           const std::string& what) {
  Random random(static_cast<uint32_t>(rows * 1000 + dim));
  const double momentum = 0.75, weight_avl = 70, weight_pvl = -130;
  const Stored x[4] = {
      normal(rows, dim, dtype, 3, 1, random), normal(rows, dim, dtype, 0, 1, random),
      normal(rows, dim, dtype, 1, 1, random), normal(rows, dim, dtype, 5, 1, random)};
  Stored mean = normal(1, dim, DType::float32, 0, 0.01, random);
  const Truth t = truth(x, rows, dim, normalize, mean.values(), momentum, weight_avl, weight_pvl);
  Stored first_f(rows, dim, dtype), first_g(rows, dim, dtype);
  for (int threads = 1; threads <= 4; ++threads) {
    const DiveInput in{x[0].matrix(), x[1].matrix(), x[2].matrix(), x[3].matrix(), rows,
                       dim,           dtype,         normalize,     threads};
    const int workers = worker_count(dive_blocks(rows, dim).count, threads);
    std::vector<double> workspace(static_cast<size_t>(dive_workspace(rows, dim, workers)));
    Stored losses(1, 2, DType::float32), new_mean(1, dim, DType::float32);
    float* out = static_cast<float*>(losses.data());
    isa.dive->forward(in, static_cast<float*>(mean.data()), momentum, workspace.data(), out,
                      out + 1, static_cast<float*>(new_mean.data()));
    check_near(losses.values(), t.losses, 2e-6, 1e-8, what + ", losses");
    check_near(new_mean.values(), t.mean, 2e-6, 1e-8, what + ", mean");
    Stored grad_f(rows, dim, dtype), grad_g(rows, dim, dtype);
    isa.dive->backward(in, static_cast<float*>(new_mean.data()), weight_avl, weight_pvl,
                       grad_f.data(), grad_g.data());
    // D = 1: n(x) is constant, and the gradient is rounding about 0.
    const double floor = dim == 1 ? 5e-4 : 0;
    check_near(grad_f.values(), t.grad_f, rounding(dtype), floor, what + ", gradient of f");
    check_near(grad_g.values(), t.grad_g, rounding(dtype), floor, what + ", gradient of g");
    if (threads == 1) {
      first_f = grad_f;
      first_g = grad_g;
    }
    CHECK(grad_f == first_f && grad_g == first_g, what + ": threads change a bit");
  }
}

}  // namespace

TEST(dive) {
  for_every_kernel([](const Isa& isa, DType dtype, const std::string& name) {
    for (const bool normalize : {true, false}) {
      for (const auto& [rows, dim] : {std::pair<int, int>{1, 1}, {7, 129}, {127, 31}, {131, 509}}) {
        const std::string size = std::to_string(rows) + " x " + std::to_string(dim);
        check(isa, dtype, rows, dim, normalize, name + " " + size);
      }
    }
  });
}

}  // namespace robustft
