#pragma once

#include <fmt/format.h>
#include <mixmatch/augment/normalize.hpp>
#include <mixmatch/data/data_checksum.hpp>
#include <mixmatch/data/label_split.hpp>
#include <mixmatch/data/split_file.hpp>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/io/script_file.hpp>
#include <mixmatch/models/network.hpp>
#include <mixmatch/models/script_network.hpp>
#include <mixmatch/program/check_options.hpp>
#include <mixmatch/program/library_options.hpp>
#include <mixmatch/program/network.hpp>
#include <mixmatch/program/same_run.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/run_record.hpp>
#include <mixmatch/run/standard_streams.hpp>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// Throws where images of that size, in pixels, do not fit the options.
inline void check_image_size(const TrainingOptions& o, int64_t size) {
  TORCH_CHECK(o.padding < size, "--padding ", o.padding, " must be less than the images' size, ", size);
  const int64_t multiple = models::image_size_multiple(o.model);
  TORCH_CHECK(size % multiple == 0, "--model ", o.model, " takes images whose size is a multiple of ",
              multiple, ", got ", size);
}

namespace detail {

/// What the config.json beside a run's split.txt says of the images that the run was trained on.
inline std::optional<std::string> training_data_beside(const std::filesystem::path& split) {
  const auto config = split.parent_path() / "config.json";
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(config, ignored)) {
    return std::nullopt;
  }
  try {
    const auto settings = read_json_object(config);
    const auto* found = find_setting(settings, "training-data");
    return found != nullptr ? std::optional(*found) : std::nullopt;
  } catch (const c10::Error&) {  // another program's config.json
    return std::nullopt;
  }
}

/// " class NAME without …", of the first class that has images with its label but none that trains with it;
/// "" if there is no such class.
inline std::string class_without_labels(const TrainingData& data) {
  const auto count = [&](const Tensor& labels) {
    return at::bincount(labels.masked_select(labels.ge(0)), {}, data.pool.num_classes());
  };
  const Tensor known = count(data.pool.labels.cpu());
  const Tensor trained = count(data.pool.labels_of(data.split.labeled, torch::kCPU));
  for (int64_t c = 0; c < known.size(0); ++c) {
    const auto images = known[c].item<int64_t>();
    if (images > 0 && (c >= trained.size(0) || trained[c].item<int64_t>() == 0)) {
      return fmt::format(" class {} without a labeled image to train with; {} {} its label",
                         data::detail::class_text(static_cast<size_t>(c), data.pool.class_names), images,
                         images == 1 ? "has" : "have");
    }
  }
  return "";
}

/// Tries --model torchscript:FILE on images of the data.
inline void check_script_network(const TrainingOptions& o, const TrainingData& data) {
  const auto script = script_path(o);
  if (!script.empty()) {
    models::ScriptNetwork network(read_script_file(script).module, data.pool.num_classes(), script.string());
    network->check_trainable(augment::normalize(data.pool.gather(at::zeros({2}, at::kLong)).cpu()));
  }
}

/// adopt_data() but for options without effect.
inline void adopt_counts(TrainingOptions& o, const TrainingData& data, bool every_class) {
  check_image_size(o, data.pool.image_size());
  check_script_network(o, data);
  for (const auto& [kind, rows] : {std::pair<const char*, Tensor>{"labeled", data.split.labeled},
                                   {"validation", data.split.validation}}) {
    const Tensor unknown = data.pool.labels_of(rows, torch::kCPU).lt(0).nonzero();
    TORCH_CHECK(unknown.size(0) == 0, o.split, ": ", kind, " image ",
                rows[unknown[0][0].item<int64_t>()].item<int64_t>(), " has no label");
  }
  const auto lost = class_without_labels(data);
  if (!lost.empty()) {
    const std::string text =
        (o.split.empty() ? fmt::format("--labels {} and --validation {} leave", o.labels, o.validation)
                         : o.split + " leaves") +
        lost;
    TORCH_CHECK(!every_class, text);
    print_message(stderr, "the fold leaves{}\n", lost);
  }
  const Tensor counts =
      at::bincount(data.pool.labels_of(data.split.labeled, torch::kCPU), {}, data.pool.num_classes());
  o.class_counts.assign(counts.data_ptr<int64_t>(), counts.data_ptr<int64_t>() + counts.numel());
  if (o.alignment == "prior") {
    parse_prior(o.prior, data.pool.num_classes());
  }
  o.labels = data.split.labeled.size(0);
  o.validation = data.split.validation.size(0);
}

}  // namespace detail

