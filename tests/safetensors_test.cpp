#include <mixmatch/detail/counter_rng.hpp>
#include <mixmatch/ema_model.hpp>
#include <mixmatch/io/safetensors.hpp>
#include <mixmatch/models/wide_resnet.hpp>

#include "catch.hpp"
#include "model_zoo.hpp"
#include "test_util.hpp"

#include <cstring>
#include <filesystem>
#include <map>
#include <string>

using namespace mixmatch;
namespace fs = std::filesystem;

namespace {

std::string little_endian(uint64_t value) {
  std::string bytes;
  for (unsigned shift = 0; shift < 64; shift += 8) {
    bytes += static_cast<char>(value >> shift & 0xFF);
  }
  return bytes;
}

/// A file of this header and data.
std::string file_of(const std::string& header, const std::string& data = "") {
  return little_endian(header.size()) + header + data;
}

template <class T>
std::string bytes_of(std::initializer_list<T> values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), values.begin(), bytes.size());
  return bytes;
}

/// The header that a file begins with.
std::string header_of(const fs::path& path) {
  const std::string bytes = read_file(path);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  return bytes.substr(8, length);
}

std::string read_error(const fs::path& path) {
  return error_of([&] { read_safetensors(path); });
}

std::string write_error(const NamedTensors& tensors, const SafetensorsMetadata& metadata = {}) {
  TempDir dir;
  const std::string message = error_of([&] { write_safetensors(dir / "a.safetensors", tensors, metadata); });
  CHECK((message.empty() || fs::is_empty(dir.path())));
  return message;
}

void check_one_line(const std::string& message) {
  INFO(message);
  CHECK_FALSE(message.empty());
  CHECK(message.find('\n') == std::string::npos);
  CHECK(message.size() < 800);
}

std::map<std::string, Tensor> by_name(const NamedTensors& tensors) {
  return {tensors.begin(), tensors.end()};
}

template <class M>
std::map<std::string, Tensor> copy_state(M& model) {
  std::map<std::string, Tensor> copies;
  for (const auto& item : mixmatch::detail::model_state(model)) {
    copies.emplace(item.name, item.tensor.detach().clone());
  }
  return copies;
}

template <class M>
void scramble(M& model) {
  torch::NoGradGuard no_grad;
  for (auto& item : mixmatch::detail::model_state(model)) {
    if (item.tensor.is_floating_point()) {
      item.tensor.add_(torch::rand_like(item.tensor) + 0.5);
    } else {
      item.tensor.add_(3);
    }
  }
}

bool same_state(const std::map<std::string, Tensor>& a, const std::map<std::string, Tensor>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](const auto& x, const auto& y) {
           return x.first == y.first && torch::equal(x.second, y.second);
         });
}

}  // namespace

TEST_CASE("write_safetensors: the bytes of a file, by hand") {
  TempDir dir;
  const fs::path path = dir / "a.safetensors";
  write_safetensors(path, {{"b", torch::tensor({1.5F, -2.F}).view({1, 2})}, {"n", torch::tensor(int64_t{7})}},
                    {{"format", "pt"}});
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]}})";
  std::string padded = header;
  padded.resize((header.size() + 7) / 8 * 8, ' ');
  CHECK(read_file(path) == file_of(padded, bytes_of<int64_t>({7}) + bytes_of<float>({1.5F, -2.F})));
  write_safetensors(path, {});
  CHECK(read_file(path) == file_of("{}      "));
  CHECK(read_safetensors(path).empty());
  CHECK(read_safetensors_metadata(path).empty());
}

TEST_CASE("read_safetensors: a file by hand, in another order and with other white space") {
  TempDir dir;
  const fs::path path = dir / "a.safetensors";
  write_file(path, file_of("{ \"z\\u0041\\n\" : {\"data_offsets\":[4, 8],\"shape\":[2],\"dtype\":\"I16\"} ,\n"
                           "\"m\":{\"dtype\":\"BOOL\",\"shape\":[2,2],\"data_offsets\":[0,4]},"
                           "\"e\":{\"dtype\":\"F64\",\"shape\":[3,0],\"data_offsets\":[4,4]},"
                           "\"__metadata__\":{\"k\\t\":\"\\u00e9\"}}  ",
                           std::string("\0\1\1\2", 4) + bytes_of<int16_t>({-3, 300})));
  const auto tensors = read_safetensors(path);
  REQUIRE(tensors.size() == 3);
  CHECK(tensors[0].first == "m");
  CHECK(tensors[0].second.scalar_type() == at::kBool);
  CHECK(tensors[0].second.to(at::kLong).equal(torch::tensor({{0, 1}, {1, 1}}, at::kLong)));
  CHECK(tensors[1].first == "e");
  CHECK(tensors[1].second.sizes() == at::IntArrayRef({3, 0}));
  CHECK(tensors[1].second.scalar_type() == at::kDouble);
  CHECK(tensors[2].first == "zA\n");
  CHECK(tensors[2].second.equal(torch::tensor({-3, 300}, at::kShort)));
  CHECK(read_safetensors_metadata(path) == SafetensorsMetadata{{"k\t", "\xc3\xa9"}});
}

