#pragma once

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <mixmatch/detail/io/crc32c.hpp>
#include <mixmatch/detail/io/proto_message.hpp>
#include <mixmatch/io/atomic_file.hpp>
#include <mixmatch/run/png.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace mixmatch::training {

namespace detail {

/// A name for a new events file that sorts after every one in the directory: TensorBoard reads them in that
/// order, and a run that is resumed within the second it ended in must come second.
inline std::filesystem::path events_file_name(const std::filesystem::path& directory) {
  using std::chrono::system_clock;
  int64_t time =
      std::chrono::duration_cast<std::chrono::seconds>(system_clock::now().time_since_epoch()).count();
  constexpr std::string_view prefix = "events.out.tfevents.";
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    int64_t earlier = 0;
    if (name.starts_with(prefix) &&
        std::from_chars(name.data() + prefix.size(), name.data() + name.size(), earlier).ec == std::errc()) {
      time = std::max(time, earlier + 1);
    }
  }
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0 || host[0] == '\0') {
    host = {'h', 'o', 's', 't'};
  }
  return directory / fmt::format("{}{:010}.{}.{}", prefix, time, host.data(), ::getpid());
}

}  // namespace detail

/// Writes an events file that TensorBoard shows (`tensorboard --logdir DIR`): TFRecord framing around
/// hand-encoded Event messages.
///
/// `start_step` is the step that a resumed run continues from: TensorBoard then forgets what an earlier
/// events file of the directory logged for later steps. 0 is a new run. Steps must be >= 0. Throws c10::Error
/// "cannot write PATH: REASON".
class TensorBoardWriter {
  using ProtoMessage = mixmatch::detail::ProtoMessage;

 public:
  explicit TensorBoardWriter(const std::filesystem::path& directory, int64_t start_step = 0) {
    TORCH_CHECK(start_step >= 0, "TensorBoardWriter: start_step must be >= 0, got ", start_step);
    try {
      std::filesystem::create_directories(directory);
      path_ = detail::events_file_name(directory);
    } catch (const std::filesystem::filesystem_error& error) {
      TORCH_CHECK(false, "cannot write ", directory.string(), ": ", error.code().message());
    }
    file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    if (file_ < 0) {
      mixmatch::detail::throw_cannot_write(path_, errno);
    }
    try {
      write_event(event().bytes(3, "brain.Event:2"));
      if (start_step > 0) {
        constexpr uint64_t status_start = 1;
        const auto first_new = static_cast<uint64_t>(start_step) + 1;
        write_event(event().varint(2, first_new).message(7, ProtoMessage().varint(1, status_start)));
      }
      flush();
    } catch (...) {
      ::close(file_);
      throw;
    }
  }
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;
  ~TensorBoardWriter() {
    static_cast<void>(mixmatch::detail::write_all(file_, pending_));
    ::close(file_);
  }

  void scalar(std::string_view tag, double value, int64_t step) {
    write_value(ProtoMessage().bytes(1, tag).fixed32(2, static_cast<float>(value)), step);
  }

  /// uint8 [3, H, W] or [1, H, W], any device.
  void image(std::string_view tag, const at::Tensor& image, int64_t step) {
    const std::string png = encode_png(image);
    const auto content = ProtoMessage()
                             .varint(1, static_cast<uint64_t>(image.size(1)))
                             .varint(2, static_cast<uint64_t>(image.size(2)))
                             .varint(3, static_cast<uint64_t>(image.size(0)))
                             .bytes(4, png);
    write_value(ProtoMessage().bytes(1, tag).message(4, content), step);
  }

  /// Shown as Markdown.
  void text(std::string_view tag, std::string_view text, int64_t step) {
    constexpr uint64_t string_type = 7;
    constexpr uint64_t tensor_class = 2;
    const auto plugin = ProtoMessage().bytes(1, "text");
    const auto metadata = ProtoMessage().message(1, plugin).varint(4, tensor_class);
    const auto shape = ProtoMessage().message(2, ProtoMessage().varint(1, 1));
    const auto tensor = ProtoMessage().varint(1, string_type).message(2, shape).bytes(8, text);
    write_value(ProtoMessage().bytes(1, tag).message(8, tensor).message(9, metadata), step);
  }

  /// Hands everything written so far to the operating system; also done about once a second by the calls
  /// above.
  void flush() {
    if (!mixmatch::detail::write_all(file_, pending_)) {
      mixmatch::detail::throw_cannot_write(path_, errno);
    }
    pending_.clear();
    last_flush_ = std::chrono::steady_clock::now();
  }

  const std::filesystem::path& path() const { return path_; }

 private:
  static ProtoMessage event() {
    const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
    return ProtoMessage().fixed64(1, now.count());
  }

  void write_value(const ProtoMessage& value, int64_t step) {
    TORCH_CHECK(step >= 0, "TensorBoardWriter: step must be >= 0, got ", step);
    write_event(event().varint(2, static_cast<uint64_t>(step)).message(5, ProtoMessage().message(1, value)));
    if (std::chrono::steady_clock::now() - last_flush_ > std::chrono::seconds(1)) {
      flush();
    }
  }

  void write_event(const ProtoMessage& event) {
    std::string length;
    ProtoMessage::put_little_endian(length, event.str().size(), 8);
    pending_ += length;
    ProtoMessage::put_little_endian(pending_, mixmatch::detail::masked_crc32c(length), 4);
    pending_ += event.str();
    ProtoMessage::put_little_endian(pending_, mixmatch::detail::masked_crc32c(event.str()), 4);
  }

  std::filesystem::path path_;
  int file_ = -1;
  std::string pending_;
  std::chrono::steady_clock::time_point last_flush_;
};

}  // namespace mixmatch::training
