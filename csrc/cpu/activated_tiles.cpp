#include "cpu/activated_tiles.h"

#include "common/activation.h"
#include "cpu/vector_math.h"

namespace cmf {
namespace CMF_ISA {

// One loop over all vectors: in a loop over rows the constants would be loaded for each row anew.
template <Activation A>
void ActivatedTiles::put_with(float param, const float* sums) const {
  constexpr int kV = kLanes<float>;
  const int vectors = wanted_.columns > kV ? 2 : 1;
  const int last_lanes = wanted_.columns - (vectors - 1) * kV;
  const int64_t next_row = wanted_.y_row - (vectors - 1) * kV;
  const bool past_caches = wanted_.past_caches;
  float* target = wanted_.y;
  for (int i = 0, v = 0; i < wanted_.rows * vectors; ++i, sums += kV) {
    const Vec<float> value = activate<A>(load<float>(sums), param);
    const bool last = ++v == vectors;
    if (past_caches) {
      stream(target, value);
    } else if (!last || last_lanes == kV) {
      store<float>(target, value);
    } else {
      store_partial<float>(target, value, last_lanes);
    }
    target += last ? next_row : kV;
    if (last) v = 0;
  }
}

void ActivatedTiles::put(const float* sums) const {
  const float param = static_cast<float>(p_.activation_param);
  switch (static_cast<Activation>(p_.activation)) {
#define CMF_CASE(A)   \
  case Activation::A: \
    return put_with<Activation::A>(param, sums);
    CMF_EACH_ACTIVATION(CMF_CASE)
#undef CMF_CASE
  }
}

}  // namespace CMF_ISA
}  // namespace cmf
