// The libraries that ops run on a GPU. Only a build with the CUDA backend defines these.
#pragma once

#include "device/library_version.h"

namespace agoq::ops {

LibraryVersion cudnn_version();
LibraryVersion cublaslt_version();

}  // namespace agoq::ops
