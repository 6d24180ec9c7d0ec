#pragma once

#include <c10/util/Exception.h>
#include <mixmatch/detail/io/utf8.hpp>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mixmatch::training {

/// Text for HTML, between tags or inside a quoted attribute: & < > " ' become character references; what HTML
/// cannot hold (bytes that are no UTF-8, control characters) becomes U+FFFD.
inline std::string escape_html(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const char c = text.front();
    size_t length = 1;
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else if (const auto byte = static_cast<unsigned char>(c);
               (byte < 0x20 && c != '\t' && c != '\n') || byte == 0x7F) {
      out += "\xEF\xBF\xBD";
    } else if (length = mixmatch::detail::utf8_length(text); length > 0) {
      // U+0080 to U+009F and the 66 noncharacters are as unwelcome as ASCII's control characters.
      const auto sequence = text.substr(0, length);
      const bool c1 = byte == 0xC2 && static_cast<unsigned char>(sequence[1]) < 0xA0;
      const bool in_arabic_block = sequence >= "\xEF\xB7\x90" && sequence <= "\xEF\xB7\xAF";
      const bool last_of_plane =
          length >= 3 && (sequence.ends_with("\xBF\xBE") || sequence.ends_with("\xBF\xBF")) &&
          (length == 3 ? byte == 0xEF : (static_cast<unsigned char>(sequence[1]) & 0x0FU) == 0x0FU);
      out += c1 || in_arabic_block || last_of_plane ? std::string_view("\xEF\xBF\xBD") : sequence;
    } else {
      out += "\xEF\xBF\xBD";
      length = 1;
    }
    text.remove_prefix(length);
  }
  return out;
}

/// RFC 4648's base64 with padding.
inline std::string encode_base64(std::string_view bytes) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const auto byte = [&](size_t k) {
      return i + k < bytes.size() ? uint32_t{static_cast<unsigned char>(bytes[i + k])} : 0U;
    };
    const uint32_t group = byte(0) << 16 | byte(1) << 8 | byte(2);
    out += digits[group >> 18];
    out += digits[group >> 12 & 63U];
    out += i + 1 < bytes.size() ? digits[group >> 6 & 63U] : '=';
    out += i + 2 < bytes.size() ? digits[group & 63U] : '=';
  }
  return out;
}

/// A table of texts, escaped; columns that hold numbers alone ("-" and "" count as such) are aligned right,
/// and one too wide for the window scrolls by itself. Throws if a row has another length than the header.
inline std::string html_table(const std::vector<std::string>& header,
                              const std::vector<std::vector<std::string>>& rows) {
  std::vector<bool> numeric(header.size(), true);
  for (const auto& row : rows) {
    TORCH_CHECK(row.size() == header.size(), "html_table: a row must have ", header.size(), " cells, got ",
                row.size());
    for (size_t i = 0; i < row.size(); ++i) {
      const bool number = row[i].empty() || row[i] == "-" ||
                          (row[i].find_first_of("0123456789") != std::string::npos &&
                           row[i].find_first_not_of("0123456789+-.,e %\xC2\xB1") == std::string::npos);
      numeric[i] = numeric[i] && number;
    }
  }
  const auto line = [&](const std::vector<std::string>& cells, const std::string& tag) {
    std::string out = "<tr>";
    for (size_t i = 0; i < cells.size(); ++i) {
      out += "<" + tag + (numeric[i] ? " class=\"number\">" : ">") + escape_html(cells[i]) + "</" + tag + ">";
    }
    return out + "</tr>\n";
  };
  std::string out =
      "<div class=\"scroll\" role=\"region\" aria-label=\"table\" tabindex=\"0\"><table "
      "class=\"rows\">\n<thead>" +
      line(header, "th");
  out += "</thead>\n<tbody>\n";
  for (const auto& row : rows) {
    out += line(row, "td");
  }
  return out + "</tbody>\n</table></div>\n";
}

