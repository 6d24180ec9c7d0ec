#pragma once

#include <torch/types.h>

/// All checks of kernels and steps on `device`, or, `brief`, those that a sanitizer is done with in a minute;
/// each name printed once with its largest error. Whether all passed. Compiled by itself, beside the rest.
bool run_checks(torch::Device device, bool brief);
