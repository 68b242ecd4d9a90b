// One decoding step of a Llama on a CPU: every row of a batch reads one id.
//
// The threads are those of torch's own OpenMP (see native_library.py): others would have to fight its idle ones, which
// spin for a while. Sums, norms, softmax and the residual stream are float32, whatever the format of the weights and of the cache.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <vector>

#include "matrix.hpp"
#include "numbers.hpp"

extern "C" {

struct LlamaShape {
  int32_t dim, num_blocks, num_heads, num_kv_heads, head_dim, ffn_dim, vocabulary, max_positions;
  float norm_eps;
};

struct LlamaBlock {  // row-major matrices of outputs x inputs, as torch holds them
  const void *attention_norm, *query_key_value, *output, *ffn_norm, *gate_up, *down;
  const void *query_key_value_bias, *query_norm, *key_norm;  // null where the model has none
};

struct LlamaWeights {
  const void* embeddings;  // the only ones that are read after the model is made
  const LlamaBlock* blocks;
  const void *norm, *head;
  const float *cosine, *sine;  // rotary embedding: positions x head_dim
};

struct LlamaStep {
  int32_t num_rows, slot, num_slots;
  const int64_t* ids;
  const int64_t* starts;   // the slot at which each row begins
  const int64_t* offsets;  // what the position of an id is beyond its distance from there
  void* keys;             // blocks x rows x kv heads x slots x head_dim
  void* values;
  void* last;  // final hidden states: rows x dim
};
}

namespace rebus {

class Llama {
 public:
  const int num_threads;

  explicit Llama(int num_threads) : num_threads(num_threads) {}
  virtual ~Llama() = default;
  virtual void step(const LlamaStep& step) = 0;
  virtual void logits(const void* hidden, int num_rows, int start, int stop, float* out) = 0;
};

template <class Format>
class LlamaOf : public Llama {
  using Element = typename Format::Element;

  struct Block {
    std::vector<float> attention_norm, ffn_norm, bias, query_norm, key_norm;  // the last three may be empty
    Matrix<Format> query_key_value, output, gate_up, down;
  };

 public:
  LlamaOf(const LlamaShape& shape, const LlamaWeights& weights, int num_threads)
      : Llama(num_threads),
        shape_(shape),
        embeddings_(static_cast<const Element*>(weights.embeddings)),
        norm_(floats(weights.norm, shape.dim)),
        cosine_(weights.cosine, weights.cosine + shape.max_positions * shape.head_dim),
        sine_(weights.sine, weights.sine + shape.max_positions * shape.head_dim),
        head_(weights.head, shape.vocabulary, shape.dim, [](int row) { return row; }) {
    const auto same = [](int row) { return row; };
    // A block of 32 rows holds 16 of the gate and the 16 of the input that they gate, so that one thread has both.
    const auto paired = [&](int row) {
      const int channel = row / kBlock * kVector + row % kVector;
      return channel >= shape.ffn_dim ? -1 : row % kBlock < kVector ? channel : shape.ffn_dim + channel;
    };
    const int num_paired = (shape.ffn_dim + kVector - 1) / kVector * kBlock;
    const int heads_dim = shape.num_heads * shape.head_dim;
    for (int index = 0; index < shape.num_blocks; ++index) {
      const LlamaBlock& one = weights.blocks[index];
      blocks_.push_back(Block{
          floats(one.attention_norm, shape.dim), floats(one.ffn_norm, shape.dim),
          floats(one.query_key_value_bias, qkv_dim()), floats(one.query_norm, shape.head_dim),
          floats(one.key_norm, shape.head_dim),
          Matrix<Format>(one.query_key_value, qkv_dim(), shape.dim, same),
          Matrix<Format>(one.output, shape.dim, heads_dim, same),
          Matrix<Format>(one.gate_up, num_paired, shape.dim, paired),
          Matrix<Format>(one.down, shape.dim, shape.ffn_dim, same)});
    }
  }

