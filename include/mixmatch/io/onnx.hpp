#pragma once

// Not in the umbrella: LibTorch's compiler takes seconds to include.

#include <torch/arg.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/types.h>
#include <mixmatch/detail/io/proto_message.hpp>
#include <mixmatch/detail/version.hpp>
#include <mixmatch/io/atomic_file.hpp>

#include <cmath>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mixmatch {

using torch::Tensor;

using OnnxMetadata = std::map<std::string, std::string>;

struct OnnxOptions {
  TORCH_ARG(std::string, input) = "images";
  TORCH_ARG(std::string, output) = "logits";
  TORCH_ARG(OnnxMetadata, metadata);  ///< metadata_props of the file
};

namespace detail {

/// Of ONNX's operators; the first with LayerNormalization.
inline constexpr uint64_t onnx_opset = 17;

/// TensorProto.DataType.
inline int64_t onnx_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return 1;
    case at::kByte:
      return 2;
    case at::kInt:
      return 6;
    case at::kLong:
      return 7;
    case at::kBool:
      return 9;
    case at::kHalf:
      return 10;
    case at::kDouble:
      return 11;
    default:
      TORCH_CHECK(false, "save_onnx: tensors of dtype ", type, " are not written");
  }
}

/// Writes the nodes of a traced graph as ONNX's. Each of LibTorch's calls that the library's networks make is
/// a line or two in call().
class OnnxWriter {
 public:
  OnnxWriter(const torch::jit::Module& module, const Tensor& example, const OnnxOptions& options)
      : options_(options), batch_(example.size(0)) {
    const auto traced = module.get_method("forward").graph();
    TORCH_CHECK(traced->inputs().size() == 2 && traced->outputs().size() == 1,
                "save_onnx: forward() must take one tensor and return one");
    attributes_[traced->inputs()[0]] = {"", module._ivalue()};
    names_[traced->inputs()[1]] = options.input();
    for (const auto* node : traced->nodes()) {
      write(*node);
    }
    const auto* result = traced->outputs()[0];
    emit("Identity", {name(result)}, options.output());
    for (const auto& node : nodes_) {
      graph_.message(1, node);
    }
    graph_.bytes(2, "mixmatch");
    graph_.message(11, described(options.input(), example.scalar_type(), example.sizes()));
    graph_.message(12, described(options.output(), type_of(result), sizes_of(result)));
  }

  /// The file's bytes: a ModelProto.
  std::string str() const {
    ProtoMessage model;
    model.varint(1, 8).bytes(2, "mixmatch").message(7, graph_);  // IR version 8
    model.message(8, ProtoMessage().bytes(1, "").varint(2, onnx_opset));
    for (const auto& [key, value] : options_.metadata()) {
      model.message(14, ProtoMessage().bytes(1, key).bytes(2, value));
    }
    return model.str();
  }

 private:
  using Value = torch::jit::Value;
  using Names = std::vector<std::string>;
  struct Attribute {
    std::string path;  // from the module, as in its state
    c10::IValue value;
  };

  /// A ValueInfoProto; the first dimension is any.
  static ProtoMessage described(const std::string& called, at::ScalarType type, at::IntArrayRef sizes) {
    ProtoMessage shape;
    for (size_t i = 0; i < sizes.size(); ++i) {
      ProtoMessage dimension;
      shape.message(1, i == 0 ? dimension.bytes(2, "N") : dimension.varint(1, unsigned_of(sizes[i])));
    }
    const auto tensor = ProtoMessage().varint(1, unsigned_of(onnx_type(type))).message(2, shape);
    return ProtoMessage().bytes(1, called).message(2, ProtoMessage().message(1, tensor));
  }
  static uint64_t unsigned_of(int64_t value) { return static_cast<uint64_t>(value); }

