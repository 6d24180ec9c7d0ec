#pragma once

#include <fmt/format.h>
#include <mixmatch/data/image_folder.hpp>
#include <mixmatch/data/image_pool.hpp>
#include <mixmatch/data/label_file.hpp>
#include <mixmatch/data/label_split.hpp>
#include <mixmatch/data/labeled_pictures.hpp>
#include <mixmatch/data/picture_list.hpp>
#include <mixmatch/data/split_file.hpp>
#include <mixmatch/detail/io/parse_number.hpp>
#include <mixmatch/detail/io/printable.hpp>
#include <mixmatch/program/classifier_file.hpp>
#include <mixmatch/program/run_split.hpp>
#include <mixmatch/program/training_options.hpp>
#include <mixmatch/run/run_directory.hpp>
#include <mixmatch/run/standard_streams.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace mixmatch::training {

/// Where the labels of a folder's pictures come from, but for the folder itself.
struct LabelSources {
  std::vector<std::string> files;  ///< label files (data::read_label_file), a later one above those before
  std::string from;                ///< the run directory that training starts from; its labels lie under them
};

/// A number of labels, or a label file, as `--labels` takes both. Throws where a number is negative.
inline void take_labels(const std::string& text, int64_t& labels, std::vector<std::string>& files) {
  if (const auto number = mixmatch::detail::parse_number<int64_t>(text); number.has_value()) {
    TORCH_CHECK(*number >= 0, "--labels: expected a number >= 0 or a file, got ", *number);
    labels = *number;
  } else {
    files.push_back(text);
  }
}

namespace detail {

/// The pictures that a run's split.txt names, compared with a folder by their checksums.
struct KnownPictures {
  std::vector<data::detail::SplitText::Line> same;  ///< the lines of those that are there as they were
  std::unordered_set<std::string> gone;             ///< the names of the others
  std::vector<std::string> notes;                   ///< of those, for people
};

/// None are known by a split that is not of pictures by name.
inline KnownPictures compare_pictures(const RunDirectory& run, const std::filesystem::path& data) {
  KnownPictures known;
  std::error_code error;
  if (!std::filesystem::exists(run.split(), error)) {
    return known;
  }
  auto text = data::detail::read_split_text(run.split());
  std::vector<std::string> changed, missing;
  for (auto& line : text.lines) {
    if (!text.by_name || line.words.size() != 4) {
      continue;
    }
    const auto& name = line.words[1];
    const bool exists = std::filesystem::is_regular_file(data / name, error);
    if (exists && data::detail::file_checksum(data / name) == line.words[3]) {
      known.same.push_back(std::move(line));
    } else {
      (exists ? changed : missing).push_back(name);
    }
  }
  const size_t all = known.same.size() + changed.size() + missing.size();
  for (const auto& [names, what] : {std::pair{&changed, "changed since"}, {&missing, "no longer there"}}) {
    if (!names->empty()) {
      known.notes.push_back(fmt::format(
          "{}: of {} pictures that it trained or was judged with, {} {} {}, e.g. {}: what it says of such a "
          "picture is not taken",
          mixmatch::detail::printable(run.path()), all, names->size(), names->size() == 1 ? "is" : "are",
          what, mixmatch::detail::printable(names->front())));
      known.gone.insert(names->begin(), names->end());
    }
  }
  return known;
}

/// Labels that a person gave by changing `class` in the list that `run` wrote: where a row has no label, has
/// the confidence of that list, and another class. Returns a sentence where rows are of another run's list.
inline std::string take_changed_classes(data::LabelFile& file, const RunDirectory& run) {
  std::unordered_map<std::string, data::PictureLabel> written;
  std::error_code error;
  for (const auto& path : {run.predictions(), run.label_errors()}) {
    if (std::filesystem::exists(path, error)) {
      for (auto& row : data::read_label_file(path).rows) {
        auto name = row.file;
        written.emplace(std::move(name), std::move(row));
      }
    }
  }
  int64_t foreign = 0;
  for (auto& row : file.rows) {
    const auto found = written.find(row.file);
    if (row.label.has_value() || !row.predicted.has_value() || found == written.end() ||
        row.predicted == found->second.predicted) {
      continue;
    }
    if (row.confidence.has_value() && found->second.confidence.has_value() &&
        std::abs(*row.confidence - *found->second.confidence) > 1e-4) {
      ++foreign;
      continue;
    }
    row.label = row.predicted;
  }
  return foreign == 0 ? std::string()
                      : fmt::format(
                            "{}: {} row{} predicted by another run than {}: of those only what the column "
                            "label says is taken",
                            file.name, foreign, foreign == 1 ? " is" : "s are",
                            mixmatch::detail::printable(run.path()));
}

}  // namespace detail

