#include "pack_samples.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

namespace megatron_llava {
namespace {

// Lengths that are looked at, the longest first, before a pack whose views no sample fits is full.
constexpr int kProbes = 8;
// Samples of which one or two are tried together to complete a pack.
constexpr int kTried = 12;
// Parts of a pack, one of which may stay empty.
constexpr int64_t kParts = 4096;
// Parts of a pack; samples whose lengths are in one part are of one kind.
constexpr int64_t kKinds = 256;
// What stands for a whole in shares.
constexpr int64_t kAll = 1 << 20;
// One pack of so many may be more than the samples fill before a window is packed evenly.
constexpr int64_t kLoss = 1024;

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

// How a pack is filled: in order while so many rows are left, and then with samples of which so
// many are tried.
struct Filling {
  int64_t reserve;
  int tried;
};

// The samples of a window in the order in which packs take them, and by length.
class Window {
 public:
  Window(const uint32_t* order, int64_t count, const int64_t* lengths, const int64_t* views,
         int64_t capacity, int64_t max_views)
      : order_(order),
        views_(views),
        capacity_(capacity),
        max_views_(max_views),
        enough_(capacity / kParts),
        lengths_(static_cast<std::size_t>(count)),
        by_length_(static_cast<std::size_t>(count)) {
    std::vector<int64_t> place(static_cast<std::size_t>(capacity) + 2, 0);
    for (int64_t i = 0; i < count; ++i) {
      lengths_[i] = static_cast<int32_t>(lengths[order[i]]);
      ++place[lengths_[i] + 1];
    }
    for (int64_t length = 0; length <= capacity; ++length) place[length + 1] += place[length];
    for (int64_t i = 0; i < count; ++i) by_length_[place[lengths_[i]]++] = static_cast<uint32_t>(i);
  }

  // Numbers the packs from `first` on, one for each sample by place in the order; how many.
  int64_t pack(uint32_t first, uint32_t* packs) {
    const auto count = static_cast<int64_t>(lengths_.size());
    int64_t rows = 0, views = 0;
    for (const int32_t length : lengths_) rows += length;
    for (int64_t i = 0; views_ != nullptr && i < count; ++i) views += views_[order_[i]];
    const int64_t made = fill_all({lengths_[by_length_[count / 4]], 0}, first, packs);
    int64_t fewest = (rows + capacity_ - 1) / capacity_;
    if (views > 0) fewest = std::max(fewest, (views + max_views_ - 1) / max_views_);
    if (made - fewest <= fewest / kLoss) return made;
    std::vector<uint32_t> even(lengths_.size());
    const int64_t made_evenly = fill_all({2 * (rows / count), kTried}, first, even.data());
    if (made_evenly >= made) return made;
    std::copy(even.begin(), even.end(), packs);
    return made_evenly;
  }

 private:
  // What is left of a pack.
  struct Room {
    int64_t rows, views;
  };

  // Up to three samples that a pack takes next: two of those tried, and the longest that fits.
  struct Choice {
    int64_t first = -1, second = -1, longest = -1;
    int64_t gap = 0;      // rows that they leave
    int64_t surplus = 0;  // how much more is left of their kinds than of all samples
  };

  int64_t fill_all(const Filling& filling, uint32_t first, uint32_t* packs) {
    const std::size_t count = lengths_.size(), lengths = static_cast<std::size_t>(capacity_) + 1;
    remaining_ = static_cast<int64_t>(count);
    first_ = 0;
    taken_.assign(count, 0);
    next_.assign(lengths, 0);
    left_.assign(lengths, 0);
    kinds_.assign(kKinds + 1, 0);
    found_ = Numbers(capacity_ + 1);
    for (std::size_t i = count; i-- > 0;) {
      const int64_t length = lengths_[by_length_[i]];
      next_[length] = static_cast<int64_t>(i);
      if (left_[length]++ == 0) found_.add(capacity_ - length);
      ++kinds_[kind(length)];
    }
    left_of_kind_ = kinds_;
    shares_.assign(kKinds + 1, kAll);
    int64_t made = 0;
    for (; remaining_ > 0; ++made) fill(filling, first + static_cast<uint32_t>(made), packs);
    return made;
  }