  static at::ScalarType type_of(const Value* value) {
    const auto type = value->type()->cast<c10::TensorType>();
    TORCH_CHECK(type != nullptr && type->scalarType().has_value(), "save_onnx: a value without a dtype");
    return *type->scalarType();
  }
  static std::vector<int64_t> sizes_of(const Value* value) {
    const auto type = value->type()->cast<c10::TensorType>();
    TORCH_CHECK(type != nullptr, "save_onnx: a value without a size");
    const auto sizes = type->sizes().concrete_sizes();
    TORCH_CHECK(sizes.has_value(), "save_onnx: a value without a size");
    return *sizes;
  }

  /// What is known without the images: a constant, or a list of such.
  AtenOptional<c10::IValue> known(const Value* value) const {
    if (const auto found = attributes_.find(value); found != attributes_.end()) {
      return found->second.value;
    }
    if (value->node()->kind() != c10::prim::ListConstruct) {
      return torch::jit::toIValue(value);
    }
    c10::impl::GenericList list(value->type()->expectRef<c10::ListType>().getElementType());
    for (const auto* element : value->node()->inputs()) {
      const auto item = known(element);
      if (!item.has_value()) {
        return {};
      }
      list.push_back(*item);
    }
    return c10::IValue(list);
  }
  // What a node is told besides tensors.
  c10::IValue constant(const Value* value) const {
    auto result = known(value);
    TORCH_CHECK(result.has_value(), "save_onnx: ", value->node()->kind().toQualString(),
                " computes a number or a size, expected a constant");
    return *result;
  }
  std::vector<int64_t> numbers(const Value* value) const { return constant(value).toIntVector(); }
  int64_t number(const Value* value) const { return constant(value).toInt(); }
  float real(const Value* value) const { return constant(value).toScalar().toFloat(); }

  /// Does a call of weights and constants alone now, as of a position embedding for another size.
  bool fold(const torch::jit::Node& node) {
    torch::jit::Stack stack;
    for (const auto* input : node.inputs()) {
      const auto value = known(input);
      if (!value.has_value()) {
        return false;
      }
      stack.push_back(*value);
    }
    node.getOperation()(stack);
    attributes_[node.output()] = {"", stack.at(0)};
    return true;
  }

  // Tensors.
  std::string add_tensor(const Tensor& values, std::string called) {
    if (called.empty()) {
      called = "constant_" + std::to_string(++constants_);
    } else if (!written_.emplace(called, true).second) {
      return called;
    }
    ProtoMessage proto;
    for (const int64_t size : values.sizes()) {
      proto.varint(1, unsigned_of(size));
    }
    const Tensor plain = values.detach().cpu().contiguous();
    proto.varint(2, unsigned_of(onnx_type(values.scalar_type()))).bytes(8, called);
    proto.bytes(9, {static_cast<const char*>(plain.data_ptr()), plain.nbytes()});
    graph_.message(5, proto);
    return called;
  }
  std::string integers(const std::vector<int64_t>& values) {
    return add_tensor(torch::tensor(values, at::kLong), "");
  }
  std::string scalar(double value, at::ScalarType type) { return add_tensor(torch::tensor(value, type), ""); }

  /// The tensor's name in the file; constants are written there, those of a calculation in its dtype.
  std::string name(const Value* value, AtenOptional<at::ScalarType> type = {}) {
    if (const auto found = names_.find(value); found != names_.end()) {
      return found->second;
    }
    const auto found = attributes_.find(value);
    const c10::IValue known = constant(value);
    if (known.isNone()) {
      return "";
    }
    if (found != attributes_.end()) {
      return add_tensor(known.toTensor(), found->second.path);
    }
    const Tensor values = known.isTensor() ? known.toTensor() : torch::scalar_tensor(known.toScalar());
    return add_tensor(type.has_value() ? values.to(*type) : values, "");
  }

