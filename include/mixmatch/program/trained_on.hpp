#pragma once

#include <torch/types.h>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/evaluation/predict.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/run_tensors.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/progress.hpp>
#include <mixmatch/run/standard_streams.hpp>

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// The network's features of rows (int64 [N]) of a pool, float32 [N, D] on the CPU, in evaluation mode: a
/// batch of images at a time. `progress(done)` is called after each.
template <class Network, class Progress>
Tensor features_of_rows(Network& network, const data::ImagePool& pool, const Tensor& rows,
                        const EvaluateOptions& options, Progress&& progress) {
  const mixmatch::detail::EvaluationModeGuard evaluation(network);
  Tensor features;
  int64_t done = 0;
  for (const Tensor& part : rows.split(options.batch_size())) {
    const Tensor found = extract_features([&](const Tensor& images) { return network->features(images); },
                                          {pool.gather(part), {}, {}}, options);
    if (!features.defined()) {
      features = at::empty({rows.numel(), found.size(1)}, found.options());
    }
    features.narrow(0, done, found.size(0)).copy_(found);
    done += part.numel();
    progress(done);
  }
  return features;
}

/// The same of the labeled images, by the weights that a run starts from: once for all who have the same
/// `shared`.
template <class Network>
Tensor labeled_features(Network& network, const TrainingData& data, const EvaluateOptions& options,
                        RunTensors* shared) {
  if (shared != nullptr && shared->labeled_features.defined()) {
    return shared->labeled_features;
  }
  const Tensor features =
      features_of_rows(network, data.pool, data.split.labeled.cpu(), options, [](int64_t) {});
  if (shared != nullptr) {
    shared->labeled_features = features;
  }
  return features;
}

/// What a run's steps see: the images themselves or, with o.train "head", the network's features of them in
/// their place, [N, D, 1, 1], which are computed here once. As long as it lives, or until end(), the network
/// then takes features (models::NetworkImpl::take_features()).
class TrainedOn {
 public:
  /// With `labeled_only` features of those rows alone (labeled_features()): all that supervised steps need.
  /// Says on the standard output that the last layer alone is trained, unless `labeled_only`. `data` must
  /// outlive it.
  template <class Network>
  TrainedOn(const TrainingOptions& o, Network& network, const TrainingData& data, torch::Device device,
            bool labeled_only = false, RunTensors* shared = nullptr)
      : data_(&data), options_(evaluate_options(o, device)) {
    if (o.train != "head") {
      return;
    }
    if constexpr (requires { network->take_features(true); }) {
      if (!labeled_only) {
        print_message(stdout,
                      "only the last layer is trained, on features of images that are not augmented (--train "
                      "all: every layer)\n");
      }
      features_.emplace(features_of(network, data, device, labeled_only, shared));
      data_ = &*features_;
      options_.normalization(detail::unchanged_features().normalization());
      network->take_features(true);
      end_ = [&network] { network->take_features(false); };
    } else {
      TORCH_CHECK(false, "--train head is for the library's networks");
    }
  }
  TrainedOn(const TrainedOn&) = delete;
  TrainedOn& operator=(const TrainedOn&) = delete;
  ~TrainedOn() { end(); }

  /// The network takes images again.
  void end() {
    if (const auto end = std::exchange(end_, nullptr)) {
      end();
    }
  }

  const TrainingData& data() const { return *data_; }
  /// To evaluate on data().
  const EvaluateOptions& options() const { return options_; }

 private:
  template <class Network>
  TrainingData features_of(Network& network, const TrainingData& data, torch::Device device,
                           bool labeled_only, RunTensors* shared) const {
    const auto as_images = [](const Tensor& features) { return features.view({features.size(0), -1, 1, 1}); };
    const auto judged = [&](const data::ImageDataset& images) {
      if (images.size() == 0 || labeled_only) {
        return data::ImageDataset();
      }
      const mixmatch::detail::EvaluationModeGuard evaluation(network);
      const Tensor features =
          extract_features([&](const Tensor& x) { return network->features(x); }, images, options_);
      return data::ImageDataset{as_images(features), images.labels, images.class_names};
    };
    const Tensor rows =
        labeled_only ? data.split.labeled.cpu() : at::arange(data.pool.size(), at::TensorOptions(at::kLong));
    data::SslSplit split = data.split;
    if (labeled_only) {
      split = {at::arange(rows.numel(), at::kLong), at::empty({0}, at::kLong), at::empty({0}, at::kLong)};
    }
    const Tensor features = labeled_only ? labeled_features(network, data, options_, shared)
                                         : features_of_all(network, data.pool);
    // Where the model is, though the images may be decoded elsewhere: they are small.
    const data::ImageDataset all{as_images(features), data.pool.labels_of(rows, torch::kCPU),
                                 data.pool.class_names};
    return {data::ImagePool({data::to_device(all, device)}), std::move(split), judged(data.validation),
            judged(data.test)};
  }

  template <class Network>
  Tensor features_of_all(Network& network, const data::ImagePool& pool) const {
    Progress progress("features", pool.size(), 0, stderr, Progress::steady_seconds, "image");
    const Tensor features =
        features_of_rows(network, pool, at::arange(pool.size(), at::TensorOptions(at::kLong)), options_,
                         [&](int64_t done) { progress.update(done, ""); });
    progress.finish();
    return features;
  }

  const TrainingData* data_;
  EvaluateOptions options_;
  std::optional<TrainingData> features_;
  std::function<void()> end_;
};

}  // namespace mixmatch::training
