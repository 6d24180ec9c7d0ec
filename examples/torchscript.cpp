// Trains a network from Python: TorchScript in, MixMatch with a moving average here, TorchScript out.
// examples/python/export_model.py writes such a file; torch.jit.load reads the result.

#include <fmt/format.h>
#include <torch/torch.h>
#include <mixmatch/mixmatch.hpp>
#include <mixmatch/program/command_line.hpp>
#include <mixmatch/training.hpp>

#include <algorithm>
#include <filesystem>
#include <sstream>
#include <string>

namespace fs = std::filesystem;
namespace mm = mixmatch;
using torch::Tensor;

namespace {

struct Options {
  std::string model, data, out = "trained.pt", safetensors, device = "auto", precision = "auto";
  int64_t labels = 40, steps = 600, batch = 32;
  uint64_t seed = 1;
  double learning_rate = 2e-3, lambda_u = 75;
  int threads = 0;
  bool no_graph = false;
};

int train(const Options& o) {
  TORCH_CHECK(o.learning_rate > 0, "--lr: expected a number > 0, got ", o.learning_rate);
  const auto device = mm::training::parse_device(o.device);
  const auto precision_name = mm::training::choose_precision(o.precision, device);
  const auto precision = mm::training::parse_precision(precision_name);
  for (const auto& path : {o.out, o.safetensors}) {
    const auto parent = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path(".");
    TORCH_CHECK(fs::is_directory(parent) && !fs::is_directory(path), "cannot write ", path,
                fs::is_directory(path) ? ": it is a directory" : ": its directory does not exist");
  }
  const auto data = o.data.empty() ? mm::data::make_shapes(4000, 1)
                                   : mm::data::load_cifar10(o.data, mm::data::Split::train);
  const auto test =
      o.data.empty() ? mm::data::make_shapes(1000, 2) : mm::data::load_cifar10(o.data, mm::data::Split::test);
  TORCH_CHECK(o.labels >= data.num_classes(), "--labels ", o.labels, " is less than the data's ",
              data.num_classes(), " classes");
  TORCH_CHECK(o.batch >= 3, "--batch ", o.batch, " is less than the 3 groups that MixMatch interleaves");
  TORCH_CHECK(o.labels < data.size(), "--labels ", o.labels, " leaves no unlabeled image of ", data.size());
  const auto split = mm::data::split_labels(data.labels, o.labels, /*num_validation=*/0, o.seed);

  torch::manual_seed(o.seed);
  mm::models::ScriptNetwork network(mm::read_script_file(o.model, device).module, data.num_classes(),
                                    o.model);
  network->check_trainable(mm::augment::normalize(data.images.narrow(0, 0, 2).to(device)));
  // As with any other model: state, method, trainer.
  mm::training::TrainState state(
      network, mm::training::TrainStateOptions()
                   .seed(o.seed)
                   .ema(mm::EmaModelOptions().decay(0.99).warmup(true))
                   .optimizer(mm::training::OptimizerOptions(o.learning_rate).weight_decay(0.02)));
  const mm::training::TrainingData training{
      mm::data::ImagePool({mm::data::to_device(data, device)}), split, {}, {}};
  mm::training::Trainer trainer(
      state, mm::methods::MixMatch({}, mm::RampedLossOptions().lambda_u(o.lambda_u).rampup_steps(o.steps)),
      training,
      mm::training::TrainerOptions()
          .feed(mm::training::FeedOptions().batch_size(o.batch).seed(o.seed))
          .precision(precision)
          .graph(!o.no_graph));

  mm::training::print_message(stdout, "device {}, precision {}\n", device.str(),
                              mm::training::describe_precision(device, precision_name));
  const int64_t tenth = std::max<int64_t>(1, o.steps / 10);
  double first = 0, last = 0, last_steps = 0;
  mm::training::Progress progress("MixMatch", o.steps);
  while (state.step < o.steps) {
    // One step on the CPU; on a GPU as many as the host need not look at.
    const int64_t before = state.step;
    const auto means = trainer.run(std::min(tenth, o.steps - before));
    const double value = means.values[1];  // the labeled loss
    if (const auto problem = means.problem(); !problem.empty()) {
      progress.finish();
      mm::training::print_message(stderr, "torchscript: {} at step {}; nothing was written\n", problem,
                                  state.step);
      return 1;
    }
    const auto steps = static_cast<double>(state.step - before);
    first += before < tenth ? steps * value : 0;
    if (before >= o.steps - tenth) {
      last += steps * value;
      last_steps += steps;
    }
    progress.update(state.step, fmt::format("labeled loss {:.3f}", value));
  }
  progress.finish();
  // In fp32, as the file's readers will run it.
  const auto evaluate = mm::training::EvaluateOptions().device(device);
  const double error = mm::training::error_percent(
      [&](const Tensor& images) { return state.ema.forward(images); }, test, evaluate);

  // The averages are the result. On the CPU, so that Python can read them anywhere.
  const auto averages = state.ema.average_parameters();
  network->eval();
  network->to(torch::kCPU);
  std::ostringstream bytes;
  network->script().save(bytes);
  mm::write_file_atomically(o.out, bytes.str());
  if (!o.safetensors.empty()) {
    mm::save_safetensors(o.safetensors, network, {{"format", "pt"}});
  }
  mm::training::print_result("labeled loss: {:.4f} in the first tenth, {:.4f} in the last\n",
                             first / static_cast<double>(tenth), last / last_steps);
  mm::training::print_result("test error: {}\n", mm::training::error_text(error, test.size()));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Trains a TorchScript model from Python with MixMatch and writes the averaged model back.",
               "torchscript");
  app.add_option("--model", o.model, "TorchScript file: images [N, 3, 32, 32] to logits [N, 10]")->required();
  app.add_option("--data", o.data, "Directory of CIFAR-10's binary version; procedural shapes by default");
  app.add_option("--out", o.out, "TorchScript file to write, in evaluation mode")->capture_default_str();
  app.add_option("--safetensors", o.safetensors, "File to write the averaged weights to as well");
  mm::training::add_number<int64_t>(app, "--labels", o.labels, "Labeled images, class-balanced", 1);
  mm::training::add_number<int64_t>(app, "--steps", o.steps, "Optimiser steps", 1);
  mm::training::add_number<int64_t>(app, "--batch", o.batch, "Labeled images a step, and unlabeled ones", 1);
  mm::training::add_number<uint64_t>(app, "--seed", o.seed, "Seed of split, batches, augmentation and MixUp",
                                     0);
  mm::training::add_number<double>(app, "--lr", o.learning_rate, "Adam's learning rate", 0);
  mm::training::add_number<double>(app, "--lambda-u", o.lambda_u, "Weight of the unlabeled loss", 0);
  app.add_option("--device", o.device)->check(CLI::IsMember({"auto", "cpu", "cuda"}))->capture_default_str();
  app.add_option("--precision", o.precision, "auto: bf16 where the device is fast at it")
      ->check(CLI::IsMember({"auto", "fp32", "bf16"}))
      ->capture_default_str();
  app.add_flag("--no-graph", o.no_graph, "On a GPU: launch the steps piece by piece, not as one CUDA graph");
  mm::training::add_number(app, "--threads", o.threads, "CPU threads; 0 = one a processor", 0);
  return mm::training::run_program(app, argc, argv, [&] {
    mm::training::set_threads(o.threads);
    return train(o);
  });
}
