// The exponential function and what is made of it, of an f32, such that g++ computes several at once. In
// f64 inside: the result is nearly always the f32 next to the true one.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// What follows is compiled a second time for processors with wider registers, and chosen when loaded.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define EMILY_WIDE __attribute__((target_clones("arch=haswell", "default")))
#else
#define EMILY_WIDE
#endif

#define EMILY_INLINE inline __attribute__((always_inline))

namespace emily {

// e^x = 2^k e^r with |r| <= ln(2) / 2, where Taylor's polynomial is off by less than 1e-11.
EMILY_INLINE double exponential(double x) {
  // Beyond these an f32 is infinite or zero, and an f64 not yet.
  double inside = x < 700.0 ? x : 700.0;
  inside = inside > -700.0 ? inside : -700.0;
  // Added to a small number, it leaves the nearest integer in the lowest bits.
  constexpr double magic = 0x1.8p52;
  const double shifted = inside * 0x1.71547652b82fep0 + magic;
  const double r = inside - (shifted - magic) * 0x1.62e42fefa39efp-1;
  double p = 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 52) + (uint64_t{1023} << 52);
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return x == x ? p * power : x;
}

// Rational approximations of S. L. Moshier's Cephes library (ndtr.c): of erf(x) / x up to 1, and of
// e^(x^2) erfc(x) from there on.
EMILY_INLINE double error_function(double x) {
  const double size = x < 0 ? -x : x;
  const double square = x * x;
  double top = 9.60497373987051638749e0;
  top = top * square + 9.00260197203842689217e1;
  top = top * square + 2.23200534594684319226e3;
  top = top * square + 7.00332514112805075473e3;
  top = top * square + 5.55923013010394962768e4;
  double bottom = square + 3.35617141647503099647e1;
  bottom = bottom * square + 5.21357949780152679795e2;
  bottom = bottom * square + 4.59432382970980127987e3;
  bottom = bottom * square + 2.26290000613890934246e4;
  bottom = bottom * square + 4.92673942608635921086e4;
  const double near = x * top / bottom;
  // At 6 the result is 1, and the polynomials stay finite.
  const double far_size = size < 6 ? size : 6;
  double p = 2.46196981473530512524e-10;
  p = p * far_size + 5.64189564831068821977e-1;
  p = p * far_size + 7.46321056442269912687e0;
  p = p * far_size + 4.86371970985681366614e1;
  p = p * far_size + 1.96520832956077098242e2;
  p = p * far_size + 5.26445194995477358631e2;
  p = p * far_size + 9.34528527171957607540e2;
  p = p * far_size + 1.02755188689515710272e3;
  p = p * far_size + 5.57535335369399327526e2;
  double q = far_size + 1.32281951154744992508e1;
  q = q * far_size + 8.67072140885989742329e1;
  q = q * far_size + 3.54937778887819891062e2;
  q = q * far_size + 9.75708501743205489753e2;
  q = q * far_size + 1.82390916687909736289e3;
  q = q * far_size + 2.24633760818710981792e3;
  q = q * far_size + 1.65666309194161350182e3;
  q = q * far_size + 5.57535340817727675546e2;
  const double rest = exponential(-far_size * far_size) * p / q;
  const double far = x < 0 ? rest - 1 : 1 - rest;
  const double result = size < 1 ? near : far;
  return x == x ? result : x;
}

EMILY_INLINE double logistic(double x) {
  return 1 / (1 + exponential(-x));
}

} // namespace emily
