// simd.h: loads, stores and bytes with what lies around them; moves between lanes.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/simd.h"
#include "tests/isa_tests.h"

namespace cmf {
namespace CMF_ISA {
namespace {

constexpr unsigned char kGuard = 0xa5;

// An array on the heap of exactly `count` elements: AddressSanitizer sees one byte too many.
template <class T>
struct Exact {
  T* data;
  explicit Exact(int count) : data(static_cast<T*>(malloc(sizeof(T) * (count ? count : 1)))) {
    memset(static_cast<void*>(data), kGuard, sizeof(T) * (count ? count : 1));
  }
  ~Exact() { free(data); }
  Exact(const Exact&) = delete;
  Exact& operator=(const Exact&) = delete;
};

template <class T>
void check_partial() {
  typedef ComputeType<T> C;
  constexpr int kLane = kLanes<C>;
  for (int count = 0; count < kLane; ++count) {
    const Exact<T> source(count);
    for (int i = 0; i < count; ++i) source.data[i] = from_compute<T>(C(i) - C(2.5));
    const Vec<C> value = load_partial<C>(source.data, count, C(-7));
    for (int i = 0; i < kLane; ++i) {
      CHECK_THAT(value[i] == (i < count ? C(i) - C(2.5) : C(-7)), "lane %d of %d is %g", i, count,
                 double(value[i]));
    }
    CHECK(count == kLane || load_partial<C>(source.data, count)[kLane - 1] == C(0));
    const Exact<T> exact(count);
    store_partial<C>(exact.data, value, count);
    CHECK(memcmp(exact.data, source.data, sizeof(T) * count) == 0);
    // and one that goes on: what lies behind stays
    T target[kLane];
    memset(static_cast<void*>(target), kGuard, sizeof target);
    store_partial<C>(target, value, count);
    const unsigned char* bytes = reinterpret_cast<const unsigned char*>(target);
    for (size_t i = sizeof(T) * count; i < sizeof target; ++i) {
      CHECK_THAT(bytes[i] == kGuard, "byte %d behind %d lanes was written", int(i), count);
    }
  }
}

template <class T>
void check_whole() {
  typedef ComputeType<T> C;
  constexpr int kLane = kLanes<C>;
  // every alignment that the element's own size allows
  for (int offset = 0; offset < kLane; ++offset) {
    T source[2 * kLane], target[2 * kLane];
    for (int i = 0; i < 2 * kLane; ++i) source[i] = from_compute<T>(C(i) * C(0.25) - C(3));
    memset(static_cast<void*>(target), kGuard, sizeof target);
    store<C>(target + offset, load<C>(source + offset));
    CHECK(memcmp(target + offset, source + offset, sizeof(T) * kLane) == 0);
    const unsigned char* bytes = reinterpret_cast<const unsigned char*>(target);
    for (size_t i = 0; i < sizeof(T) * offset; ++i) CHECK(bytes[i] == kGuard);
    for (size_t i = sizeof(T) * (offset + kLane); i < sizeof target; ++i) CHECK(bytes[i] == kGuard);
  }
}

template <class C>
void check_bytes() {
  constexpr int kLane = kLanes<C>;
  for (int first = 0; first < 256; ++first) {
    uint8_t source[kLane], target[kLane + 2];
    memset(target, kGuard, sizeof target);
    Mask<C> lanes = Mask<C>{};
    for (int i = 0; i < kLane; ++i) {
      source[i] = static_cast<uint8_t>(first + 37 * i);
      lanes[i] = source[i];
    }
    store_bytes<C>(target + 1, lanes);
    CHECK(memcmp(target + 1, source, kLane) == 0);
    CHECK(target[0] == kGuard && target[kLane + 1] == kGuard);
    const Mask<C> loaded = load_bytes<C>(source);
    for (int i = 0; i < kLane; ++i) CHECK(loaded[i] == source[i]);
  }
  for (int count = 0; count < kLane; ++count) {
    const Exact<uint8_t> source(count);
    for (int i = 0; i < count; ++i) source.data[i] = static_cast<uint8_t>(250 - i);
    const Mask<C> lanes = load_bytes_partial<C>(source.data, count);
    for (int i = 0; i < count; ++i) CHECK(lanes[i] == 250 - i);
    const Exact<uint8_t> target(count);
    store_bytes_partial<C>(target.data, lanes, count);
    CHECK(memcmp(target.data, source.data, count) == 0);
    uint8_t longer[kLane];
    memset(longer, kGuard, sizeof longer);
    store_bytes_partial<C>(longer, lanes, count);
    for (int i = count; i < kLane; ++i) CHECK(longer[i] == kGuard);
  }
}

template <class C>
void check_lanes() {
  constexpr int kLane = kLanes<C>;
  CHECK(signbit(broadcast<C>(C(-0.0))[0]) && !signbit(broadcast<C>(C(0.0))[0]));
  CHECK(isinf(broadcast<C>(C(INFINITY))[kLane - 1]));
  C sequence[2 * kLane], even_odd[2 * kLane], back[2 * kLane];
  for (int i = 0; i < 2 * kLane; ++i) sequence[i] = C(i + 1);
  Vec<C> even, odd, first, second;
  deinterleave<C>(load<C>(sequence), load<C>(sequence + kLane), &even, &odd);
  store<C>(even_odd, even);
  store<C>(even_odd + kLane, odd);
  interleave<C>(even, odd, &first, &second);
  store<C>(back, first);
  store<C>(back + kLane, second);
  for (int i = 0; i < kLane; ++i) {
    CHECK_THAT(even_odd[i] == sequence[2 * i], "even lane %d is %g", i, double(even_odd[i]));
    CHECK_THAT(even_odd[kLane + i] == sequence[2 * i + 1], "odd lane %d is %g", i,
               double(even_odd[kLane + i]));
  }
  CHECK(memcmp(back, sequence, sizeof sequence) == 0);

  for (int i = 0; i < kLane; ++i) CHECK(iota<C>(3, 2)[i] == 3 + 2 * i);
  CHECK(broadcast_integer<C>(-9)[kLane - 1] == -9);
  CHECK(reduce_add<C>(first) == C(kLane) * C(kLane + 1) / 2);
  // every lane counts once
  for (int lane = 0; lane < kLane; ++lane) {
    Vec<C> one = broadcast<C>(C(0));
    one[lane] = C(1);
    CHECK(reduce_add<C>(one) == C(1));
  }

  Vec<C> mixed = first;
  mixed[1] = C(NAN);
  const Mask<C> nan = is_nan(mixed);
  const Vec<C> chosen = select(mixed > C(1), mixed, broadcast<C>(C(-1)));
  for (int i = 0; i < kLane; ++i) {
    CHECK(nan[i] == (i == 1 ? -1 : 0));
    CHECK(i < 2 ? chosen[i] == C(-1) : chosen[i] == C(i + 1));
  }
}

}  // namespace

void test_memory() {
  check_whole<float>();
  check_whole<double>();
  check_whole<Half>();
  check_whole<BFloat16>();
  check_partial<float>();
  check_partial<double>();
  check_partial<Half>();
  check_partial<BFloat16>();
  check_bytes<float>();
  check_bytes<double>();
}

void test_lanes() {
  check_lanes<float>();
  check_lanes<double>();
}

}  // namespace CMF_ISA
}  // namespace cmf
