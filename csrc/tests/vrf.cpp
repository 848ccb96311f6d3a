// vrf.cpp against its formulas in double, on every instruction set and on 1 to 4 threads.
#include "../cpu/vrf.hpp"

#include "../cpu/threads.hpp"
#include "matrices.hpp"

namespace robustft {
namespace {

using Values = std::vector<double>;

constexpr double kA = 0.3, kB = 0.4, kTemperatureFinetuned = 1.3, kTemperatureZeroshot = 0.7;

struct Truth {
  Values out, finetuned, zeroshot, distance;
};

Values softmax(const Stored& z, int64_t row, int64_t classes, double temperature) {
  Values p;
  double total = 0;
  for (int64_t k = 0; k < classes; ++k) {
    p.push_back(std::exp(z.at(row, k) / temperature));
    total += p.back();
  }
  for (double& x : p) x /= total;
  return p;
}

Truth truth(const Stored& z, const Stored& y, const Stored& distance, const Stored& grad,
            int64_t rows, int64_t classes, bool log) {
  Truth t;
  for (int64_t i = 0; i < rows; ++i) {
    const Values p = softmax(z, i, classes, kTemperatureFinetuned);
    const Values q = softmax(y, i, classes, kTemperatureZeroshot);
    const double omega = 1 / (1 + std::exp((distance.at(0, i) - kA) / kB));
    // Of Σ g·out by each probability, each logit and the weight.
    Values weights;
    double along_p = 0, along_q = 0, by_omega = 0;
    for (size_t k = 0; k < p.size(); ++k) {
      const double mix = omega * p[k] + (1 - omega) * q[k];
      t.out.push_back(log ? std::log(mix) : mix);
      weights.push_back(grad.at(i, static_cast<int64_t>(k)) / (log ? mix : 1));
      along_p += weights[k] * p[k];
      along_q += weights[k] * q[k];
      by_omega += weights[k] * (p[k] - q[k]);
    }
    for (size_t k = 0; k < p.size(); ++k) {
      t.finetuned.push_back(omega / kTemperatureFinetuned * p[k] * (weights[k] - along_p));
      t.zeroshot.push_back((1 - omega) / kTemperatureZeroshot * q[k] * (weights[k] - along_q));
    }
    t.distance.push_back(-by_omega * omega * (1 - omega) / kB);
  }
  return t;
}

void check(const Isa& isa, DType dtype, int64_t rows, int64_t classes, bool log,
           const std::string& what) {
  Random random(static_cast<uint32_t>(rows * 1000 + classes));
  const Stored z = normal(rows, classes, dtype, 3, 4, random);
  const Stored y = normal(rows, classes, dtype, 0, 4, random);
  const Stored grad = normal(rows, classes, dtype, 2, 10, random);
  Stored distance = normal(1, rows, DType::float32, 0, 1, random);
  const Truth t = truth(z, y, distance, grad, rows, classes, log);
  Stored first_out(rows, classes, dtype), first_z = first_out, first_y = first_out;
  for (int threads = 1; threads <= 4; ++threads) {
    const VrfInput in{z.matrix(),
                      y.matrix(),
                      static_cast<float*>(distance.data()),
                      rows,
                      classes,
                      kA,
                      kB,
                      kTemperatureFinetuned,
                      kTemperatureZeroshot,
                      dtype,
                      log,
                      threads};
    const int workers = worker_count(vrf_blocks(rows, classes).count, threads);
    std::vector<float> workspace(static_cast<size_t>(vrf_workspace(classes, workers)));
    Stored out(rows, classes, dtype), grad_z = out, grad_y = out;
    Stored grad_distance(1, rows, DType::float32);
    isa.vrf->forward(in, workspace.data(), out.data());
    isa.vrf->backward(in, grad.matrix(), workspace.data(), grad_z.data(), grad_y.data(),
                      static_cast<float*>(grad_distance.data()));
    const double floor = 1e-6;  // 16-bit results may be subnormal
    check_near(out.values(), t.out, rounding(dtype), floor, what + ", result");
    check_near(grad_z.values(), t.finetuned, rounding(dtype), floor, what + ", finetuned");
    check_near(grad_y.values(), t.zeroshot, rounding(dtype), floor, what + ", zeroshot");
    check_near(grad_distance.values(), t.distance, 4e-6, 1e-6, what + ", distance");
    if (threads == 1) {
      first_out = out;
      first_z = grad_z;
      first_y = grad_y;
    }
    CHECK(out == first_out && grad_z == first_z && grad_y == first_y,
          what + ": threads change a bit");
  }
}

}  // namespace

TEST(vrf) {
  for_every_kernel([](const Isa& isa, DType dtype, const std::string& name) {
    for (const bool log : {false, true}) {
      for (const auto& [rows, classes] :
           {std::pair<int, int>{1, 1}, {7, 129}, {257, 127}, {29, 2053}}) {
        const std::string size = std::to_string(rows) + " x " + std::to_string(classes);
        check(isa, dtype, rows, classes, log, name + " " + size + (log ? " log" : ""));
      }
    }
  });
}

}  // namespace robustft
