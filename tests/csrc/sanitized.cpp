// The CPU's kernels under AddressSanitizer and UBSan: every buffer is exactly as long as it must be,
// every output begins as NaN and must be written, and every result is compared with a plain loop.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "tiles_to_patches.h"
#include "visual_pack_levels.h"
#include "visual_pack_threads.h"

using namespace megatron_llava;

namespace {

std::mt19937 generator(1);

int64_t below(int64_t end) { return static_cast<int64_t>(generator() % end); }

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(1);
}

template <typename T>
std::vector<T> filled(int64_t count, bool random) {
  std::vector<T> values(count);
  for (T& value : values) {
    const double drawn = static_cast<double>(below(2001)) / 1000 - 1;
    narrow(static_cast<Sum<T>>(random ? drawn : std::numeric_limits<double>::quiet_NaN()), value);
  }
  values.shrink_to_fit();
  return values;
}

struct Plan {
  int64_t rows, table_rows;
  std::vector<int64_t> taps, offsets, uses;
  std::vector<float> weights, use_weights;
};

Plan make_plan(int64_t rows, int64_t features, int64_t specials, int64_t text) {
  Plan plan{rows, features + specials + text, {}, {}, {}, {}, {}};
  std::vector<std::vector<std::pair<int64_t, float>>> by_row(plan.table_rows);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t used = below(kTaps + 1);
    for (int k = 0; k < kTaps; ++k) {
      // Half of the first taps name the first special row.
      const int64_t tap = k == 0 && specials > 0 && below(2) ? features : below(plan.table_rows);
      const float weight = k >= used ? 0.0f : used == 1 ? 1.0f : 0.25f * (k + 1);
      plan.taps.push_back(tap);
      plan.weights.push_back(weight);
      if (weight != 0.0f) by_row[tap].emplace_back(row, weight);
    }
  }
  plan.offsets.push_back(0);
  for (const auto& uses : by_row) {
    for (const auto& [row, weight] : uses) {
      plan.uses.push_back(row);
      plan.use_weights.push_back(weight);
    }
    plan.offsets.push_back(static_cast<int64_t>(plan.uses.size()));
  }
  return plan;
}

template <typename T>
void compare(const std::vector<double>& expected, const std::vector<T>& found, const char* what) {
  const double relative = sizeof(T) == 2 ? 1.0 / 128 : 1e-5;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(static_cast<double>(widen(found[i])) - expected[i]);
    require(error <= relative * (1 + std::abs(expected[i])), what);
  }
}

