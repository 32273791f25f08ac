// Print the probabilities of an image. Usage: score MODEL.onnx IMAGE.pgm (binary PGM, 8 bits, without comments)
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

using Pixels = std::vector<uint8_t>;  // gray bytes, row by row; 0 is black

// Resize rows to `size` pixels with Pillow's triangle filter. The result is transposed: `size` rows of `rows` pixels.
Pixels resample(const Pixels& pixels, int rows, int columns, int size) {
  const double scale = static_cast<double>(columns) / size, support = std::max(scale, 1.0);
  Pixels result(static_cast<size_t>(size) * rows);
  for (int x = 0; x < size; ++x) {
    const double center = (x + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - support + 0.5));
    const int end = std::min(columns, static_cast<int>(center + support + 0.5));
    std::vector<double> weights;
    double total = 0;
    for (int i = first; i < end; ++i) {
      weights.push_back(std::max(0.0, 1 - std::abs((i - center + 0.5) * (1 / support))));
      total += weights.back();
    }
    std::vector<int64_t> fixed;  // fixed point, as in Pillow
    for (double weight : weights) fixed.push_back(static_cast<int64_t>(weight / total * (1 << 22) + 0.5));
    for (int row = 0; row < rows; ++row) {
      int64_t sum = 1 << 21;
      for (int i = first; i < end; ++i) sum += fixed[i - first] * pixels[static_cast<size_t>(row) * columns + i];
      result[static_cast<size_t>(x) * rows + row] = static_cast<uint8_t>(std::min<int64_t>(255, sum >> 22));
    }
  }
  return result;
}

// The longer side becomes `size` pixels; the image is centred on black. nearbyint rounds halves to even, as Python.
Pixels fit_square(const Pixels& pixels, int width, int height, int size) {
  const double scale = static_cast<double>(size) / std::max(width, height);
  const int new_width = std::max(1, static_cast<int>(std::nearbyint(width * scale)));
  const int new_height = std::max(1, static_cast<int>(std::nearbyint(height * scale)));
  const Pixels resized = resample(resample(pixels, height, width, new_width), new_width, height, new_height);
  const int left = (size - new_width) / 2, top = (size - new_height) / 2;
  Pixels square(static_cast<size_t>(size) * size);
  for (int y = 0; y < new_height; ++y) {
    const auto row = resized.begin() + static_cast<size_t>(y) * new_width;
    std::copy(row, row + new_width, square.begin() + static_cast<size_t>(top + y) * size + left);
  }
  return square;
}

Pixels read_pgm(const char* path, int& width, int& height) {
  std::ifstream file(path, std::ios::binary);
  std::string format;
  int maximum = 0;
  file >> format >> width >> height >> maximum;
  file.get();
  if (!file || format != "P5" || maximum != 255 || width < 1 || height < 1) throw std::runtime_error("not an 8-bit PGM");
  Pixels pixels(static_cast<size_t>(width) * height);
  file.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(pixels.size()));
  if (!file) throw std::runtime_error("the PGM is cut off");
  return pixels;
}

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("usage: score MODEL.onnx IMAGE.pgm");
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "score");
  Ort::Session session(env, argv[1], Ort::SessionOptions{});  // on Windows the path is a wide string
  const int size = static_cast<int>(session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape()[1]);
  int width = 0, height = 0;
  const Pixels image = read_pgm(argv[2], width, height);
  Pixels square = fit_square(image, width, height, size);

  const std::vector<int64_t> shape{1, size, size};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Value input =
      Ort::Value::CreateTensor<uint8_t>(memory, square.data(), square.size(), shape.data(), shape.size());
  const char* input_names[] = {"images"};
  const char* output_names[] = {"probabilities"};  // and "ood_score", if export.json has has_ood_detector
  auto outputs = session.Run(Ort::RunOptions{nullptr}, input_names, &input, 1, output_names, 1);

  const float* probabilities = outputs[0].GetTensorData<float>();
  const size_t n_labels = outputs[0].GetTensorTypeAndShapeInfo().GetElementCount();
  Ort::AllocatorWithDefaultOptions allocator;
  std::cout << session.GetModelMetadata().LookupCustomMetadataMapAllocated("labels", allocator).get() << "\n";
  std::cout.precision(9);
  for (size_t i = 0; i < n_labels; ++i) std::cout << probabilities[i] << (i + 1 < n_labels ? " " : "\n");
  return 0;
} catch (const std::exception& error) {
  std::cerr << "score: " << error.what() << "\n";
  return 1;
}
