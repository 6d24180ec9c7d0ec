#include <torch/serialize.h>
#include <mixmatch/data/shapes.hpp>
#include <mixmatch/detail/join_rows.hpp>
#include <mixmatch/step/feed.hpp>
#include <mixmatch/step/prefetch.hpp>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "cuda_emulation.hpp"
#include "test_util.hpp"

using mixmatch::Batch;
using mixmatch::augment::RandAugmentOptions;
using mixmatch::augment::RandomCropFlipOptions;
using mixmatch::detail::counter_words;
using mixmatch::detail::CounterRng;
using mixmatch::training::Feed;
using mixmatch::training::FeedOptions;
using mixmatch::training::TrainingData;
using torch::Tensor;

namespace cuda_emulation {
#include "cuda_augment.inc"
#include "cuda_shuffle.inc"
}  // namespace cuda_emulation

namespace {

TrainingData feed_data() {
  const auto shapes = mixmatch::data::make_shapes(60, 3);
  return {
      mixmatch::data::ImagePool({shapes}), mixmatch::data::split_labels(shapes.labels, 20, 10, 1), {}, {}};
}

FeedOptions feed_options(int64_t weak = 2, int64_t strong = 0) {
  return FeedOptions().batch_size(6).weak_views(weak).strong_views(strong);
}

/// Which leaves images as they are, but for their normalisation.
RandomCropFlipOptions no_crops() { return RandomCropFlipOptions().padding(0).mirror(false); }

Tensor feed_step(int64_t step) { return at::full({}, step, at::TensorOptions(at::kLong)); }

std::vector<Tensor> feed_tensors(const Batch& batch) {
  std::vector<Tensor> list{batch.labeled, batch.labels, batch.hidden_labels, batch.unlabeled_rows};
  list.insert(list.end(), batch.weak.begin(), batch.weak.end());
  list.insert(list.end(), batch.strong.begin(), batch.strong.end());
  return list;
}

bool same_batch(const Batch& a, const Batch& b) {
  const auto left = feed_tensors(a), right = feed_tensors(b);
  bool same = a.weak.size() == b.weak.size() && a.strong.size() == b.strong.size();
  for (size_t i = 0; same && i < left.size(); ++i) {
    same = left[i].defined() == right[i].defined() && (!left[i].defined() || left[i].equal(right[i]));
  }
  return same;
}

std::string saved_feed(const Feed& feed) {
  torch::serialize::OutputArchive archive;
  feed.save(archive);
  std::ostringstream out;
  archive.save_to(out);
  return out.str();
}

std::string feed_load_error(Feed feed, const std::string& bytes) {
  std::istringstream in(bytes);
  torch::serialize::InputArchive archive;
  archive.load_from(in);
  return error_of([&] { feed.load(archive); });
}

}  // namespace

TEST_CASE("Feed: a batch is a function of seed and step, ahead or not, in any order") {
  const auto data = feed_data();
  for (const int64_t strong : {0, 1}) {
    const auto options = feed_options(2, strong);
    const Feed forwards(data, options), backwards(data, options);
    std::vector<Batch> list;
    for (int64_t step = 0; step < 12; ++step) {
      list.push_back(forwards(feed_step(step)));
    }
    torch::manual_seed(7);
    const auto before = at::globalContext().defaultGenerator(at::kCPU).get_state().clone();
    for (int64_t step = 11; step >= 0; --step) {
      CHECK(same_batch(backwards(feed_step(step)), list[static_cast<size_t>(step)]));
    }
    CHECK(at::globalContext().defaultGenerator(at::kCPU).get_state().equal(before));
    mixmatch::training::Prefetch<Batch> ahead([&](int64_t step) { return forwards(feed_step(step)); });
    for (int64_t step = 5; step < 12; ++step) {
      CHECK(same_batch(ahead(step), list[static_cast<size_t>(step)]));
    }
    CHECK_FALSE(list[0].labeled.equal(list[1].labeled));
    CHECK_FALSE(list[0].weak[0].equal(list[0].weak[1]));
    const Feed other(data, FeedOptions(options).seed(2));
    CHECK_FALSE(same_batch(other(feed_step(0)), list[0]));
    // The images on their way: gathered here, augmented there.
    CHECK(same_batch(forwards.augment(backwards.gather(feed_step(3)), feed_step(3)), list[3]));
  }
}

