// A service around a trained classifier, on pipes: a picture's path a line on the standard input, an answer a
// line of JSON on the standard output, as soon as it is known. Several threads use one Classifier; no code of
// training.
//
//     find pictures -name '*.jpg' | classify_service runs/pictures 4

#include <torch/torch.h>
#include <mixmatch/serve/classifier.hpp>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

int main(int argc, char** argv) try {
  const int workers = argc == 3 ? std::atoi(argv[2]) : 2;
  if (argc < 2 || argc > 3 || workers < 1) {
    std::cerr << "usage: classify_service MODEL [THREADS]\n";
    return 2;
  }
  at::set_num_threads(1);  // of each worker
  const mixmatch::Classifier classifier(argv[1]);
  std::mutex reading, writing;
  const auto work = [&] {
    for (std::string path;;) {
      if (const std::lock_guard lock(reading); !std::getline(std::cin, path)) {
        return;
      }
      // A batch of one: what cannot be read is an answer, too, and no exception.
      const auto answers = classifier.classify(std::vector<std::filesystem::path>{path});
      const std::lock_guard lock(writing);
      std::cout << to_json(answers.front(), path) << std::endl;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < workers; ++i) {
    threads.emplace_back(work);
  }
  for (auto& thread : threads) {
    thread.join();
  }
  return 0;
} catch (const c10::Error& error) {
  std::cerr << "classify_service: " << error.what_without_backtrace() << "\n";
  return 2;
}