  void fill(const Filling& filling, uint32_t pack, uint32_t* packs) {
    Room left{capacity_, max_views_};
    const auto put = [&](int64_t place) {
      if (place < 0) return;
      packs[place] = pack;
      take(place, &left);
      --remaining_;
      const int64_t of = kind(lengths_[place]);
      shares_[of] = --left_of_kind_[of] * kAll / kinds_[of];
    };
    while (remaining_ > 0) {
      while (taken_[first_] != 0) ++first_;
      const bool is_empty = left.rows == capacity_;
      // The first one always fits.
      if (!is_empty && left.rows - lengths_[first_] < filling.reserve) break;
      if (!is_empty && !fits(first_, left)) break;
      put(first_);
    }
    while (left.rows > 0) {
      const Choice choice = choose(filling.tried, left);
      if (choice.gap == left.rows) return;
      put(choice.first);
      put(choice.second);
      put(choice.longest);
    }
  }

  // Of the next samples in the order none, one or two, and the longest one that then fits: those
  // that leave least, and of those that leave little, those of whose kinds most is left.
  Choice choose(int tried, Room left) {
    share_ = remaining_ * kAll / static_cast<int64_t>(lengths_.size());
    Choice best;
    best.gap = left.rows;
    best.surplus = std::numeric_limits<int64_t>::min();
    try_longest({}, left, &best);
    const auto end = static_cast<int64_t>(lengths_.size());
    tried_.clear();
    for (int64_t place = first_; place < end && static_cast<int>(tried_.size()) < tried;
         ++place) {
      if (taken_[place] == 0) tried_.push_back(place);
    }
    for (std::size_t i = 0; i < tried_.size(); ++i) {
      const int64_t first = tried_[i];
      if (lengths_[first] > left.rows || !fits(first, left)) continue;
      take(first, &left);
      try_longest({first}, left, &best);
      for (std::size_t j = i + 1; j < tried_.size(); ++j) {
        const int64_t second = tried_[j];
        if (lengths_[second] > left.rows || !fits(second, left)) continue;
        take(second, &left);
        try_longest({first, second}, left, &best);
        put_back(second, &left);
      }
      put_back(first, &left);
    }
    return best;
  }

  // `choice` and the longest sample that then fits, if that is better than `best`.
  void try_longest(Choice choice, const Room& left, Choice* best) {
    choice.longest = longest(left);
    choice.gap = left.rows - (choice.longest < 0 ? 0 : lengths_[choice.longest]);
    const int64_t gap = std::max(choice.gap, enough_), best_gap = std::max(best->gap, enough_);
    if (gap > best_gap) return;
    for (const int64_t place : {choice.first, choice.second, choice.longest}) {
      if (place >= 0) choice.surplus += shares_[kind(lengths_[place])] - share_;
    }
    if (gap < best_gap || choice.surplus > best->surplus) *best = choice;
  }

  int64_t kind(int64_t length) const { return length * kKinds / capacity_; }

  bool fits(int64_t place, const Room& left) const {
    return views_ == nullptr || views_[order_[place]] <= left.views;
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

  void take(int64_t place, Room* left) {
    taken_[place] = 1;
    const int64_t length = lengths_[place];
    if (--left_[length] == 0) found_.remove(capacity_ - length);
    left->rows -= length;
    if (views_ != nullptr) left->views -= views_[order_[place]];
  }

  void put_back(int64_t place, Room* left) {
    taken_[place] = 0;
    const int64_t length = lengths_[place];
    if (left_[length]++ == 0) found_.add(capacity_ - length);
    // Places of one length are in order: the next of them is this one or one before it.
    int64_t& next = next_[length];
    while (next > 0 && lengths_[by_length_[next - 1]] == length && by_length_[next - 1] >= place) {
      --next;
    }
    left->rows += length;
    if (views_ != nullptr) left->views += views_[order_[place]];
  }

  const uint32_t* order_;
  const int64_t* views_;
  int64_t capacity_, max_views_, enough_, remaining_ = 0, first_ = 0, share_ = kAll;
  std::vector<int32_t> lengths_;               // by place
  std::vector<uint32_t> by_length_;            // places, by length
  std::vector<uint8_t> taken_;                 // by place
  std::vector<int64_t> next_, left_;           // by length: the next of its places, and how many
  std::vector<int64_t> kinds_, left_of_kind_;  // samples of each kind
  std::vector<int64_t> shares_;                // of each kind, that are left
  std::vector<int64_t> tried_;                 // places
  Numbers found_{1};                           // capacity less each length of which some are left
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
    Window samples(order.data() + begin, size, lengths, views, capacity, max_views);
    count += samples.pack(static_cast<uint32_t>(count), packs.data() + begin);
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
