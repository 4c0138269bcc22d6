#include "comm/sum.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "base/error_of.h"
#include "comm/gpu_link.h"
#include "comm/limits.h"

namespace agoq::comm {
namespace {

using testing::HasSubstr;

// What the parts of one number add up to, in the order given, one by one.
float reference(const std::vector<float>& parts) {
  float total = 0;
  for (const float part : parts) total += part;
  return total;
}
double reference(const std::vector<double>& parts) {
  double total = 0;
  for (const double part : parts) total += part;
  return total;
}

template <class T>
T number_from(double x) {
  if constexpr (sizeof(T) == sizeof(double))
    return x;
  else
    return from_float<T>(static_cast<float>(x));
}

// Parts of very different size, so that another order has other bits; `rank`'s own lie apart from the others.
template <class T, class Wide>
void expect_rank_order(DType dtype, int64_t ranks, int64_t rank, int64_t n) {
  Arena arena(Device::Cpu, size_t{64} << 20);
  const Context ctx(arena, Device::Cpu, DType::F32);
  const Tensor others = ranks > 1 ? ctx.empty(dtype, {ranks - 1, n}) : Tensor{};
  const Tensor own = ctx.empty(dtype, {n}), sum = ctx.empty(dtype, {n});
  std::mt19937 random(static_cast<unsigned>(ranks));
  std::vector<std::vector<Wide>> parts(static_cast<size_t>(n));
  for (int64_t r = 0; r < ranks; ++r) {
    T* const to = r == rank ? own.as<T>() : others.as<T>() + (r - (r > rank)) * n;
    for (int64_t i = 0; i < n; ++i) {
      to[i] = number_from<T>(std::ldexp(random() / 4e9 - 0.5, static_cast<int>(random() % 20) - 10));
      if constexpr (sizeof(T) == sizeof(double))
        parts[static_cast<size_t>(i)].push_back(to[i]);
      else
        parts[static_cast<size_t>(i)].push_back(to_float(to[i]));
    }
  }
  const auto expect_sum = [&](const Tensor& got, const char* where) {
    for (int64_t i = 0; i < n; ++i) {
      const T want = number_from<T>(static_cast<double>(reference(parts[static_cast<size_t>(i)])));
      ASSERT_EQ(std::memcmp(&got.as<T>()[i], &want, sizeof want), 0)
          << where << ": number " << i << ", rank " << rank << " of " << ranks;
    }
  };
  comm::sum(ctx, {others, own, rank}, sum);
  expect_sum(sum, "elsewhere");
  comm::sum(ctx, {others, own, rank}, own);
  expect_sum(own, "in place of the own part");
}

TEST(Sum, OfAnyNumberOfRanksInRankOrder) {
  for (const int64_t ranks : {1, 2, 3, 1024, 3000})
    for (const int64_t rank : {int64_t{0}, ranks / 3, ranks - 1})
      for (const int64_t n : {1, 37, 1500}) {
        expect_rank_order<float, float>(DType::F32, ranks, rank, n);
        expect_rank_order<Bf16, float>(DType::BF16, ranks, rank, n);
        expect_rank_order<double, double>(DType::F64, ranks, rank, n);
      }
}

TEST(Sum, WithoutAnOwnPart) {
  Arena arena(Device::Cpu, size_t{1} << 20);
  const Context ctx(arena, Device::Cpu, DType::F32);
  const Tensor rows = ctx.empty(DType::F32, {3, 2});
  for (int i = 0; i < 6; ++i) rows.as<float>()[i] = static_cast<float>(1 << i);
  const Tensor first = rows.row_range(0, 1);
  comm::sum(ctx, {rows, {}, 3}, first);
  EXPECT_EQ(first.as<float>()[0], 1 + 4 + 16);
  EXPECT_EQ(first.as<float>()[1], 2 + 8 + 32);
  add(ctx, rows.row_range(1, 2), first);
  EXPECT_EQ(first.as<float>()[0], 21 + 4);
}

TEST(Sum, RefusesPartsThatDoNotFit) {
  Arena arena(Device::Cpu, size_t{1} << 20);
  const Context ctx(arena, Device::Cpu, DType::F32);
  const Tensor rows = ctx.empty(DType::F32, {3, 2}), own = ctx.empty(DType::F32, {2}),
               three = ctx.empty(DType::F32, {3});
  EXPECT_THROW(comm::sum(ctx, {rows, three, 0}, own), Error);
  EXPECT_THROW(comm::sum(ctx, {rows, own, 0}, three), Error);
  EXPECT_THROW(comm::sum(ctx, {rows, own, 4}, own), Error);
  EXPECT_THROW(comm::sum(ctx, {rows, ctx.empty(DType::BF16, {2}), 0}, own), Error);
  EXPECT_THROW(comm::sum(ctx, {}, own), Error);
}

TEST(GpuLink, DirectJoinsTheGpusOfOneMachine) {
  require_direct_fits(kMostDirectRanks);
  EXPECT_THAT(error_of([] { require_direct_fits(kMostDirectRanks + 1); }),
              testing::AllOf(HasSubstr("33 at most"), HasSubstr("has 34 ranks; take --gpu-transport auto")));
}

}  // namespace
}  // namespace agoq::comm
