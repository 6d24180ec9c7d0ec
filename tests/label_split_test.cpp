#include <mixmatch/data/label_split.hpp>

#include "catch.hpp"
#include "test_util.hpp"

#include <set>
#include <vector>

using mixmatch::data::split_labels;
using mixmatch::data::SslSplit;
using torch::Tensor;

namespace {

std::vector<int64_t> values(const Tensor& tensor) {
  const auto* data = tensor.data_ptr<int64_t>();
  return {data, data + tensor.numel()};
}

Tensor counts(const Tensor& labels, const Tensor& rows, int64_t classes) {
  return labels.index_select(0, rows).bincount({}, classes);
}

/// Every row once, each set ascending.
void check_partition(const SslSplit& split, int64_t size) {
  std::multiset<int64_t> seen;
  for (const auto& part : {split.labeled, split.unlabeled, split.validation}) {
    CHECK(part.scalar_type() == at::kLong);
    CHECK(part.dim() == 1);
    const auto rows = values(part);
    CHECK(std::is_sorted(rows.begin(), rows.end()));
    seen.insert(rows.begin(), rows.end());
  }
  REQUIRE(static_cast<int64_t>(seen.size()) == size);
  int64_t expected = 0;
  for (const auto row : seen) {
    REQUIRE(row == expected++);
  }
}

}  // namespace

TEST_CASE("split_labels divides the rows class by class") {
  const auto labels = at::arange(1000, at::kLong).remainder(10);
  const auto split = split_labels(labels, 40, 200, 1);
  check_partition(split, 1000);
  CHECK(counts(labels, split.labeled, 10).equal(at::full({10}, 4, at::kLong)));
  CHECK(counts(labels, split.validation, 10).equal(at::full({10}, 20, at::kLong)));
  CHECK(counts(labels, split.unlabeled, 10).equal(at::full({10}, 76, at::kLong)));
}

TEST_CASE("split_labels is the same everywhere") {
  // Golden: shows any change of the generator or of the order in which it is used.
  const auto labels = at::arange(30, at::kLong).remainder(3);
  const auto split = split_labels(labels, 6, 3, 7);
  INFO(split.labeled << split.validation);
  CHECK(values(split.labeled) == std::vector<int64_t>{0, 2, 9, 10, 28, 29});
  CHECK(values(split.validation) == std::vector<int64_t>{4, 11, 12});
}

TEST_CASE("split_labels depends on the seed alone") {
  const auto labels = at::arange(5000, at::kLong).remainder(10);
  const auto split = split_labels(labels, 250, 500, 3);
  CHECK(split.labeled.equal(split_labels(labels, 250, 500, 3).labeled));
  CHECK_FALSE(split.labeled.equal(split_labels(labels, 250, 500, 4).labeled));
  CHECK_FALSE(split.validation.equal(split_labels(labels, 250, 500, 4).validation));
  // The labeled rows do not move with the validation set's size, nor the validation rows with the number of
  // labels.
  CHECK(split.labeled.equal(split_labels(labels, 250, 0, 3).labeled));
  CHECK(split.validation.equal(split_labels(labels, 1000, 500, 3).validation));
  // 40 labels are among the 250.
  const auto few = values(split_labels(labels, 40, 500, 3).labeled);
  const auto many = values(split.labeled);
  CHECK(std::includes(many.begin(), many.end(), few.begin(), few.end()));
}

TEST_CASE("split_labels gives the remainder to classes that the seed chooses") {
  const auto labels = at::arange(400, at::kLong).remainder(4);
  std::set<std::vector<int64_t>> patterns;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const auto split = split_labels(labels, 10, 7, seed);
    check_partition(split, 400);
    const auto labeled = counts(labels, split.labeled, 4);
    CHECK(labeled.min().item<int64_t>() == 2);
    CHECK(labeled.max().item<int64_t>() == 3);
    const auto validation = counts(labels, split.validation, 4);
    CHECK(validation.min().item<int64_t>() == 1);
    CHECK(validation.max().item<int64_t>() == 2);
    patterns.insert(values(labeled));
  }
  CHECK(patterns.size() == 6);  // two of four classes
}

TEST_CASE("split_labels with fewer labels than classes, none, or all") {
  const auto labels = at::arange(50, at::kLong).remainder(5);
  const auto few = split_labels(labels, 3, 0, 1);
  CHECK(few.labeled.numel() == 3);
  CHECK(counts(labels, few.labeled, 5).max().item<int64_t>() == 1);
  const auto none = split_labels(labels, 0, 0, 1);
  CHECK(none.labeled.numel() == 0);
  CHECK(none.unlabeled.numel() == 50);
  const auto all = split_labels(labels, 40, 10, 1);
  check_partition(all, 50);
  CHECK(all.unlabeled.numel() == 0);
}

TEST_CASE("split_labels leaves rows without a label unlabeled") {
  auto labels = at::arange(60, at::kLong).remainder(3);
  labels.narrow(0, 30, 30).fill_(-1);
  const auto split = split_labels(labels, 15, 6, 2);
  check_partition(split, 60);
  CHECK(split.labeled.max().item<int64_t>() < 30);
  CHECK(split.validation.max().item<int64_t>() < 30);
  CHECK(split.unlabeled.numel() == 39);
}

