// The plain instance of every build: sanitizers and planted defects take it alone.
#include "instances.hpp"

static const bool registered = [] {
  add_plain<float, 128>("float");
  return true;
}();