  void step(const LlamaStep& step) override {
    std::lock_guard<std::mutex> lock(busy_);
    const int rows = step.num_rows;
    hidden_.resize(size_t(rows) * shape_.dim);
    projected_.resize(size_t(rows) * qkv_dim());
    attended_.resize(size_t(rows) * shape_.num_heads * shape_.head_dim);
    gated_.resize(size_t(rows) * shape_.ffn_dim);
    for (int row = 0; row < rows; ++row)
      for (int place = 0; place < shape_.dim; ++place)
        hidden_[size_t(row) * shape_.dim + place] = Format::load(embeddings_[step.ids[row] * shape_.dim + place]);
#pragma omp parallel num_threads(num_threads)
    work(step);
    auto* last = static_cast<Element*>(step.last);
    for (int row = 0; row < rows; ++row) {
      const float* hidden = &hidden_[size_t(row) * shape_.dim];
      const float scale = norm_scale(hidden, shape_.dim);
      for (int place = 0; place < shape_.dim; ++place)
        last[size_t(row) * shape_.dim + place] = Format::store(hidden[place] * scale * norm_[place]);
    }
  }

  void logits(const void* hidden, int num_rows, int start, int stop, float* out) override {
    std::lock_guard<std::mutex> lock(busy_);
    const auto* words = static_cast<const uint32_t*>(hidden);
    const int first = start / kBlock, blocks = (stop + kBlock - 1) / kBlock - first;
#pragma omp parallel num_threads(num_threads)
    multiply(head_, words, num_rows, first + share(blocks, 0), first + share(blocks, 1),
             [&](int row, int block, const float* sums) {
               const int from = std::max(start, block * kBlock), to = std::min(stop, (block + 1) * kBlock);
               std::memcpy(out + size_t(row) * (stop - start) + from - start, sums + from - block * kBlock,
                           size_t(to - from) * sizeof(float));
             });
  }

 private:
  int qkv_dim() const { return (shape_.num_heads + 2 * shape_.num_kv_heads) * shape_.head_dim; }

  // Where this thread's share of the work begins, and with ``next`` the one after it.
  static int share(int total, int next) {
    return int(int64_t(total) * (omp_get_thread_num() + next) / omp_get_num_threads());
  }

  static std::vector<float> floats(const void* elements, int number) {
    if (elements == nullptr) return {};
    std::vector<float> result(number);
    for (int place = 0; place < number; ++place)
      result[place] = Format::load(static_cast<const Element*>(elements)[place]);
    return result;
  }

  float norm_scale(const float* values, int number) const {
    float sum = 0;
    for (int place = 0; place < number; ++place) sum += values[place] * values[place];
    return 1 / std::sqrt(sum / number + shape_.norm_eps);
  }

  // Rows as words to multiply; every thread makes its own, which is cheaper than to wait for another's.
  static void pack_rows(const float* values, int num_rows, int dim, std::vector<uint32_t>& words) {
    const int steps = (dim + Format::kPerWord - 1) / Format::kPerWord;
    words.assign(size_t(num_rows) * steps, 0);
    auto* packed = reinterpret_cast<Element*>(words.data());
    for (int row = 0; row < num_rows; ++row)
      for (int place = 0; place < dim; ++place)
        packed[size_t(row) * steps * Format::kPerWord + place] = Format::store(values[size_t(row) * dim + place]);
  }

  void pack_normed(int num_rows, const std::vector<float>& norm, std::vector<float>& normed,
                   std::vector<uint32_t>& words) const {
    normed.resize(size_t(num_rows) * shape_.dim);
    for (int row = 0; row < num_rows; ++row) {
      const float* hidden = &hidden_[size_t(row) * shape_.dim];
      const float scale = norm_scale(hidden, shape_.dim);
      for (int place = 0; place < shape_.dim; ++place)
        normed[size_t(row) * shape_.dim + place] = hidden[place] * scale * norm[place];
    }
    pack_rows(normed.data(), num_rows, shape_.dim, words);
  }

  template <class Use>
  static void multiply_share(const Matrix<Format>& matrix, const std::vector<uint32_t>& words, int num_rows, Use use) {
    multiply(matrix, words.data(), num_rows, share(matrix.num_blocks(), 0), share(matrix.num_blocks(), 1), use);
#pragma omp barrier
  }

