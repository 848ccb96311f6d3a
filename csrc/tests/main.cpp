// native_tests [part | -part]...: runs the tests of csrc/tests whose names contain one of the parts
// (all if there is none), and none that is struck out.
#include <cmath>

#include "../cpu/dispatch.hpp"
#include "check.hpp"

namespace robustft {
namespace {

constexpr int kPrinted = 10;  // failures printed of one test
int failures = 0;

}  // namespace

std::vector<Test::Entry>& Test::all() {
  static std::vector<Entry> tests;
  return tests;
}

void fail(const std::string& message) {
  if (++failures <= kPrinted) std::printf("  %s\n", message.c_str());
}

void check_near(const std::vector<double>& result, const std::vector<double>& truth,
                double tolerance, double floor, const std::string& what) {
  double largest = 0;
  for (const double x : truth) largest = std::fmax(largest, std::fabs(x));
  const double allowed = tolerance * largest + floor;
  CHECK(result.size() == truth.size(), what);
  for (size_t i = 0; i < truth.size() && i < result.size(); ++i) {
    if (std::fabs(result[i] - truth[i]) <= allowed) continue;  // false for NaN
    fail(what + ", element " + std::to_string(i) + ": got " + std::to_string(result[i]) +
         ", expected " + std::to_string(truth[i]) + " to within " + std::to_string(allowed));
    return;
  }
}

bool is_wanted(const std::string& test, const std::vector<std::string>& parts) {
  bool named = false, any = false;
  for (const std::string& part : parts) {
    if (part[0] == '-') {
      if (test.find(part.substr(1)) != std::string::npos) return false;
    } else {
      any = true;
      named = named || test.find(part) != std::string::npos;
    }
  }
  return named || !any;
}

int run_tests(const std::vector<std::string>& parts) {
  std::printf("instruction sets:");
  for (const Isa& isa : isas()) std::printf(" %s", isa.name);
  std::printf("\n");
  int run = 0, failed = 0;
  for (const Test::Entry& test : Test::all()) {
    if (!is_wanted(test.name, parts)) {
      std::printf("skip   %s: not asked for\n", test.name.c_str());
      continue;
    }
    failures = 0;
    test.run();
    std::printf("%s %s\n", failures == 0 ? "ok    " : "FAILED", test.name.c_str());
    std::fflush(stdout);
    ++run;
    if (failures != 0) ++failed;
  }
  std::printf("%d tests, %d failed\n", run, failed);
  return run == 0 || failed != 0;
}

}  // namespace robustft

int main(int count, char** arguments) {
  return robustft::run_tests({arguments + 1, arguments + count});
}