  /// A NodeProto, to which set() adds attributes.
  ProtoMessage& emit(const std::string& kind, const Names& inputs, const std::string& output) {
    auto& node = nodes_.emplace_back();
    for (const auto& input : inputs) {
      node.bytes(1, input);
    }
    return node.bytes(2, output).bytes(3, output).bytes(4, kind);
  }
  std::string fresh() { return "t" + std::to_string(++values_); }
  std::string emit(const std::string& kind, const Names& inputs) {
    auto output = fresh();
    emit(kind, inputs, output);
    return output;
  }
  /// The node whose output `value` is.
  ProtoMessage& emit(const std::string& kind, const Names& inputs, const Value* value) {
    return emit(kind, inputs, names_[value] = fresh());
  }
  static ProtoMessage attribute(const char* key, uint64_t type) {
    return ProtoMessage().bytes(1, key).varint(20, type);
  }
  static void set(ProtoMessage& node, const char* key, int64_t value) {
    node.message(5, attribute(key, 2).varint(3, unsigned_of(value)));
  }
  static void set(ProtoMessage& node, const char* key, float value) {
    node.message(5, attribute(key, 1).fixed32(2, value));
  }
  static void set(ProtoMessage& node, const char* key, const std::vector<int64_t>& values) {
    auto list = attribute(key, 7);
    for (const int64_t value : values) {
      list.varint(8, unsigned_of(value));
    }
    node.message(5, list);
  }
  /// ONNX wants the padding of both sides.
  static std::vector<int64_t> twice(std::vector<int64_t> padding) {
    padding.insert(padding.end(), padding.begin(), padding.end());
    return padding;
  }
  /// [2] for [2, 2], as LibTorch takes it too.
  std::vector<int64_t> spatial(const Value* value) const {
    auto list = numbers(value);
    if (list.size() == 1) {
      list.push_back(list[0]);
    }
    return list;
  }
  static int64_t from_start(int64_t dimension, const Value* value) {
    return dimension < 0 ? dimension + static_cast<int64_t>(sizes_of(value).size()) : dimension;
  }

  void write(const torch::jit::Node& node) {
    const std::string kind = node.kind().toQualString();
    if (kind == "prim::GetAttr") {
      const auto& owner = attributes_.at(node.input());
      const std::string& field = node.s(c10::attr::name);
      attributes_[node.output()] = {owner.path.empty() ? field : owner.path + "." + field,
                                    owner.value.toObject()->getAttr(field)};
    } else if (kind != "prim::Constant" && kind != "prim::ListConstruct") {
      TORCH_CHECK(kind.rfind("aten::", 0) == 0 && node.outputs().size() == 1 &&
                      ((kind != "aten::t" && fold(node)) || call(node, std::string_view(kind).substr(6))),
                  "save_onnx: the network calls ", kind, ", which is not written as ONNX");
    }
  }

  /// Elementwise, of tensors or numbers.
  void binary(const torch::jit::Node& node, const char* kind, bool scaled = false) {
    const auto* out = node.output();
    auto right = name(node.input(1), type_of(out));
    if (scaled && node.inputs().size() > 2 && real(node.input(2)) != 1) {
      right = emit("Mul", {right, scalar(real(node.input(2)), type_of(out))});
    }
    emit(kind, {name(node.input(0), type_of(out)), right}, out);
  }

  void convolution(const torch::jit::Node& node, const Value* groups) {
    Names inputs{name(node.input(0)), name(node.input(1))};
    if (const auto bias = name(node.input(2)); !bias.empty()) {
      inputs.push_back(bias);
    }
    auto& made = emit("Conv", inputs, node.output());
    set(made, "strides", spatial(node.input(3)));
    set(made, "pads", twice(spatial(node.input(4))));
    set(made, "dilations", spatial(node.input(5)));
    set(made, "group", number(groups));
  }

  /// x weight^T + bias, of x with any number of dimensions.
  void linear(const torch::jit::Node& node) {
    const auto weight = emit("Transpose", {name(node.input(1))});
    const auto bias = name(node.input(2));
    if (bias.empty()) {
      emit("MatMul", {name(node.input(0)), weight}, node.output());
    } else {
      emit("Add", {emit("MatMul", {name(node.input(0)), weight}), bias}, node.output());
    }
  }