namespace detail {

inline constexpr std::string_view page_style = R"css(
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1b1f24; --muted: #5c6670; --line: #dfe3e7; --link: #1d4fd8;
  --good: 37, 99, 235; --bad: 217, 72, 15; --strong: #ffffff;
  --s0: #1d4fd8; --s1: #d9480f; --s2: #2b8a3e; --s3: #9c36b5; --s4: #0b7285; --s5: #c2255c; --s6: #8a6a00; --s7: #495057;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1c2026; --ink: #e6e9ed; --muted: #9aa5b1; --line: #333a43; --link: #8ab4ff;
    --good: 59, 110, 220; --bad: 200, 80, 30; --strong: #ffffff;
    --s0: #7aa7ff; --s1: #ff9a5c; --s2: #69c779; --s3: #d68bea; --s4: #52c7d8; --s5: #ff8ab0; --s6: #d9b744; --s7: #b4bdc6;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.25rem clamp(.75rem, 3vw, 2rem) 3rem; max-width: 80rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: clamp(1.4rem, 4.5vw, 2rem); line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); }
.muted, footer { color: var(--muted); font-size: .875rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .9375rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem; margin: 0; }
.cards div, figure.chart { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.cards div { padding: .6rem .8rem; min-width: 0; }
.cards dt { color: var(--muted); font-size: .8125rem; overflow-wrap: anywhere; }
.cards dd { margin: 0; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.cards .long dd { font-size: 1rem; }
.scroll { overflow: auto; max-height: 85vh; max-width: 100%; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; }
table.rows th, table.rows td { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line);
  white-space: nowrap; font-size: .9375rem; }
table.rows thead th { position: sticky; top: 0; background: var(--paper); color: var(--muted); font-weight: 500; }
table.rows th.number, table.rows td.number { text-align: right; }
dl.settings { margin: 0; columns: 17rem; column-gap: 2.5rem; font-size: .9375rem; }
dl.settings div { display: flex; justify-content: space-between; gap: 1rem; padding: .25rem 0; break-inside: avoid;
  border-bottom: 1px solid var(--line); }
dl.settings dt { color: var(--muted); flex: none; max-width: 60%; overflow-wrap: anywhere; }
dl.settings dd { margin: 0; text-align: right; overflow-wrap: anywhere; min-width: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
figure.chart { margin: 0; padding: .75rem .75rem .6rem; min-width: 0; }
figure.chart figcaption { font-weight: 600; overflow-wrap: anywhere; }
svg.plot { display: block; width: 100%; height: auto; touch-action: pan-y; }
svg.plot text { fill: var(--muted); font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
svg.plot .grid { stroke: var(--line); stroke-width: 1; }
svg.plot .axis { stroke: var(--muted); stroke-width: 1; }
svg.plot .cross { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 3; visibility: hidden; }
svg.plot polyline { fill: none; stroke: var(--c); stroke-width: 1.75; stroke-linejoin: round; stroke-linecap: round; }
svg.plot circle { fill: var(--c); }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
.s4 { --c: var(--s4); } .s5 { --c: var(--s5); } .s6 { --c: var(--s6); } .s7 { --c: var(--s7); }
.d1 { stroke-dasharray: 7 4; } .d2 { stroke-dasharray: 2 4; }
ul.legend { list-style: none; margin: .35rem 0 0; padding: 0; font-size: .875rem; }
ul.legend li { display: flex; align-items: center; gap: .5rem; }
ul.legend svg { flex: none; width: 1.5rem; height: .6rem; stroke: var(--c); stroke-width: 2.5; }
ul.legend span { flex: 1; min-width: 0; overflow-wrap: anywhere; }
ul.legend output { font-variant-numeric: tabular-nums; }
.at { color: var(--muted); font-size: .8125rem; margin: .2rem 0 0; text-align: right; }
table.matrix { font-size: .8125rem; }
table.matrix th { font-weight: 500; background: var(--paper); }
table.matrix thead th { position: sticky; top: 0; z-index: 1; vertical-align: bottom; padding: .25rem; }
table.matrix thead th span { display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg); max-height: 10rem;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
table.matrix th:first-child { position: sticky; left: 0; z-index: 1; text-align: right; padding: .15rem .5rem;
  max-width: 9rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
table.matrix thead th:first-child { z-index: 2; color: var(--muted); }
table.matrix thead th.sum { color: var(--muted); text-align: right; padding-left: .5rem; }
table.matrix td { min-width: 2.1rem; padding: .3rem .25rem; text-align: center; border: 1px solid var(--paper); }
table.matrix td.zero { color: var(--muted); opacity: .55; }
table.matrix td.sum { text-align: right; padding: .3rem .5rem; white-space: nowrap; }
table.matrix td.share { min-width: 4.5rem; background: linear-gradient(rgba(var(--bad), 0.45) 0 0) 0 50% / var(--w) 60% no-repeat; }
.g1 { background: rgba(var(--good), 0.1); } .g2 { background: rgba(var(--good), 0.2); } .g3 { background: rgba(var(--good), 0.3); } .g4 { background: rgba(var(--good), 0.4); }
.g5 { background: rgba(var(--good), 0.5); } .g6 { background: rgba(var(--good), 0.6); } .g7 { background: rgba(var(--good), 0.7); } .g8 { background: rgba(var(--good), 0.8); }
.g9 { background: rgba(var(--good), 0.9); color: var(--strong); } .g10 { background: rgba(var(--good), 1); color: var(--strong); }
.b1 { background: rgba(var(--bad), 0.1); } .b2 { background: rgba(var(--bad), 0.2); } .b3 { background: rgba(var(--bad), 0.3); } .b4 { background: rgba(var(--bad), 0.4); }
.b5 { background: rgba(var(--bad), 0.5); } .b6 { background: rgba(var(--bad), 0.6); } .b7 { background: rgba(var(--bad), 0.7); } .b8 { background: rgba(var(--bad), 0.8); }
.b9 { background: rgba(var(--bad), 0.9); } .b10 { background: rgba(var(--bad), 1); }
.beside { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 2.5rem; }
.beside > * { min-width: 0; }
.beside h3 { margin-top: .75rem; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: .15em; vertical-align: -.05em; }
.swatch.good { background: rgb(var(--good)); } .swatch.bad { background: rgb(var(--bad)); }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .9rem; }
.images figure { margin: 0; min-width: 0; }
.images img { display: block; width: 100%; height: auto; border-radius: .3rem; background: var(--line); }
.images img.small { image-rendering: pixelated; }
.images figcaption { font-size: .8125rem; line-height: 1.35; margin-top: .35rem; overflow-wrap: anywhere; }
.images figcaption b { font-weight: 600; }
.images code { user-select: all; }
footer { margin-top: 2.5rem; }
@media (max-width: 40rem) {
  table.matrix th:first-child { min-width: 6rem; max-width: 6rem; white-space: normal; overflow-wrap: break-word; line-height: 1.15; }
  table.matrix td.sum, table.matrix thead th.sum { padding-left: .25rem; padding-right: .25rem; }
  table.rows th, table.rows td { padding-right: .5rem; font-size: .8125rem; }
  table.rows td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
}
@media print { .scroll { max-height: none; overflow: visible; } figure, .cards div { break-inside: avoid; } }
)css";

/// Shows a curve's values under the pointer; the page says the last ones without it.
inline constexpr std::string_view page_script = R"js(
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg.plot"), cross = svg.querySelector(".cross");
  const fields = [figure.querySelector(".at"), ...figure.querySelectorAll("output")];
  const last = fields.map(field => field.textContent);
  const curves = [...svg.querySelectorAll("polyline")].map(line => ({
    at: Array.from(line.points, point => point.x), x: line.dataset.x.split(" "), y: line.dataset.y.split(" ")}));
  svg.onpointermove = svg.onpointerdown = event => {
    const matrix = svg.getScreenCTM(), pointer = (event.clientX - matrix.e) / matrix.a;
    let nearest = Infinity;
    curves.forEach((curve, i) => {
      const distance = curve.at.map(x => Math.abs(x - pointer)), best = Math.min(...distance), k = distance.indexOf(best);
      fields[i + 1].textContent = curve.y[k];
      if (best < nearest) {
        nearest = best;
        fields[0].textContent = "at " + fields[0].dataset.x + " " + curve.x[k];
        cross.setAttribute("x1", curve.at[k]);
        cross.setAttribute("x2", curve.at[k]);
      }
    });
    cross.style.visibility = "visible";
  };
  svg.onpointerleave = () => {
    fields.forEach((field, i) => field.textContent = last[i]);
    cross.style.visibility = "";
  };
}
)js";

}  // namespace detail

/// A whole page that needs nothing from outside: HTML5 in UTF-8, one style sheet for light and dark schemes,
/// narrow windows and paper, and the few lines of script that show a chart's values under the pointer.
/// `title` is text, escaped, and must not be empty; `body` is HTML.
inline std::string html_page(std::string_view title, std::string_view body) {
  TORCH_CHECK(!title.empty(), "html_page: title must not be empty");
  std::string page = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
  page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
  page += "<link rel=\"icon\" href=\"data:,\">\n<title>" + escape_html(title) + "</title>\n<style>";
  page += detail::page_style;
  page += "</style>\n</head>\n<body>\n";
  page += body;
  page += "<script>";
  page += detail::page_script;
  return page + "</script>\n</body>\n</html>\n";
}

}  // namespace mixmatch::training
