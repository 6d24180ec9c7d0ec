#pragma once

#include <sys/mman.h>
#include <unistd.h>
#include <mixmatch/detail/io/data_files.hpp>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>

namespace mixmatch::detail {

/// A file's bytes in the address space, read-only, and its open descriptor, to read parts of it without them.
///
/// What is read through the address space counts as the process's memory, and in ever larger pieces: a fault
/// may map 2 MB around one byte. read_at leaves nothing behind.
class MappedFile {
 public:
  /// Maps the first `bytes` > 0 bytes, which the caller found the file to have; throws c10::Error.
  MappedFile(const char* loader, const std::filesystem::path& path, int64_t bytes)
      : file_(loader, path), bytes_(bytes) {
    data_ = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ, MAP_SHARED, file_.descriptor(), 0);
    if (data_ == MAP_FAILED) {
      file_.fail(std::strerror(errno));
    }
    ::madvise(data_, static_cast<size_t>(bytes), MADV_RANDOM);
    ::madvise(data_, static_cast<size_t>(bytes), MADV_NOHUGEPAGE);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() { ::munmap(data_, static_cast<size_t>(bytes_)); }

  /// Never to be written through: the pages are read-only.
  void* data() const { return data_; }
  int64_t size() const { return bytes_; }

  /// Copies `count` bytes from `offset` on; 0, or errno (EIO where the file ends early). Any number of
  /// threads.
  int read_at(int64_t offset, int64_t count, uint8_t* out) const {
    const int error = file_.read_at(offset, count, out);
    return error >= 0 ? error : EIO;
  }

  /// Lets the system fetch what read_at will soon ask for, so that a disk works at many pieces at once.
  void will_read(int64_t offset, int64_t count) const {
    ::posix_fadvise(file_.descriptor(), offset, count, POSIX_FADV_WILLNEED);
  }

  [[noreturn]] void fail(const char* reason) const { file_.fail(reason); }

 private:
  InputFile file_;
  int64_t bytes_;
  void* data_ = nullptr;
};

}  // namespace mixmatch::detail