TEST_CASE("safetensors: every dtype, shape and stride comes back") {
  TempDir dir;
  const fs::path path = dir / "a.safetensors";
  torch::manual_seed(1);
  NamedTensors tensors;
  for (const auto type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                          at::kChar, at::kByte, at::kBool}) {
    const std::string name = c10::toString(type);
    const auto values = torch::randint(0, 100, {5, 3, 4, 2}).to(type);
    tensors.emplace_back(name, values);
    tensors.emplace_back(name + ".scalar", values[0][0][0][0].clone());
    tensors.emplace_back(name + ".empty", torch::empty({0, 4}, type));
    tensors.emplace_back(name + ".channels_last", values.contiguous(at::MemoryFormat::ChannelsLast));
    tensors.emplace_back(name + ".slice", values.slice(0, 1, 5, 2).transpose(1, 3));
    tensors.emplace_back(name + ".expanded", values[0][0][0].expand({4, 2}));
  }
  tensors.emplace_back("needs.grad", torch::rand({3}).requires_grad_());
  tensors.emplace_back("nan and infinity", torch::tensor({NAN, INFINITY, -0.F}));
  tensors.emplace_back("negative view", at::_neg_view(torch::ones({2})));
  tensors.emplace_back("name \"quoted\" \\ \n \xf0\x9f\x98\x80", torch::rand({2}));
  tensors.emplace_back("", torch::rand({1}));
  write_safetensors(path, tensors);
  CHECK(header_of(path).size() % 8 == 0);

  const auto read = read_safetensors(path);
  const auto found = by_name(read);
  CHECK(found.size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    REQUIRE(found.count(name) == 1);
    const auto& other = found.at(name);
    CHECK(other.scalar_type() == tensor.scalar_type());
    CHECK(other.sizes() == tensor.sizes());
    CHECK(other.is_contiguous());
    CHECK_FALSE(other.requires_grad());
    const auto expected = tensor.detach();
    CHECK((torch::equal(other, expected) || name == "nan and infinity"));
  }
  const auto special = found.at("nan and infinity");
  CHECK(std::isnan(special[0].item<float>()));
  CHECK(special[1].item<float>() == INFINITY);
  CHECK(std::signbit(special[2].item<float>()));
  CHECK(found.at("negative view").equal(torch::full({2}, -1.F)));
  // Each tensor begins at a multiple of its element's size.
  for (size_t i = 1; i < read.size(); ++i) {
    CHECK(read[i - 1].second.element_size() >= read[i].second.element_size());
  }
}

TEST_CASE("write_safetensors: what it refuses, in one line and without a file") {
  const auto one = torch::rand({2});
  const auto check = [](const std::string& message, const std::string& part) {
    check_one_line(message);
    CHECK_THAT(message, contains("a.safetensors: "));
    CHECK_THAT(message, contains(part));
  };
  check(write_error({{"a", one}, {"b", one}, {"a", one}}), "tensor \"a\" stands there twice");
  check(write_error({{"a\nb", Tensor()}}), "tensor \"a\\nb\" is undefined");
  check(write_error({{"c", torch::view_as_complex(torch::rand({2, 2}))}}), "tensor \"c\" is ComplexFloat");
  check(write_error({{"s", one.to_sparse()}}), "tensor \"s\" must be dense");
  check(write_error({{"m", torch::empty({2}, at::kMeta)}}), "must be dense and have data");
  check(write_error({{"__metadata__", one}}), "the name belongs to the metadata");
  check(write_error({{"\xff", one}}), "the name is not UTF-8");
  check(write_error({{"a", one}}, {{"k", "\xc3"}}), "metadata \"k\" is not UTF-8");
  check(write_error({{"a", one}}, {{"\xc3", "v"}}), "is not UTF-8");
  check(write_error({{"a", one}}, {{"k", std::string(100'000'000, 'x')}}),
        "the format takes at most 100000000");
  TempDir dir;
  check_one_line(error_of([&] { write_safetensors(dir / "no" / "a.safetensors", {{"a", one}}); }));
}

