#pragma once

#include <ATen/Parallel.h>
#include <torch/arg.h>
#include <torch/types.h>
#include <mixmatch/data/decode_image.hpp>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/data/picture_list.hpp>
#include <mixmatch/detail/describe.hpp>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/detail/io/printable.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace mixmatch::data {

/// A picture that turned out to be unreadable when it was to be decoded, and the one that is given for it.
struct ReplacedPicture {
  UnreadableFile unreadable;
  std::string replacement;
};

/// "unlabeled/x.jpg: REASON; unlabeled/y.jpg is used in its place", on one line.
inline std::string describe(const ReplacedPicture& picture) {
  return mixmatch::detail::printable(picture.unreadable.file) + ": " + picture.unreadable.reason + "; " +
         mixmatch::detail::printable(picture.replacement) + " is used in its place";
}

struct PictureCacheOptions {
  /// At most so many bytes of decoded pictures are kept; 0 keeps none.
  TORCH_ARG(int64_t, cache_memory) = int64_t{1} << 30;
  /// Throw at a picture that cannot be read instead of replacing it.
  TORCH_ARG(bool, strict) = false;
  TORCH_ARG(DecodeImageOptions, decode) = {};
  /// That decode, with the one that asks; 0 = at::get_num_threads() of the thread that makes the cache.
  TORCH_ARG(int, threads) = 0;
  /// Called once for each picture that is replaced, by one thread at a time.
  TORCH_ARG(std::function<void(const ReplacedPicture&)>, on_replaced);
  /// Called by check_all() and decode_all(), by one thread at a time, with how many pictures have been looked
  /// at.
  TORCH_ARG(std::function<void(int64_t done)>, on_looked_at);
};

namespace detail {

/// work(i) for i in [0, count), each taken by whichever of at most `threads` threads is free; `work` must not
/// throw. Threads of its own: LibTorch's are one where a batch is prefetched.
template <class Work>
void share_among_threads(int64_t count, int64_t threads, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto take = [&] {
    for (int64_t i = next++; i < count; i = next++) {
      work(i);
    }
  };
  struct Helpers {
    std::vector<std::thread> threads;
    ~Helpers() {
      for (auto& thread : threads) {
        thread.join();
      }
    }
  } helpers;
  try {
    for (int64_t i = 1; i < std::min(threads, count); ++i) {
      helpers.threads.emplace_back(take);
    }
  } catch (const std::system_error&) {  // no more of them: those that there are do it
  }
  take();
}

/// What can be told of a picture without decoding it: why it cannot be read, else "".
inline std::string check_picture_file(const std::filesystem::path& path, int64_t max_pixels) {
  PictureFile file(path, most_picture_bytes(max_pixels));
  const std::string begin =
      file.problem.empty() ? file.read(0, int64_t{mixmatch::detail::picture_magic_size}) : "";
  return file.problem.empty()
             ? format_problem(begin, mixmatch::detail::small_extension(path.filename().native()))
             : file.problem;
}

}  // namespace detail

/// Pictures in files, decoded when they are asked for and then kept, as many as cache_memory() holds: what
/// ImageDataset::source is where a folder is larger than memory.
///
/// A picture that is kept stays for good, and the first ones to be decoded are kept. Where rows come in
/// reshuffled epochs that is as good as any other policy can be, a share cache_memory() / (size of all
/// decoded) of the rows is found (the least recently used ones would be gone whenever they are asked for
/// again), and what is drawn more often than others, the labeled pictures, is there from the first steps on.
/// Besides what is kept, each thread that decodes takes memory for one picture (see decode_image), and each
/// gather() its result. gather() may be called by several threads at a time.
///
/// A picture without a label that cannot be read is replaced, wherever it is asked for, by the next one
/// without a label (the first follows the last) that can be: options.on_replaced() tells of it. What gather()
/// gives is therefore a function of the files alone, not of what is kept, the number of threads or the order
/// of calls. It throws c10::Error in one line at any other picture that cannot be read, since the one in its
/// place might be held out from training; where none without a label can be read; and if options.strict().
class PictureCache : public ImageSource {
 public:
  /// `files` relative to `root`; `labels`: int64 [N], with -1 for none.
  /// Nothing is read yet. Throws on a size or options out of range.
  PictureCache(std::filesystem::path root, std::vector<std::string> files, const Tensor& labels,
               int64_t image_size, PictureCacheOptions options = {})
      : root_(std::move(root)),
        files_(std::move(files)),
        image_size_(image_size),
        options_(std::move(options)),
        threads_(options_.threads() > 0 ? options_.threads() : at::get_num_threads()) {
    detail::check_decode_options("PictureCache", image_size, options_.decode().max_pixels());
    TORCH_CHECK(options_.cache_memory() >= 0, "PictureCache: cache_memory must be >= 0, got ",
                options_.cache_memory());
    TORCH_CHECK(options_.threads() >= 0, "PictureCache: threads must be >= 0, got ", options_.threads());
    TORCH_CHECK(labels.defined() && labels.dim() == 1 && labels.scalar_type() == at::kLong &&
                    labels.size(0) == size(),
                "PictureCache: labels must be int64 [", size(), "], got ",
                mixmatch::detail::type_and_sizes(labels));
    const Tensor on_cpu = labels.cpu().contiguous();
    labels_.assign(on_cpu.data_ptr<int64_t>(), on_cpu.data_ptr<int64_t>() + size());
    capacity_ = std::min(size(), options_.cache_memory() / image_bytes());
    slots_.assign(files_.size(), -1);
  }