TEST_CASE("split_labels accepts strided labels") {
  const auto labels = at::arange(100, at::kLong).remainder(10);
  const auto strided = at::stack({labels, labels * 0}, 1).select(1, 0);
  REQUIRE_FALSE(strided.is_contiguous());
  CHECK(split_labels(strided, 20, 10, 1).labeled.equal(split_labels(labels, 20, 10, 1).labeled));
}

TEST_CASE("split_labels names what is wrong") {
  const auto labels = at::tensor({0, 0, 0, 1, 1, 2}, at::kLong);
  const auto message = [](const Tensor& tensor, int64_t labeled, int64_t validation) {
    return error_of([&] { split_labels(tensor, labeled, validation, 1); });
  };
  CHECK_THAT(message(labels, 6, 0), contains("class 2 has 1 row, too few for 2 labeled and 0 validation"));
  CHECK_THAT(message(labels, 3, 3), contains("class 2 has 1 row, too few for 1 labeled and 1 validation"));
  CHECK_THAT(message(labels, -1, 0), contains("num_labeled must be >= 0, got -1"));
  CHECK_THAT(message(labels, 0, -5), contains("num_validation must be >= 0, got -5"));
  CHECK_THAT(message(labels.to(at::kInt), 3, 0), contains("labels must be int64 [N], got Int"));
  CHECK_THAT(message(labels.view({2, 3}), 3, 0), contains("[2, 3]"));
  CHECK_THAT(message(Tensor(), 3, 0), contains("undefined"));
  CHECK_THAT(message(at::empty({0}, at::kLong), 0, 0), contains("no row with a label"));
  CHECK_THAT(message(at::full({4}, -1, at::kLong), 0, 0), contains("no row with a label"));
  CHECK_THAT(message(at::tensor({0, -2}, at::kLong), 1, 0), contains("got -2 in row 1"));
}

TEST_CASE("split_by_rows: the given rows are labeled, validation is drawn from the others") {
  const Tensor labels = torch::arange(40) % 4;
  const Tensor fold = torch::tensor({39, 0, 1, 2}, at::kLong);
  const auto split = mixmatch::data::split_by_rows(labels, fold, 8, 3);
  CHECK(torch::equal(split.labeled, torch::tensor({0, 1, 2, 39}, at::kLong)));
  CHECK(split.validation.size(0) == 8);
  CHECK(split.unlabeled.size(0) == 28);
  const Tensor all = std::get<0>(torch::cat({split.labeled, split.unlabeled, split.validation}).sort());
  CHECK(torch::equal(all, torch::arange(40)));
  for (int64_t c = 0; c < 4; ++c) {
    CHECK(labels.index_select(0, split.validation).eq(c).sum().item<int64_t>() == 2);
  }
  // Images without a label are unlabeled; all labeled leaves none.
  const Tensor some = torch::cat({labels, torch::full({5}, -1, at::kLong)});
  CHECK(mixmatch::data::split_by_rows(some, fold, 0, 3).unlabeled.size(0) == 41);
  CHECK(mixmatch::data::split_by_rows(labels, torch::arange(40), 0, 3).unlabeled.size(0) == 0);
}

TEST_CASE("split_by_rows: rows that do not fit") {
  const Tensor labels = torch::tensor({0, 1, -1}, at::kLong);
  const auto refused = [&](const Tensor& rows, int64_t validation = 0) {
    return error_of([&] { mixmatch::data::split_by_rows(labels, rows, validation, 1); });
  };
  CHECK_THAT(refused(torch::tensor({3}, at::kLong)), contains("labeled row 3 is not in [0, 3)"));
  CHECK_THAT(refused(torch::tensor({2}, at::kLong)), contains("labeled row 2 has no label"));
  CHECK_THAT(refused(torch::tensor({1, 1}, at::kLong)), contains("labeled row 1 is given twice"));
  CHECK_THAT(refused(torch::tensor({0.}, at::kDouble)), contains("must be int64"));
  CHECK_THAT(refused(torch::tensor({0, 1}, at::kLong), 1), contains("no labeled row is left"));
}

TEST_CASE("split_labels: a class that has too few rows is named") {
  const Tensor labels = torch::tensor({0, 0, 0, 1, -1}, torch::kLong);
  const std::vector<std::string> names{"cat", "d\x1bg"};
  CHECK_THAT(error_of([&] { split_labels(labels, 2, 2, 1, names); }),
             contains("class \"d\\x1bg\" has 1 row, too few for 1 labeled and 1 validation rows"));
  CHECK_THAT(error_of([&] { split_labels(labels, 2, 2, 1, {"cat"}); }), contains("class 1 has 1 row,"));
  CHECK_THAT(error_of([&] {
               mixmatch::data::split_by_rows(labels, torch::tensor({0, 1}), 4, 1, {"cat", "dog"});
             }),
             contains("class \"cat\" has 1 row, too few for 0 labeled and 2 validation"));
}