// With positions, a row is added to the features of each view by its position, -1 being none.
template <typename T>
void check_pack(const PackLoops& loops, Element element, int64_t features, int64_t specials,
                int64_t text, int64_t hidden, int64_t positions = 0) {
  const Plan plan = make_plan(70, features, specials, text);
  const auto table = filled<T>(plan.table_rows * hidden, true);
  const auto part = [&](int64_t first, int64_t count) {
    return std::vector<T>(table.begin() + first * hidden, table.begin() + (first + count) * hidden);
  };
  const auto f = part(0, features), s = part(features, specials), n = part(features + specials, text);
  const auto grad = filled<T>(plan.rows * hidden, true);
  auto out = filled<T>(plan.rows * hidden, false);
  const auto added = filled<T>(positions * hidden, true);
  const std::vector<int64_t> bounds{0, features / 3, features / 3, features};
  std::vector<int64_t> of_feature(features, -1);
  if (positions > 0) {
    const int64_t last = below(positions);
    for (int64_t at = bounds[2]; at < features; ++at) of_feature[at] = last;
  }
  const PackForward forward{f.data(),           s.data(),   n.data(),  features, specials,
                            plan.taps.data(),   plan.weights.data(), out.data(), plan.rows, hidden,
                            added.data(),       positions > 0 ? of_feature.data() : nullptr};
  loops.forward(element, forward, 0, plan.rows / 2);
  loops.forward(element, forward, plan.rows / 2, plan.rows);

  auto gf = filled<T>(features * hidden, false), gs = filled<T>(specials * hidden, false),
       gn = filled<T>(text * hidden, false);
  auto parts = filled<Sum<T>>(specials * kSpecialParts * hidden, false);
  const int64_t views = positions > 0 ? 3 : 0;
  auto gp = filled<T>(positions * hidden, false);
  auto view_parts = filled<Sum<T>>(views * kViewParts * hidden, false);
  const PackBackward backward{grad.data(), plan.offsets.data(), plan.uses.data(),
                              plan.use_weights.data(), gf.data(), gs.data(), gn.data(), features,
                              specials, text, features, features + specials, hidden, parts.data(),
                              gp.data(), positions, views, bounds.data(), of_feature.data(),
                              view_parts.data()};
  loops.backward(element, backward, 0, count_backward_items(backward));
  loops.specials(element, backward, 0, count_summed_rows(backward) * hidden);

  std::vector<double> sums(plan.rows * hidden), gradients(plan.table_rows * hidden);
  std::vector<double> of_positions(positions * hidden);
  for (int64_t at = 0; at < plan.rows * kTaps; ++at) {
    const double weight = plan.weights[at];
    if (weight == 0) continue;
    for (int64_t h = 0; h < hidden; ++h) {
      const int64_t packed = at / kTaps * hidden + h, source = plan.taps[at] * hidden + h;
      sums[packed] += weight * static_cast<double>(widen(table[source]));
      gradients[source] += weight * static_cast<double>(widen(grad[packed]));
      const int64_t position = plan.taps[at] < features ? of_feature[plan.taps[at]] : -1;
      if (position < 0) continue;
      sums[packed] += weight * static_cast<double>(widen(added[position * hidden + h]));
      of_positions[position * hidden + h] += weight * static_cast<double>(widen(grad[packed]));
    }
  }
  gf.insert(gf.end(), gs.begin(), gs.end());
  gf.insert(gf.end(), gn.begin(), gn.end());
  compare(sums, out, "packed rows");
  compare(gradients, gf, "gradients");
  compare(of_positions, gp, "gradients of positions");
}

void check_patches(int side, int patch) {
  const int64_t views = 2, grid = side / patch, row = kChannels * patch * patch;
  std::vector<uint8_t> tiles(views * kChannels * side * side);
  for (uint8_t& pixel : tiles) pixel = static_cast<uint8_t>(below(kLevels));
  std::vector<uint32_t> table(kChannels * kLevels), out(views * grid * grid * row, ~0u);
  for (size_t at = 0; at < table.size(); ++at) table[at] = static_cast<uint32_t>(at);
  const TilesToPatches args{tiles.data(), table.data(),           out.data(), views, side, patch,
                            static_cast<int>(grid), sizeof(uint32_t)};
  patches_cpu(args, 0, 1);
  patches_cpu(args, 1, views * grid * grid);
  for (int64_t at = 0; at < static_cast<int64_t>(out.size()); ++at) {
    const PatchCursor cursor(args, at);
    const uint32_t expected = cursor.channel * kLevels + tiles[cursor.pixel(args)];
    require(out[at] == expected, "patches");
  }
  std::vector<uint32_t> by_threads(out.size(), ~0u);
  TilesToPatches other = args;
  other.out = by_threads.data();
  for (int thread = 0; thread < 37; ++thread) {
    patch_thread<uint32_t, 4>(other, table.data(), thread, 37);
  }
  require(by_threads == out, "patches by threads");
}

void check_level(const PackLoops& loops, const char* name) {
  for (const int64_t hidden : {1, 3, 16, 40, 64, 131}) {
    for (const int64_t specials : {0, 1, 3}) {
      check_pack<float>(loops, Element::kFloat32, 20, specials, 9, hidden, 4);
      check_pack<double>(loops, Element::kFloat64, 5, specials, 0, hidden);
      check_pack<BFloat16>(loops, Element::kBFloat16, 12, specials, 3, hidden, specials);
      check_pack<Float16>(loops, Element::kFloat16, 1, specials, 30, hidden);
    }
  }
  std::printf("%s ", name);
}

}  // namespace

int main() {
  check_level(kPackLoopsBase, "base");
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) check_level(kPackLoopsAvx2, "avx2");
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    check_level(kPackLoopsAvx512, "avx512");
  }
#endif
  for (const int side : {5, 28, 30}) {
    for (const int patch : {1, 5, 4}) check_patches(side, patch);
  }
  std::printf("checked\n");
}