  void work(const LlamaStep& step) {
    const int rows = step.num_rows, dim = shape_.dim;
    std::vector<float> normed, scores(step.slot + kVector);
    std::vector<uint32_t> words;
    const auto put = [](std::vector<float>& to, int width) {
      return [&to, width](int row, int block, const float* sums) {
        const int from = block * kBlock, number = std::min(kBlock, width - from);
        std::memcpy(&to[size_t(row) * width + from], sums, size_t(number) * sizeof(float));
      };
    };
    const auto add = [&](int row, int block, const float* sums) {
      const int from = block * kBlock, number = std::min(kBlock, dim - from);
      for (int place = 0; place < number; ++place) hidden_[size_t(row) * dim + from + place] += sums[place];
    };
    const auto gate = [&](int row, int block, const float* sums) {
      const int from = block * kVector, number = std::min(kVector, shape_.ffn_dim - from);
      const Floats gate = load(sums), gated = gate / (1.0f + exponential(-gate)) * load(sums + kVector);
      std::memcpy(&gated_[size_t(row) * shape_.ffn_dim + from], &gated, size_t(number) * sizeof(float));
    };
    for (int index = 0; index < shape_.num_blocks; ++index) {
      const Block& block = blocks_[index];
      pack_normed(rows, block.attention_norm, normed, words);
      multiply_share(block.query_key_value, words, rows, put(projected_, qkv_dim()));
      const int pairs = rows * shape_.num_kv_heads;
      for (int pair = share(pairs, 0); pair < share(pairs, 1); ++pair)
        attend(step, index, pair / shape_.num_kv_heads, pair % shape_.num_kv_heads, scores);
#pragma omp barrier
      pack_rows(attended_.data(), rows, shape_.num_heads * shape_.head_dim, words);
      multiply_share(block.output, words, rows, add);
      pack_normed(rows, block.ffn_norm, normed, words);
      multiply_share(block.gate_up, words, rows, gate);
      pack_rows(gated_.data(), rows, shape_.ffn_dim, words);
      multiply_share(block.down, words, rows, add);
    }
  }

  // Finishes a key, its value and its queries, stores key and value, and attends to all slots of the row.
  void attend(const LlamaStep& step, int index, int row, int kv_head, std::vector<float>& scores) {
    const int width = shape_.head_dim, group = shape_.num_heads / shape_.num_kv_heads;
    const size_t place = ((size_t(index) * step.num_rows + row) * shape_.num_kv_heads + kv_head) * step.num_slots * width;
    Element* keys = static_cast<Element*>(step.keys) + place;
    Element* values = static_cast<Element*>(step.values) + place;
    const Block& block = blocks_[index];
    float* projected = &projected_[size_t(row) * qkv_dim()];
    float* key = finished(projected, shape_.num_heads + kv_head, block.bias);
    const float* value = finished(projected, shape_.num_heads + shape_.num_kv_heads + kv_head, block.bias);
    turn(key, step, row, block.key_norm);
    for (int at = 0; at < width; ++at) {
      keys[size_t(step.slot) * width + at] = Format::store(key[at]);
      values[size_t(step.slot) * width + at] = Format::store(value[at]);
    }
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      float* query = finished(projected, head, block.bias);
      turn(query, step, row, block.query_norm);
      float* attended = &attended_[(size_t(row) * shape_.num_heads + head) * width];
      attend_head(query, keys, values, int(step.starts[row]), step.slot, scores.data(), attended);
    }
  }

  // Returns one head of what a row was projected to, with its bias.
  float* finished(float* projected, int head, const std::vector<float>& bias) const {
    float* values = projected + head * shape_.head_dim;
    if (!bias.empty())
      for (int at = 0; at < shape_.head_dim; ++at) values[at] += bias[size_t(head) * shape_.head_dim + at];
    return values;
  }

