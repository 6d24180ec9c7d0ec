// Images that are no pictures: any number of channels, not square, floating-point or 16 bits, through the
// parts that the programs are made of.

#include <mixmatch/mixmatch.hpp>
#include <mixmatch/training.hpp>

#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch;
using augment::NormalizeOptions;
using training::Checkpoint;
using training::EvaluateOptions;
using training::Feed;
using training::FeedOptions;
using training::Trainer;
using training::TrainerOptions;
using training::TrainingData;
using training::TrainState;

namespace {

/// Three classes told by the level of the last channel, in units of thousands.
data::ImageDataset spectra(int64_t count, uint64_t seed) {
  data::ImageDataset set;
  set.labels = at::arange(count, at::kLong).remainder(3);
  set.images = 1000 * (3 + torch::rand({count, 4, 24, 40}, seeded(seed)));
  set.images.select(1, 3).add_(1000 * set.labels.view({count, 1, 1}));
  set.class_names = {"low", "middle", "high"};
  return set;
}

NormalizeOptions normalization() {
  return NormalizeOptions().scale(1000).mean({3.5, 3.5, 3.5, 4.5}).stddev({0.3, 0.3, 0.3, 1});
}

TrainingData make_data(data::ImageDataset set) {
  return {data::ImagePool({std::move(set)}),
          {at::arange(12, at::kLong), at::arange(12, 60, at::kLong), at::empty({0}, at::kLong)},
          {},
          {}};
}

EvaluateOptions evaluation() { return EvaluateOptions().normalization(normalization()); }

struct Result {
  std::vector<Tensor> weights;
  double error_before = 0, error = 0;
  Tensor probabilities;
};

/// `steps` steps of MixMatch from the start or from the checkpoint in `dir`, and one at the end.
Result train(const std::filesystem::path& dir, const TrainingData& data, int64_t steps) {
  torch::manual_seed(1);
  models::WideResNet model(models::WideResNetOptions(3).depth(10).widen_factor(1).in_channels(4));
  training::to_channels_last(model);
  TrainState state(model, training::TrainStateOptions()
                              .ema(EmaModelOptions().decay(0.9).warmup(true))
                              .optimizer(training::OptimizerOptions(0.003)));
  Trainer trainer(state, methods::MixMatch({}, RampedLossOptions().lambda_u(5).rampup_steps(20)), data,
                  TrainerOptions().feed(FeedOptions().batch_size(6).augmentation(
                      augment::RandomCropFlipOptions().padding(3).normalization(normalization()))));
  Checkpoint checkpoint(dir / "checkpoint.pt");
  checkpoint.add("step", state.step);
  state.register_in(checkpoint);
  trainer.register_in(checkpoint);
  const auto test = spectra(30, 9);
  Result result;
  result.error_before = training::evaluate_model(state.model, test, evaluation());
  if (checkpoint.exists()) {
    checkpoint.load();
  }
  while (state.step < steps) {
    trainer.run(steps - state.step);
  }
  checkpoint.save();
  for (const auto& parameter : state.model->parameters()) {
    result.weights.push_back(parameter.detach().clone());
  }
  const auto errors = training::RunEvaluation(state, evaluation())({}, test);
  result.error = errors[2];
  result.probabilities = training::predict_probabilities(
      [&](const Tensor& x) { return state.ema.forward(x); }, test, evaluation());
  CHECK(100 * result.probabilities.argmax(1).ne(test.labels).to(at::kDouble).mean().item<double>() ==
        Approx(result.error));
  return result;
}

}  // namespace

TEST_CASE(
    "own tensors: float [N, 4, 24, 40] with a normalisation of their own train, and resume to the bit") {
  const auto data = make_data(spectra(60, 4));
  TempDir whole, parts;
  const auto once = train(whole.path(), data, 30);
  train(parts.path(), data, 12);
  const auto twice = train(parts.path(), data, 30);
  REQUIRE(once.weights.size() == twice.weights.size());
  for (size_t i = 0; i < once.weights.size(); ++i) {
    CHECK(torch::equal(once.weights[i], twice.weights[i]));
  }
  CHECK(torch::equal(once.probabilities, twice.probabilities));
  CHECK(once.error < 20);
  CHECK(once.error_before > 40);
}