  /// To the sizes that the example had, but for the number of images.
  void reshape(const torch::jit::Node& node) {
    auto sizes = sizes_of(node.output());
    if (!sizes.empty() && sizes_of(node.input(0)).at(0) == batch_ && sizes[0] % batch_ == 0) {
      sizes[0] = -1;  // by the number of images
    }
    emit("Reshape", {name(node.input(0)), integers(sizes)}, node.output());
  }

  void permute(const torch::jit::Node& node, std::vector<int64_t> order) {
    for (auto& dimension : order) {
      dimension = from_start(dimension, node.input(0));
    }
    set(emit("Transpose", {name(node.input(0))}, node.output()), "perm", order);
  }

  void clip(const torch::jit::Node& node, const std::string& least, const std::string& most) {
    emit("Clip", {name(node.input(0)), least, most}, node.output());
  }

  void slice(const torch::jit::Node& node, int64_t dimension, int64_t begin, int64_t end, int64_t step) {
    emit("Slice",
         {name(node.input(0)), integers({begin}), integers({end}), integers({dimension}), integers({step})},
         node.output());
  }

  /// softmax(q k^T / sqrt(d)) v of [N, heads, T, d]
  void attention(const torch::jit::Node& node) {
    const size_t given = node.inputs().size();  // LibTorch 2.1 adds scale, 2.5 enable_gqa
    TORCH_CHECK(
        (given < 7 || constant(node.input(6)).isNone()) && (given < 8 || !constant(node.input(7)).toBool()),
        "save_onnx: attention is written with its usual scale and as many keys as queries alone");
    TORCH_CHECK(constant(node.input(3)).isNone() && constant(node.input(4)).toDouble() == 0 &&
                    !constant(node.input(5)).toBool(),
                "save_onnx: attention is written without a mask and without dropout");
    const auto type = type_of(node.output());
    const double depth = static_cast<double>(sizes_of(node.input(0)).back());
    const auto query = emit("Mul", {name(node.input(0)), scalar(1 / std::sqrt(depth), type)});
    const auto key = fresh();
    set(emit("Transpose", {name(node.input(1))}, key), "perm", std::vector<int64_t>{0, 1, 3, 2});
    const auto weights = fresh();
    set(emit("Softmax", {emit("MatMul", {query, key})}, weights), "axis", int64_t{-1});
    emit("MatMul", {weights, name(node.input(2))}, node.output());
  }

  /// x Phi(x) = x (1 + erf(x / sqrt 2)) / 2
  void gelu(const torch::jit::Node& node) {
    TORCH_CHECK(node.inputs().size() < 2 || constant(node.input(1)).toStringRef() == "none",
                "save_onnx: only the exact gelu is written");
    const auto type = type_of(node.output());
    const auto x = name(node.input(0));
    const auto erf = emit("Erf", {emit("Mul", {x, scalar(0.70710678118654752440, type)})});
    const auto half = emit("Mul", {x, scalar(0.5, type)});
    emit("Mul", {half, emit("Add", {erf, scalar(1, type)})}, node.output());
  }