TEST_CASE("Feed: the rows of the streams, augmented but unmixed") {
  const auto data = feed_data();
  for (const int64_t ratio : {1, 7}) {
    const Feed feed(data, feed_options(2, 1).unlabeled_ratio(ratio).seed(5).augmentation(no_crops()));
    const mixmatch::data::BatchStream labeled(data.split.labeled, 6, 5),
        unlabeled(data.split.unlabeled, 6 * ratio, 6);
    for (int64_t step = 0; step < 9; ++step) {  // more than an epoch of labeled rows
      const auto batch = feed(feed_step(step));
      const Tensor rows = labeled.rows(step), others = unlabeled.rows(step);
      const auto pixels = [&](const Tensor& of) {
        return mixmatch::augment::normalize(data.pool.gather(of));
      };
      CHECK(batch.labeled.equal(pixels(rows)));
      CHECK(batch.labels.equal(data.pool.labels_of(rows, torch::kCPU)));
      CHECK(batch.unlabeled_rows.equal(others));
      CHECK(batch.hidden_labels.equal(data.pool.labels_of(others, torch::kCPU)));
      REQUIRE(batch.weak.size() == 2);
      CHECK(batch.weak[0].equal(pixels(others)));
      CHECK(batch.weak[1].equal(pixels(others)));
      REQUIRE(batch.strong.size() == 1);
      CHECK(batch.strong[0].sizes() == batch.weak[0].sizes());
    }
  }
}

TEST_CASE("Feed: weak and strong views, as many as were asked for, each its own") {
  const auto data = feed_data();
  for (const auto& [weak, strong] :
       std::vector<std::pair<int64_t, int64_t>>{{2, 0}, {1, 1}, {0, 1}, {3, 2}, {1, 0}}) {
    const auto batch = Feed(data, feed_options(weak, strong).unlabeled_ratio(2))(feed_step(4));
    CHECK(batch.labeled.sizes() == at::IntArrayRef({6, 3, 32, 32}));
    REQUIRE(batch.weak.size() == static_cast<size_t>(weak));
    REQUIRE(batch.strong.size() == static_cast<size_t>(strong));
    std::vector<Tensor> views = batch.weak;
    views.insert(views.end(), batch.strong.begin(), batch.strong.end());
    for (size_t i = 0; i < views.size(); ++i) {
      CHECK(views[i].sizes() == at::IntArrayRef({12, 3, 32, 32}));
      CHECK(views[i].scalar_type() == at::kFloat);
      CHECK(views[i].is_contiguous(at::MemoryFormat::ChannelsLast));
      for (size_t k = 0; k < i; ++k) {
        CHECK_FALSE(views[i].equal(views[k]));
      }
    }
    CHECK(batch.unlabeled_rows.size(0) == 12);
  }
}

TEST_CASE("Feed: one tensor holds labeled and weakly augmented images") {
  const auto batch = Feed(feed_data(), feed_options(2, 1))(feed_step(2));
  const Tensor all = mixmatch::detail::join_rows({batch.labeled, batch.weak[0], batch.weak[1]});
  CHECK(all.data_ptr() == batch.labeled.data_ptr());
  CHECK(all.narrow(0, 12, 6).equal(batch.weak[1]));
  // Autograd sees parts of their own: what overwrites one leaves what was saved of the others.
  const Tensor factor = at::ones({}).requires_grad_();
  const Tensor loss = (factor * batch.weak[0]).sum();
  Tensor labeled = batch.labeled;
  labeled.zero_();
  loss.backward();
  CHECK(factor.grad().item<float>() == Approx(batch.weak[0].sum().item<float>()));
}

