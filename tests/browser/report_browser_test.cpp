// The report in a real browser: it renders at desk and phone width, in light and dark, without an error, a
// request or a line that leaves its chart.

#include <mixmatch/report/report.hpp>
#include <mixmatch/run/run_record.hpp>

#include <string>
#include <string_view>

#include "catch.hpp"
#include "sample_report.hpp"
#include "subprocess.hpp"
#include "test_util.hpp"

namespace fs = std::filesystem;

namespace {

constexpr std::string_view listen = R"html(<script>
window.problems = [];
addEventListener("error", event => problems.push(String(event.message || event.target.outerHTML)), true);
addEventListener("unhandledrejection", event => problems.push(String(event.reason)));
</script>)html";

/// Looks at the page once it is loaded, and writes what it saw as JSON into <pre id="probe">.
constexpr std::string_view look = R"html(<script>
addEventListener("load", () => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const inside = (x, y) => Number.isFinite(x) && Number.isFinite(y) && x >= 0 && x <= 420 && y >= 0 && y <= 264;
  const svgs = all("svg.plot"), lines = all("svg.plot polyline"), dots = all("svg.plot circle");
  const points = lines.flatMap(line => Array.from(line.points, point => [point.x, point.y]));
  const figure = document.querySelector("figure.chart");
  const saw = {
    scheme: getComputedStyle(document.body).backgroundColor,
    width: innerWidth,
    page_width: document.documentElement.scrollWidth,
    headings: all("h2").length,
    charts: svgs.filter(svg => svg.getBoundingClientRect().width > 200).length,
    charts_without_line: svgs.filter(svg => svg.querySelector("polyline") === null).length,
    points: points.length,
    points_outside: points.filter(([x, y]) => !inside(x, y)).length,
    dots_outside: dots.filter(dot => !inside(dot.cx.baseVal.value, dot.cy.baseVal.value)).length,
    lines_without_stroke: lines.filter(line => getComputedStyle(line).stroke === "none").length,
    texts_outside: all("svg.plot text").filter(text => {
      const box = text.getBBox();
      return !inside(box.x, box.y) || !inside(box.x + box.width, box.y + box.height);
    }).length,
    smallest_text: Math.min(...svgs.map(svg => 12.5 * svg.getScreenCTM().a)),
    cells: all("table.matrix tbody td:not(.sum)").length,
    rows: all("table.matrix tbody th").length,
    tallest_row: Math.max(0, ...all("table.matrix tbody tr").map(row => row.offsetHeight)),
    images: all("img").length,
    broken_images: all("img").filter(image => image.naturalWidth === 0).length,
    requests: performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
    bold_in_names: all("table.matrix b, h1 *").length,
  };
  if (figure !== null) {
    const svg = figure.querySelector("svg.plot"), box = svg.getBoundingClientRect();
    const point = (name, x) => svg.dispatchEvent(new PointerEvent(name, {clientX: box.x + x * box.width, clientY: box.y + 50}));
    const said = () => figure.querySelector(".at").textContent + " " + figure.querySelector("output").textContent;
    const before = said();
    point("pointermove", 0.05);
    saw.at_pointer = said();
    point("pointerleave", 0.05);
    saw.restored = said() === before;
  }
  saw.problems = problems.join("; ");
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = JSON.stringify(saw).replace(/[<>&]/g, " ");
  parent.document.body.append(pre);
});
</script>)html";

/// Writes the page with scripts that watch it, in a frame of that width: a window cannot be as narrow as a
/// phone.
void write_watched(const fs::path& path, std::string page, int64_t width) {
  page.insert(page.find("<meta name"), listen);
  page.insert(page.find("</body>"), look);
  write_file(path.string() + ".inner.html", page);
  write_file(path, "<!DOCTYPE html><title>frame</title><iframe src=\"" + path.filename().string() +
                       ".inner.html\" style=\"border: 0; height: 900px; width: " + std::to_string(width) +
                       "px\"></iframe>");
}

/// Runs the browser on a file; as root it needs --no-sandbox, and a frame is to write into its page.
Finished browse(const TempDir& dir, const std::string& file, const std::string& size, bool dark,
                const std::string& action) {
  return run({MIXMATCH_CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
              "--enable-logging=stderr", "--v=0", "--no-first-run", "--allow-file-access-from-files",
              "--user-data-dir=" + (dir / "profile").string(), "--window-size=" + size,
              std::string("--blink-settings=preferredColorScheme=") + (dark ? "0" : "1"), action,
              "file://" + (dir / file).string()});
}

mixmatch::training::Config probe(const Finished& finished) {
  const std::string start = "<pre id=\"probe\">";
  const size_t begin = finished.out.find(start);
  INFO(finished.err);
  REQUIRE(finished.status == 0);
  REQUIRE(begin != std::string::npos);
  const size_t first = begin + start.size();
  return mixmatch::training::parse_json_object(
      finished.out.substr(first, finished.out.find("</pre>", first) - first));
}

int64_t big_endian(const std::string& bytes, size_t at) {
  int64_t value = 0;
  for (size_t i = at; i < at + 4; ++i) {
    value = value << 8 | static_cast<unsigned char>(bytes.at(i));
  }
  return value;
}

}  // namespace

