// Weights packed once into the order in which they are used, for at a few rows the work is to read them: blocks of 32
// outputs whose 32-bit words (a float32, or two bfloat16 of neighbouring inputs) are multiplied by one word of a row at a
// time, so that no sum crosses a vector.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>

#include "numbers.hpp"

namespace rebus {

constexpr int kBlock = 2 * kVector;  // outputs of a block
constexpr int kTileRows = 8;         // rows whose sums stay in registers together

template <class Format>
struct Matrix {
  int outputs, steps;  // steps: words of a row
  std::unique_ptr<uint32_t[], decltype(&std::free)> words{nullptr, &std::free};

  // Output j of the packed matrix is row order(j) of the weights; nothing where that is negative.
  Matrix(const void* weights, int outputs, int inputs, const std::function<int(int)>& order)
      : outputs(outputs), steps((inputs + Format::kPerWord - 1) / Format::kPerWord) {
    using Element = typename Format::Element;
    const size_t num_bytes = size_t(num_blocks()) * steps * kBlock * sizeof(uint32_t);
    words.reset(static_cast<uint32_t*>(std::aligned_alloc(64, num_bytes)));
    std::memset(words.get(), 0, num_bytes);
    auto* packed = reinterpret_cast<Element*>(words.get());
    for (int output = 0; output < outputs; ++output) {
      if (order(output) < 0) continue;
      const Element* row = static_cast<const Element*>(weights) + size_t(order(output)) * inputs;
      for (int input = 0; input < inputs; ++input) {
        const size_t word = (size_t(output / kBlock) * steps + input / Format::kPerWord) * kBlock + output % kBlock;
        packed[word * Format::kPerWord + input % Format::kPerWord] = row[input];
      }
    }
  }

  int num_blocks() const { return (outputs + kBlock - 1) / kBlock; }
  const uint32_t* block(int index) const { return words.get() + size_t(index) * steps * kBlock; }
};

// The sums of one block of outputs for a few rows.
template <class Format, int kRows>
void multiply_tile(const uint32_t* weights, int steps, const uint32_t* rows, float (*sums)[kBlock]) {
  Floats left[kRows] = {}, right[kRows] = {};
  for (int step = 0; step < steps; ++step, weights += kBlock) {
    Words low, high;
    std::memcpy(&low, weights, sizeof low);
    std::memcpy(&high, weights + kVector, sizeof high);
    for (int row = 0; row < kRows; ++row) {
      const uint32_t word = rows[size_t(row) * steps + step];
      left[row] = Format::multiply_add(left[row], low, word);
      right[row] = Format::multiply_add(right[row], high, word);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    std::memcpy(sums[row], &left[row], sizeof left[row]);
    std::memcpy(sums[row] + kVector, &right[row], sizeof right[row]);
  }
}

// Calls use(row, block, sums) with the 32 sums of every row and of every block that falls to this thread.
template <class Format, class Use>
void multiply(const Matrix<Format>& matrix, const uint32_t* words, int num_rows, int first, int last, Use use) {
  float sums[kTileRows][kBlock];
  for (int block = first; block < last; ++block) {
    for (int row = 0; row < num_rows; row += kTileRows) {
      const uint32_t* rows = words + size_t(row) * matrix.steps;
      const int count = std::min(kTileRows, num_rows - row);
      switch (count) {
        case 1: multiply_tile<Format, 1>(matrix.block(block), matrix.steps, rows, sums); break;
        case 2: multiply_tile<Format, 2>(matrix.block(block), matrix.steps, rows, sums); break;
        case 3: multiply_tile<Format, 3>(matrix.block(block), matrix.steps, rows, sums); break;
        case 4: multiply_tile<Format, 4>(matrix.block(block), matrix.steps, rows, sums); break;
        case 5: multiply_tile<Format, 5>(matrix.block(block), matrix.steps, rows, sums); break;
        case 6: multiply_tile<Format, 6>(matrix.block(block), matrix.steps, rows, sums); break;
        case 7: multiply_tile<Format, 7>(matrix.block(block), matrix.steps, rows, sums); break;
        default: multiply_tile<Format, 8>(matrix.block(block), matrix.steps, rows, sums);
      }
      for (int index = 0; index < count; ++index) use(row + index, block, sums[index]);
    }
  }
}

}  // namespace rebus