TEST_CASE("read_safetensors: files that are none, in one line") {
  TempDir dir;
  const fs::path path = dir / "bad.safetensors";
  const auto check = [&](const std::string& bytes, const std::string& part) {
    write_file(path, bytes);
    const std::string message = read_error(path);
    check_one_line(message);
    CHECK(message.rfind("read_safetensors: " + path.string() + ": ", 0) == 0);
    CHECK_THAT(message, contains(part));
    CHECK(error_of([&] { read_safetensors_metadata(path); }).substr(25) == message.substr(16));
  };
  const auto check_header = [&](const std::string& header, const std::string& part,
                                const std::string& data = "") { check(file_of(header, data), part); };
  const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"("a":{"dtype":")" + dtype + R"(","shape":[)" + shape + R"(],"data_offsets":[)" + offsets + "]}";
  };

  SECTION("cut short") {
    check("", "cut short: 0 bytes");
    check(std::string(7, '\0'), "cut short: 7 bytes");
    check(little_endian(8), "header of 8 bytes, but only 0 follow");
    check(little_endian(9) + "{}      ", "header of 9 bytes, but only 8 follow");
    check(little_endian(0), "does not begin with '{'");
    const std::string whole = file_of("{" + entry("F32", "2", "0,8") + "}", std::string(8, '\0'));
    for (size_t size = 0; size < whole.size(); ++size) {
      write_file(path, whole.substr(0, size));
      check_one_line(read_error(path));
    }
    write_file(path, whole);
    CHECK(read_error(path).empty());
    check(whole.substr(0, whole.size() - 1), "reach beyond the file's 7 bytes of data");
    check(whole + "x", "1 bytes at the end belong to no tensor");
  }
  SECTION("lengths that would take all memory") {
    check(little_endian(~uint64_t{0}) + "{}", "expected at most 100000000; is it a safetensors file?");
    check(little_endian(uint64_t{1} << 63) + "{}", "expected at most 100000000");
    check(little_endian(100'000'000) + "{}", "header of 100000000 bytes, but only 2 follow");
    check("PK\3\4 a zip archive, as torch.save writes it", "is it a safetensors file?");
    check("no such file, says the server", "is it a safetensors file?");
  }
  SECTION("no JSON") {
    check_header("[]", "does not begin with '{'");
    check_header(" {}", "does not begin with '{'");
    check_header("{", "header, line 1 column 2: expected a name in quotes, got the end");
    check_header("{}x", "header, line 1 column 3: expected the end");
    check_header("{} {}", "expected the end");
    check_header("{\"a\"}", "expected ':'");
    check_header("{\"a\":1}", "expected an object, got '1'");
    check_header("{\"a\":null}", "expected an object");
    check_header("{\xff\"a\":{}}", "expected a name in quotes");
    check_header("{\"\xff\":{}}", "expected UTF-8");
    check_header("{\"a\\ud800\":{}}", "surrogate");
    check_header(std::string("{\"a\0\":{}}", 9), "a character of the string");
    check_header("{" + entry("F32", "1", "0,4") + ",}", "expected a name in quotes", "1234");
    std::string deep = "{\"a\":";
    for (int i = 0; i < 100'000; ++i) {
      deep += "{\"a\":[";
    }
    check_header(deep, "unknown key");
    check_header("{\"a\":{\"shape\":" + std::string(1'000'000, '['), "expected a whole number");
  }
  SECTION("entries that are none") {
    check_header("{\"a\":{}}", "tensor \"a\": must have dtype, shape and data_offsets");
    check_header(R"({"a":{"dtype":"F32","shape":[]}})", "must have dtype, shape and data_offsets");
    check_header(R"({"a":{"dtype":"F32","dtype":"F32"}})", "tensor \"a\": dtype stands there twice");
    check_header(R"({"a":{"more":1}})", "unknown key \"more\"");
    check_header(R"({"a":{"dtype":3}})", "expected a string");
    check_header("{" + entry("F32", "-1", "0,4") + "}", "expected a whole number", "1234");
    check_header("{" + entry("F32", "1.0", "0,4") + "}", "expected a whole number", "1234");
    check_header("{" + entry("F32", "1e0", "0,4") + "}", "expected a whole number", "1234");
    check_header("{" + entry("F32", "1,", "0,4") + "}", "expected a whole number", "1234");
    check_header("{" + entry("F32", "[1]", "0,4") + "}", "expected a whole number", "1234");
    check_header("{" + entry("F32", "1", "0") + "}", "data_offsets must be [begin, end], got 1", "1234");
    check_header("{" + entry("F32", "1", "") + "}", "data_offsets must be [begin, end], got 0", "1234");
    check_header("{" + entry("F32", "1", "0,4,8") + "}", "data_offsets must be [begin, end], got more",
                 "1234");
    check_header(R"({"__metadata__":{"k":1}})", "expected a string");
    check_header(R"({"__metadata__":"k"})", "expected an object");
    check_header(R"({"__metadata__":{"k":{"k":"v"}}})", "expected a string");
  }
  SECTION("names that stand there twice") {
    check_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0061":{"dtype":"U8","shape":[1],)"
                 R"("data_offsets":[1,2]}})",
                 "tensor \"a\" stands there twice", "12");
    check_header(R"({"__metadata__":{},"__metadata__":{}})", "__metadata__ stands there twice");
    check_header(R"({"__metadata__":{"k":"1","k":"1"}})", "\"k\" stands there twice");
  }
  SECTION("sizes that overflow or do not fit") {
    check_header("{" + entry("F32", "3", "0,8") + "}", "F32 [3] takes 12 bytes, but data_offsets are [0, 8]",
                 "12345678");
    check_header("{" + entry("F32", "2", "8,0") + "}", "data_offsets are [8, 0]", "12345678");
    check_header("{" + entry("F32", "0", "0,4") + "}", "takes 0 bytes", "1234");
    check_header("{" + entry("U8", "18446744073709551615", "0,1") + "}", "out of range", "1");
    check_header("{" + entry("U8", "18446744073709551616", "0,1") + "}", "expected a whole number", "1");
    check_header("{" + entry("U8", "9223372036854775807,2", "0,1") + "}", "is too large", "1");
    check_header("{" + entry("F64", "4611686018427387904", "0,8") + "}", "is too large", "12345678");
    check_header("{" + entry("U8", "4294967296,4294967296", "0,0") + "}", "is too large");
    // 2^64 + 1 bytes, which is 1 modulo 2^64.
    check_header("{" + entry("U8", "274177,67280421310721", "0,1") + "}", "is too large", "1");
    check_header("{" + entry("U8", "0,4294967296,4294967296", "0,0") + "}", "is too large");
    check_header("{" + entry("U8", "9223372036854775807", "0,9223372036854775807") + "}", "reach beyond",
                 "1");
    check_header("{" + entry("U8", "1", "18446744073709551615,0") + "}", "takes 1 bytes", "1");
    std::string ones = "1";
    for (int i = 0; i < 100'000; ++i) {
      ones += ",1";
    }
    check_header("{" + entry("U8", ones, "0,1") + "}", "more than 64 dimensions", "1");
  }
  SECTION("data that overlaps or leaves gaps") {
    const auto two = [](const std::string& a, const std::string& b) {
      return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
             R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}";
    };
    const std::string eight = "12345678";
    write_file(path, file_of(two("[4,8]", "[0,4]"), eight));
    CHECK(read_error(path).empty());
    check_header(two("[0,4]", "[0,4]"), "tensor \"b\": data begins at 0, expected 4", eight);
    check_header(two("[0,4]", "[3,7]"), "data begins at 3, expected 4: tensors must follow each other",
                 eight);
    check_header(two("[0,4]", "[5,9]"), "data begins at 5, expected 4", "123456789");
    check_header(two("[1,5]", "[5,9]"), "data begins at 1, expected 0", "123456789");
    check_header(two("[0,4]", "[4,8]"), "1 bytes at the end belong to no tensor", "123456789");
    check_header(two("[0,4]", "[4,8]"), "reach beyond the file's 7 bytes", "1234567");
    check_header("{}", "4 bytes at the end", "1234");
  }
  SECTION("names that would break a message") {
    check_header("{\"" + std::string(1'000'000, 'n') + "\":{}}", "nnn");
    check_header("{\"a\\nb\":{}}", "tensor \"a\\nb\"");
  }
}

