#pragma once

#include <torch/types.h>
#include <mixmatch/detail/counter_rng.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/io/printable.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace mixmatch::data {

using torch::Tensor;

/// Three disjoint sets of rows, int64 indices in ascending order, on the CPU.
struct SslSplit {
  Tensor labeled, unlabeled, validation;
};

namespace detail {

/// `total` as evenly as it goes over the classes; those that come first in `order` take the remainder.
inline std::vector<int64_t> balanced_shares(int64_t total, const std::vector<int64_t>& order) {
  const auto classes = static_cast<int64_t>(order.size());
  std::vector<int64_t> shares(order.size(), total / classes);
  for (int64_t i = 0; i < total % classes; ++i) {
    ++shares[static_cast<size_t>(order[static_cast<size_t>(i)])];
  }
  return shares;
}

inline Tensor ascending(std::vector<int64_t> indices) {
  std::sort(indices.begin(), indices.end());
  return at::tensor(indices, at::kLong);
}

/// A class for a message: its name, or its number where it has none.
inline std::string class_text(size_t number, const std::vector<std::string>& class_names) {
  return number < class_names.size()
             ? c10::str('"', mixmatch::detail::printable_beginning(class_names[number], 80), '"')
             : std::to_string(number);
}

/// split_labels() whose errors begin with `asker`, and where a class has too few rows end in `advice`.
inline SslSplit split_labels(const std::string& asker, const std::string& advice, const Tensor& labels,
                             int64_t num_labeled, int64_t num_validation, uint64_t seed,
                             const std::vector<std::string>& class_names) {
  TORCH_CHECK(labels.defined() && labels.dim() == 1 && labels.scalar_type() == at::kLong, asker,
              ": labels must be int64 [N], got ", mixmatch::detail::type_and_sizes(labels));
  TORCH_CHECK(num_labeled >= 0, asker, ": num_labeled must be >= 0, got ", num_labeled);
  TORCH_CHECK(num_validation >= 0, asker, ": num_validation must be >= 0, got ", num_validation);
  const Tensor on_cpu = labels.cpu().contiguous();
  const auto* label = on_cpu.data_ptr<int64_t>();
  const int64_t size = on_cpu.numel();
  const int64_t classes = size == 0 ? 0 : *std::max_element(label, label + size) + 1;
  TORCH_CHECK(classes > 0, asker, ": labels has no row with a label, of ", size);

  std::vector<std::vector<int64_t>> members(static_cast<size_t>(classes));
  std::vector<int64_t> unlabeled;
  for (int64_t i = 0; i < size; ++i) {
    TORCH_CHECK(label[i] >= -1, asker, ": labels must be >= -1, got ", label[i], " in row ", i);
    (label[i] < 0 ? unlabeled : members[static_cast<size_t>(label[i])]).push_back(i);
  }

  // Stream 0 orders the classes; each class has a stream of its own. Labeled rows come from the front of a
  // class's shuffled rows, validation rows from the back.
  mixmatch::detail::CounterRng class_rng(seed);
  std::vector<int64_t> order(members.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  class_rng.shuffle(order.data(), classes);
  const auto labeled_shares = balanced_shares(num_labeled, order);
  std::reverse(order.begin(), order.end());
  const auto validation_shares = balanced_shares(num_validation, order);

  std::vector<int64_t> labeled;
  std::vector<int64_t> validation;
  for (size_t c = 0; c < members.size(); ++c) {
    auto& rows = members[c];
    const auto available = static_cast<int64_t>(rows.size());
    TORCH_CHECK(labeled_shares[c] + validation_shares[c] <= available, asker, ": class ",
                class_text(c, class_names), " has ", available, available == 1 ? " row" : " rows",
                ", too few for ", labeled_shares[c], " labeled and ", validation_shares[c],
                " validation rows (", num_labeled, " and ", num_validation, " over ", classes, " classes)",
                advice);
    mixmatch::detail::CounterRng rng(seed, 1 + c);
    rng.shuffle(rows.data(), available);
    const auto labeled_end = rows.begin() + labeled_shares[c];
    const auto validation_begin = rows.end() - validation_shares[c];
    labeled.insert(labeled.end(), rows.begin(), labeled_end);
    unlabeled.insert(unlabeled.end(), labeled_end, validation_begin);
    validation.insert(validation.end(), validation_begin, rows.end());
  }
  return {ascending(std::move(labeled)), ascending(std::move(unlabeled)), ascending(std::move(validation))};
}

/// split_by_rows() whose errors begin with `asker`, and where a class has too few rows end in `advice`.
inline SslSplit split_by_rows(const std::string& asker, const std::string& advice, const Tensor& labels,
                              const Tensor& labeled, int64_t num_validation, uint64_t seed,
                              const std::vector<std::string>& class_names) {
  TORCH_CHECK(labels.defined() && labels.dim() == 1 && labels.scalar_type() == at::kLong &&
                  labeled.defined() && labeled.dim() == 1 && labeled.scalar_type() == at::kLong,
              asker, ": labels and labeled must be int64 [N] and [M]");
  Tensor hidden = labels.cpu().clone();
  auto* label = hidden.data_ptr<int64_t>();
  const Tensor rows = labeled.cpu().contiguous();
  const Tensor chosen = at::zeros({hidden.numel()}, at::kBool);
  auto* taken = chosen.data_ptr<bool>();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    const int64_t row = rows.data_ptr<int64_t>()[i];
    TORCH_CHECK(row >= 0 && row < hidden.numel(), asker, ": labeled row ", row, " is not in [0, ",
                hidden.numel(), ")");
    TORCH_CHECK(label[row] >= 0, asker, ": labeled row ", row,
                taken[row] ? " is given twice" : " has no label");
    label[row] = -1;
    taken[row] = true;
  }
  Tensor validation = at::empty({0}, at::kLong), rest = at::arange(hidden.numel(), at::kLong);
  if (hidden.numel() > 0 && hidden.max().item<int64_t>() >= 0) {
    const SslSplit others = split_labels(asker, advice, hidden, 0, num_validation, seed, class_names);
    validation = others.validation;
    rest = others.unlabeled;
  } else {
    TORCH_CHECK(num_validation == 0, asker, ": no labeled row is left for ", num_validation,
                " validation rows");
  }
  return {chosen.nonzero().view(-1), rest.masked_select(chosen.index_select(0, rest).logical_not_()),
          validation};
}

}  // namespace detail

