// Which 8-bit map for Adam's moments? The measurements behind dyn8 (docs/formats.md). Not a check, so not run by
// default:
//   codec_tests --gtest_also_run_disabled_tests --gtest_filter='*CompareCandidates'
#include <algorithm>
#include <cstdio>

#include "codec/codec_fixture.h"
#include "codec/reference.h"

namespace agoq::codec {
namespace {

struct Map {
  std::string name;
  std::vector<float> levels;  // rising from 0
  int scale_bits = 8;         // 8: bf16, 1: powers of two
};

Map minifloat(const char* name, int exponent_bits, int mantissa_bits, int scale_bits) {
  Map map{name, {}, scale_bits};
  for (const reference::Level& level : reference::minifloat_levels(exponent_bits, mantissa_bits, 0, 1e30))
    map.levels.push_back(static_cast<float>(level.value));
  return map;
}

Map power(const char* name, int largest, double exponent, int scale_bits) {
  Map map{name, {}, scale_bits};
  for (int i = 0; i <= largest; ++i) map.levels.push_back(static_cast<float>(std::pow(i, exponent)));
  return map;
}

// The dynamic map of 8-bit optimizers in use today: a unary decimal exponent, then a linear fraction.
Map decimal_tree(const char* name, int bits, int scale_bits) {
  Map map{name, {0.0f}, scale_bits};
  for (int zeros = bits - 1; zeros >= 0; --zeros) {
    const int fractions = 1 << (bits - 1 - zeros);
    for (int i = 0; i < fractions; ++i)
      map.levels.push_back(static_cast<float>((0.1 + 0.9 * (i + 0.5) / fractions) * std::pow(10.0, -zeros)));
  }
  map.levels.back() = 1.0f;
  return map;
}

// Mantissa bits for each octave from the top, then evenly down to zero.
Map tapered(const char* name, const std::vector<int>& mantissa_bits, int scale_bits) {
  std::vector<float> falling;
  double bottom = 1;
  for (int bits : mantissa_bits) {
    bottom /= 2;
    for (int i = (1 << bits) - 1; i >= 0; --i)
      falling.push_back(static_cast<float>(bottom * (1 + std::ldexp(i, -bits))));
  }
  for (int i = (1 << mantissa_bits.back()) - 1; i >= 0; --i)
    falling.push_back(static_cast<float>(bottom * std::ldexp(i, -mantissa_bits.back())));
  std::reverse(falling.begin(), falling.end());
  return {name, falling, scale_bits};
}

class Random {
 public:
  double uniform() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<double>(state_ >> 11) * 0x1p-53;
  }

