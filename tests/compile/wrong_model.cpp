// Must not compile, and must say why in one line.
#include <mixmatch/guess_labels.hpp>

int main() {
  int not_a_model = 0;
  return static_cast<int>(mixmatch::guess_labels(not_a_model, {torch::zeros({1, 2})}).numel());
}