TEST_CASE("read_safetensors: thousands of damaged files") {
  TempDir dir;
  const fs::path path = dir / "damaged.safetensors";
  write_safetensors(path,
                    {{"a", torch::ones({2, 3})}, {"b", torch::ones({3}, at::kBool)}, {"c", torch::tensor(1)}},
                    {{"k", "v"}});
  const std::string whole = read_file(path);
  mixmatch::detail::CounterRng random(1);
  int64_t refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = whole;
    for (int64_t changes = random.between(1, 3); changes > 0; --changes) {
      const auto at = static_cast<size_t>(random.below(static_cast<int64_t>(bytes.size())));
      constexpr std::string_view likely = "{}[]\",:\\u0129-\0\xff ";
      const auto chosen = static_cast<size_t>(random.below(static_cast<int64_t>(likely.size())));
      switch (random.below(4)) {
        case 0:
          bytes[at] = static_cast<char>(random.below(256));
          break;
        case 1:
          bytes.erase(at, 1);
          break;
        case 2:
          bytes.insert(at, 1, likely[chosen]);
          break;
        default:
          bytes[at] = likely[chosen];
      }
    }
    write_file(path, bytes);
    const std::string message = read_error(path);  // fails on anything but an exception
    refused += message.empty() ? 0 : 1;
    if (!message.empty() &&
        (message.find('\n') != message.npos || message.find(path.string()) == message.npos)) {
      FAIL(message);
    }
  }
  CHECK(refused > 1500);
}

TEST_CASE("safetensors: what is given in place of such a file is named, with what to do") {
  TempDir dir;
  const fs::path path = dir / "model.safetensors";
  const std::string lfs =
      "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 438000000\n";
  for (const auto& [bytes, part] : std::vector<std::pair<std::string, std::string>>{
           {lfs, "a Git-LFS pointer in place of the weights: fetch them (git lfs pull"},
           {lfs.substr(0, 40), "a Git-LFS pointer"},
           {"{\n  \"metadata\": {\"total_size\": 1},\n  \"weight_map\": {}}", "model.safetensors.index.json"},
           {" \n{\"weight_map\": {}}", "model.safetensors.index.json"},
           {"PK\3\4" + std::string(60, '\0'), "a zip archive, as torch.save and Keras write it"},
           {"\x80\x02\x8a\x0al\xfc\x9c"
            "F\xf9 j\xa8P\x19.",
            "a pickle, as torch.save wrote it"},
           {"\x89HDF\r\n\x1a\n" + std::string(60, '\0'), "an HDF5 file"},
           {"GGUF\3" + std::string(60, '\0'), "a GGUF file"},
           {"<!DOCTYPE html><html>Sign in</html>", "an HTML or XML page"}}) {
    write_file(path, bytes);
    check_one_line(read_error(path));
    CHECK(read_error(path).rfind("read_safetensors: " + path.string() + ": ", 0) == 0);
    CHECK_THAT(read_error(path), contains(part));
    CHECK_THAT(error_of([&] { read_safetensors_metadata(path); }), contains(part));
  }
  // A header whose length looks like one of those is a header.
  for (const size_t length : {size_t{0x7B}, size_t{0x5B}, size_t{0x280}, size_t{0x7B20}}) {
    write_file(path, file_of("{}" + std::string(length - 2, ' ')));
    CHECK(read_error(path).empty());
  }
}

