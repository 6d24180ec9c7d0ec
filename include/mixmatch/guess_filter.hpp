#pragma once

#include <torch/arg.h>
#include <torch/serialize.h>
#include <mixmatch/alignment.hpp>
#include <mixmatch/energy_gate.hpp>
#include <mixmatch/guess_labels.hpp>
#include <mixmatch/sharpen.hpp>

#include <optional>
#include <vector>

namespace mixmatch {

struct GuessFilterOptions {
  /// The classes' shares that guesses are aligned to, floating-point [L]; undefined: no alignment.
  TORCH_ARG(Tensor, prior) = {};
  TORCH_ARG(DistributionAlignmentOptions, alignment) = {};
  /// Leaves rows out that look like no class.
  TORCH_ARG(bool, open_set) = false;
  TORCH_ARG(EnergyGateOptions, gate) = {};
};

/// What unlabeled rows are learnt by, all without gradient.
struct FilteredGuess {
  Tensor probabilities;  ///< [N, L], rows that sum to 1
  Tensor weights;        ///< float32 [N]: 0 where a row is left out, else 1; undefined where none is

  /// A mask of rows, [N], without those that are left out.
  Tensor kept(const Tensor& mask) const {
    return weights.defined() ? mask * weights.to(mask.scalar_type()) : mask;
  }
  /// Adds open_set_rate, the share of rows that are left out, to what a method reports, where there is a
  /// gate.
  template <class Loss>
  Loss reported(Loss loss) const {
    if (weights.defined()) {
      loss.values.emplace_back("open_set_rate", 1 - weights.mean());
    }
    return loss;
  }
};

/// What stands between a model's predictions and the labels that are guessed from them, where unlabeled
/// images are not as the labeled ones: DistributionAlignment for classes of unequal size, EnergyGate for
/// images of no class. Either, both, or by default neither. A method has one, calls it once a step, and gives
/// its state on as its own:
///
///     const auto guess = filter(logits);                               // [N, L] of each view
///     … sharpen or select guess.probabilities …  guess.kept(mask) …    return guess.reported(loss);
class GuessFilter {
 public:
  explicit GuessFilter(const GuessFilterOptions& options = {}) {
    if (options.prior().defined()) {
      alignment_.emplace(options.prior(), options.alignment());
    }
    if (options.open_set()) {
      gate_.emplace(options.gate());
    }
  }

  /// Whether it leaves everything as it is.
  bool empty() const { return !alignment_.has_value() && !gate_.has_value(); }

  /// The mean over views of softmax(logits), aligned, and the rows' weights. `logits`: K >= 1 views of [N,
  /// L].
  FilteredGuess operator()(const std::vector<Tensor>& logits) {
    const torch::NoGradGuard no_grad;
    FilteredGuess guess{logits.size() == 1 ? torch::softmax(detail::float_logits(logits.front()), 1)
                                           : guess_labels_from_logits(logits, /*temperature=*/1),
                        {}};
    if (gate_.has_value()) {
      guess.weights = gate_->keep(logits);
    }
    if (alignment_.has_value()) {
      guess.probabilities = alignment_->align(guess.probabilities);
    }
    return guess;
  }

  /// What operator() changes.
  std::vector<Tensor> state() const {
    std::vector<Tensor> all;
    visit([&all](const char*, const auto& part) {
      const auto state = part.state();
      all.insert(all.end(), state.begin(), state.end());
    });
    return all;
  }
  void save(torch::serialize::OutputArchive& archive) const {
    archive.write("aligned", c10::IValue(alignment_.has_value()));
    archive.write("gated", c10::IValue(gate_.has_value()));
    visit([&archive](const char* name, const auto& part) {
      torch::serialize::OutputArchive nested(archive.compilation_unit());
      part.save(nested);
      archive.write(name, nested);
    });
  }
  /// Throws where a filter of other parts was saved.
  void load(torch::serialize::InputArchive& archive) {
    for (const auto& [key, mine] :
         {std::pair{"aligned", alignment_.has_value()}, {"gated", gate_.has_value()}}) {
      c10::IValue saved;
      TORCH_CHECK(archive.try_read(key, saved) && saved.isBool(), "GuessFilter: the archive holds no filter");
      TORCH_CHECK(saved.toBool() == mine, "GuessFilter: the saved filter has \"", key, "\" ",
                  saved.toBool() ? "on" : "off", ", this one ", mine ? "on" : "off");
    }
    const auto read = [&archive](const char* name, auto& part) {
      torch::serialize::InputArchive nested;
      archive.read(name, nested);
      part.load(nested);
    };
    if (alignment_.has_value()) {
      read("alignment", *alignment_);
    }
    if (gate_.has_value()) {
      read("gate", *gate_);
    }
  }
  void to(torch::Device device) {
    if (alignment_.has_value()) {
      alignment_->to(device);
    }
    if (gate_.has_value()) {
      gate_->to(device);
    }
  }

 private:
  template <class Visit>
  void visit(Visit&& visit) const {
    if (alignment_.has_value()) {
      visit("alignment", *alignment_);
    }
    if (gate_.has_value()) {
      visit("gate", *gate_);
    }
  }

  std::optional<DistributionAlignment> alignment_;
  std::optional<EnergyGate> gate_;
};

/// guess_labels() with a filter between the mean over views and sharpening; with an empty one the same.
template <class Model>
FilteredGuess guess_labels(Model& model, const std::vector<Tensor>& views, const GuessLabelsOptions& options,
                           GuessFilter& filter) {
  if (filter.empty()) {
    return {guess_labels(model, views, options), {}};
  }
  const torch::NoGradGuard no_grad;
  auto guess = filter(detail::guess_logits("guess_labels", model, views, options));
  guess.probabilities = sharpen(guess.probabilities, options.temperature());
  return guess;
}

}  // namespace mixmatch
