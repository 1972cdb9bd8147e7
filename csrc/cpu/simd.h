// A width-generic vector of float or double on the compiler's vector extensions.
//
// One kernel source is compiled for every instruction set; the width follows from what the compiler
// may use. Arithmetic, comparisons and `mask ? a : b` are the language's own; these headers add
// what the language lacks: loads and stores of every storage type, narrow bytes, and
// (de)interleaving.
#pragma once

#include "cpu/simd_memory.h"   // load, store, their partial forms, store_bytes, load_bytes
#include "cpu/simd_shuffle.h"  // deinterleave, interleave, reduce_add
#include "cpu/simd_types.h"    // Vec, Mask, kLanes, broadcast, select, is_nan, bit_cast
