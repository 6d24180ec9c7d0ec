#include <mixmatch/data/label_file.hpp>
#include <mixmatch/data/labeled_pictures.hpp>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "test_util.hpp"

using mixmatch::data::describe;
using mixmatch::data::label_pictures;
using mixmatch::data::LabeledPictures;
using mixmatch::data::list_pictures;
using mixmatch::data::PictureList;
using mixmatch::data::read_label_file;
using mixmatch::data::write_label_file;
using mixmatch::detail::csv_cell;
using mixmatch::detail::parse_csv;
namespace fs = std::filesystem;

namespace {

using Cells = std::vector<std::vector<std::string>>;

Cells cells_of(const std::string& text, char delimiter = ',') {
  Cells cells;
  for (const auto& record : parse_csv(text, delimiter, "f")) {
    cells.push_back(record.cells);
  }
  return cells;
}

/// A file that is a picture by its name; nothing here decodes it.
void touch(const fs::path& path) {
  fs::create_directories(path.parent_path());
  write_file(path, "");
}

/// Two classes of two pictures, two unlabeled ones.
void touch_folder(const fs::path& dir) {
  for (const std::string file : {"labeled/cat/1.png", "labeled/cat/2.png", "labeled/dog/1.png",
                                 "labeled/dog/2.png", "unlabeled/a.png", "unlabeled/deep/b.png"}) {
    touch(dir / file);
  }
}

/// "FILE=CLASS", one a picture, those held out with "*" before.
std::vector<std::string> text_of(const PictureList& list) {
  std::vector<std::string> text;
  for (int64_t i = 0; i < list.size(); ++i) {
    const auto label = list.labels[i].item<int64_t>();
    const bool held_out = list.validation.eq(i).any().item<bool>();
    text.push_back((held_out ? "*" : "") + list.files[static_cast<size_t>(i)] + "=" +
                   (label < 0 ? "" : list.class_names[static_cast<size_t>(label)]));
  }
  return text;
}

LabeledPictures labeled_by(const fs::path& dir, const std::string& csv, bool strict = false) {
  write_file(dir / "l.csv", csv);
  return label_pictures(dir, {read_label_file(dir / "l.csv")}, strict);
}

}  // namespace

TEST_CASE("CSV: quotes, ends of lines and empty cells as in RFC 4180") {
  CHECK(cells_of("a,b\n1,2\n") == Cells{{"a", "b"}, {"1", "2"}});
  CHECK(cells_of("a,b\r\n1,2\r\n") == Cells{{"a", "b"}, {"1", "2"}});
  CHECK(cells_of("a,b\r1,2") == Cells{{"a", "b"}, {"1", "2"}});
  CHECK(cells_of("a,\n,b\n,\n") == Cells{{"a", ""}, {"", "b"}, {"", ""}});
  CHECK(cells_of("\n\r\n\na\n\n") == Cells{{"a"}});
  CHECK(cells_of("\"\"\n") == Cells{{""}});
  CHECK(cells_of("\"a,b\",\"say \"\"x\"\"\",\"line\r\nbreak\",\"\"\n") ==
        Cells{{"a,b", "say \"x\"", "line\r\nbreak", ""}});
  CHECK(cells_of("5\" disk,a\"\"b\n") == Cells{{"5\" disk", "a\"\"b"}});
  CHECK(cells_of("a;b,c;\"d;e\"", ';') == Cells{{"a", "b,c", "d;e"}});
  CHECK(cells_of("").empty());
  const auto records = parse_csv("a\n\n\"b\nc\"\r\nd", ',', "f");
  REQUIRE(records.size() == 3);
  CHECK(records[1].line == 3);
  CHECK(records[2].line == 5);
  CHECK(error_of([] { cells_of("a\nb,\"c\nd"); }) == "f line 2: a cell in quotation marks does not end");
  CHECK(error_of([] { cells_of("a\n\"b\" c\n"); }) ==
        "f line 2: text after the quotation mark that ends a cell");
  // What is written is read.
  for (const std::string text : {"", "a", "a,b", "\"", "a\"b", "\n", "a\r\nb", " a ", "\"\"", "\xc3\xbc;,"}) {
    CHECK(cells_of(csv_cell(text) + ",x\n") == Cells{{text, "x"}});
  }
}