  int64_t size() const override { return static_cast<int64_t>(files_.size()); }
  std::vector<int64_t> image_sizes() const override { return {3, image_size_, image_size_}; }

  Tensor gather(const Tensor& rows) const override {
    TORCH_CHECK(rows.defined() && rows.dim() == 1 && rows.scalar_type() == at::kLong && rows.is_cpu(),
                "PictureCache::gather: rows must be int64 [B] on the CPU, got ",
                mixmatch::detail::type_and_sizes(rows));
    const Tensor plain = rows.contiguous();
    const auto* row = plain.data_ptr<int64_t>();
    const int64_t count = plain.numel();
    for (int64_t i = 0; i < count; ++i) {
      check_row("gather", row[i]);
    }
    Tensor out = at::empty({count, 3, image_size_, image_size_}, at::kByte);
    auto* pixels = out.data_ptr<uint8_t>();
    const auto place = [&](int64_t i) { return pixels + i * image_bytes(); };
    const auto copy = [&](uint8_t* to, const uint8_t* from) {
      std::memcpy(to, from, static_cast<size_t>(image_bytes()));
    };

    // Kept pictures never move: they can be copied while others are added.
    std::vector<std::pair<int64_t, const uint8_t*>> kept;  // place, pixels
    std::vector<Missing> missing;
    std::vector<std::pair<int64_t, int64_t>> repeated;  // place, place of the same picture
    std::map<int64_t, int64_t> first_place;
    {
      const std::lock_guard lock(mutex_);
      for (int64_t i = 0; i < count; ++i) {
        const auto replaced = replacements_.find(row[i]);
        const int64_t picture = replaced == replacements_.end() ? row[i] : replaced->second;
        if (const int64_t slot = slots_[static_cast<size_t>(picture)]; slot >= 0) {
          kept.emplace_back(i, slot_pixels(slot));
        } else if (const auto [known, is_new] = first_place.emplace(picture, i); is_new) {
          missing.push_back({picture, i, ""});
        } else {
          repeated.emplace_back(i, known->second);
        }
      }
    }
    for (const auto& [i, from] : kept) {
      copy(place(i), from);
    }
    detail::share_among_threads(static_cast<int64_t>(missing.size()), threads_, [&](int64_t k) {
      auto& item = missing[static_cast<size_t>(k)];
      item.problem = decode(item.picture, place(item.place));
    });
    for (auto& item : missing) {
      if (!item.problem.empty()) {
        item.picture = replace(item.picture, item.problem, place(item.place));
      }
      keep(item.picture, place(item.place));
    }
    for (const auto& [to, from] : repeated) {
      copy(place(to), place(from));
    }
    return out;
  }

  /// Why a picture cannot be read, else ""; one that can be is kept, if there is room. May be called by
  /// several threads at a time.
  std::string check(int64_t row) const {
    check_row("check", row);
    std::vector<uint8_t> pixels(static_cast<size_t>(image_bytes()));
    const std::string problem = decode(row, pixels.data());
    if (problem.empty()) {
      keep(row, pixels.data());
    }
    return problem;
  }

