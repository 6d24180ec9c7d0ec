#pragma once

#include <mixmatch/data/cifar10.hpp>
#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/detail/io/data_files.hpp>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace mixmatch::data {

/// Which of CIFAR-100's two labels an image gets: one of 100 classes, or one of the 20 that these lie in.
enum class Cifar100Labels { fine, coarse };

/// CIFAR-100 (Krizhevsky 2009) from its binary version: 3 x 32 x 32 images in the file's order.
///
/// Reads train.bin or test.bin from `dir` or `dir`/cifar-100-binary; class names from fine_label_names.txt or
/// coarse_label_names.txt beside it, or the standard ones where it is not there. The file may hold any
/// positive number of whole records (coarse label, fine label, then 1,024 bytes each of red, green and blue).
/// Throws c10::Error with one line that names the file: nothing found, not readable, empty, cut short, a
/// coarse label above 19 or a fine one above 99 (both are checked).
inline ImageDataset load_cifar100(const std::filesystem::path& dir, Split split,
                                  Cifar100Labels labels = Cifar100Labels::fine) {
  constexpr const char* loader = "load_cifar100";
  TORCH_CHECK(split == Split::train || split == Split::test, loader,
              ": split must be Split::train or Split::test");
  const std::string file = split == Split::test ? "test.bin" : "train.bin";
  const auto place = mixmatch::detail::find_data_files(
      loader, dir, "cifar-100-binary", {file},
      "download the \"CIFAR-100 binary version\" from https://www.cs.toronto.edu/~kriz/cifar.html and unpack "
      "it there (tar xzf cifar-100-binary.tar.gz)");
  const bool fine = labels == Cifar100Labels::fine;
  auto names =
      fine ? mixmatch::detail::read_class_names(
                 loader, place / "fine_label_names.txt",
                 {"apple",       "aquarium_fish", "baby",      "bear",       "beaver",       "bed",
                  "bee",         "beetle",        "bicycle",   "bottle",     "bowl",         "boy",
                  "bridge",      "bus",           "butterfly", "camel",      "can",          "castle",
                  "caterpillar", "cattle",        "chair",     "chimpanzee", "clock",        "cloud",
                  "cockroach",   "couch",         "crab",      "crocodile",  "cup",          "dinosaur",
                  "dolphin",     "elephant",      "flatfish",  "forest",     "fox",          "girl",
                  "hamster",     "house",         "kangaroo",  "keyboard",   "lamp",         "lawn_mower",
                  "leopard",     "lion",          "lizard",    "lobster",    "man",          "maple_tree",
                  "motorcycle",  "mountain",      "mouse",     "mushroom",   "oak_tree",     "orange",
                  "orchid",      "otter",         "palm_tree", "pear",       "pickup_truck", "pine_tree",
                  "plain",       "plate",         "poppy",     "porcupine",  "possum",       "rabbit",
                  "raccoon",     "ray",           "road",      "rocket",     "rose",         "sea",
                  "seal",        "shark",         "shrew",     "skunk",      "skyscraper",   "snail",
                  "snake",       "spider",        "squirrel",  "streetcar",  "sunflower",    "sweet_pepper",
                  "table",       "tank",          "telephone", "television", "tiger",        "tractor",
                  "train",       "trout",         "tulip",     "turtle",     "wardrobe",     "whale",
                  "willow_tree", "wolf",          "woman",     "worm"})
           : mixmatch::detail::read_class_names(loader, place / "coarse_label_names.txt",
                                                {"aquatic_mammals",
                                                 "fish",
                                                 "flowers",
                                                 "food_containers",
                                                 "fruit_and_vegetables",
                                                 "household_electrical_devices",
                                                 "household_furniture",
                                                 "insects",
                                                 "large_carnivores",
                                                 "large_man-made_outdoor_things",
                                                 "large_natural_outdoor_scenes",
                                                 "large_omnivores_and_herbivores",
                                                 "medium_mammals",
                                                 "non-insect_invertebrates",
                                                 "people",
                                                 "reptiles",
                                                 "small_mammals",
                                                 "trees",
                                                 "vehicles_1",
                                                 "vehicles_2"});
  auto dataset =
      detail::read_cifar_records(loader, {place / file}, {{"coarse ", 20}, {"fine ", 100}}, fine ? 1 : 0);
  dataset.class_names = std::move(names);
  return dataset;
}

}  // namespace mixmatch::data