/// The split that `--split` names, of `pool`, or of the pictures `files` in the folder o.data. Throws where
/// it is of other images.
///
/// A split of an older version has neither names nor a checksum. That of a run is taken if the images have
/// the checksum in the config.json beside it; another one by the number of images, and for a folder not at
/// all.
inline data::SslSplit read_split(const TrainingOptions& o, const data::ImagePool& pool,
                                 const std::vector<std::string>& files = {}) {
  const auto header = data::read_split_header(o.split);
  if (header.by_name && !files.empty()) {
    return data::load_split(o.split, {o.data, files, pool.labels});
  }
  if (header.by_name || !header.checksum.empty()) {
    return data::load_split(o.split, pool.size(), data::data_checksum(pool));
  }
  const std::string checksum = "crc32c " + data::data_checksum(pool);
  const auto run = detail::training_data_beside(o.split);
  TORCH_CHECK(!run.has_value() || *run == checksum, o.split, " splits other images: its run was trained on ",
              mixmatch::detail::printable(run.value_or("")), ", these have ", checksum);
  TORCH_CHECK(
      run.has_value() || files.empty(), o.split,
      " numbers its images, and which pictures those were cannot be told: name them, as the split.txt "
      "of a new run does");
  return data::load_split(o.split, pool.size());
}

/// data::split_labels() by o.labels, o.validation and o.seed, whose errors say what to do about these
/// options.
inline data::SslSplit draw_split(const TrainingOptions& o, const Tensor& labels,
                                 const std::vector<std::string>& class_names) {
  return data::detail::split_labels(fmt::format("--labels {} and --validation {}", o.labels, o.validation),
                                    "; lower one of them, or label more images of that class", labels,
                                    o.labels, o.validation, o.seed, class_names);
}

/// The same of data::split_by_rows(): `labeled` are the rows that have their labels.
inline data::SslSplit draw_split(const TrainingOptions& o, const Tensor& labels, const Tensor& labeled,
                                 const std::vector<std::string>& class_names) {
  return data::detail::split_by_rows(fmt::format("--validation {}", o.validation), "; lower it", labels,
                                     labeled, o.validation, o.seed, class_names);
}

/// The rows of `pool` that train with labels, without, and not at all: from `--split`, or drawn by the seed.
/// Throws where nothing is left to learn from.
inline data::SslSplit make_split(const TrainingOptions& o, const data::ImagePool& pool) {
  const auto split = o.split.empty() ? draw_split(o, pool.labels, pool.class_names) : read_split(o, pool);
  TORCH_CHECK(o.method == "supervised" || split.unlabeled.size(0) > 0,
              o.split.empty() ? c10::str("--labels ", o.labels, " and --validation ", o.validation, " leave")
                              : o.split + " leaves",
              " no unlabeled image of ", pool.size(), ", which --method ", o.method,
              " needs: label fewer, or train with --method supervised");
  return split;
}

/// Writes a run's split.txt: by names where the images have files, else by rows with the data's checksum.
inline void save_split(const std::filesystem::path& path, const TrainingOptions& o,
                       const TrainingData& data) {
  if (data.files.empty()) {
    data::save_split(path, data.split, data.pool.size(), detail::checksum_of(o, data));
  } else {
    data::save_split(path, data.split, {o.data, data.files, data.pool.labels});
  }
}

/// Throws where the network cannot be made of its files for so many classes, or does not take images of that
/// size: what a program would else find out after it has decoded all of its pictures.
inline void check_network(const TrainingOptions& o, int64_t num_classes, int64_t size) {
  check_image_size(o, size);
  if (!o.resume && (!o.weights.empty() || !script_path(o).empty())) {
    make_network(o, num_classes, torch::kCPU);
  }
}

/// Throws where options and data do not fit, before anything is written: a class among them that has images
/// with a label and none to train with (`every_class` false, for an official fold: says so on stderr
/// instead); an option that was given and has no effect on these data (check_given_options()); several
/// processes that have not the same (check_same_run()). o.labels, o.validation and o.class_counts then are
/// how many there are, whoever drew them, and o.data_checksum the images'.
template <class Options>
void adopt_data(Options& o, const TrainingData& data, bool every_class = true) {
  detail::adopt_counts(o, data, every_class);
  o.data_checksum = data::data_checksum(data.pool);
  check_given_options(o);
  check_same_run(o, data);
}

}  // namespace mixmatch::training
