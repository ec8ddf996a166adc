// Brings double scores into fp32's range without changing their order: ScoreRange of the host code,
// where the law is told.
#pragma once

__device__ __forceinline__ double settle_score(double score) {
  const double untouched = 0x1p30, squeezed = 0x1p120, largest = 0x1p400;
  const float lowest = 0x1p120f;
  const int steps = (7 << 23) + (7 << 20);
  const double magnitude = fabs(score);
  if (magnitude < untouched || !(magnitude - magnitude == 0)) return score;
  if (magnitude <= squeezed) return float(score);
  const double bits = double(__double_as_longlong(magnitude < largest ? magnitude : largest));
  const double low = double(__double_as_longlong(squeezed));
  const double share = (bits - low) / (double(__double_as_longlong(largest)) - low);
  const float settled = __uint_as_float(__float_as_uint(lowest) + unsigned(share * steps));
  return score < 0 ? -settled : settled;
}

// The score that a state's maximum stands for.
__device__ __forceinline__ double restore_score(float max) {
  const double squeezed = 0x1p120, largest = 0x1p400;
  const float lowest = 0x1p120f;
  const int steps = (7 << 23) + (7 << 20);
  const float magnitude = fabsf(max);
  if (magnitude <= lowest || !(magnitude - magnitude == 0)) return max;
  const double step = double(__float_as_uint(magnitude) - __float_as_uint(lowest)) + 0.5;
  const double low = double(__double_as_longlong(squeezed));
  const double bits = low + step / steps * (double(__double_as_longlong(largest)) - low);
  const double restored = __longlong_as_double((long long)bits);
  return max < 0 ? -restored : restored;
}

// A finite number that fp32 cannot hold becomes the largest that it can.
__device__ __forceinline__ float saturate(double x) {
  const double most = 0x1.fffffep127;
  return x > most && x - x == 0 ? float(most) : x < -most && x - x == 0 ? float(-most) : float(x);
}