TEST_CASE("label file: a manifest lists all pictures of a folder without layout") {
  TempDir dir;
  for (const std::string file : {"x/1.png", "x/2.png", "3.png", "b \"q\", c.png", "not listed.png"}) {
    touch(dir / file);
  }
  const std::string rows =
      "x/1.png,dog,train\nx/2.png,cat,\n./x/../3.png,,\n\"b \"\"q\"\", c.png\",cat,validation\n";
  const std::vector<std::string> expected{"x/2.png=cat", "x/1.png=dog", "*b \"q\", c.png=cat", "3.png="};
  const auto labeled = labeled_by(dir.path(), "file,label,split\n" + rows);
  CHECK(text_of(labeled.list) == expected);
  CHECK(labeled.list.class_names == std::vector<std::string>{"cat", "dog"});
  CHECK(labeled.list.left_out.empty());
  CHECK(labeled.list.root == dir.path());
  CHECK(labeled.changes.empty());
  // As spreadsheets write it; columns in another order and further ones; rows in another order.
  CHECK(text_of(labeled_by(dir.path(),
                           "\xEF\xBB\xBF"
                           "file,label,split\n" +
                               rows)
                    .list) == expected);
  CHECK(
      text_of(labeled_by(dir.path(),
                         "split;note;label;file\r\nval;;cat ;\"b \"\"q\"\", c.png\"\r\n;1,5;;3.png\r\n; ;cat;"
                         "x/2.png\r\n\r\n;;\tdog;x/1.png\r\n")
                  .list) == expected);
  // The same row twice is one picture, however it is called; so is an absolute name.
  CHECK(text_of(labeled_by(dir.path(), "file,label,split\n" + rows + "x//1.png,dog,train\n" +
                                           (dir / "x/2.png").string() + ",cat,\n")
                    .list) == expected);
  // It is written and read again.
  write_label_file(dir / "again.csv", labeled.list);
  CHECK(text_of(label_pictures(dir.path(), {read_label_file(dir / "again.csv")}).list) == expected);
}

TEST_CASE("label file: rows that leave the root or name no file are left out, counted and named") {
  TempDir outer;
  const auto dir = outer / "data";
  for (const std::string file : {"1.png", "2.png", "sub/x.png"}) {
    touch(dir / file);
  }
  touch(outer / "secret.png");
  touch(outer / "elsewhere/y.png");
  fs::create_symlink(outer / "secret.png", dir / "link.png");
  fs::create_directory_symlink(outer / "elsewhere", dir / "away");
  fs::create_directory_symlink("sub", dir / "inside");
  const std::string good = "file,label\n1.png,a\n2.png,b\n";
  const std::string outside = "not in " + dir.string();
  const std::vector<std::pair<std::string, std::string>> rows{{"../secret.png", outside},
                                                              {(outer / "secret.png").string(), outside},
                                                              {"link.png", outside},
                                                              {"away/y.png", outside},
                                                              {"away/../../secret.png", outside},
                                                              {"sub/../../data/../secret.png", outside},
                                                              {"/etc/passwd", outside},
                                                              {"gone.png", "there is no such file"},
                                                              {"sub", "not a file"},
                                                              {".", outside}};
  for (const auto& [name, reason] : rows) {
    INFO(name);
    const auto list = labeled_by(dir, good + name + ",a\n").list;
    CHECK(text_of(list) == std::vector<std::string>{"1.png=a", "2.png=b"});
    REQUIRE(list.left_out.size() == 1);
    const std::string line =
        "left out: 1 row of a CSV (" + reason + "): " + (dir / "l.csv").string() + " line 4: " + name;
    CHECK(describe(list.left_out[0]) == line);
    CHECK(error_of([&, file = name] { labeled_by(dir, good + file + ",a\n", /*strict=*/true); }) ==
          "label_pictures: " + dir.string() + ": " + line);
  }
  const auto two = labeled_by(dir, good + "gone.png,a\n../secret.png,a\ngone too.png,b\n").list.left_out;
  REQUIRE(two.size() == 2);
  CHECK_THAT(describe(two[0]), contains("left out: 2 rows of a CSV (there is no such file), e.g. "));
  CHECK_THAT(
      error_of([&] { labeled_by(dir, "file,label\n../1.png,a\n../2.png,b\n"); }),
      contains("none of 2 rows names a picture in " + dir.string() + "; left out: 2 rows of a CSV (not in"));
  // What a link within the folder leads to is in it, and is called as it was called.
  CHECK(text_of(labeled_by(dir, good + "inside/x.png,a\n").list)[1] == "inside/x.png=a");
  // A name through ".." is that of the words, not of where a link leads.
  CHECK(labeled_by(dir, good + "away/../1.png,a\n").list.size() == 2);
}