TEST_CASE("Feed: crops by SplitMix64's numbers, strong views by RandAugment of them") {
  const auto data = feed_data();
  const auto randaugment = RandAugmentOptions::uda();
  const int64_t draws = rand_augment_draws(randaugment), padding = 3;
  const int64_t labeled = 6, unlabeled = 12, images = labeled + 3 * unlabeled, step = 8;
  const Feed feed(data, feed_options(2, 1)
                            .unlabeled_ratio(2)
                            .seed(11)
                            .augmentation(RandomCropFlipOptions().padding(padding))
                            .strong_augmentation(randaugment));
  const auto batch = feed(feed_step(step));
  // Mirror, row and column of each image, then the strong views' numbers, one image after the other.
  CounterRng random(mixmatch::detail::mix_bits(uint64_t{11}) ^ 0xA5A5A5A5A5A5A5A5U, step);
  std::vector<std::vector<int64_t>> offsets;
  for (const int64_t bound : {int64_t{2}, 2 * padding + 1, 2 * padding + 1}) {
    offsets.emplace_back();
    for (int64_t i = 0; i < images; ++i) {
      offsets.back().push_back(static_cast<int64_t>(random.next() >> 32) * bound >> 32);
    }
  }
  const mixmatch::detail::CropFlip crops{padding, at::tensor(offsets[0]), at::tensor(offsets[1]),
                                         at::tensor(offsets[2])};
  std::vector<float> uniform;
  for (int64_t i = 0; i < unlabeled * draws; ++i) {
    uniform.push_back(static_cast<float>(random.next() >> 40) / static_cast<float>(1 << 24));
  }
  const auto raw = feed.gather(feed_step(step));
  const Tensor others = raw.images.narrow(0, labeled, unlabeled);
  const Tensor cropped = mixmatch::detail::crop_flip_composite(
      at::cat({raw.images.narrow(0, 0, labeled), others, others, others}), crops);
  const Tensor weak = mixmatch::augment::normalize(cropped);
  CHECK(batch.labeled.equal(weak.narrow(0, 0, labeled)));
  CHECK(batch.weak[0].equal(weak.narrow(0, labeled, unlabeled)));
  CHECK(batch.weak[1].equal(weak.narrow(0, labeled + unlabeled, unlabeled)));
  const Tensor strong = rand_augment_with(cropped.narrow(0, labeled + 2 * unlabeled, unlabeled),
                                          at::tensor(uniform).view({unlabeled, draws}), randaugment);
  CHECK(batch.strong[0].equal(mixmatch::augment::normalize(strong)));
  CHECK_FALSE(strong.equal(cropped.narrow(0, labeled + 2 * unlabeled, unlabeled)));
}