TEST_CASE("own tensors: what a feed gives of them is normalised, cropped and mirrored") {
  auto set = spectra(60, 4);
  const auto options = FeedOptions().batch_size(6).augmentation(
      augment::RandomCropFlipOptions().padding(0).mirror(false).normalization(normalization()));
  const Tensor step = at::zeros({}, at::kLong);
  const Feed feed(make_data(set), options);
  const auto raw = feed.gather(step);
  CHECK(raw.images.scalar_type() == at::kFloat);
  const auto batch = feed.augment(raw, step);
  CHECK(torch::equal(batch.labeled, augment::normalize(raw.images.narrow(0, 0, 6), normalization())));
  CHECK(batch.labeled.is_contiguous(at::MemoryFormat::ChannelsLast));
  CHECK(torch::equal(batch.weak[1], augment::normalize(raw.images.narrow(0, 6, 6), normalization())));

  // Whole numbers; rounded, the same views.
  set.images = set.images.round();
  const auto expected = Feed(make_data(set), options)(step);
  std::vector<at::ScalarType> types{at::kInt, at::kShort, at::kDouble};
  if (const auto sixteen_bits = mixmatch::detail::uint16_type()) {
    types.push_back(*sixteen_bits);
  }
  for (const auto type : types) {
    auto other = set;
    other.images = set.images.to(type);
    const auto given = Feed(make_data(other), options)(step);
    CHECK(given.labeled.scalar_type() == at::kFloat);
    CHECK(torch::allclose(given.labeled, expected.labeled, 1e-6, 1e-6));
  }
  const auto moved = Feed(
      make_data(set), FeedOptions(options).augmentation(
                          augment::RandomCropFlipOptions().padding(3).normalization(normalization())))(step);
  CHECK_FALSE(torch::equal(moved.labeled, expected.labeled));
  CHECK(moved.labeled.sizes() == expected.labeled.sizes());

  CHECK(error_of([&] { Feed(make_data(set), FeedOptions().batch_size(6).strong_views(1)); }) ==
        "Feed: strong views (RandAugment) are of uint8 images [N, 3, H, W], got Float [N, 4, 24, 40]: take a "
        "method without them");
  CHECK_THAT(error_of([&] {
               Feed(make_data(set),
                    FeedOptions().batch_size(6).resized_crop(augment::RandomResizedCropOptions()));
             }),
             contains("of uint8 images, got Float"));
}

TEST_CASE("own tensors: pools, crops, checksums and pictures of them") {
  auto set = spectra(60, 4);
  const data::ImagePool pool({set, set});
  const Tensor rows = torch::tensor({0, 119, 61, 59}, at::kLong);
  CHECK(pool.dtype() == at::kFloat);
  CHECK(torch::equal(pool.gather(rows), set.images.index_select(0, rows.remainder(60))));
  auto last = set;
  last.images = set.images.contiguous(at::MemoryFormat::ChannelsLast);
  CHECK(torch::equal(data::ImagePool({set, last}).gather(rows), pool.gather(rows)));
  const std::string checksum = data::data_checksum(pool);
  CHECK(checksum == data::data_checksum(data::ImagePool({last, set})));
  last.images[7][3][1][1] += 1;
  CHECK(checksum != data::data_checksum(data::ImagePool({last, set})));

  const Tensor whole = (set.images.narrow(0, 0, 5)).to(at::kInt);
  const auto options = augment::RandomCropFlipOptions().padding(2).normalization(normalization());
  CHECK(torch::equal(
      augment::random_crop_flip(whole, options, seeded(3)),
      augment::random_crop_flip(augment::normalize(whole, normalization()), options, seeded(3))));

  const Tensor shown = training::displayable(set.images);
  CHECK(shown.sizes() == at::IntArrayRef({60, 3, 24, 40}));
  CHECK(shown.scalar_type() == at::kByte);
  CHECK(shown[0].min().item<int64_t>() == 0);
  CHECK(shown[0].max().item<int64_t>() == 255);
  CHECK(training::displayable(set.images.narrow(1, 0, 2)).size(1) == 1);
  CHECK(training::displayable(torch::full({1, 3, 2, 2}, 7.0)).eq(0).all().item<bool>());
  const Tensor bytes = torch::randint(256, {2, 3, 4, 5}, at::kByte);
  CHECK(torch::equal(training::displayable(bytes), bytes));
  const auto wrong = training::wrong_examples(set, torch::tensor({{0.1, 0.2, 0.7}}).expand({60, 3}), 4);
  REQUIRE(wrong.size() == 4);
  training::Report report;
  report.class_names = set.class_names;
  report.wrong_examples = wrong;
  CHECK_THAT(training::render_report(report), contains("data:image/png;base64,"));
}

