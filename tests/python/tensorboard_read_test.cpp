// What TensorBoardWriter writes, read by TensorBoard's own Python package.

#include <mixmatch/run/tensorboard.hpp>

#include <cstdio>

#include "catch.hpp"
#include "subprocess.hpp"
#include "test_util.hpp"

TEST_CASE("TensorBoard reads scalars, images, text, and a resumed run") {
  const TempDir dir;
  {
    mixmatch::training::TensorBoardWriter writer(dir / "run");
    writer.text("config", "| a | b |\n|---|---|\n| h\u00e9 | <1> |", 0);
    const auto rows = torch::arange(2).view({1, 2, 1}) * 10 + torch::arange(3).view({1, 1, 3});
    writer.image("batch/first", (torch::arange(3).view({3, 1, 1}) * 100 + rows).to(torch::kByte), 7);
    writer.scalar("h\u00e9/<x>", -3, 1);
    for (const auto& [step, value] :
         {std::pair<int64_t, double>{100, 2.5}, {200, 1.25}, {300, 0.75}, {400, 9}, {500, 9}}) {
      writer.scalar("loss/total", value, step);
    }
  }
  {
    // Killed after step 500, resumed from the checkpoint of step 300.
    mixmatch::training::TensorBoardWriter writer(dir / "run", 300);
    writer.scalar("loss/total", 0.5, 350);
    writer.scalar("loss/total", 0.125, 1048576);
  }
  const auto finished = run({MIXMATCH_PYTHON, MIXMATCH_TENSORBOARD_READ, (dir / "run").string()});
  if (finished.status == 77) {
    std::fputs(finished.err.c_str(), stdout);
    return;
  }
  INFO(finished.err);
  CHECK(finished.status == 0);
}
