#pragma once

#include <torch/types.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace mixmatch::detail {

using torch::Tensor;

/// Copies of weights in another precision, in the places where layers keep their weights: a layer computes
/// with what its member holds, and the parameter that is registered stays what it is. In place from
/// construction on; the layers have their own weights back when it goes. Of one thread.
class WeightCopies {
 public:
  struct Place {
    Tensor* member;  ///< a layer's
    Tensor copy;     ///< and afterwards, what is not in place
  };

  /// `of_averages`: see in_averages_place(); may be null.
  WeightCopies(std::vector<Place> places, at::ScalarType type,
               std::function<std::vector<Place>()> of_averages = nullptr)
      : places_(std::move(places)),
        type_(type),
        of_averages_(std::move(of_averages)),
        before_(std::exchange(in_use(), this)) {
    change();
  }
  WeightCopies(const WeightCopies&) = delete;
  WeightCopies& operator=(const WeightCopies&) = delete;
  ~WeightCopies() {
    if (suspended_ == 0) {
      change();
    }
    in_use() = before_;
  }

  /// Those of this thread's innermost scope; null: none.
  static WeightCopies*& in_use() {
    static thread_local WeightCopies* copies = nullptr;
    return copies;
  }

  at::ScalarType type() const { return type_; }

  /// For moving averages that are the parameters' values by now, while these copies are suspended: such
  /// copies of the averages; null where none can be made at once.
  std::unique_ptr<WeightCopies> in_averages_place() const {
    // Suspended by something else too, they are not what the layers would have.
    auto places = of_averages_ && suspended_ == 1 ? of_averages_() : std::vector<Place>();
    return places.empty() ? nullptr : std::make_unique<WeightCopies>(std::move(places), type_);
  }

  /// The layers have their own weights until as many calls of resume().
  void suspend() {
    if (suspended_++ == 0) {
      change();
    }
  }
  void resume() {
    if (--suspended_ == 0) {
      change();
    }
  }

 private:
  void change() {
    for (Place& place : places_) {
      std::swap(*place.member, place.copy);
    }
  }

  std::vector<Place> places_;
  at::ScalarType type_;
  std::function<std::vector<Place>()> of_averages_;
  WeightCopies* before_;
  int suspended_ = 0;
};

}  // namespace mixmatch::detail