TEST_CASE("Feed: resized crops and colour jitter by the same numbers, in place of crops and after them") {
  using namespace mixmatch::augment;
  const auto data = feed_data();
  const auto crop = RandomResizedCropOptions().min_scale(0.3);
  const auto jitter = ColorJitterOptions::of_strength(0.5);
  const auto randaugment = RandAugmentOptions::fixmatch();
  const int64_t labeled = 6, unlabeled = 6, weak = labeled + 2 * unlabeled, images = weak + unlabeled,
                step = 5;
  const int64_t strong_draws = rand_augment_draws(randaugment);
  for (const bool resizes : {false, true}) {
    for (const bool jitters : {false, true}) {
      auto options = feed_options(2, 1).seed(3).augmentation(RandomCropFlipOptions().padding(2));
      if (resizes) {
        options.resized_crop(crop);
      }
      if (jitters) {
        options.color_jitter(jitter);
      }
      const Feed feed(data, options);
      const auto batch = feed(feed_step(step));
      CHECK(same_batch(batch, feed(feed_step(step))));
      CHECK_FALSE(same_batch(batch, feed(feed_step(step + 1))));
      // Those of the crops, of the strong views, and of the jitter, each image after image.
      const int64_t crop_draws = resizes ? random_resized_crop_draws() : 3;
      const int64_t before_jitter = crop_draws * images + unlabeled * strong_draws;
      const Tensor words = counter_words(feed_step(step), mixmatch::detail::mix_bits(3) ^ 0xA5A5A5A5A5A5A5A5U,
                                         before_jitter + color_jitter_draws() * images);
      const auto uniform = [&](int64_t first, int64_t rows, int64_t each) {
        return mixmatch::detail::words_to_uniform(words.narrow(0, first, rows * each)).view({rows, each});
      };
      const auto raw = feed.gather(feed_step(step));
      const Tensor others = raw.images.narrow(0, labeled, unlabeled);
      Tensor made = at::cat({raw.images.narrow(0, 0, labeled), others, others, others});
      made = resizes
                 ? random_resized_crop_with(made, uniform(0, images, crop_draws), crop)
                 : mixmatch::detail::crop_flip_composite(
                       made, mixmatch::augment::detail::crops_of_words(
                                 words.narrow(0, 0, 3 * images).view({3, images}), options.augmentation()));
      if (jitters) {
        made = color_jitter_with(made, uniform(before_jitter, images, color_jitter_draws()), jitter);
      }
      CHECK(batch.labeled.equal(normalize(made.narrow(0, 0, labeled))));
      CHECK(batch.weak[0].equal(normalize(made.narrow(0, labeled, unlabeled))));
      CHECK(batch.weak[1].equal(normalize(made.narrow(0, labeled + unlabeled, unlabeled))));
      CHECK(batch.strong[0].equal(
          normalize(rand_augment_with(made.narrow(0, weak, unlabeled),
                                      uniform(crop_draws * images, unlabeled, strong_draws), randaugment))));
    }
  }
  CHECK_THAT(
      error_of([&] { Feed(data, feed_options().resized_crop(RandomResizedCropOptions().min_scale(2))); }),
      contains("Feed: scale must be"));
  CHECK_THAT(error_of([&] { Feed(data, feed_options().color_jitter(ColorJitterOptions().hue(1))); }),
             contains("Feed: hue must be"));
}

TEST_CASE("Feed: a method that looks at labeled images alone needs no others") {
  auto data = feed_data();
  const auto with_views = Feed(data, feed_options(2).augmentation(no_crops()))(feed_step(3));
  data.split.unlabeled = torch::empty({0}, torch::kLong);
  const auto batch = Feed(data, feed_options(0).augmentation(no_crops()))(feed_step(3));
  CHECK(batch.weak.empty());
  CHECK(batch.strong.empty());
  CHECK_FALSE(batch.hidden_labels.defined());
  CHECK_FALSE(batch.unlabeled_rows.defined());
  CHECK(batch.labeled.equal(with_views.labeled));
  CHECK(batch.labels.equal(with_views.labels));
  for (const int64_t strong : {0, 1}) {
    CHECK_THAT(error_of([&] { Feed(data, feed_options(1 - strong, strong)); }),
               contains("the method needs unlabeled images, there are none"));
  }
}

TEST_CASE("Feed: of several sets what it is of their images in one, and of any floating dtype") {
  const auto data = feed_data();
  const auto set = mixmatch::data::make_shapes(60, 3);
  const auto part = [&](int64_t first, int64_t count) {
    return mixmatch::data::take(set, at::arange(first, first + count, at::kLong));
  };
  const TrainingData parts{mixmatch::data::ImagePool({part(0, 13), part(13, 47)}), data.split, {}, {}};
  const Feed whole(data, feed_options(1, 1)), joined(parts, feed_options(1, 1));
  CHECK(same_batch(joined(feed_step(2)), whole(feed_step(2))));
  CHECK(whole.device().is_cpu());
  CHECK(whole.options().batch_size() == 6);

  const auto bfloat = mixmatch::augment::NormalizeOptions().dtype(at::kBFloat16);
  const auto batch = Feed(
      data, feed_options(1, 1).augmentation(RandomCropFlipOptions().normalization(bfloat)))(feed_step(2));
  for (const Tensor& images : {batch.labeled, batch.weak[0], batch.strong[0]}) {
    CHECK(images.scalar_type() == at::kBFloat16);
  }
}

