#pragma once

#include <fmt/format.h>
#include <torch/types.h>
#include <mixmatch/data/data_checksum.hpp>
#include <mixmatch/data/training_data.hpp>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/detail/io/read_file.hpp>
#include <mixmatch/distributed/process_group.hpp>
#include <mixmatch/distributed/same_on_all.hpp>
#include <mixmatch/program/device.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/config.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mixmatch::training {

namespace detail {

/// data_checksum() of the training images; where they were adopted (adopt_data()) it is known.
inline std::string checksum_of(const TrainingOptions& o, const TrainingData& data) {
  return o.data_checksum.empty() ? data::data_checksum(data.pool) : o.data_checksum;
}

/// Throws unless `mine`, names and values, is on every rank what it is on rank 0: there and on the rank that
/// differs with the first difference, elsewhere silently.
inline void check_same_settings(ProcessGroup& group, const Config& mine) {
  std::string text;
  for (const auto& [name, value] : mine) {
    text += name + '\0' + value + '\0';
  }
  const auto texts = group.gather_texts(text);
  const auto items_of = [](const std::string& all) {
    std::vector<std::string> items;
    for (size_t begin = 0; begin < all.size(); begin = all.find('\0', begin) + 1) {
      items.push_back(all.substr(begin, all.find('\0', begin) - begin));
    }
    return items;
  };
  for (size_t rank = 1; rank < texts.size(); ++rank) {
    if (texts[rank] == texts[0]) {
      continue;
    }
    const auto first = items_of(texts[0]), other = items_of(texts[rank]);
    std::string message = fmt::format("rank {} was started with other options than rank 0", rank);
    for (size_t i = 0; i + 1 < std::min(first.size(), other.size()); i += 2) {
      if (first[i] != other[i] || first[i + 1] != other[i + 1]) {
        message = fmt::format("the processes differ: {} is {} on rank {}, {} on rank 0", other[i],
                              mixmatch::detail::printable_beginning(other[i + 1], 100), rank,
                              mixmatch::detail::printable_beginning(first[i + 1], 100));
        break;
      }
    }
    if (group.rank() != 0 && group.rank() != static_cast<int64_t>(rank)) {
      throw SilentPeerError(message);
    }
    throw PeerError(message);
  }
}

}  // namespace detail

/// Throws unless all processes were started with the same options, as they are by now, and have the same
/// data.
template <class Options>
void check_same_run(const Options& o, const TrainingData& data) {
  if (o.processes == nullptr) {
    return;
  }
  Config settings;
  visit_options(o, [&settings](const OptionText& text, const auto& value, const auto&...) {
    if (text.role != OptionRole::place && std::string_view(text.name) != "threads") {
      settings.emplace_back("--" + std::string(text.name), fmt::format("{}", value));
    }
  });
  if (o.optimizer == "muon" &&
      parse_device(o.device).is_cpu()) {  // each rank multiplies its matrices by itself
    settings.emplace_back("--threads", fmt::format("{}", at::get_num_threads()));
  }
  settings.emplace_back("the data", "crc32c " + detail::checksum_of(o, data));
  std::vector<Tensor> rows{data.split.labeled, data.split.unlabeled, data.split.validation};
  for (const auto* images : {&data.validation, &data.test}) {
    rows.push_back(images->size() > 0 ? images->labels : at::empty({0}, at::kLong));
  }
  settings.emplace_back("the split", fmt::format("crc32c {:08x}", checksum_of(rows)));
  if (!o.weights.empty() && !o.resume) {
    const uint32_t sum = mixmatch::detail::crc32c(mixmatch::detail::read_whole_file(o.weights));
    settings.emplace_back("what --weights holds", fmt::format("crc32c {:08x}", sum));
  }
  o.processes->meet();  // one may have read its data much sooner
  detail::check_same_settings(*o.processes, settings);
}

}  // namespace mixmatch::training