TEST_CASE("label file: what is wrong with it is one line with file and line") {
  TempDir dir;
  for (const std::string file : {"1.png", "2.png", "3.png"}) {
    touch(dir / file);
  }
  const auto refused = [&](const std::string& text) {
    const auto error = error_of([&] { labeled_by(dir.path(), text); });
    CHECK(error.find('\n') == std::string::npos);
    return error;
  };
  const std::string file = (dir / "l.csv").string(), head = "file,label,split\n1.png,a,\n2.png,b,\n";
  CHECK_THAT(error_of([&] { read_label_file(dir / "none.csv"); }), contains("cannot read"));
  CHECK_THAT(refused(""), contains(file + " is empty"));
  CHECK_THAT(refused("1.png,a\n2.png,b\n"),
             contains(file + " line 1: expected a header that names the columns file and label") &&
                 contains("got \"1.png,a\""));
  CHECK_THAT(refused("file,lable\n1.png,a\n"), contains("got \"file,lable\""));
  CHECK_THAT(refused("file,label,file\n"), contains(file + " line 1: two columns are named \"file\""));
  CHECK_THAT(refused("\xFF\xFEx"), contains(file + " is written in UTF-16"));
  CHECK_THAT(refused(head + std::string("\0", 1)), contains("it holds a zero byte"));
  CHECK_THAT(refused(head + "3.png,a\n"), contains(file + " line 4 has 2 cells, the header 3"));
  CHECK_THAT(refused(head + "3.png,a,,\n"), contains(file + " line 4 has 4 cells, the header 3"));
  CHECK_THAT(refused(head + "\n3.png,a,test\n"),
             contains(file + " line 5: split must be train or validation, got \"test\""));
  CHECK_THAT(refused(head + ",a,\n"), contains(file + " line 4: no file is named"));
  CHECK_THAT(refused(head + "3.png,caf\xE9,\n"), contains("line 4: the label is not UTF-8: \"caf\\xe9\""));
  CHECK_THAT(refused(head + "3.png," + std::string(256, 'x') + ",\n"),
             contains("line 4: a label of 256 bytes"));
  CHECK_THAT(refused(head + "3.png,,validation\n"),
             contains(file + " line 4: a picture that is held out needs a label"));
  CHECK_THAT(refused(head + "./1.png,b,\n"),
             contains(file + " line 4: 1.png has \"b\", and \"a\" in " + file + " line 2"));
  CHECK_THAT(refused(head + "1.png,,\n"), contains("line 4: 1.png has no label, and \"a\" in"));
  CHECK_THAT(refused(head + "1.png,a,validation\n"), contains("line 4: 1.png is in another split in"));
  CHECK_THAT(refused("file,label\n1.png,a\n2.png,a\n"),
             contains("have one label, \"a\"; expected at least two"));
  CHECK_THAT(refused("file,label\n1.png,\n"), contains("have no label; expected at least two"));
  CHECK_THAT(refused(head + "3.png,c,validation\n"),
             contains("all pictures of class \"c\" are held out: none is left to train with"));
  CHECK_THAT(error_of([&] { label_pictures(dir / "none", {}); }), contains("no directory"));
  CHECK(text_of(labeled_by(dir.path(), head).list) == std::vector<std::string>{"1.png=a", "2.png=b"});
}

