// A layer norm, as the kernels are given it.

#pragma once

struct Norm {
  const float *scale, *shift;
  float eps;
};