/// The pictures that a run trains on: those of the folder o.data with the labels of `sources`. A run that
/// goes on (`resumed`) has the labels that it was started with, in its labels.csv, and needs none of the
/// sources.
///
/// With sources.from, a finished run on pictures some of which are the same by the checksums in its
/// split.txt, the labels that it was started with and what it held out of these stay, unless a label file or
/// o.split says otherwise: its weights know the other pictures. Those that it names and that are others now,
/// or gone, are counted, and if `strict` throw. In label files, a class that was changed in its
/// predictions.csv or label_errors.csv counts as a label. Says on the standard output what was changed by
/// which file, and on the standard error as `program` what is left out. Throws as read_label_file() and
/// label_pictures(), and where o.validation holds out other pictures than are held out already.
inline data::LabeledPictures find_pictures(const TrainingOptions& o, const LabelSources& sources,
                                           const std::optional<RunDirectory>& resumed, bool strict,
                                           const std::string& program) {
  std::vector<data::LabelFile> files;
  std::error_code error;
  const auto add_labels_of = [&](const RunDirectory& run) {
    if (std::filesystem::exists(run.labels(), error)) {
      files.push_back(data::read_label_file(run.labels()));
    }
  };
  if (resumed.has_value()) {
    add_labels_of(*resumed);
  } else {
    const auto from = sources.from.empty() ? std::nullopt : std::optional(RunDirectory::open(sources.from));
    const auto known = from.has_value() ? detail::compare_pictures(*from, o.data) : detail::KnownPictures();
    if (!known.same.empty()) {
      for (const auto& note : known.notes) {
        TORCH_CHECK(!strict, note);
        print_message(stderr, "{}: {}\n", program, note);
      }
      add_labels_of(*from);
      if (!files.empty()) {
        std::erase_if(files.back().rows, [&](const auto& row) { return known.gone.count(row.file) > 0; });
      }
      data::LabelFile held_out{mixmatch::detail::printable(from->split()), {}};
      for (const auto& line : known.same) {
        if (line.words[0] == "validation") {
          held_out.rows.push_back({fmt::format("{} line {}", held_out.name, line.number), line.words[1],
                                   std::nullopt, /*held_out=*/true});
        }
      }
      if (held_out.rows.empty() && o.validation > 0) {
        print_message(
            stderr,
            "{}: {} has learnt from the pictures that --validation {} holds out: their error will be "
            "too small\n",
            program, mixmatch::detail::printable(from->path()), o.validation);
      }
      if (!held_out.rows.empty() && o.split.empty()) {
        files.push_back(std::move(held_out));
      }
    }
    if (from.has_value() && known.same.empty()) {
      print_message(stdout, "{} is of other pictures: its labels and what it held out are not taken\n",
                    mixmatch::detail::printable(from->path()));
    }
    for (const auto& path : sources.files) {
      files.push_back(data::read_label_file(path));
      if (from.has_value()) {
        const auto foreign = detail::take_changed_classes(files.back(), *from);
        if (!foreign.empty()) {
          print_message(stderr, "{}: {}\n", program, foreign);
        }
      }
      const auto& rows = files.back().rows;
      if (std::none_of(rows.begin(), rows.end(), [](const data::PictureLabel& row) {
            return row.label.has_value() || row.held_out.has_value();
          })) {
        print_message(stderr, "{}: {}: no row says anything: fill in its column label\n", program,
                      files.back().name);
      }
    }
  }
  auto pictures = files.empty() ? data::LabeledPictures{data::list_pictures(o.data, strict), {}}
                                : data::label_pictures(o.data, files, strict);
  if (!resumed.has_value()) {
    for (const auto& change : pictures.changes) {
      print_message(stdout, "{}\n", change);
    }
    const int64_t held_out = pictures.list.validation.numel();
    TORCH_CHECK(o.validation == 0 || held_out == 0 || !o.split.empty(), "--validation ", o.validation, ": ",
                held_out, " pictures are held out already, the first of them ",
                mixmatch::detail::printable(
                    pictures.list.files[static_cast<size_t>(pictures.list.validation[0].item<int64_t>())]),
                "; leave --validation away");
  }
  return pictures;
}

/// Which of a folder's pictures train with their label, without, and not at all: as o.split names them; else
/// what folder.validation holds out or, where that is empty, o.validation of those with a label, and of the
/// others o.labels keep theirs (0: all). The rest is unlabeled. Throws as draw_split() and read_split().
inline data::SslSplit split_pictures(const TrainingOptions& o, const data::ImageFolder& folder) {
  if (!o.split.empty()) {
    return read_split(o, data::ImagePool({folder}), folder.files);
  }
  // Those held out are neither labeled nor unlabeled.
  const Tensor labels = folder.labels.index_fill(0, folder.validation, -1);
  auto split = draw_split(o, labels, folder.class_names);
  const Tensor trains = at::ones(labels.sizes(), at::kBool).index_fill_(0, folder.validation, false);
  split.unlabeled = split.unlabeled.masked_select(trains.index_select(0, split.unlabeled));
  if (folder.validation.numel() > 0) {
    split.validation = folder.validation;
  }
  if (o.labels == 0) {
    const Tensor known = labels.index_select(0, split.unlabeled).ge(0);
    split.labeled = split.unlabeled.masked_select(known);
    split.unlabeled = split.unlabeled.masked_select(known.logical_not());
  }
  return split;
}

/// "2 classes have one picture to train with: "cat", "dog"", of classes in their order and how many pictures
/// of each train; "" if there are none.
inline std::string single_picture_classes(const std::vector<std::string>& class_names,
                                          const std::vector<int64_t>& counts) {
  constexpr size_t most = 5;
  std::vector<std::string> names;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 1) {
      names.push_back(data::detail::class_text(i, class_names));
    }
  }
  if (names.empty()) {
    return "";
  }
  std::string text = fmt::format("{} class{} one picture to train with: {}", names.size(),
                                 names.size() == 1 ? " has" : "es have", names.front());
  for (size_t i = 1; i < std::min(most, names.size()); ++i) {
    text += ", " + names[i];
  }
  return names.size() > most ? text + ", …" : text;
}

}  // namespace mixmatch::training