TEST_CASE("Feed: an unknown label stays unknown") {
  auto data = feed_data();
  data.pool.labels.index_fill_(0, data.split.unlabeled, -1);
  const auto batch = Feed(data, feed_options())(feed_step(0));
  CHECK(batch.hidden_labels.eq(-1).all().item<bool>());
  CHECK(batch.labels.ge(0).all().item<bool>());
}

TEST_CASE("Feed: a checkpoint fits the feed of the same rows alone") {
  auto data = feed_data();
  const Feed feed(data, feed_options(2, 1));
  const std::string saved = saved_feed(feed);
  CHECK(feed_load_error(Feed(data, feed_options(2, 1)), saved).empty());
  CHECK(feed_load_error(Feed(data, feed_options(1)), saved).empty());  // views are the method's
  CHECK_THAT(feed_load_error(Feed(data, feed_options().seed(3)), saved), contains("has seed 1, this one 3"));
  CHECK_THAT(feed_load_error(Feed(data, feed_options().batch_size(5)), saved),
             contains("has global_batch_size 6, this one 5"));
  CHECK_THAT(feed_load_error(Feed(data, feed_options().unlabeled_ratio(2)), saved),
             contains("has global_batch_size 6, this one 12"));
  CHECK_FALSE(feed_load_error(feed, saved_feed(Feed(data, feed_options(0)))).empty());
  data.split.unlabeled = data.split.unlabeled.flip(0);
  CHECK_THAT(feed_load_error(Feed(data, feed_options()), saved), contains("other indices"));
}

TEST_CASE("Feed: balanced labeled batches, whatever the classes' sizes are; the unlabeled ones as ever") {
  auto data = feed_data();
  const Tensor labels = data.pool.labels_of(data.split.labeled, torch::kCPU);
  // All of the first three classes, two of the others.
  std::vector<int64_t> rows;
  std::vector<int64_t> seen(10, 0);
  for (int64_t i = 0; i < labels.numel(); ++i) {
    const auto label = static_cast<size_t>(labels[i].item<int64_t>());
    if (label < 3 || ++seen[label] <= 1) {
      rows.push_back(data.split.labeled[i].item<int64_t>());
    }
  }
  data.split.labeled = at::tensor(rows, at::kLong);
  const auto options = feed_options().batch_size(20);
  const Feed plain(data, options), balanced(data, FeedOptions(options).balanced(true));
  for (int64_t step = 0; step < 4; ++step) {
    const auto batch = balanced(feed_step(step)), other = plain(feed_step(step));
    CHECK(batch.labels.bincount({}, 10).equal(at::full({10}, 2, at::kLong)));
    CHECK_FALSE(other.labels.bincount({}, 10).equal(at::full({10}, 2, at::kLong)));
    CHECK(batch.unlabeled_rows.equal(other.unlabeled_rows));
    CHECK(batch.weak[0].equal(other.weak[0]));
    CHECK(same_batch(batch, Feed(data, FeedOptions(options).balanced(true))(feed_step(step))));
  }
  CHECK(feed_load_error(balanced, saved_feed(balanced)).empty());
  CHECK_THAT(feed_load_error(plain, saved_feed(balanced)), contains("has groups 10, this one 1"));
}

