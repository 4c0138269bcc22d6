#include "base/descriptor_limit.h"

#include <sys/resource.h>

namespace agoq {

uint64_t allow_descriptors(uint64_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;  // opening them will tell
  if (limit.rlim_cur >= wanted || limit.rlim_cur >= limit.rlim_max) return limit.rlim_cur;
  const rlimit raised{limit.rlim_max, limit.rlim_max};
  return setrlimit(RLIMIT_NOFILE, &raised) == 0 ? raised.rlim_cur : limit.rlim_cur;
}

}  // namespace agoq