TEST_CASE("safetensors: a tensor whose dtype cannot be read does not keep the others from it") {
  TempDir dir;
  const fs::path path = dir / "model.safetensors";
  HeldNet model;
  const auto weight = torch::rand({2, 3});
  const auto write = [&](const std::string& name, const std::string& dtype, const std::string& shape,
                         size_t bytes) {
    const std::string end = std::to_string(24 + bytes);
    write_file(path, file_of(R"({"__metadata__":{"k":"v"},"dense.weight":{"dtype":"F32","shape":[2,3],)"
                             R"("data_offsets":[0,24]},")" +
                                 name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape +
                                 R"(,"data_offsets":[24,)" + end + "]}}",
                             std::string(static_cast<const char*>(weight.data_ptr()), 24) +
                                 std::string(bytes, '\x55')));
  };
  const auto lenient = LoadSafetensorsOptions().strict(false);
  for (const auto& [dtype, bytes] : std::map<std::string, size_t>{{"F8_E4M3", 8},
                                                                  {"F8_E5M2", 8},
                                                                  {"F8_E8M0", 8},
                                                                  {"U16", 16},
                                                                  {"U32", 32},
                                                                  {"U64", 64},
                                                                  {"C64", 64},
                                                                  {"F4", 4},
                                                                  {"F6_E2M3", 6},
                                                                  {"X99", 5}}) {
    CAPTURE(dtype);
    write("head", dtype, "[4,2]", bytes);
    CHECK(read_safetensors_metadata(path) == SafetensorsMetadata{{"k", "v"}});
    const std::string reason =
        "tensor \"head\": dtype \"" + dtype + "\" is none of those that can be read: F64";
    check_one_line(read_error(path));
    CHECK_THAT(read_error(path), contains(reason));
    const auto read = read_safetensors(path, ReadSafetensorsOptions().strict(false));
    REQUIRE(read.size() == 1);
    CHECK(read[0].second.equal(weight));
    CHECK_THAT(
        error_of([&] { load_safetensors(path, model); }),
        contains(dtype == "X99" ? "head" : "tensor \"head\" (" + dtype + " [4, 2]) is not in the model"));
    scramble(model);
    const auto result = load_safetensors(path, model, lenient);
    CHECK(model->dense->weight.equal(weight));
    CHECK(result.unexpected == std::vector<std::string>{"head"});
    // One that the model would have.
    write("dense.bias", dtype, "[4,2]", bytes);
    const auto before = copy_state(model);
    CHECK_THAT(error_of([&] { load_safetensors(path, model); }),
               contains("tensor \"dense.bias\": dtype \"" + dtype));
    CHECK(same_state(copy_state(model), before));
    const auto partial = load_safetensors(path, model, lenient);
    CHECK(partial.unexpected == std::vector<std::string>{"dense.bias"});
    CHECK(std::count(partial.missing.begin(), partial.missing.end(), "dense.bias") == 1);
  }
  // The size is checked all the same, where the dtype is known.
  for (const auto& [dtype, bytes] :
       std::map<std::string, size_t>{{"F8_E4M3", 7}, {"U16", 8}, {"F4", 8}, {"C64", 32}}) {
    write("head", dtype, "[4,2]", bytes);
    CHECK_THAT(read_error(path), contains(dtype + " [4, 2] takes "));
  }
  write("head", "F4", "[3]", 2);
  CHECK_THAT(read_error(path), contains("dtype \"F4\" is none"));
  write("head", "F4", "[9223372036854775807]", 2);
  CHECK_THAT(read_error(path), contains("takes 4611686018427387904 bytes"));
  write("head", "\\n\\u001b[2J", "[4,2]", 8);
  CHECK_THAT(read_error(path), contains("dtype \"\\n\\x1b[2J\" is none"));
}

TEST_CASE("safetensors: a checksum finds every flipped bit, and nothing that means the same") {
  TempDir dir;
  const fs::path path = dir / "model.safetensors";
  const NamedTensors tensors{{"b", torch::rand({2, 3})}, {"a", torch::tensor({1, 2}, at::kLong)}};
  const auto with_checksum = WriteSafetensorsOptions().checksum(true);
  write_safetensors(path, tensors, {{"k", "v"}}, with_checksum);
  CHECK(read_error(path).empty());
  const std::string whole = read_file(path);
  const std::string sum = read_safetensors_metadata(path).at("mixmatch_crc32c");
  CHECK(sum.size() == 8);
  const size_t key = whole.find("mixmatch_crc32c");
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << at % 8));
    write_file(path, bytes);
    // Without its key there is no checksum, and a blank between the header's words may be another.
    const bool known = (at >= key && at < key + 15) || whole[at] == ' ';
    if (read_error(path).empty() && !known) {
      FAIL("byte " << at);
    }
  }
  write_file(path, whole.substr(0, whole.size() - 1) + static_cast<char>(whole.back() ^ 1));
  check_one_line(read_error(path));
  CHECK_THAT(read_error(path), contains("damaged: its content does not fit its checksum"));
  CHECK(read_safetensors_metadata(path).at("k") == "v");
  // Another order and other blanks, as other writers have them.
  write_safetensors(path, {tensors[1], tensors[0]}, {{"k", "v"}, {"mixmatch_crc32c", sum}});
  CHECK(read_error(path).empty());
  write_safetensors(path, {tensors[1], tensors[0]}, {{"k", "w"}, {"mixmatch_crc32c", sum}});
  CHECK_THAT(read_error(path), contains("checksum"));
  write_safetensors(path, {{"a", tensors[0].second}, {"b", tensors[1].second}},
                    {{"k", "v"}, {"mixmatch_crc32c", sum}});
  CHECK_THAT(read_error(path), contains("checksum"));
  HeldNet model;
  save_safetensors(path, model, {}, with_checksum);
  const auto before = copy_state(model);
  load_safetensors(path, model);
  const std::string saved = read_file(path);
  write_file(path, saved.substr(0, saved.size() - 1) + static_cast<char>(saved.back() ^ 1));
  CHECK_THAT(error_of([&] { load_safetensors(path, model); }), contains("checksum"));
  CHECK(same_state(copy_state(model), before));
}

