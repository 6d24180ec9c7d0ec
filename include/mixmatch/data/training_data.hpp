#pragma once

#include <mixmatch/data/image_dataset.hpp>
#include <mixmatch/data/image_pool.hpp>
#include <mixmatch/data/label_split.hpp>
#include <mixmatch/data/picture_fit.hpp>

#include <string>
#include <vector>

namespace mixmatch::training {

/// What a classifier is trained on and judged by.
struct TrainingData {
  data::ImagePool pool;           ///< all training images; may live on the device of the training
  data::SslSplit split;           ///< rows of the pool: which have their labels, which train without
  data::ImageDataset validation;  ///< held out from training to choose by; may be empty
  data::ImageDataset test;        ///< looked at and never chosen by; may be empty
  /// Of pictures in a folder, one a row of the pool: their names, relative to the folder. A run's split then
  /// names them.
  std::vector<std::string> files = {};
  data::PictureFit fit = data::PictureFit::crop;  ///< how those became square
};

}  // namespace mixmatch::training
