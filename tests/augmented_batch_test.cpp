#include <mixmatch/data/shapes.hpp>
#include <mixmatch/detail/join_rows.hpp>
#include <mixmatch/step/augmented_batch.hpp>
#include <mixmatch/step/prefetch.hpp>

#include <set>
#include <vector>

#include "catch.hpp"

using namespace mixmatch;

namespace {

struct Setup {
  training::TrainingOptions options{presets::cifar10};
  int64_t views = 2;
  data::ImageDataset shapes = data::make_shapes(60, 3);
  training::TrainingData data{
      data::ImagePool({shapes}), data::split_labels(shapes.labels, 20, 10, 1), {}, {}};

  Setup() { options.batch = 6; }
  auto batches() const { return training::augmented_batches(options, data, torch::kCPU, views); }
};

bool equal(const Batch& a, const Batch& b) {
  bool same = torch::equal(a.labeled, b.labeled) && torch::equal(a.labels, b.labels) &&
              a.weak.size() == b.weak.size() && a.hidden_labels.defined() == b.hidden_labels.defined() &&
              (!a.hidden_labels.defined() || torch::equal(a.hidden_labels, b.hidden_labels));
  for (size_t k = 0; same && k < a.weak.size(); ++k) {
    same = torch::equal(a.weak[k], b.weak[k]);
  }
  return same;
}

}  // namespace

TEST_CASE("augmented_batches: a function of the step, ahead or not, in any order") {
  const Setup setup;
  const auto forwards = setup.batches(), backwards = setup.batches();
  std::vector<Batch> list;
  for (int64_t step = 0; step < 12; ++step) {
    list.push_back(forwards(step));
  }
  for (int64_t step = 11; step >= 0; --step) {
    CHECK(equal(backwards(step), list[static_cast<size_t>(step)]));
  }
  training::Prefetch<Batch> prefetch(setup.batches());
  for (int64_t step = 5; step < 12; ++step) {
    CHECK(equal(prefetch(step), list[static_cast<size_t>(step)]));
  }
  CHECK_FALSE(torch::equal(list[0].labeled, list[1].labeled));
  CHECK_FALSE(torch::equal(list[0].weak[0], list[0].weak[1]));
  auto other = setup;
  other.options.seed = 2;
  CHECK_FALSE(equal(other.batches()(0), list[0]));
}

TEST_CASE("augmented_batches: the rows of the state's streams, augmented but unmixed") {
  Setup setup;
  setup.options.padding = 0;
  setup.options.mirror = false;
  const auto options = training::train_state_options(setup.options);
  auto labeled = training::labeled_stream(setup.data.split.labeled, options);
  auto unlabeled = training::unlabeled_stream(setup.data.split.unlabeled, options);
  const auto batches = setup.batches();
  for (int64_t step = 0; step < 9; ++step) {  // more than an epoch of labeled rows
    const auto batch = batches(step);
    const Tensor rows = labeled.next(), unlabeled_rows = unlabeled->next();
    CHECK(torch::equal(batch.labeled, augment::normalize(setup.data.pool.gather(rows))));
    CHECK(torch::equal(batch.labels, setup.data.pool.labels_of(rows, torch::kCPU)));
    REQUIRE(batch.weak.size() == 2);
    CHECK(torch::equal(batch.weak[1], augment::normalize(setup.data.pool.gather(unlabeled_rows))));
    CHECK(torch::equal(batch.hidden_labels, setup.data.pool.labels_of(unlabeled_rows, torch::kCPU)));
  }
}

TEST_CASE("augmented_batches: one tensor holds all images of a step") {
  const Setup setup;
  const auto batch = setup.batches()(2);
  const Tensor all = mixmatch::detail::join_rows({batch.labeled, batch.weak[0], batch.weak[1]});
  CHECK(all.data_ptr() == batch.labeled.data_ptr());
  CHECK(torch::equal(all.narrow(0, 12, 6), batch.weak[1]));
}

TEST_CASE("augmented_batches: steps take the memory of those that are over, and of no other") {
  for (const int64_t views : {2, 0}) {
    Setup setup;
    setup.views = views;
    training::Prefetch<Batch> batches(setup.batches());
    const auto other = setup.batches();
    const Batch kept = batches(0);
    std::set<void*> addresses;
    for (int64_t step = 1; step < 12; ++step) {
      const auto batch = batches(step);
      addresses.insert(batch.labeled.data_ptr());
      CHECK(equal(batch, other(step)));
    }
    CHECK(addresses.size() <= 2);  // this step's, and the next one's
    CHECK(addresses.count(kept.labeled.data_ptr()) == 0);
    CHECK(equal(kept, other(0)));
  }
}

TEST_CASE("augmented_batches: labeled images alone where the method or the data has no others") {
  Setup setup;
  const auto with_views = setup.batches()(3);
  setup.views = 0;
  auto batch = setup.batches()(3);
  CHECK(batch.weak.empty());
  CHECK(torch::equal(batch.labeled, with_views.labeled));
  setup.views = 2;
  setup.data.split.unlabeled = torch::empty({0}, torch::kLong);
  CHECK(setup.batches()(0).weak.empty());
}