TEST_CASE("own tensors: uint16, up to its largest number") {
  const auto sixteen_bits = mixmatch::detail::uint16_type();
  if (!sixteen_bits.has_value()) {
    return;  // LibTorch before 2.3
  }
  auto numbers = spectra(60, 4);  // the same as int32, from 0 to 65535
  numbers.images = (numbers.images - 3000).mul(65536 / 3000.0).to(at::kInt).clamp(0, 65535);
  numbers.images[0][0][0][0] = 0;
  numbers.images[0][0][0][1] = 32768;
  numbers.images[0][0][0][2] = 65535;
  REQUIRE(numbers.images.gt(32767).any().item<bool>());
  auto set = numbers;
  set.images = numbers.images.to(*sixteen_bits);
  const auto same = [&](const Tensor& words, const Tensor& ints) {
    return words.scalar_type() == *sixteen_bits && torch::equal(words.to(at::kInt), ints);
  };
  const auto scaled = NormalizeOptions().scale(65535);

  const Tensor normalized = augment::normalize(set.images);
  CHECK(torch::equal(normalized, augment::normalize(numbers.images, scaled)));
  CHECK(normalized[0][0][0][0].item<float>() == -1);
  CHECK(normalized[0][0][0][2].item<float>() == 1);
  CHECK(torch::equal(augment::normalize(set.images, normalization()),
                     augment::normalize(numbers.images, normalization())));
  CHECK(torch::equal(augment::random_crop_flip(set.images, {}, seeded(3)),
                     augment::random_crop_flip(
                         numbers.images, augment::RandomCropFlipOptions().normalization(scaled), seeded(3))));

  // Rows of one set, of several, and however they lie.
  const Tensor rows = torch::tensor({0, 119, 61, 59}, at::kLong);
  const Tensor expected = numbers.images.index_select(0, rows.remainder(60));
  auto last = set, turned = set;
  last.images = set.images.contiguous(at::MemoryFormat::ChannelsLast);
  turned.images = set.images.transpose(2, 3).contiguous().transpose(2, 3);
  for (const auto& other : {set, last, turned}) {
    CHECK(same(data::ImagePool({other}).gather(rows.remainder(60)), expected));
    CHECK(same(data::ImagePool({set, other}).gather(rows), expected));
    CHECK(same(data::ImagePool({last, other}).gather(rows), expected));
    CHECK(same(data::take(other, rows.remainder(60)).images, expected));
    CHECK(data::data_checksum(data::ImagePool({other})) == data::data_checksum(data::ImagePool({set})));
  }
  CHECK(same(data::ImagePool({set, last}).in_one().gather(rows), expected));
  CHECK(same(data::to_device(set, torch::kCPU).images, numbers.images));
  CHECK(error_of([&] {
          data::ImagePool({set, numbers});
        }) == "ImagePool: set 1 has images of Int, those before it of UInt16");

  // A step's images, pictures to look at, and what a network says of them.
  const Tensor step = at::zeros({}, at::kLong);
  const auto crop = augment::RandomCropFlipOptions().padding(3);
  const auto batch = Feed(make_data(set), FeedOptions().batch_size(6).augmentation(crop))(step);
  const auto wanted =
      Feed(make_data(numbers), FeedOptions().batch_size(6).augmentation(
                                   augment::RandomCropFlipOptions(crop).normalization(scaled)))(step);
  CHECK(torch::equal(batch.labeled, wanted.labeled));
  CHECK(torch::equal(batch.weak[1], wanted.weak[1]));
  CHECK(
      error_of([&] { Feed(make_data(set), FeedOptions().batch_size(6).strong_views(1)); }) ==
      "Feed: strong views (RandAugment) are of uint8 images [N, 3, H, W], got UInt16 [N, 4, 24, 40]: take a "
      "method without them");
  CHECK(torch::equal(training::displayable(set.images), training::displayable(numbers.images)));
  const auto predictor = [](const Tensor& x) { return x.mean({2, 3}).narrow(1, 1, 3); };
  CHECK(torch::equal(
      training::predict_probabilities(predictor, set),
      training::predict_probabilities(predictor, numbers, EvaluateOptions().normalization(scaled))));
  const auto half = augment::random_crop_flip(
      set.images, augment::RandomCropFlipOptions().normalization(NormalizeOptions().dtype(at::kBFloat16)),
      seeded(3));
  CHECK(half.scalar_type() == at::kBFloat16);
}