  // Norms a head, where the model does that, and turns it by its position.
  void turn(float* head, const LlamaStep& step, int row, const std::vector<float>& norm) const {
    const int width = shape_.head_dim, half = width / 2;
    if (!norm.empty()) {
      const float scale = norm_scale(head, width);
      for (int at = 0; at < width; ++at) head[at] *= scale * norm[at];
    }
    // Padding and finished rows may lie outside.
    const int position = std::max(0, std::min(step.slot - int(step.starts[row] - step.offsets[row]), shape_.max_positions - 1));
    const float* cosine = &cosine_[size_t(position) * width];
    const float* sine = &sine_[size_t(position) * width];
    for (int at = 0; at < half; ++at) {
      const float first = head[at], second = head[half + at];
      head[at] = first * cosine[at] - second * sine[at];
      head[half + at] = second * cosine[half + at] + first * sine[half + at];
    }
  }

  void attend_head(const float* query, const Element* keys, const Element* values, int start, int last, float* scores,
                   float* attended) const {
    const int width = shape_.head_dim, whole = width / kPair * kPair;
    const float scale = 1 / std::sqrt(float(width));
    float most = -INFINITY, total = 0, *asked = attended;  // which is written last
    for (int at = 0; at < whole; ++at) asked[at] = scale * query[at / kPair * kPair + Format::place(at % kPair)];
    for (int at = whole; at < width; ++at) asked[at] = scale * query[at];
    for (int slot = start; slot <= last; ++slot) {
      const Element* key = keys + size_t(slot) * width;
      Floats products{}, others{}, first, second;
      for (int at = 0; at < whole; at += kPair) {
        Format::load_pair(key + at, first, second);
        products += load(asked + at) * first, others += load(asked + at + kVector) * second;
      }
      scores[slot] = sum(products + others);
      for (int at = whole; at < width; ++at) scores[slot] += asked[at] * Format::load(key[at]);
      most = std::max(most, scores[slot]);
    }
    for (int slot = start; slot <= last; slot += kVector) {
      const Floats powers = exponential(load(scores + slot) - most);
      std::memcpy(scores + slot, &powers, sizeof powers);
    }
    for (int slot = start; slot <= last; ++slot) total += scores[slot];
    for (int slot = start; slot <= last; ++slot) scores[slot] /= total;
    int at = 0;
    for (; at + 2 * kPair <= width; at += 2 * kPair) mix<2>(values + at, start, last, scores, attended + at);
    for (; at + kPair <= width; at += kPair) mix<1>(values + at, start, last, scores, attended + at);
    for (; at < width; ++at) {
      attended[at] = 0;
      for (int slot = start; slot <= last; ++slot)
        attended[at] += scores[slot] * Format::load(values[size_t(slot) * width + at]);
    }
  }

  // Sums up 32 numbers or more of the values of all slots by their weights; the sums stay in registers.
  template <int kPairs>
  void mix(const Element* values, int start, int last, const float* weights, float* attended) const {
    Floats firsts[kPairs] = {}, seconds[kPairs] = {}, first, second;
    for (int slot = start; slot <= last; ++slot) {
      const Element* value = values + size_t(slot) * shape_.head_dim;
      for (int index = 0; index < kPairs; ++index) {
        Format::load_pair(value + index * kPair, first, second);
        firsts[index] += weights[slot] * first, seconds[index] += weights[slot] * second;
      }
    }
    for (int index = 0; index < kPairs; ++index) {
      float numbers[kPair];
      std::memcpy(numbers, &firsts[index], sizeof(Floats));
      std::memcpy(numbers + kVector, &seconds[index], sizeof(Floats));
      for (int number = 0; number < kPair; ++number) attended[index * kPair + Format::place(number)] = numbers[number];
    }
  }

  const LlamaShape shape_;
  const Element* embeddings_;  // torch's
  std::vector<float> norm_, cosine_, sine_;
  Matrix<Format> head_;
  std::vector<Block> blocks_;
  std::mutex busy_;  // one step at a time: what follows is its scratch space
  std::vector<float> hidden_, projected_, attended_, gated_;
};

}  // namespace rebus