 private:
  uint64_t state_ = 88172645463325252ull;
};

// Blocks of 128 as codes of a map, stochastically, and back; `lift`: nothing but zero becomes zero.
void store(const Map& map, bool lift, std::vector<float>& x, Random& random) {
  for (size_t begin = 0; begin < x.size(); begin += 128) {
    float largest = 0;
    for (size_t i = begin; i < begin + 128; ++i) largest = std::max(largest, std::fabs(x[i]));
    if (largest == 0) continue;
    const float top = map.levels.back();
    const auto scale = static_cast<float>(reference::round_up(largest / top, map.scale_bits));
    for (size_t i = begin; i < begin + 128; ++i) {
      float y = std::min(std::fabs(x[i]) / scale, top);
      if (lift && x[i] != 0) y = std::max(y, map.levels[1]);
      const auto above = std::upper_bound(map.levels.begin(), map.levels.end(), y);
      float value = top;
      if (above != map.levels.end()) {
        const float low = *(above - 1), high = *above;
        value = random.uniform() * (high - low) < y - low ? high : low;
      }
      x[i] = std::copysign(value * scale, x[i]);
    }
  }
}

struct Errors {
  double m = 0, root_v = 0, direction = 0;
};

// sigma < 0: the same Gaussian gradient at every step. Otherwise a fresh one each, of log-normal magnitude by element.
// A null map keeps fp32.
Errors adam(const Map* m_map, const Map* s_map, int steps, double sigma) {
  constexpr size_t kN = 128 * 16;
  const std::vector<float> constant = gaussian(kN, 3);
  std::vector<float> magnitude = gaussian(kN, 4), gradient = constant;
  for (float& x : magnitude) x = static_cast<float>(std::exp(sigma * x));
  std::vector<float> m(kN, 0.0f), s(kN, 0.0f);
  std::vector<double> exact_m(kN, 0.0), exact_v(kN, 0.0);
  Random random;
  std::mt19937 engine(7);
  std::normal_distribution<float> normal;
  double squares[6] = {};
  const auto add = [&](int at, double error, double exact) {
    squares[at] += error * error;
    squares[at + 1] += exact * exact;
  };
  for (int t = 1; t <= steps; ++t) {
    const bool measure = sigma < 0 ? t == steps : t > steps / 2 && t % (steps / 10) == 0;
    for (size_t i = 0; i < kN; ++i) {
      if (sigma >= 0) gradient[i] = magnitude[i] * normal(engine);
      const float g = gradient[i];
      exact_m[i] = 0.9 * exact_m[i] + 0.1 * g;
      exact_v[i] = 0.999 * exact_v[i] + 0.001 * static_cast<double>(g) * g;
      const double exact_s = std::sqrt(exact_v[i]);
      m[i] = m_map ? 0.9f * m[i] + 0.1f * g : static_cast<float>(exact_m[i]);
      s[i] = s_map ? std::sqrt(0.999f * s[i] * s[i] + 0.001f * g * g) : static_cast<float>(exact_s);
      if (!measure) continue;
      add(0, m[i] - exact_m[i], exact_m[i]);
      add(2, s[i] - exact_s, exact_s);
      add(4, m[i] / (s[i] + 1e-30) - exact_m[i] / exact_s, exact_m[i] / exact_s);
    }
    if (m_map) store(*m_map, false, m, random);
    if (s_map) store(*s_map, true, s, random);
  }
  return {std::sqrt(squares[0] / squares[1]), std::sqrt(squares[2] / squares[3]), std::sqrt(squares[4] / squares[5])};
}

void print_row(const Map* m_map, const Map* s_map, const Map& named, int constant_steps, int steps) {
  const Errors constant = adam(m_map, s_map, constant_steps, -1);
  std::printf("| %-22s | %-5s | %6.4f |", named.name.c_str(), named.scale_bits == 1 ? "2^k" : "bf16",
              s_map ? constant.root_v : constant.m);
  for (double sigma : {0.0, 1.0, 2.0}) std::printf(" %6.3f |", adam(m_map, s_map, steps, sigma).direction);
  std::printf("\n");
}

TEST(MomentMaps, DISABLED_CompareCandidates) {
  std::printf("| map of m | scale | constant | direction: Gaussian | sigma 1 | sigma 2 |\n|---|---|---|---|---|---|\n");
  for (int bits : {8, 1})
    for (const Map& map :
         {minifloat("e4m3", 4, 3, bits), minifloat("e3m4", 3, 4, bits), minifloat("e2m5", 2, 5, bits),
          power("linear (int8)", 127, 1, bits), power("squares", 127, 2, bits), power("cubes", 124, 3, bits),
          decimal_tree("decimal tree", 7, bits), tapered("m4*4 m3*4 m2*4", {4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2}, bits)})
      print_row(&map, nullptr, map, 2000, 1000);
  std::printf(
      "\n| map of sqrt(v) | scale | constant | direction: Gaussian | sigma 1 | sigma 2 |\n|---|---|---|---|---|---|\n");
  for (int bits : {8, 1})
    for (const Map& map : {minifloat("e5m3", 5, 3, bits), minifloat("e4m4", 4, 4, bits), minifloat("e3m5", 3, 5, bits),
                           power("linear (uint8)", 255, 1, bits), power("squares", 255, 2, bits),
                           power("cubes", 255, 3, bits), decimal_tree("decimal tree", 8, bits),
                           tapered("m5*5 m4*3 m3*5", {5, 5, 5, 5, 5, 4, 4, 4, 3, 3, 3, 3, 3}, bits)})
      print_row(nullptr, &map, map, 10000, 3000);
  const Map m = power("cubes", 124, 3, 8), s = power("cubes", 255, 3, 1);
  std::printf("\n| both | | sqrt(v) constant | Gaussian | sigma 1 | sigma 2 |\n|---|---|---|---|---|---|\n");
  print_row(&m, &s, {"cubes bf16, cubes 2^k", {}, 8}, 10000, 3000);
  const Map m4 = minifloat("", 4, 3, 8), s4 = minifloat("", 4, 4, 1);
  print_row(&m4, &s4, {"e4m3 bf16, e4m4 2^k", {}, 8}, 10000, 3000);
}

}  // namespace
}  // namespace agoq::codec
