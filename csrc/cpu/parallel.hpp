// parallel_blocks for a lambda; internal linkage, as everything a kernel file includes.
#pragma once

#include "threads.hpp"

namespace robustft {
namespace {

template <class Body>
void parallel(int64_t blocks, int threads, Body& body) {
  parallel_blocks(
      blocks, threads,
      [](void* context, int64_t block, int worker) {
        (*static_cast<Body*>(context))(block, worker);
      },
      &body);
}

}  // namespace
}  // namespace robustft
