#pragma once

#include <mixmatch/run/standard_streams.hpp>
#include <mixmatch/step/host_batches.hpp>

#include <cstdio>

namespace mixmatch::training {

/// Says at the end of a run, in one line, when reading the images was what limited it: where its steps waited
/// for them for more than a tenth of their time, and for a second at least.
inline void say_if_feed_limits(const HostBatches& batches, std::FILE* stream = stdout) {
  if (batches.waited() > 0.1 && batches.seconds_waited() >= 1) {
    print_message(stream,
                  "reading images was the limit: the steps waited for them in {:.0f} % of their time\n",
                  100 * batches.waited());
  }
}

}  // namespace mixmatch::training