TEST_CASE("read_safetensors: no file, a directory") {
  TempDir dir;
  CHECK_THAT(read_error(dir / "none"), contains("none: there is no such file"));
  CHECK_THAT(read_error(dir.path()), contains("not a regular file"));
  check_one_line(read_error(dir.path()));
}

namespace {

/// Saves, changes everything, loads, and compares.
template <class M>
void check_round_trip(M& model, const std::vector<std::string>& names) {
  TempDir dir;
  const fs::path path = dir / "model.safetensors";
  scramble(model);
  const auto before = copy_state(model);
  save_safetensors(path, model, {{"step", "3"}});
  CHECK(read_safetensors_metadata(path) == SafetensorsMetadata{{"step", "3"}});
  std::vector<std::string> saved;
  for (const auto& [name, tensor] : by_name(read_safetensors(path))) {
    saved.push_back(name);
    CHECK(torch::equal(tensor, before.at(name)));
  }
  CHECK(saved == names);
  std::vector<void*> memory;
  for (const auto& item : mixmatch::detail::model_state(model)) {
    memory.push_back(item.tensor.data_ptr());
  }
  scramble(model);
  CHECK_FALSE(same_state(copy_state(model), before));
  const auto result = load_safetensors(path, model);
  CHECK(result.missing.empty());
  CHECK(result.unexpected.empty());
  CHECK(same_state(copy_state(model), before));
  const auto state = mixmatch::detail::model_state(model);
  for (size_t i = 0; i < state.size(); ++i) {
    CHECK(state[i].tensor.data_ptr() == memory[i]);
  }
}

const std::vector<std::string> held_names{
    "dense.bias",        "dense.weight",     "norm.bias",  "norm.num_batches_tracked",
    "norm.running_mean", "norm.running_var", "norm.weight"};

}  // namespace

TEST_CASE("save_safetensors and load_safetensors: every kind of module") {
  torch::manual_seed(2);
  SECTION("a module by reference") {
    PlainNet net;
    check_round_trip(net,
                     {"dense1.bias", "dense1.weight", "dense2.bias", "dense2.weight", "norm.bias",
                      "norm.num_batches_tracked", "norm.running_mean", "norm.running_var", "norm.weight"});
  }
  SECTION("ModuleHolder, and what it holds") {
    HeldNet net;
    check_round_trip(net, held_names);
    check_round_trip(*net, held_names);
    const HeldNet& constant = net;
    check_round_trip(constant, held_names);
  }
  SECTION("shared_ptr") {
    auto net = std::make_shared<HeldNetImpl>();
    check_round_trip(net, held_names);
  }
  SECTION("Sequential") {
    auto net = sequential_net();
    check_round_trip(net, {"0.bias", "0.weight", "1.bias", "1.num_batches_tracked", "1.running_mean",
                           "1.running_var", "1.weight", "2.bias", "2.weight"});
  }
  SECTION("AnyModule") {
    torch::nn::AnyModule net{HeldNet()};
    check_round_trip(net, held_names);
  }
  SECTION("TorchScript") {
    auto net = script_net();
    check_round_trip(net,
                     {"bias", "norm.num_batches_tracked", "norm.running_mean", "norm.running_var", "weight"});
  }
}

TEST_CASE("save_safetensors: a Wide ResNet under the names of PyTorch") {
  TempDir dir;
  models::WideResNet model(models::WideResNetOptions(10).depth(10).widen_factor(1));
  save_safetensors(dir / "model.safetensors", *model);
  const auto saved = by_name(read_safetensors(dir / "model.safetensors"));
  for (const auto* name :
       {"conv1.weight", "block1.layer.0.bn1.running_var", "block2.layer.0.convShortcut.weight",
        "block3.layer.0.bn2.num_batches_tracked", "bn1.weight", "fc.bias"}) {
    CHECK(saved.count(name) == 1);
  }
  int64_t parameters = 0;
  for (const auto& parameter : model->parameters()) {
    parameters += parameter.numel();
  }
  int64_t saved_parameters = 0;
  for (const auto& [name, tensor] : saved) {
    saved_parameters += name.find("running") == name.npos && tensor.is_floating_point() ? tensor.numel() : 0;
  }
  CHECK(saved_parameters == parameters);
}