TEST_CASE("browser: the report at desk and phone width, light and dark") {
  const TempDir dir;
  const std::string page = mixmatch::training::render_report(sample_report());
  write_file(dir / "report.html", page);
  write_file(dir / "empty.html", "<!DOCTYPE html><title>empty</title>");
  std::vector<std::string> pictures;
  for (const auto& [width, dark] : {std::pair<int64_t, bool>{1280, false}, {390, true}}) {
    const std::string size = std::to_string(width) + ",1800";
    write_watched(dir / "watched.html", page, width);
    const auto dumped = browse(dir, "watched.html", "1400,1000", dark, "--dump-dom");
    const auto saw = probe(dumped);
    const auto number = [&](const char* name) {
      return std::stod(*mixmatch::training::find_setting(saw, name));
    };
    INFO(width);
    CHECK(dumped.err.find("CONSOLE") == std::string::npos);
    CHECK(*mixmatch::training::find_setting(saw, "problems") == "");
    CHECK(*mixmatch::training::find_setting(saw, "scheme") ==
          (dark ? "rgb(20, 23, 27)" : "rgb(251, 251, 250)"));
    CHECK(number("width") == static_cast<double>(width));
    CHECK(number("page_width") <= static_cast<double>(width));  // wide parts scroll by themselves
    CHECK(number("headings") == 6);
    CHECK(number("charts") == 7);
    CHECK(number("charts_without_line") == 0);
    CHECK(number("points") > 2000);
    CHECK(number("points_outside") == 0);
    CHECK(number("dots_outside") == 0);
    CHECK(number("texts_outside") == 0);
    CHECK(number("lines_without_stroke") == 0);
    CHECK(number("smallest_text") > 9.5);
    CHECK(number("cells") == 100);
    CHECK(number("rows") == 10);
    CHECK(number("tallest_row") < 70);  // class names keep a readable width
    CHECK(number("images") == 18);
    CHECK(number("broken_images") == 0);
    CHECK(number("requests") == 0);
    CHECK(number("bold_in_names") == 0);
    CHECK_THAT(*mixmatch::training::find_setting(saw, "at_pointer"), contains("at step "));
    CHECK(*mixmatch::training::find_setting(saw, "restored") == "true");

    const auto picture = dir / ("report" + size + ".png");
    const auto shot = browse(dir, "report.html", size, dark, "--screenshot=" + picture.string());
    INFO(shot.err);
    REQUIRE(shot.status == 0);
    pictures.push_back(read_file(picture));
    REQUIRE(pictures.back().size() > 24);
    CHECK(big_endian(pictures.back(), 16) == width);
    CHECK(big_endian(pictures.back(), 20) == 1800);
    const auto blank = dir / "blank.png";
    REQUIRE(browse(dir, "empty.html", size, dark, "--screenshot=" + blank.string()).status == 0);
    CHECK(pictures.back().size() > 5 * read_file(blank).size());
  }
  CHECK(pictures[0] != pictures[1]);
}

TEST_CASE("browser: a hundred classes, and a report of a few rows") {
  const TempDir dir;
  write_watched(dir / "hundred.html", mixmatch::training::render_report(sample_report_100()), 390);
  const auto hundred = probe(browse(dir, "hundred.html", "1400,1000", false, "--dump-dom"));
  CHECK(std::stoll(*mixmatch::training::find_setting(hundred, "cells")) == 10000);
  CHECK(std::stoll(*mixmatch::training::find_setting(hundred, "tallest_row")) < 70);
  CHECK(std::stoll(*mixmatch::training::find_setting(hundred, "page_width")) <= 390);
  CHECK(*mixmatch::training::find_setting(hundred, "problems") == "");

  auto report = sample_report(1);
  report.confusion = torch::Tensor();
  report.reliability.clear();
  report.wrong_examples.clear();
  write_watched(dir / "short.html", mixmatch::training::render_report(report), 390);
  const auto brief = probe(browse(dir, "short.html", "1400,1000", true, "--dump-dom"));
  CHECK(std::stoll(*mixmatch::training::find_setting(brief, "charts")) == 6);
  CHECK(std::stoll(*mixmatch::training::find_setting(brief, "points")) == 10);
  CHECK(std::stoll(*mixmatch::training::find_setting(brief, "points_outside")) == 0);
  CHECK(std::stoll(*mixmatch::training::find_setting(brief, "cells")) == 0);
  CHECK(std::stoll(*mixmatch::training::find_setting(brief, "images")) == 0);
  CHECK(*mixmatch::training::find_setting(brief, "problems") == "");
}

TEST_CASE("browser: the checks above can fail") {
  const TempDir dir;
  const std::string body =
      "<h2>x</h2><script>console.error('seen'); null.x;</script><img src=\"none.png\" alt=\"x\">"
      "<figure class=\"chart\"><svg class=\"plot\" viewBox=\"0 0 420 264\"><line class=\"cross\"/>"
      "<polyline points=\"1,1 500,2\" data-x=\"1 2\" data-y=\"1 2\"/></svg><p class=\"at\" data-x=\"s\">-</p>"
      "<output>2</output></figure><div style=\"width:2000px\">wide</div>";
  write_watched(dir / "bad.html", mixmatch::training::html_page("bad", body), 390);
  const auto dumped = browse(dir, "bad.html", "1400,1000", false, "--dump-dom");
  const auto saw = probe(dumped);
  CHECK_THAT(dumped.err, contains("CONSOLE") && contains("seen"));
  CHECK_THAT(*mixmatch::training::find_setting(saw, "problems"),
             contains("TypeError") && contains("none.png"));
  CHECK(std::stoll(*mixmatch::training::find_setting(saw, "points_outside")) == 1);
  CHECK(std::stoll(*mixmatch::training::find_setting(saw, "page_width")) >= 2000);
  CHECK(std::stoll(*mixmatch::training::find_setting(saw, "broken_images")) == 1);
}