  /// Why each picture cannot be read, else "": check() of those with a label, of the others what their
  /// beginning tells. Where options.strict(), pictures behind one that cannot be read may not be looked at.
  std::vector<std::string> check_all() const {
    return for_all([&](int64_t i) {
      return labels_[static_cast<size_t>(i)] >= 0
                 ? check(i)
                 : detail::check_picture_file(path(i), options_.decode().max_pixels());
    });
  }

  /// Decodes all pictures into `images`, uint8 [N, 3, H, W], as gather() would give them, and keeps none.
  /// Returns why those cannot be read that are not replaced, else "": as check_all(), but that where nothing
  /// can replace nothing is, and that options.strict() is for every picture.
  std::vector<std::string> decode_all(Tensor& images) const {
    auto* data = images.data_ptr<uint8_t>();
    const auto place = [&](int64_t i) { return data + i * image_bytes(); };
    std::vector<std::string> damages(files_.size());
    auto reasons = for_all([&](int64_t i) {
      std::string problem = decode(i, place(i));
      if (problem.empty() || options_.strict() || labels_[static_cast<size_t>(i)] >= 0) {
        return problem;
      }
      damages[static_cast<size_t>(i)] = std::move(problem);
      return detail::check_picture_file(path(i), options_.decode().max_pixels());
    });
    for (int64_t i = 0; i < size(); ++i) {
      const auto& damage = damages[static_cast<size_t>(i)];
      if (damage.empty() || !reasons[static_cast<size_t>(i)].empty()) {
        continue;
      }
      const int64_t other = next_without_label(i, [&](int64_t k) {
        return damages[static_cast<size_t>(k)].empty() && reasons[static_cast<size_t>(k)].empty();
      });
      if (other < 0) {
        for (size_t k = 0; k < reasons.size(); ++k) {
          reasons[k] = reasons[k].empty() ? damages[k] : reasons[k];
        }
        break;
      }
      std::memcpy(place(i), place(other), static_cast<size_t>(image_bytes()));
      note_replaced(i, damage, other);
    }
    return reasons;
  }

  /// Of every file its name and length, and of at most 4,096 evenly spaced ones their first and last 4 KiB.
  uint32_t checksum(const Tensor& rows) const override {
    constexpr int64_t most_files = 4096, part = 4096;
    const Tensor plain = rows.contiguous();
    const int64_t count = plain.numel(), read = std::min(count, most_files);
    uint32_t crc = 0;
    const auto add = [&crc](std::string_view bytes) { crc = mixmatch::detail::crc32c(bytes, crc); };
    for (int64_t i = 0, next = 0; i < count; ++i) {
      const int64_t row = plain.data_ptr<int64_t>()[i];
      check_row("checksum", row);
      std::error_code error;
      const auto length = std::filesystem::file_size(path(row), error);
      add(files_[static_cast<size_t>(row)]);
      add({"", 1});
      add(error ? "unreadable" : std::to_string(length));
      if (i == next * count / read) {
        ++next;
        detail::PictureFile file(path(row), detail::most_picture_bytes(options_.decode().max_pixels()));
        add(file.read(0, part));
        add(file.read(std::max<int64_t>(0, file.size - part), part));
      }
    }
    return crc;
  }

  std::vector<int64_t> replaced() const override {
    std::vector<int64_t> rows;
    for (const auto& [row, other] : replacements()) {
      rows.push_back(row);
    }
    return rows;
  }

  /// How many times a file was decoded so far.
  int64_t decoded() const { return decoded_; }
  /// How many pictures are kept, and how many there is room for.
  int64_t kept() const {
    const std::lock_guard lock(mutex_);
    return used_;
  }
  int64_t capacity() const { return capacity_; }
  /// Which rows are given in place of those that cannot be read, as far as those were asked for.
  std::map<int64_t, int64_t> replacements() const {
    const std::lock_guard lock(mutex_);
    return replacements_;
  }
  const std::vector<std::string>& files() const { return files_; }

 private:
  struct Missing {
    int64_t picture, place;
    std::string problem;
  };

  int64_t image_bytes() const { return 3 * image_size_ * image_size_; }
  uint8_t* slot_pixels(int64_t slot) const { return store_.data_ptr<uint8_t>() + slot * image_bytes(); }
  std::filesystem::path path(int64_t picture) const { return root_ / files_[static_cast<size_t>(picture)]; }

