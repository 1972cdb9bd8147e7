// The tests that are compiled once per instruction set, with its flags.
#pragma once

#include "tests/check.h"

namespace cmf {
namespace CMF_ISA {

void test_half();
void test_memory();
void test_lanes();
void test_vector_math();
void test_activation();

}  // namespace CMF_ISA
}  // namespace cmf