TEST_CASE("Feed: bad options, each by its name") {
  const auto data = feed_data();
  const auto refusal = [&](const FeedOptions& options) { return error_of([&] { Feed(data, options); }); };
  CHECK_THAT(refusal(feed_options().batch_size(0)), contains("batch_size must be >= 1, got 0"));
  CHECK_THAT(refusal(feed_options().unlabeled_ratio(0)),
             contains("Feed: unlabeled_ratio must be >= 1, got 0"));
  CHECK_THAT(refusal(feed_options(-1)), contains("Feed: weak_views must be >= 0, got -1"));
  CHECK_THAT(refusal(feed_options(1, -1)), contains("Feed: strong_views must be >= 0, got -1"));
  const Feed feed(data, feed_options().augmentation(RandomCropFlipOptions().padding(32)));
  CHECK_THAT(error_of([&] { feed(feed_step(0)); }),
             contains("Feed: padding must be less than height and width to reflect, got 32"));
  CHECK_THAT(error_of([&] { Feed(data, feed_options())(feed_step(-1)); }),
             contains("step must be >= 0, got -1"));
}

TEST_CASE("Feed: one kernel finds the rows, one draws, repeats and cuts the views, to the same bits") {
  namespace emulated = cuda_emulation;
  const auto data = feed_data();
  const auto jitter = mixmatch::augment::ColorJitterOptions::of_strength(0.5);
  const std::vector<std::pair<FeedOptions, int>> cases{
      {feed_options(2, 0), 2},
      {feed_options(2, 0).unlabeled_ratio(2).rank(1).world_size(3), 2},
      {feed_options(0, 0).augmentation(RandomCropFlipOptions().mirror(false)), 2},
      {feed_options(1, 1).rank(1).world_size(2).augmentation(RandomCropFlipOptions().padding(0)), 3},
      {feed_options(1, 0).color_jitter(jitter).augmentation(RandomCropFlipOptions().padding(2)), 2}};
  for (const auto& [options, launches] : cases) {
    INFO("case of " << options.weak_views() << " and " << options.strong_views() << " views, rank "
                    << options.rank());
    const Batch expected = Feed(data, options)(feed_step(7));
    emulated::EmulatedDevice device;
    device.add("stream_rows<i64>", emulated::stream_rows<int64_t>);
    device.add("crop_views<float>", emulated::crop_views<float>);
    device.add("crop_views<u8>", emulated::crop_views<unsigned char>);
    const Batch found = Feed(data, options)(feed_step(7));
    CHECK(device.launches() == launches);
    CHECK(same_batch(found, expected));
  }
}

TEST_CASE("counter_words: CounterRng's numbers, the same in ATen's calls and in the CUDA kernel") {
  // By integers of Python, from SplitMix64's definition.
  CHECK(counter_words(feed_step(5), 3, 4)
            .equal(at::tensor(std::vector<int64_t>{4191815689, 1255980487, 3088477291, 4282423580})));
  CHECK(counter_words(feed_step(1000000000000), ~uint64_t{0}, 4)
            .equal(at::tensor(std::vector<int64_t>{3575493262, 3553860933, 3151573229, 2499874})));
  for (const uint64_t seed : {uint64_t{0}, uint64_t{3}, ~uint64_t{0}}) {
    for (const int64_t step : {int64_t{0}, int64_t{5}, int64_t{1} << 40}) {
      CounterRng random(seed, static_cast<uint64_t>(step));
      std::vector<int64_t> words;
      for (int i = 0; i < 300; ++i) {
        words.push_back(static_cast<int64_t>(random.next() >> 32));
      }
      const Tensor expected = at::tensor(words), number = feed_step(step);
      CHECK(counter_words(number, seed, 300).equal(expected));
      CHECK(mixmatch::detail::counter_words_composite(number, seed, 300).equal(expected));
      Tensor emulated = at::empty({300}, at::kLong);
      const uint64_t bits = mixmatch::detail::mix_bits(seed + mixmatch::detail::kGolden);
      cuda_emulation::launch(3, 1, 8, cuda_emulation::counter_words<int64_t>,
                             cuda_emulation::pointer<int64_t>(emulated),
                             cuda_emulation::pointer<const int64_t>(number), int64_t{300},
                             static_cast<unsigned long long>(bits));
      CHECK(emulated.equal(expected));
      cuda_emulation::EmulatedDevice device;
      device.add("counter_words<i64>", cuda_emulation::counter_words<int64_t>);
      Tensor launched = at::empty({300}, at::kLong);
      REQUIRE(mixmatch::detail::counter_words_on_cuda(launched, number, bits));
      CHECK(launched.equal(expected));
      CHECK(device.launches() == 1);
    }
  }
}

