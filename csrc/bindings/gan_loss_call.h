// A GAN loss as Python gives it: its problem, and its checked addresses.
#pragma once

#include <pybind11/pybind11.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "common/gan_loss_problem.h"

namespace cmf {

// The problem with the terms that it points to.
class GanLoss {
 public:
  GanLoss(const std::string& function, const std::string& reduction,
          const std::vector<int64_t>& counts, const std::vector<double>& parameters,
          const std::vector<double>& scales, const std::string& dtype,
          const std::string& loss_dtype);
  GanLoss(const GanLoss&) = delete;
  GanLoss& operator=(const GanLoss&) = delete;

  int itemsize() const;
  int loss_itemsize() const;

  GanLossProblem problem;
  std::vector<GanLossTerm> terms;
  int64_t elements = 0;
};

// Throws where an address is not a multiple of `item_size`, or is 0 and may not be.
void check_address(const char* argument, uintptr_t address, int item_size, bool may_be_null);

// The addresses of operands or gradients, term by term.
class GanLossAddresses {
 public:
  GanLossAddresses(const char* argument, const pybind11::tuple& given, const GanLoss& loss,
                   bool may_be_null);
  GanLossAddresses(const GanLossAddresses&) = delete;
  GanLossAddresses& operator=(const GanLossAddresses&) = delete;

  void* const* get() const { return values_; }

 private:
  static constexpr size_t kInline = 8;
  void* inline_[kInline];
  std::vector<void*> many_;
  void** values_;
};

}  // namespace cmf
