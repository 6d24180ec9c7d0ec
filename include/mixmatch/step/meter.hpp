#pragma once

#include <mixmatch/detail/cuda/cuda_meter.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/step/step_loss.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch {

/// Means over steps, by name: of how many numbers each is the mean, and whether all losses and gradients were
/// finite. `values` is NaN where `counts` is 0.
struct StepMeans {
  std::vector<std::string> names;
  std::vector<double> values, counts;
  bool finite = true;

  /// Of one step whose numbers the caller has; NaN is no number. The first is the loss.
  static StepMeans of_step(const std::vector<std::pair<std::string, double>>& numbers, bool finite = true) {
    StepMeans means;
    for (size_t i = 0; i < numbers.size(); ++i) {
      means.names.push_back(numbers[i].first);
      means.values.push_back(numbers[i].second);
      means.counts.push_back(i > 0 && std::isnan(numbers[i].second) ? 0 : 1);
    }
    means.finite = finite;
    return means;
  }

  /// What is not finite, loss or gradient, as a message has it; "" where all is.
  std::string problem() const {
    return !std::isfinite(values[0]) ? c10::str("the loss is ", values[0])
           : finite                  ? ""
                                     : "a gradient is not finite";
  }
};

/// Adds up the losses of steps on their device, so that the host waits for it once for many steps. A part of
/// what GraphedStep captures: state() is what add() changes.
///
///     meter.add(loss, finite);                 // each step
///     const StepMeans means = meter.read();    // once a row; waits, and starts anew
class Meter {
 public:
  /// Room for the loss and `capacity` - 1 names.
  explicit Meter(torch::Device device, int64_t capacity = 32)
      : sums_(at::zeros({capacity}, at::TensorOptions(device).dtype(at::kDouble))),
        counts_(at::zeros_like(sums_)),
        finite_(at::ones({}, at::TensorOptions(device).dtype(at::kBool))) {}

  /// `finite`: bool [] on the device, whether every gradient was. NaN is counted as no number, but for the
  /// total, where it must show. Throws if the names are not those of the first call.
  void add(const StepLoss& loss, const Tensor& finite) {
    const torch::NoGradGuard no_grad;
    check(loss);
    std::vector<Tensor> numbers{loss.total.detach()};
    for (const auto& [name, value] : loss.values) {
      numbers.push_back(value.detach());
    }
    if (detail::add_numbers_on_cuda(sums_, counts_, finite_, finite, numbers)) {
      return;
    }
    for (Tensor& number : numbers) {
      number = number.to(sums_.options()).squeeze();
    }
    const Tensor values = at::stack(numbers);
    Tensor known = values.isnan().logical_not_();
    known.narrow(0, 0, 1).fill_(true);
    const auto size = static_cast<int64_t>(numbers.size());
    sums_.narrow(0, 0, size).add_(at::where(known, values, at::zeros_like(values)));
    counts_.narrow(0, 0, size).add_(known);
    finite_.logical_and_(finite);
  }

  /// Throws where add() would: before a step has changed anything.
  void check(const StepLoss& loss) {
    TORCH_CHECK(loss.total.defined() && loss.total.numel() == 1, "StepLoss: total must be a scalar, got ",
                detail::sizes_text(loss.total));
    for (const auto& [name, value] : loss.values) {
      TORCH_CHECK(value.defined() && value.numel() == 1, "StepLoss: ", name, " must be a scalar, got ",
                  detail::sizes_text(value));
    }
    if (names_.empty()) {
      TORCH_CHECK(static_cast<int64_t>(loss.values.size()) < sums_.size(0), "Meter: ", loss.values.size(),
                  " values do not fit a capacity of ", sums_.size(0), ", the loss included");
      names_.emplace_back("loss");
      for (const auto& [name, value] : loss.values) {
        names_.push_back(name);
      }
    }
    bool same = names_.size() == loss.values.size() + 1;
    for (size_t i = 0; same && i < loss.values.size(); ++i) {
      same = names_[i + 1] == loss.values[i].first;
    }
    TORCH_CHECK(same, "StepLoss: a method must give the same values at each step");
  }

  /// Waits for the device.
  StepMeans read() {
    const torch::NoGradGuard no_grad;
    const auto size = static_cast<int64_t>(names_.size());
    // One wait for all of it.
    const Tensor read = at::cat({sums_.narrow(0, 0, size), counts_.narrow(0, 0, size),
                                 finite_.to(sums_.scalar_type()).view({1})})
                            .cpu();
    const Tensor counts = read.narrow(0, size, size), means = read.narrow(0, 0, size) / counts;
    StepMeans result;
    result.names = names_;
    result.values.assign(means.data_ptr<double>(), means.data_ptr<double>() + size);
    result.counts.assign(counts.data_ptr<double>(), counts.data_ptr<double>() + size);
    result.finite = read[2 * size].item<double>() != 0;
    sums_.zero_();
    counts_.zero_();
    finite_.fill_(true);
    return result;
  }

  std::vector<Tensor> state() const { return {sums_, counts_, finite_}; }

 private:
  std::vector<std::string> names_;
  Tensor sums_, counts_, finite_;
};

}  // namespace mixmatch