TEST_CASE("counter_words: uniform, from step to step and place to place") {
  using mixmatch::detail::words_below;
  std::vector<Tensor> steps;
  for (int64_t step = 0; step < 500; ++step) {
    steps.push_back(counter_words(feed_step(step), 17, 120));
  }
  const Tensor words = at::stack(steps);
  CHECK(words.ge(0).all().item<bool>());
  CHECK(words.lt(int64_t{1} << 32).all().item<bool>());
  // 60,000 numbers in nine classes: 6,667 of each expected, standard deviation 77.
  const Tensor counts = words_below(words, 9).flatten().bincount({}, 9);
  CHECK(counts.size(0) == 9);
  CHECK((counts - 6667).abs().max().item<int64_t>() < 400);
  const Tensor uniform = mixmatch::detail::words_to_uniform(words);
  CHECK(uniform.scalar_type() == at::kFloat);
  CHECK(uniform.ge(0).all().item<bool>());
  CHECK(uniform.lt(1).all().item<bool>());
  const auto near = [](const Tensor& means, double spread) {
    return (means - 0.5).abs().max().item<double>() < spread;
  };
  CHECK(near(uniform.mean(0), 0.07));  // standard deviation .289 / sqrt(500) = .013, of 120
  CHECK(near(uniform.mean(1), 0.14));  // .026, of 500
  // Neighbours, by place and by step, are independent: correlations of standard deviation .004.
  const Tensor centred = (uniform - 0.5) * std::sqrt(12.0);
  CHECK((centred.narrow(1, 0, 119) * centred.narrow(1, 1, 119)).mean().abs().item<double>() < 0.02);
  CHECK((centred.narrow(0, 0, 499) * centred.narrow(0, 1, 499)).mean().abs().item<double>() < 0.02);
  // The ends of their range.
  const Tensor ends = at::tensor(std::vector<int64_t>{0, 4294967295});
  CHECK(words_below(ends, 9).equal(at::tensor({0, 8}, at::kLong)));
  CHECK(mixmatch::detail::words_to_uniform(ends)[1].item<float>() < 1);
}

TEST_CASE("crops of words: within [0, 2 padding], all of them, mirrored half the time") {
  const Tensor words = counter_words(feed_step(1), 2, 3 * 4000).view({3, 4000});
  for (const int64_t padding : {0, 1, 4}) {
    const auto crops =
        mixmatch::augment::detail::crops_of_words(words, RandomCropFlipOptions().padding(padding));
    CHECK(crops.padding == padding);
    for (const Tensor& offset : {crops.row, crops.column}) {
      CHECK(offset.bincount().size(0) == 2 * padding + 1);
      CHECK(offset.bincount().min().item<int64_t>() > 300);
    }
    CHECK(crops.flip.bincount().size(0) == 2);
    CHECK(std::abs(crops.flip.sum().item<int64_t>() - 2000) < 200);
    CHECK_FALSE((padding > 0 && crops.row.equal(crops.column)));
    const auto straight = mixmatch::augment::detail::crops_of_words(
        words, RandomCropFlipOptions().padding(padding).mirror(false));
    CHECK(straight.flip.eq(0).all().item<bool>());
    CHECK(straight.row.equal(crops.row));
  }
}