  bool call(const torch::jit::Node& node, std::string_view op) {
    const auto in = [&](size_t i) { return node.input(i); };
    const auto* out = node.output();
    if (op.ends_with('_') && op != "_") {  // in place: the graph uses the result from here on
      op.remove_suffix(1);
    }
    if (op == "conv2d") {
      convolution(node, in(6));
    } else if (op == "_convolution" || op == "convolution") {
      TORCH_CHECK(!constant(in(6)).toBool(), "save_onnx: transposed convolutions are not written");
      convolution(node, in(8));
    } else if (op == "batch_norm") {
      TORCH_CHECK(!constant(in(5)).toBool(), "save_onnx: batch norm must be in evaluation mode");
      set(emit("BatchNormalization", {name(in(0)), name(in(1)), name(in(2)), name(in(3)), name(in(4))}, out),
          "epsilon", real(in(7)));
    } else if (op == "layer_norm") {
      auto& made = emit("LayerNormalization", {name(in(0)), name(in(2)), name(in(3))}, out);
      set(made, "axis", -static_cast<int64_t>(numbers(in(1)).size()));
      set(made, "epsilon", real(in(4)));
    } else if (op == "linear") {
      linear(node);
    } else if (op == "matmul") {
      emit("MatMul", {name(in(0)), name(in(1))}, out);
    } else if (op == "addmm") {
      auto& made = emit("Gemm", {name(in(1)), name(in(2)), name(in(0))}, out);
      set(made, "beta", real(in(3)));
      set(made, "alpha", real(in(4)));
    } else if (op == "t") {
      emit("Transpose", {name(in(0))}, out);
    } else if (op == "add") {
      binary(node, "Add", /*scaled=*/true);
    } else if (op == "sub") {
      binary(node, "Sub", /*scaled=*/true);
    } else if (op == "mul") {
      binary(node, "Mul");
    } else if (op == "div") {
      TORCH_CHECK(node.inputs().size() == 2, "save_onnx: only the exact division is written");
      binary(node, "Div");
    } else if (op == "addcmul") {
      const auto type = type_of(out);
      const auto product = emit("Mul", {name(in(1), type), name(in(2), type)});
      emit("Add", {name(in(0), type), emit("Mul", {product, scalar(real(in(3)), type)})}, out);
    } else if (op == "relu") {
      emit("Relu", {name(in(0))}, out);
    } else if (op == "leaky_relu") {
      set(emit("LeakyRelu", {name(in(0))}, out), "alpha", real(in(1)));
    } else if (op == "relu6") {
      clip(node, scalar(0, type_of(out)), scalar(6, type_of(out)));
    } else if (op == "hardtanh" || op == "clamp") {
      clip(node, name(in(1), type_of(out)), name(in(2), type_of(out)));
    } else if (op == "clamp_min" || op == "clamp_max") {
      const auto bound = name(in(1), type_of(out));
      clip(node, op == "clamp_min" ? bound : "", op == "clamp_max" ? bound : "");
    } else if (op == "sigmoid") {
      emit("Sigmoid", {name(in(0))}, out);
    } else if (op == "silu") {
      const auto x = name(in(0));
      emit("Mul", {x, emit("Sigmoid", {x})}, out);
    } else if (op == "gelu") {
      gelu(node);
    } else if (op == "softmax") {
      set(emit("Softmax", {name(in(0))}, out), "axis", number(in(1)));
    } else if (op == "mean") {
      auto& made = emit("ReduceMean", {name(in(0))}, out);
      set(made, "axes", numbers(in(1)));
      set(made, "keepdims", int64_t{constant(in(2)).toBool()});
    } else if (op == "adaptive_avg_pool2d") {
      TORCH_CHECK(spatial(in(1)) == std::vector<int64_t>({1, 1}),
                  "save_onnx: adaptive_avg_pool2d is written to 1 x 1 alone");
      emit("GlobalAveragePool", {name(in(0))}, out);
    } else if (op == "max_pool2d") {
      auto& made = emit("MaxPool", {name(in(0))}, out);
      set(made, "kernel_shape", spatial(in(1)));
      set(made, "strides", spatial(in(numbers(in(2)).empty() ? 1 : 2)));
      set(made, "pads", twice(spatial(in(3))));
      set(made, "dilations", spatial(in(4)));
      set(made, "ceil_mode", int64_t{constant(in(5)).toBool()});
    } else if (op == "constant_pad_nd") {
      pad(node);
    } else if (op == "flatten" || op == "view" || op == "reshape" || op == "unflatten" || op == "squeeze" ||
               op == "unsqueeze") {
      reshape(node);
    } else if (op == "expand_as") {
      emit("Expand", {name(in(0)), emit("Shape", {name(in(1))})}, out);
    } else if (op == "zeros_like") {
      emit("Mul", {name(in(0)), scalar(0, type_of(out))}, out);
    } else if (op == "permute") {
      permute(node, numbers(in(1)));
    } else if (op == "transpose") {
      std::vector<int64_t> order(sizes_of(in(0)).size());
      for (size_t i = 0; i < order.size(); ++i) {
        order[i] = static_cast<int64_t>(i);
      }
      std::swap(order[static_cast<size_t>(from_start(number(in(1)), in(0)))],
                order[static_cast<size_t>(from_start(number(in(2)), in(0)))]);
      permute(node, order);
    } else if (op == "select") {
      set(emit("Gather", {name(in(0)), add_tensor(torch::tensor(number(in(2)), at::kLong), "")}, out), "axis",
          number(in(1)));
    } else if (op == "slice") {
      slice(node, number(in(1)), number(in(2)), number(in(3)), number(in(4)));
    } else if (op == "narrow") {
      slice(node, number(in(1)), number(in(2)), number(in(2)) + number(in(3)), 1);
    } else if (op == "scaled_dot_product_attention") {
      attention(node);
    } else if (op == "cat") {
      Names parts;
      for (const auto* part : in(0)->node()->inputs()) {
        parts.push_back(name(part));
      }
      set(emit("Concat", parts, out), "axis", number(in(1)));
    } else if (op == "to") {
      set(emit("Cast", {name(in(0))}, out), "to", onnx_type(type_of(out)));
    } else if (op == "contiguous" || op == "detach" || op == "alias" || op == "dropout") {
      TORCH_CHECK(op != "dropout" || !constant(in(2)).toBool(), "save_onnx: dropout must not be active");
      names_[out] = name(in(0));
    } else {
      return false;
    }
    return true;
  }

