// What native_llama.py calls: single steps, and whole spans of codes that are drawn and read without leaving C++.
#include "llama.hpp"
#include "sampling.hpp"

extern "C" {

struct LlamaSpan {
  LlamaStep step;                   // the first; its ids are not read, and what ``last`` holds says the first code
  int32_t num_codes, num_branches;  // the rows of each branch lie together
  LlamaSampling sampling;
  const int32_t *code_starts, *code_stops;  // ids that each code is one of: from start up to stop
  const float* weights;                     // of the branches' logits: codes x branches
  const float* uniforms;                    // codes x rows of a branch, in [0, 1)
  int64_t* chosen;                          // the same; -1 where logits are not numbers
};
}

namespace rebus {

// Puts the weighted sum of the branches' logits where those of the first are.
void mix(float* logits, size_t stride, int number, int num_branches, const float* weights) {
  if (num_branches == 1 || std::all_of(weights + 1, weights + num_branches, [](float one) { return one == 0; })) return;
  for (int place = 0; place < number; ++place) logits[place] *= weights[0];
  for (int branch = 1; branch < num_branches; ++branch)
    for (int place = 0; place < number; ++place)
      logits[place] += weights[branch] * logits[branch * stride + place];
}

void draw(Llama& llama, const LlamaSpan& span) {
  LlamaStep step = span.step;
  const int num_asked = step.num_rows / span.num_branches;
  int widest = 0;
  for (int code = 0; code < span.num_codes; ++code)
    widest = std::max(widest, span.code_stops[code] - span.code_starts[code]);
  std::vector<int64_t> ids(size_t(step.num_rows));
  std::vector<float> logits(size_t(step.num_rows) * widest);
  step.ids = ids.data();
  for (int code = 0; code < span.num_codes; ++code, ++step.slot) {
    const int start = span.code_starts[code], number = span.code_stops[code] - start;
    llama.logits(step.last, step.num_rows, start, start + number, logits.data());
#pragma omp parallel num_threads(std::min(llama.num_threads, num_asked))
    {
      static thread_local Sampler sampler;
#pragma omp for
      for (int row = 0; row < num_asked; ++row) {
        float* asked = &logits[size_t(row) * number];
        mix(asked, size_t(num_asked) * number, number, span.num_branches, span.weights + size_t(code) * span.num_branches);
        const size_t place = size_t(code) * num_asked + row;
        const int chosen = sampler.choose(asked, number, span.sampling, span.uniforms[place]);
        span.chosen[place] = chosen < 0 ? -1 : start + chosen;
        for (int branch = 0; branch < span.num_branches; ++branch)
          ids[branch * num_asked + row] = start + std::max(chosen, 0);
      }
    }
    llama.step(step);
  }
}

}  // namespace rebus

extern "C" {

rebus::Llama* rebus_llama_new(const LlamaShape* shape, const LlamaWeights* weights, int is_bfloat16, int num_threads) {
  if (is_bfloat16) return new rebus::LlamaOf<rebus::BFloat16>(*shape, *weights, num_threads);
  return new rebus::LlamaOf<rebus::Float32>(*shape, *weights, num_threads);
}

void rebus_llama_free(rebus::Llama* llama) { delete llama; }
void rebus_llama_step(rebus::Llama* llama, const LlamaStep* step) { llama->step(*step); }

void rebus_llama_logits(rebus::Llama* llama, const void* hidden, int num_rows, int start, int stop, float* out) {
  llama->logits(hidden, num_rows, start, stop, out);
}

void rebus_llama_draw(rebus::Llama* llama, const LlamaSpan* span) { rebus::draw(*llama, *span); }

void rebus_choose(const float* logits, int num_rows, int number, const LlamaSampling* sampling, const float* uniforms,
                  int64_t* chosen) {
  static thread_local rebus::Sampler sampler;
  for (int row = 0; row < num_rows; ++row)
    chosen[row] = sampler.choose(logits + size_t(row) * number, number, *sampling, uniforms[row]);
}
}