/// Hides the labels of a labeled data set: chooses `num_labeled` rows that keep theirs and `num_validation`
/// rows that training never sees; all others are unlabeled.
///
/// `labels`: int64 [N] on any device, classes 0 … max, -1 for a row without a label, which is always
/// unlabeled. Labeled and validation rows are class-balanced: each class has the same number, and where that
/// does not divide, classes drawn from the seed have one more. The split is a pure function of its arguments
/// on every machine. For one seed the labeled rows do not depend on num_validation nor the validation rows on
/// num_labeled, and a balanced smaller labeled set is part of a larger one. Throws on other dtypes and
/// shapes, on negative numbers, and where a class has too few rows; the message then has the class's name, if
/// `class_names` has one.
inline SslSplit split_labels(const Tensor& labels, int64_t num_labeled, int64_t num_validation, uint64_t seed,
                             const std::vector<std::string>& class_names = {}) {
  return detail::split_labels("split_labels", "", labels, num_labeled, num_validation, seed, class_names);
}

/// The split in which the given rows are the labeled ones, an official fold say; validation rows are drawn
/// from the others as by split_labels(), and what then remains is unlabeled.
///
/// `labeled`: int64 [M], each row at most once, of known label. Throws on other rows and as split_labels().
inline SslSplit split_by_rows(const Tensor& labels, const Tensor& labeled, int64_t num_validation,
                              uint64_t seed, const std::vector<std::string>& class_names = {}) {
  return detail::split_by_rows("split_by_rows", "", labels, labeled, num_validation, seed, class_names);
}

}  // namespace mixmatch::data