  void check_row(const char* function, int64_t row) const {
    TORCH_CHECK(row >= 0 && row < size(), "PictureCache::", function, ": row ", row, " is out of range for ",
                size(), " pictures");
  }

  /// what(i) of every picture, as options.threads() threads find it.
  template <class What>
  std::vector<std::string> for_all(const What& what) const {
    std::vector<std::string> found(files_.size());
    std::atomic<bool> stop{false};
    std::mutex looking;
    int64_t done = 0;
    // Pictures differ in size: each thread takes the next one when it is done with its last.
    detail::share_among_threads(size(), threads_, [&](int64_t i) {
      if (!stop) {
        auto& text = found[static_cast<size_t>(i)];
        text = what(i);
        stop = stop || (options_.strict() && !text.empty());
        if (options_.on_looked_at()) {
          const std::lock_guard lock(looking);
          options_.on_looked_at()(++done);
        }
      }
    });
    return found;
  }

  std::string decode(int64_t picture, uint8_t* to) const {
    ++decoded_;
    return detail::decode_picture(path(picture), image_size_, options_.decode(), to);
  }

  /// Copies the picture into the cache, if there is room and it is not there.
  void keep(int64_t picture, const uint8_t* from) const {
    int64_t slot = 0;
    {
      const std::lock_guard lock(mutex_);
      if (used_ == capacity_ || slots_[static_cast<size_t>(picture)] != -1) {
        return;
      }
      if (!store_.defined()) {  // memory that is not written to yet takes no pages
        store_ = at::empty({capacity_ * image_bytes()}, at::kByte);
      }
      slot = used_++;
      slots_[static_cast<size_t>(picture)] = kBeingCopied;
    }
    std::memcpy(slot_pixels(slot), from, static_cast<size_t>(image_bytes()));
    const std::lock_guard lock(mutex_);
    slots_[static_cast<size_t>(picture)] = slot;
  }

  /// The next picture without a label, the first following the last, for which good(its number) holds; -1
  /// where there is none.
  template <class Good>
  int64_t next_without_label(int64_t picture, const Good& good) const {
    for (int64_t step = 1; step < size(); ++step) {
      const int64_t other = (picture + step) % size();
      if (labels_[static_cast<size_t>(other)] < 0 && good(other)) {
        return other;
      }
    }
    return -1;
  }

  /// Decodes what is given in place of an unreadable picture, and remembers which that is.
  int64_t replace(int64_t picture, const std::string& problem, uint8_t* to) const {
    TORCH_CHECK(!options_.strict() && labels_[static_cast<size_t>(picture)] < 0, "cannot read ",
                mixmatch::detail::printable(path(picture)), ": ", problem);
    const int64_t other = next_without_label(picture, [&](int64_t k) { return decode(k, to).empty(); });
    TORCH_CHECK(other >= 0, "cannot read ", mixmatch::detail::printable(path(picture)), ": ", problem,
                "; nor any other picture without a label, to use in its place");
    note_replaced(picture, problem, other);
    return other;
  }

  void note_replaced(int64_t picture, const std::string& problem, int64_t other) const {
    bool is_new = false;
    {
      const std::lock_guard lock(mutex_);
      is_new = replacements_.emplace(picture, other).second;
    }
    if (is_new && options_.on_replaced()) {
      const std::lock_guard lock(report_mutex_);
      options_.on_replaced()(
          {{files_[static_cast<size_t>(picture)], problem}, files_[static_cast<size_t>(other)]});
    }
  }

  static constexpr int64_t kBeingCopied = -2;

  std::filesystem::path root_;
  std::vector<std::string> files_;
  std::vector<int64_t> labels_;
  int64_t image_size_;
  PictureCacheOptions options_;
  int64_t threads_;
  int64_t capacity_ = 0;
  mutable std::mutex mutex_, report_mutex_;
  // Under the mutex:
  mutable Tensor store_;                // the kept pictures, one after the other
  mutable std::vector<int64_t> slots_;  // where each picture is kept; -1: it is not
  mutable int64_t used_ = 0;
  mutable std::map<int64_t, int64_t> replacements_;
  mutable std::atomic<int64_t> decoded_{0};
};

}  // namespace mixmatch::data