  /// LibTorch names the last dimension first, in pairs; ONNX all the beginnings, then all the ends.
  void pad(const torch::jit::Node& node) {
    const auto pairs = numbers(node.input(1));
    const size_t dimensions = sizes_of(node.input(0)).size();
    std::vector<int64_t> pads(2 * dimensions, 0);
    for (size_t i = 0; i < pairs.size() / 2; ++i) {
      pads[dimensions - 1 - i] = pairs[2 * i];
      pads[2 * dimensions - 1 - i] = pairs[2 * i + 1];
    }
    emit("Pad", {name(node.input(0)), integers(pads), scalar(real(node.input(2)), type_of(node.output()))},
         node.output());
  }

  const OnnxOptions& options_;
  ProtoMessage graph_;
  std::deque<ProtoMessage> nodes_;  // their addresses stay
  std::unordered_map<const Value*, std::string> names_;
  std::unordered_map<const Value*, Attribute> attributes_;
  std::unordered_map<std::string, bool> written_;
  int64_t batch_, values_ = 0, constants_ = 0;
};

}  // namespace detail

/// Writes a module of trace_module(), or one that Python traced, as ONNX (opset 17, IR version 8): one input,
/// of the dtype and the sizes of `example` but for the number of images, which may be any, and one output.
/// Weights keep their names. The network must be made of what the library's own are made of: convolutions,
/// batch and layer norm, linear layers, matmul, pooling, softmax, the usual activations, arithmetic and
/// changes of shape.
///
/// Throws one line that names a call with no counterpart here, or write_file_atomically()'s; nothing is left
/// behind then.
inline void save_onnx(const std::filesystem::path& path, const torch::jit::Module& module,
                      const Tensor& example, const OnnxOptions& options = {}) {
  const torch::NoGradGuard no_grad;
  const auto bytes = detail::OnnxWriter(module, example, options).str();
  TORCH_CHECK(bytes.size() < uint64_t{1} << 31, "save_onnx: a network of more than 2 GB");
  write_file_atomically(path, bytes);
}

}  // namespace mixmatch