TEST_CASE("load_safetensors: tensors keep strides, dtype, autograd flags and their place in a pending pass") {
  TempDir dir;
  const fs::path path = dir / "model.safetensors";
  torch::manual_seed(3);
  models::WideResNet source(models::WideResNetOptions(10).depth(10).widen_factor(1));
  models::WideResNet model(models::WideResNetOptions(10).depth(10).widen_factor(1));
  for (auto& parameter : model->parameters()) {
    if (parameter.dim() == 4) {
      parameter.set_data(parameter.contiguous(at::MemoryFormat::ChannelsLast));
    }
  }
  model->fc->bias.set_requires_grad(false);
  const Tensor kernel = model->groups[1]->layer[0]->as<models::WideResNetBlock>()->conv2->weight;
  const auto strides = kernel.strides().vec();
  const auto* data = kernel.data_ptr();
  save_safetensors(path, source);
  load_safetensors(path, model);
  CHECK(kernel.strides() == at::IntArrayRef(strides));
  CHECK(kernel.data_ptr() == data);
  CHECK(kernel.requires_grad());
  CHECK(kernel.is_leaf());
  CHECK_FALSE(kernel.grad_fn());
  CHECK_FALSE(model->fc->bias.requires_grad());
  CHECK(same_state(copy_state(model), copy_state(source)));

  // Channels-last weights are written in the logical order.
  const fs::path again = dir / "again.safetensors";
  save_safetensors(again, model);
  CHECK(read_file(again) == read_file(path));
}

TEST_CASE("load_safetensors: differences are named, and the model stays as it was") {
  TempDir dir;
  const fs::path path = dir / "model.safetensors";
  torch::manual_seed(4);
  HeldNet model;
  save_safetensors(path, model);
  NamedTensors tensors = read_safetensors(path);
  const auto erase = [&](const std::string& name) {
    std::erase_if(tensors, [&](const auto& item) { return item.first == name; });
  };
  scramble(model);
  const auto before = copy_state(model);
  const auto error = [&](const LoadSafetensorsOptions& options = {}) {
    write_safetensors(path, tensors);
    const std::string message = error_of([&] { load_safetensors(path, model, options); });
    check_one_line(message);
    CHECK(message.rfind("load_safetensors: " + path.string() + ": ", 0) == 0);
    CHECK(same_state(copy_state(model), before));
    return message;
  };

  SECTION("missing") {
    erase("dense.bias");
    CHECK_THAT(error(), contains("tensor \"dense.bias\" (F32 [2]) of the model is missing"));
    erase("norm.running_mean");
    CHECK_THAT(error(), contains("is missing, and 1 more"));
  }
  SECTION("unexpected") {
    tensors.emplace_back("head.weight", torch::rand({4, 2}, at::kDouble));
    CHECK_THAT(error(), contains("tensor \"head.weight\" (F64 [4, 2]) is not in the model"));
    erase("dense.bias");
    CHECK_THAT(error(),
               contains("tensor \"dense.bias\" (F32 [2]) of the model is missing; tensor \"head.weight\""));
  }
  SECTION("all of them") {
    for (auto& item : tensors) {
      item.first = "other." + item.first;
    }
    CHECK_THAT(error(), contains("none of the model's tensors is in it, not \"") &&
                            contains(" nor any other; it has \"other.") &&
                            contains(" more: of another network?"));
  }
  SECTION("another shape") {
    erase("dense.weight");
    tensors.emplace_back("dense.weight", torch::rand({3, 2}));
    const std::string expected =
        "tensor \"dense.weight\" is F32 [2, 3] in the model, but F32 [3, 2] in the file";
    CHECK_THAT(error(), contains(expected));
    CHECK_THAT(error(LoadSafetensorsOptions().strict(false).allow_cast(true)), contains(expected));
  }
  SECTION("another dtype") {
    erase("dense.weight");
    tensors.emplace_back("dense.weight", torch::rand({2, 3}, at::kDouble));
    CHECK_THAT(
        error(),
        contains("is F32 [2, 3] in the model, but F64 [2, 3] in the file (allow_cast(true) converts)"));
    erase("dense.weight");
    tensors.emplace_back("dense.weight", torch::ones({2, 3}, at::kInt));
    CHECK_THAT(error(), contains("but I32 [2, 3] in the file"));
    erase("dense.weight");
    tensors.emplace_back("dense.weight", torch::rand({2, 3}));
    erase("norm.num_batches_tracked");
    tensors.emplace_back("norm.num_batches_tracked", torch::tensor(3, at::kInt));
    CHECK_THAT(error(),
               contains("\"norm.num_batches_tracked\" is I64 [] in the model, but I32 [] in the file"));
  }
  SECTION("no file, or a bad one") {
    CHECK_THAT(error_of([&] { load_safetensors(dir / "none", model); }), contains("there is no such file"));
    write_file(path, read_file(path).substr(0, 100));
    CHECK_THAT(error_of([&] { load_safetensors(path, model); }), contains("cut short"));
    CHECK(same_state(copy_state(model), before));
  }
}

TEST_CASE("load_safetensors: strict(false) loads what both have and says the rest") {
  TempDir dir;
  const fs::path path = dir / "model.safetensors";
  HeldNet model;
  const auto weight = torch::rand({2, 3});
  const auto bias = model->dense->bias.detach().clone();
  write_safetensors(path, {{"dense.weight", weight}, {"other", weight}});
  const auto result = load_safetensors(path, model, LoadSafetensorsOptions().strict(false));
  CHECK(model->dense->weight.equal(weight));
  CHECK(model->dense->bias.equal(bias));
  CHECK(result.missing == std::vector<std::string>{"dense.bias", "norm.weight", "norm.bias",
                                                   "norm.running_mean", "norm.running_var",
                                                   "norm.num_batches_tracked"});
  CHECK(result.unexpected == std::vector<std::string>{"other"});
}

