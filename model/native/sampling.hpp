// How the next id is drawn from logits: the same steps as sampling.py, which says what each of them means.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "numbers.hpp"

extern "C" {
struct LlamaSampling {
  float temperature, top_p, min_p;  // 1 and 0 where all may be drawn
  int32_t top_k;                    // 0 for all
};
}

namespace rebus {

// Draws ids; what it holds is scratch space, so each thread has its own.
class Sampler {
 public:
  // Returns the place of one of the logits, drawn by a number in [0, 1); -1 if they are not all numbers.
  int choose(const float* logits, int number, const LlamaSampling& sampling, float uniform) {
    int wrong = 0;
    float most = -INFINITY;
    for (int place = 0; place < number; ++place) {
      wrong |= !(logits[place] < INFINITY);
      most = std::max(most, logits[place]);
    }
    if (wrong) return -1;
    if (sampling.temperature == 0) return int(std::find(logits, logits + number, most) - logits);
    if (sampling.top_k == 0 && sampling.top_p >= 1) return draw_from_all(logits, number, most, sampling, uniform);
    keep_likeliest(logits, number, sampling.top_k == 0 ? number : std::min(sampling.top_k, number));
    for (auto& one : kept_) one.first = weight(one.first, most, sampling.temperature);
    if (sampling.top_p < 1) keep_probable(sampling.top_p);
    drop_improbable(sampling.min_p);
    double total = 0;
    for (const auto& one : kept_) total += one.first;
    double left = uniform * total;
    for (const auto& one : kept_)
      if ((left -= one.first) < 0) return one.second;
    return kept_[0].second;  // reached by rounding only
  }

 private:
  static constexpr int kGroups = 512;  // of logits, where only the largest of many are kept

  static float weight(float logit, float most, float temperature) { return std::exp((logit - most) / temperature); }

  // In the order of the ids, a vector at a time: to sort takes longer than all the rest.
  int draw_from_all(const float* logits, int number, float most, const LlamaSampling& sampling, float uniform) {
    weights_.resize(size_t(number + kVector));
    double total = 0;
    for (int place = 0; place < number; place += kVector) {
      Floats powers{}, values{};
      const int count = std::min(kVector, number - place);
      std::memcpy(&values, logits + place, size_t(count) * sizeof(float));
      powers = exponential((values - most) / sampling.temperature);
      std::memcpy(&weights_[place], &powers, sizeof powers);
      for (int at = place; at < place + count; ++at) {
        if (weights_[at] < sampling.min_p || logits[at] == -INFINITY) weights_[at] = 0;
        total += weights_[at];
      }
    }
    double left = uniform * total;
    for (int place = 0; place < number; ++place)
      if (weights_[place] > 0 && (left -= weights_[place]) < 0) return place;
    return int(std::find(logits, logits + number, most) - logits);  // reached by rounding only
  }

  // Keeps so many of the largest logits, in descending order. At least so many reach the bound, so whatever is smaller
  // cannot be among them.
  void keep_likeliest(const float* logits, int number, int wanted) {
    const float least = wanted <= kGroups / 2 && number >= 2 * kGroups ? bound(logits, number, wanted) : -INFINITY;
    kept_.clear();
    for (int place = 0; place < number; ++place)
      if (logits[place] >= least) kept_.emplace_back(logits[place], place);
    const auto larger = [](const auto& one, const auto& other) {
      return one.first > other.first || (one.first == other.first && one.second < other.second);
    };
    std::partial_sort(kept_.begin(), kept_.begin() + wanted, kept_.end(), larger);
    kept_.resize(size_t(wanted));
  }

  // Returns a number that at least so many logits reach: that many groups have one. A group is every kGroups-th logit.
  static float bound(const float* logits, int number, int wanted) {
    float most[kGroups];
    std::copy(logits, logits + kGroups, most);
    for (int first = kGroups; first < number; first += kGroups)
      for (int group = 0; group < std::min(kGroups, number - first); ++group)
        most[group] = std::max(most[group], logits[first + group]);
    std::nth_element(most, most + wanted - 1, most + kGroups, std::greater<float>());
    return most[wanted - 1];
  }

  // Keeps the fewest of the first that together have this probability.
  void keep_probable(float top_p) {
    double total = 0, before = 0;
    for (const auto& one : kept_) total += one.first;
    size_t number = 0;
    while (number < kept_.size() && (number == 0 || before < top_p * total)) before += kept_[number++].first;
    kept_.resize(number);
  }

  // Drops those less probable than this beside the likeliest, whose weight is 1; they are last.
  void drop_improbable(float min_p) {
    while (kept_.size() > 1 && kept_.back().first < min_p) kept_.pop_back();
  }

  std::vector<std::pair<float, int>> kept_;  // logits, then weights, with their places
  std::vector<float> weights_;
};

}  // namespace rebus
