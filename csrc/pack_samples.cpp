#include "pack_samples.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace megatron_llava {
namespace {

// Lengths that are looked at, the longest first, before a pack whose views no sample fits is full.
constexpr int kProbes = 64;
// Samples that are tried as one of two that complete a pack.
constexpr int kPairs = 16;
// Parts of a pack, one of which may stay empty before two are tried.
constexpr int64_t kParts = 4096;

// splitmix64 (Steele, Lea, Flood 2014): the number at place i of the stream that `seed` begins.
uint64_t hash(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

// 0 to count - 1 in the order of their hashes' upper halves; equal ones in their own order.
std::vector<uint32_t> permutation(uint64_t seed, int64_t count) {
  const auto size = static_cast<std::size_t>(count);
  std::vector<uint64_t> from(size), to(size);  // hash above, number below
  for (std::size_t i = 0; i < size; ++i) {
    from[i] = (hash(seed, i) & 0xFFFFFFFF00000000ULL) | i;
  }
  constexpr int kBits = 11, kDigits = 1 << kBits;
  for (int shift = 32; shift < 64; shift += kBits) {
    std::vector<std::size_t> starts(kDigits + 1, 0);
    for (const uint64_t item : from) ++starts[(item >> shift) % kDigits + 1];
    for (int digit = 0; digit < kDigits; ++digit) starts[digit + 1] += starts[digit];
    for (const uint64_t item : from) to[starts[(item >> shift) % kDigits]++] = item;
    std::swap(from, to);
  }
  std::vector<uint32_t> order(size);
  for (std::size_t i = 0; i < size; ++i) order[i] = static_cast<uint32_t>(from[i]);
  return order;
}

// A set of numbers below a bound, and the smallest of them that is not below a given one: bits,
// and above them bits that say which words have any.
class Numbers {
 public:
  explicit Numbers(int64_t bound) {
    do {
      bound = (bound + 63) / 64;
      levels_.emplace_back(static_cast<std::size_t>(bound), 0);
    } while (bound > 1);
  }

  void add(int64_t number) {
    for (auto& words : levels_) {
      words[number / 64] |= uint64_t{1} << (number % 64);
      number /= 64;
    }
  }

  void remove(int64_t number) {
    for (auto& words : levels_) {
      words[number / 64] &= ~(uint64_t{1} << (number % 64));
      if (words[number / 64] != 0) return;
      number /= 64;
    }
  }

  // -1 where there is none.
  int64_t at_least(int64_t number) const {
    for (std::size_t level = 0; level < levels_.size(); ++level) {
      const auto& words = levels_[level];
      const auto word = static_cast<std::size_t>(number / 64);
      if (word >= words.size()) return -1;
      const uint64_t bits = words[word] >> (number % 64);
      if (bits != 0) {
        number += __builtin_ctzll(bits);
        for (; level > 0; --level) {
          number = number * 64 + __builtin_ctzll(levels_[level - 1][number]);
        }
        return number;
      }
      number = number / 64 + 1;
    }
    return -1;
  }

 private:
  std::vector<std::vector<uint64_t>> levels_;
};

// The samples of a window in the order in which packs take them, and by length.
class Window {
 public:
  Window(const uint32_t* order, int64_t count, const int64_t* lengths, const int64_t* views,
         int64_t capacity)
      : order_(order),
        views_(views),
        capacity_(capacity),
        remaining_(count),
        lengths_(static_cast<std::size_t>(count)),
        by_length_(static_cast<std::size_t>(count)),
        taken_(static_cast<std::size_t>(count), 0),
        next_(static_cast<std::size_t>(capacity) + 2, 0),
        left_(static_cast<std::size_t>(capacity) + 1),
        found_(capacity + 1) {
    for (int64_t i = 0; i < count; ++i) {
      lengths_[i] = static_cast<int32_t>(lengths[order[i]]);
      ++next_[lengths_[i] + 1];
    }
    for (int64_t length = 0; length <= capacity; ++length) {
      left_[length] = next_[length + 1];
      if (left_[length] > 0) found_.add(capacity - length);
      next_[length + 1] += next_[length];
    }
    auto place = next_;
    for (int64_t i = 0; i < count; ++i) by_length_[place[lengths_[i]]++] = static_cast<uint32_t>(i);
    reserve_ = lengths_[by_length_[count / 4]];
  }

  bool is_empty() const { return remaining_ == 0; }

  // Fills one pack: its number for each sample that it takes, by place in the order.
  void fill(int64_t max_views, uint32_t pack, uint32_t* packs) {
    Room left{capacity_, max_views};
    int64_t drawn = -1;  // the last sample that came in order, if it is not the only one
    while (remaining_ > 0) {
      while (taken_[first_] != 0) ++first_;
      const bool is_first = left.rows == capacity_;
      // The first one always fits.
      if (!is_first && (left.rows - lengths_[first_] < reserve_ || !fits(first_, left))) break;
      if (!is_first) drawn = first_;
      take(first_, &left, pack, packs);
    }
    const int64_t enough = capacity_ / kParts;
    while (left.rows > 0) {
      const int64_t place = longest(left);
      const int64_t gap = place < 0 ? left.rows : left.rows - lengths_[place];
      if (left.rows - longest_length(left.rows) > enough) {
        if (take_two(enough + 1, &left, pack, packs)) {
          drawn = -1;
          continue;
        }
        if (drawn >= 0) {
          put_back(drawn, &left);
          const bool found = take_two(gap, &left, pack, packs);
          if (!found) take(drawn, &left, pack, packs);
          drawn = -1;
          if (found) continue;
        }
      }
      if (place < 0) break;
      take(place, &left, pack, packs);
    }
  }

 private:
  // What is left of a pack.
  struct Room {
    int64_t rows, views;
  };

  bool fits(int64_t place, const Room& left) const {
    return views_ == nullptr || views_[order_[place]] <= left.views;
  }

  // The greatest length of up to so many rows that a sample left has, whatever its views; 0 for
  // none.
  int64_t longest_length(int64_t rows) const {
    const int64_t mirrored = found_.at_least(capacity_ - rows);
    return mirrored < 0 ? 0 : capacity_ - mirrored;
  }

  // The place of the first sample left of the greatest length that fits; -1 for none.
  int64_t longest(const Room& left) {
    int64_t mirrored = found_.at_least(capacity_ - left.rows);
    for (int probe = 0; mirrored >= 0 && probe < kProbes; ++probe) {
      const int64_t length = capacity_ - mirrored;
      while (taken_[by_length_[next_[length]]] != 0) ++next_[length];
      const int64_t place = by_length_[next_[length]];
      if (fits(place, left)) return place;
      mirrored = found_.at_least(mirrored + 1);
    }
    return -1;
  }

  // Of the next samples in the order, each with the longest one that then fits: takes the two
  // that leave least, and less than `below` rows; false for none.
  bool take_two(int64_t below, Room* left, uint32_t pack, uint32_t* packs) {
    int64_t best = -1, place = first_;
    const auto end = static_cast<int64_t>(lengths_.size());
    for (int tried = 0; tried < kPairs && place < end; ++place) {
      if (taken_[place] != 0) continue;
      ++tried;
      if (lengths_[place] > left->rows || !fits(place, *left)) continue;
      Room rest = *left;
      take(place, &rest, pack, packs);
      const int64_t other = longest(rest);
      const int64_t gap = other < 0 ? rest.rows : rest.rows - lengths_[other];
      put_back(place, &rest);
      if (gap < below) {
        below = gap;
        best = place;
      }
    }
    if (best < 0) return false;
    take(best, left, pack, packs);
    const int64_t other = longest(*left);
    if (other >= 0) take(other, left, pack, packs);
    return true;
  }

  void take(int64_t place, Room* left, uint32_t pack, uint32_t* packs) {
    taken_[place] = 1;
    packs[place] = pack;
    --remaining_;
    const int64_t length = lengths_[place];
    if (--left_[length] == 0) found_.remove(capacity_ - length);
    left->rows -= length;
    if (views_ != nullptr) left->views -= views_[order_[place]];
  }

  void put_back(int64_t place, Room* left) {
    taken_[place] = 0;
    ++remaining_;
    const int64_t length = lengths_[place];
    if (left_[length]++ == 0) found_.add(capacity_ - length);
    // Places of one length are in order: the next of them is this one or one before it.
    int64_t& next = next_[length];
    while (next > 0 && lengths_[by_length_[next - 1]] == length && by_length_[next - 1] >= place) {
      --next;
    }
    first_ = std::min(first_, place);
    left->rows += length;
    if (views_ != nullptr) left->views += views_[order_[place]];
  }

  const uint32_t* order_;
  const int64_t* views_;
  int64_t capacity_, remaining_, reserve_ = 0, first_ = 0;
  std::vector<int32_t> lengths_;      // by place
  std::vector<uint32_t> by_length_;   // places, by length
  std::vector<uint8_t> taken_;        // by place
  std::vector<int64_t> next_, left_;  // by length: the next of its places, how many are left
  Numbers found_;                     // capacity less each length of which some are left
};

}  // namespace
}  // namespace megatron_llava

