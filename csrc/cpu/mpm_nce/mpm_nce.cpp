// Multi-positive margin NCE (arXiv 2408.05749), and every contrastive loss that it contains.
//
//     Z_ij  = s·( <x_i, y_j> + δ·[i, j are no positive pair] )
//     row_i = LSE_j Z_ij − Σ_j w_ij Z_ij,   col_j the same on Zᵀ
//     loss  = ½·(mean_i row_i + mean_j col_j), or mean_i row_i
//
// The matrix of products is met one register tile at a time, in forward.hpp and
// backward.hpp. Operations: 2·B·C·D forward and 6·B·C·D backward, 4·B·C·D with kept
// products. Everything is cut by the shape alone and merged in order: the number of threads changes
// no bit.
#include "mpm_nce.hpp"

#include <cmath>

#include "backward.hpp"
#include "forward.hpp"

namespace robustft {

extern const MpmNceKernels ROBUSTFT_JOIN(mpm_nce_, ROBUSTFT_ISA);
// Products that one thread does alone: a second one that sleeps takes as long to wake up, twice a
// call, as it would save. A tenth of a millisecond at 16 lanes is 2^23 products (128 × 128 × 512)
// on AMD's; the Intel processors with AMX that were measured need two threads from 2^21 on.
#ifdef ROBUSTFT_HAS_AMX
constexpr int64_t kAlone = (int64_t{1} << 17) * W;
#else
constexpr int64_t kAlone = (int64_t{1} << 19) * W;
#endif
const MpmNceKernels ROBUSTFT_JOIN(mpm_nce_, ROBUSTFT_ISA) = {forward_workspace, backward_workspace,
                                                             forward, backward, kAlone};

}  // namespace robustft
