// The cases of the attend kernels.
#pragma once

#include "attention_case.hpp"

// Named by what is awkward about them; the type is set by the instance that runs them.
extern const std::vector<attention_case> attend_cases;

// More rows than a small tile has: for the kernels that take many at once.
extern const std::vector<attention_case> prefill_cases;

// Cases whose rows are computed alone, too, and must have the same bits.
extern const std::vector<attention_case> row_cases;

// Shapes crossed with each other: the nightly grid.
std::vector<attention_case> grid();