int64_t megatron_llava_pack_samples(int64_t n, const int64_t* lengths, const int64_t* views,
                                    int64_t capacity, int64_t max_views, uint64_t seed,
                                    int64_t window, int32_t shuffle, int64_t* sample_ids,
                                    int64_t* pack_offsets) {
  using namespace megatron_llava;
  std::vector<uint32_t> order;
  if (shuffle != 0) {
    order = permutation(seed, n);
  } else {
    order.resize(static_cast<std::size_t>(n));
    for (int64_t i = 0; i < n; ++i) order[i] = static_cast<uint32_t>(i);
  }
  std::vector<uint32_t> packs(static_cast<std::size_t>(n));
  int64_t count = 0;
  if (window <= 0) window = n;
  for (int64_t begin = 0; begin < n; begin += window) {
    const int64_t size = std::min(n - begin, window);
    Window left(order.data() + begin, size, lengths, views, capacity);
    for (; !left.is_empty(); ++count) {
      left.fill(max_views, static_cast<uint32_t>(count), packs.data() + begin);
    }
  }
  std::vector<uint32_t> places(static_cast<std::size_t>(count));  // of each pack
  if (shuffle != 0) {
    const auto shuffled = permutation(hash(seed, ~uint64_t{0} - 1), count);
    for (int64_t place = 0; place < count; ++place) places[shuffled[place]] = place;
  } else {
    for (int64_t pack = 0; pack < count; ++pack) places[pack] = static_cast<uint32_t>(pack);
  }
  std::fill(pack_offsets, pack_offsets + count + 1, 0);
  for (int64_t i = 0; i < n; ++i) ++pack_offsets[places[packs[i]] + 1];
  for (int64_t pack = 0; pack < count; ++pack) pack_offsets[pack + 1] += pack_offsets[pack];
  // Filling moves each offset to the next one's; they are moved back afterwards.
  for (int64_t i = 0; i < n; ++i) sample_ids[pack_offsets[places[packs[i]]]++] = order[i];
  for (int64_t pack = count; pack > 0; --pack) pack_offsets[pack] = pack_offsets[pack - 1];
  pack_offsets[0] = 0;
  return count;
}
