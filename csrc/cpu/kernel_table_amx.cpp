// The table of CPUs with a matrix unit: AVX-512's, and the kernels that use it.
#include "cpu/implicit_gemm.h"
#include "cpu/kernel_table.h"

namespace cmf {

const KernelTable& kernel_table_avx512();
const KernelTable& kernel_table_amx();

const KernelTable& kernel_table_amx() {
  static const KernelTable table = [] {
    KernelTable t = kernel_table_avx512();
    t.isa = "amx";
    t.conv_act_pool2d[static_cast<int>(ConvAlgorithm::kImplicitGemm)] = {
        amx::implicit_gemm_refusal,
        amx::implicit_gemm_forward,
        nullptr,
        amx::implicit_gemm_prepared_size,
        amx::implicit_gemm_prepare,
        nullptr,
        nullptr,
        nullptr};
    return t;
  }();
  return table;
}

}  // namespace cmf
