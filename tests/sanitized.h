// Whether the tests run under AddressSanitizer, which makes a program ten times slower or more.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define AGOQ_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define AGOQ_TEST_SANITIZED 1
#endif
#endif

namespace agoq::test {

#if defined(AGOQ_TEST_SANITIZED)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace agoq::test
