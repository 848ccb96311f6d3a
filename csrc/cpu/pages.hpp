// Large pages for large buffers.
#pragma once

#include <cstddef>

namespace robustft {

// Ask for 2 MB pages in the part of a buffer that consists of whole ones. A fresh buffer costs a
// fault for every page that is first touched, and with 4 KB pages the faults can take longer than
// the kernel. Advice only: no content changes, nothing outside the buffer is touched, and where the
// system has no such pages nothing happens.
void advise(void* buffer, std::size_t bytes);

}  // namespace robustft
