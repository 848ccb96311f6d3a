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
const MpmNceKernels ROBUSTFT_JOIN(mpm_nce_, ROBUSTFT_ISA) = {forward_workspace, backward_workspace,
                                                             forward, backward};

}  // namespace robustft
