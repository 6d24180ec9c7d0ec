#include <mixmatch/schedules.hpp>

#include "catch.hpp"
#include "test_util.hpp"

using namespace mixmatch;

TEST_CASE("linear_rampup") {
  CHECK(linear_rampup(0, 16000) == 0.0);
  CHECK(linear_rampup(4000, 16000) == 0.25);
  CHECK(linear_rampup(16000, 16000) == 1.0);
  CHECK(linear_rampup(1 << 20, 16000) == 1.0);
  CHECK(linear_rampup(-5, 16000) == 0.0);
  CHECK(linear_rampup(0, 0) == 1.0);
  CHECK_THAT(error_of([] { linear_rampup(0, -1); }), contains("rampup_steps must be >= 0, got -1"));
}

TEST_CASE("sigmoid_rampup: exp(-5 (1 - t)^2)") {
  CHECK(sigmoid_rampup(0, 100) == Approx(0.006737946999085467).epsilon(1e-14));
  CHECK(sigmoid_rampup(50, 100) == Approx(0.2865047968601901).epsilon(1e-14));
  CHECK(sigmoid_rampup(100, 100) == 1.0);
  CHECK(sigmoid_rampup(3, 0) == 1.0);
}

TEST_CASE("cosine_decay: cos(7 pi t / 16)") {
  CHECK(cosine_decay(0, 100) == 1.0);
  CHECK(cosine_decay(50, 100) == Approx(0.773010453362737).epsilon(1e-14));
  CHECK(cosine_decay(100, 100) == Approx(0.19509032201612825).epsilon(1e-13));
  CHECK(cosine_decay(900, 100) == cosine_decay(100, 100));
  CHECK_THAT(error_of([] { cosine_decay(0, 0); }), contains("total_steps must be > 0, got 0"));
}

TEST_CASE("half_cosine_decay: (1 + cos(pi t)) / 2") {
  CHECK(half_cosine_decay(0, 100) == 1.0);
  CHECK(half_cosine_decay(25, 100) == Approx(0.8535533905932737).epsilon(1e-14));
  CHECK(half_cosine_decay(50, 100) == Approx(0.5).epsilon(1e-14));
  CHECK(half_cosine_decay(100, 100) == 0.0);
  CHECK(half_cosine_decay(900, 100) == 0.0);
  for (const int64_t step : {0, 2, 7, 9}) {
    CHECK(half_cosine_decay(torch::full({}, step, at::kLong), 7).item<double>() ==
          Approx(half_cosine_decay(step, 7)).margin(1e-15));
  }
  CHECK_THAT(error_of([] { half_cosine_decay(0, 0); }), contains("total_steps must be > 0, got 0"));
}

TEST_CASE("schedules: a ramp of a step counter that is a tensor") {
  for (const int64_t length : {0, 7}) {
    for (const int64_t step : {0, 2, 7, 9}) {
      const torch::Tensor counter = torch::full({}, step, at::kLong);
      CHECK(mixmatch::linear_rampup(counter, length).item<double>() == mixmatch::linear_rampup(step, length));
    }
  }
  CHECK_THAT(error_of([] { mixmatch::linear_rampup(torch::zeros({}, at::kLong), -1); }),
             contains("rampup_steps must be >= 0, got -1"));
}
