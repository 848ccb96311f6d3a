// A small harness: TEST registers a test with the program, CHECK and check_near note failures and
// go on. Code compiled for one instruction set must not include this (see isa/isa_tests.hpp).
#pragma once

#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

namespace robustft {

struct Test {
  using Run = void (*)();
  Test(const char* name, Run run) { all().push_back({name, run}); }

  struct Entry {
    std::string name;
    Run run;
  };
  static std::vector<Entry>& all();
};

// Notes a failure of the test that runs; prints the first few of them.
void fail(const std::string& message);

#define TEST(name)                                        \
  static void name();                                     \
  static const ::robustft::Test test_##name(#name, name); \
  static void name()

#define CHECK(condition, what)                                                                     \
  if (!(condition))                                                                                \
  ::robustft::fail(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #condition "; " + \
                   (what))

// |result − truth| ≤ tolerance · (largest |truth|) + floor for all of them, and none is NaN.
void check_near(const std::vector<double>& result, const std::vector<double>& truth,
                double tolerance, double floor, const std::string& what);

// The same numbers in every run.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  double normal() { return normal_(engine_); }
  int below(int end) { return static_cast<int>(engine_() % static_cast<uint32_t>(end)); }

 private:
  std::mt19937 engine_;
  std::normal_distribution<double> normal_;
};

}  // namespace robustft