TEST_CASE("load_safetensors: allow_cast converts dtypes") {
  TempDir dir;
  const fs::path path = dir / "model.safetensors", narrow_path = dir / "narrow.safetensors";
  const auto cast = LoadSafetensorsOptions().allow_cast(true);
  HeldNet model;
  model->norm->num_batches_tracked.fill_(200);
  save_safetensors(path, model);
  HeldNet wide, narrow;
  wide->to(at::kDouble);
  narrow->to(at::kBFloat16);  // the count too
  load_safetensors(path, wide, cast);
  load_safetensors(path, narrow, cast);
  CHECK(wide->dense->weight.equal(model->dense->weight.to(at::kDouble)));
  CHECK(wide->norm->num_batches_tracked.item<double>() == 200);
  CHECK(narrow->dense->weight.equal(model->dense->weight.to(at::kBFloat16)));
  CHECK(narrow->dense->weight.scalar_type() == at::kBFloat16);
  save_safetensors(narrow_path, narrow);
  load_safetensors(narrow_path, model, cast);
  CHECK(model->dense->weight.equal(narrow->dense->weight.to(at::kFloat)));
  CHECK(model->norm->num_batches_tracked.scalar_type() == at::kLong);
  CHECK(model->norm->num_batches_tracked.item<int64_t>() == 200);

  {
    torch::NoGradGuard no_grad;
    narrow->norm->num_batches_tracked.fill_(0.5);
  }
  save_safetensors(narrow_path, narrow);
  const auto before = copy_state(model);
  CHECK_THAT(
      error_of([&] { load_safetensors(narrow_path, model, cast); }),
      contains("tensor \"norm.num_batches_tracked\": not all its values can be converted from BF16 to the "
               "model's I64"));
  CHECK(same_state(copy_state(model), before));
}

namespace {

struct SharedNet : torch::nn::Module {
  SharedNet() {
    first = register_module("first", torch::nn::Linear(3, 3));
    again = register_module("again", first);
    table = register_parameter("table", first->weight);
  }
  Tensor forward(const Tensor& x) { return again(first(x)); }
  torch::nn::Linear first{nullptr}, again{nullptr};
  Tensor table;
};

}  // namespace

TEST_CASE("safetensors: a tensor under several names is written once and read from any of them") {
  TempDir dir;
  const fs::path path = dir / "model.safetensors";
  SharedNet model;
  save_safetensors(path, model);
  auto saved = by_name(read_safetensors(path));
  CHECK(saved.size() == 2);
  REQUIRE(saved.count("table") == 1);
  REQUIRE(saved.count("first.bias") == 1);

  const auto weight = saved.at("table"), bias = saved.at("first.bias");
  const auto load = [&](const NamedTensors& tensors) {
    write_safetensors(path, tensors);
    scramble(model);
    load_safetensors(path, model);
    CHECK(model.table.equal(weight));
    CHECK(model.first->bias.equal(bias));
    CHECK(model.first->weight.is_same(model.table));
  };
  load({{"table", weight}, {"first.bias", bias}});
  load({{"again.weight", weight}, {"again.bias", bias}});
  load({{"first.weight", weight},
        {"first.bias", bias},
        {"again.weight", weight},
        {"again.bias", bias},
        {"table", weight}});
  write_safetensors(path, {{"table", weight}, {"first.weight", weight + 1}, {"first.bias", bias}});
  CHECK_THAT(error_of([&] { load_safetensors(path, model); }),
             contains("tensors \"table\" and \"first.weight\" are one in the model, but differ in the file"));
  write_safetensors(path, {{"first.bias", bias}});
  CHECK_THAT(error_of([&] { load_safetensors(path, model); }),
             contains("tensor \"table\" (F32 [3, 3]) of the model"));
}

TEST_CASE("save_safetensors: the averages of an EmaModel, within the scope that lends them") {
  TempDir dir;
  const fs::path live_path = dir / "live.safetensors", average_path = dir / "average.safetensors";
  torch::manual_seed(5);
  const auto check = [&](auto model) {
    EmaModel ema(model, EmaModelOptions().decay(0.5));
    scramble(model);
    ema.update();
    const auto live = copy_state(model);
    {
      auto scope = ema.average_parameters();
      save_safetensors(average_path, model);
    }
    save_safetensors(live_path, model);
    const auto saved = by_name(read_safetensors(average_path));
    const auto saved_live = by_name(read_safetensors(live_path));
    int64_t averaged = 0;
    for (const auto& [name, average] : ema.named_parameters()) {
      INFO(name);
      CHECK(saved.at(name).equal(average));
      CHECK_FALSE(saved.at(name).equal(live.at(name)));
      ++averaged;
    }
    CHECK(averaged > 1);
    CHECK(same_state(saved_live, live));
    CHECK(same_state(copy_state(model), live));
  };
  check(HeldNet());
  check(script_net());
  check(std::make_shared<PlainNet>());
}