TEST_CASE("label file: corrected predictions count above the folders, and later files above earlier ones") {
  TempDir dir;
  touch_folder(dir.path());
  const std::string head = "file,class,confidence,path,label\n";
  const std::string file = (dir / "l.csv").string();
  const auto before = text_of(list_pictures(dir.path()));
  // Names relative to unlabeled/; rows without a label say nothing, whatever the class.
  CHECK(text_of(labeled_by(dir.path(), head + "a.png,dog,.4,,\ndeep/b.png,cat,.5,,\n").list) == before);
  const auto one = labeled_by(dir.path(), head + "a.png,dog,.4,,\ndeep/b.png,cat,.5,, owl\n");
  CHECK(text_of(one.list) == std::vector<std::string>{"labeled/cat/1.png=cat", "labeled/cat/2.png=cat",
                                                      "labeled/dog/1.png=dog", "labeled/dog/2.png=dog",
                                                      "unlabeled/deep/b.png=owl", "unlabeled/a.png="});
  CHECK(one.list.class_names == std::vector<std::string>{"cat", "dog", "owl"});
  CHECK(one.changes ==
        std::vector<std::string>{file + ": a label for 1 picture, unlabeled/deep/b.png: \"owl\"",
                                 file + ": new classes: \"owl\" (1 picture)"});
  // A picture that its folder labels, one that loses its label, and a class that loses its pictures.
  const auto two = labeled_by(
      dir.path(), "file,label\nlabeled/dog/1.png,cat\nlabeled/dog/2.png,\ndeep/b.png,owl\na.png,owl\n");
  CHECK(text_of(two.list) == std::vector<std::string>{"labeled/cat/1.png=cat", "labeled/cat/2.png=cat",
                                                      "labeled/dog/1.png=cat", "unlabeled/a.png=owl",
                                                      "unlabeled/deep/b.png=owl", "labeled/dog/2.png="});
  REQUIRE(two.changes.size() == 5);
  CHECK_THAT(two.changes[0], contains("a label for 2 pictures, e.g. unlabeled/a.png: \"owl\""));
  CHECK_THAT(two.changes[1],
             contains("another label for 1 picture, labeled/dog/1.png: \"cat\", was \"dog\""));
  CHECK_THAT(two.changes[2],
             contains("no label any more for 1 picture, labeled/dog/2.png: none, was \"dog\""));
  CHECK_THAT(two.changes[4], contains("classes that no picture has any more: \"dog\" (2 pictures)"));
  // Where the folder is called otherwise than when the predictions were written, `path` may still tell.
  CHECK(text_of(
            labeled_by(dir.path(), head + "gone.png,dog,.4," + (dir / "unlabeled/a.png").string() + ",dog\n")
                .list)[4] == "unlabeled/a.png=dog");
  // A later file wins.
  write_file(dir / "first.csv", "file,label,split\nunlabeled/a.png,dog,validation\nlabeled/cat/1.png,dog,\n");
  write_file(dir / "second.csv", "file,label\nlabeled/cat/1.png,cat\n");
  const auto both =
      label_pictures(dir.path(), {read_label_file(dir / "first.csv"), read_label_file(dir / "second.csv")});
  CHECK(text_of(both.list) == std::vector<std::string>{"labeled/cat/1.png=cat", "labeled/cat/2.png=cat",
                                                       "labeled/dog/1.png=dog", "labeled/dog/2.png=dog",
                                                       "*unlabeled/a.png=dog", "unlabeled/deep/b.png="});
  CHECK_THAT(both.changes.back(), contains("second.csv: another label for 1 picture"));
  // Blanks are taken away from a label, but not from a class that has them.
  touch(dir / "labeled/ cat/1.png");
  const auto blank = labeled_by(dir.path(), "file,label\na.png,  dog \ndeep/b.png, cat\n").list;
  CHECK(text_of(blank)[0] == "labeled/ cat/1.png= cat");
  CHECK(text_of(blank)[1] == "unlabeled/deep/b.png= cat");
  write_label_file(dir / "again.csv", blank);
  CHECK(text_of(label_pictures(dir.path(), {read_label_file(dir / "again.csv")}).list) == text_of(blank));
}

TEST_CASE("label file: the folders need not give all classes, nor any") {
  TempDir dir;
  touch(dir / "unlabeled/a.png");
  touch(dir / "unlabeled/b.png");
  touch(dir / "unlabeled/c.png");
  touch(dir / "elsewhere.png");
  const std::string csv = "file,label\na.png,cat\nunlabeled/b.png,dog\n";
  const std::vector<std::string> expected{"unlabeled/a.png=cat", "unlabeled/b.png=dog", "unlabeled/c.png="};
  CHECK(text_of(labeled_by(dir.path(), csv).list) == expected);
  CHECK_THAT(error_of([&] { list_pictures(dir.path()); }), contains("has no directory \"labeled\""));
  // One class by its folder, the other by the file; pictures of it are held out.
  touch(dir / "train/cat/1.png");
  touch(dir / "val/dog/2.png");
  CHECK(text_of(labeled_by(dir.path(), csv).list) ==
        std::vector<std::string>{"train/cat/1.png=cat", "unlabeled/a.png=cat", "unlabeled/b.png=dog",
                                 "*val/dog/2.png=dog", "unlabeled/c.png="});
  CHECK_THAT(error_of([&] { labeled_by(dir.path(), "file,label\na.png,cat\n"); }),
             contains("all pictures of class \"dog\" are held out"));
  CHECK_THAT(error_of([&] { list_pictures(dir.path()); }), contains("holds one class folder"));
}

TEST_CASE("label file: pictures that the layout holds out stay so, unless a row says otherwise") {
  TempDir dir;
  touch_folder(dir.path());
  touch(dir / "validation/cat/9.png");
  touch(dir / "validation/dog/9.png");
  const auto list =
      labeled_by(dir.path(), "file,label,split\nvalidation/cat/9.png,,train\na.png,cat,validation\n").list;
  CHECK(text_of(list) == std::vector<std::string>{"labeled/cat/1.png=cat", "labeled/cat/2.png=cat",
                                                  "labeled/dog/1.png=dog", "labeled/dog/2.png=dog",
                                                  "*unlabeled/a.png=cat", "*validation/dog/9.png=dog",
                                                  "unlabeled/deep/b.png=", "validation/cat/9.png="});
}
