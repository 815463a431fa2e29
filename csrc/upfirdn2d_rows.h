// How the threads of upfirdn2d.cu read rows of samples and write rows of outputs in wide accesses, wherever rows begin.
#pragma once
#include <cstring>

#include "ops.h"

namespace cips3d {

template <int kWords>
using Words = Vector<uint32_t, kWords>;

// 32-bit words, or zeros.
template <int kWords>
__device__ __forceinline__ Words<kWords> load_words(const void* from, bool valid) {
  return valid ? *static_cast<const Words<kWords>*>(from) : Words<kWords>{};
}

// Moves vectors of N elements on by `elements` < N; kWanted words are used afterwards. Registers have no index at run
// time: move by 2 words, by 1 word and by half a word, or not.
template <class T, int N, int kWanted, int kWords>
__device__ __forceinline__ void drop_first(uint32_t (&words)[kWords], int elements) {
  constexpr int kInWord = sizeof(uint32_t) / sizeof(T), kVectorWords = N / kInWord;
  constexpr int kBeforeHalf = kWanted + (kInWord == 2 ? 1 : 0);
  const auto after = [&](int j) { return j < kWords ? words[j] : 0; };
  if constexpr (kVectorWords == 4) {
    const int shift = elements / kInWord;
#pragma unroll
    for (int j = 0; j <= kBeforeHalf && j < kWords; j++) words[j] = shift & 2 ? after(j + 2) : words[j];
#pragma unroll
    for (int j = 0; j < kBeforeHalf && j < kWords; j++) words[j] = shift & 1 ? after(j + 1) : words[j];
  }
  if constexpr (kInWord == 2) {
    const int bits = elements % 2 * 16;
#pragma unroll
    for (int j = 0; j < kWanted; j++)
      words[j] = static_cast<uint32_t>((static_cast<uint64_t>(after(j + 1)) << 32 | words[j]) >> bits);
  }
}

// The samples that lie in words, from element kSkip on.
template <class T, int kSkip, int kSamples>
__device__ __forceinline__ void unpack_words(const uint32_t* words, float (&samples)[kSamples]) {
  constexpr int kInWord = sizeof(uint32_t) / sizeof(T);
#pragma unroll
  for (int k = 0; k < kSamples; k++) {
    Vector<T, kInWord> elements;
    memcpy(&elements, &words[(kSkip + k) / kInWord], sizeof elements);
    samples[k] = to_float(elements.value[(kSkip + k) % kInWord]);
  }
}

// Readers give a thread the samples of an input row that its outputs of a row meet. load() only issues the loads, so
// that those of several rows are in flight together; unpack() waits for them.

// For rows that are made of whole aligned vectors of kOwn samples: a thread's own vector, kLeft samples before and
// kRight after it. Each of the three lies inside the row or outside.
template <class T, int kOwn, int kLeft, int kSamples>
class AlignedReader {
  static constexpr int kInWord = sizeof(uint32_t) / sizeof(T), kRight = kSamples - kOwn - kLeft;
  static constexpr int kOwnWords = kOwn / kInWord, kVectorWords = kOwnWords < 4 ? kOwnWords : 4;
  static constexpr int kLeftWords = ceil_div(kLeft, kInWord), kRightWords = ceil_div(kRight, kInWord);

 public:
  struct Row {
    Words<kLeftWords> left;
    Words<kVectorWords> own[kOwnWords / kVectorWords];
    Words<kRightWords> right;
  };

  __device__ AlignedReader(int first, int width)
      : column_(first + kLeft),
        left_inside_(column_ > 0 && column_ <= width),
        own_inside_(column_ < width),
        right_inside_(column_ + kOwn < width) {}
  __device__ int column() const { return column_; }  // of a row, where load() wants to begin

  __device__ __forceinline__ Row load(const T* from, bool valid) const {
    Row row;
    row.left = load_words<kLeftWords>(from - kLeftWords * kInWord, valid && left_inside_);
#pragma unroll
    for (int k = 0; k < kOwnWords / kVectorWords; k++)
      row.own[k] = load_words<kVectorWords>(from + k * kVectorWords * kInWord, valid && own_inside_);
    row.right = load_words<kRightWords>(from + kOwn, valid && right_inside_);
    return row;
  }

  __device__ __forceinline__ void unpack(const Row& row, float (&samples)[kSamples]) const {
    uint32_t words[kLeftWords + kOwnWords + kRightWords];
#pragma unroll
    for (int k = 0; k < kLeftWords; k++) words[k] = row.left.value[k];
#pragma unroll
    for (int k = 0; k < kOwnWords; k++) words[kLeftWords + k] = row.own[k / kVectorWords].value[k % kVectorWords];
#pragma unroll
    for (int k = 0; k < kRightWords; k++) words[kLeftWords + kOwnWords + k] = row.right.value[k];
    unpack_words<T, kLeftWords * kInWord - kLeft>(words, samples);
  }

 private:
  int column_;  // of the thread's own samples
  bool left_inside_, own_inside_, right_inside_;
};

// For everything else: samples from any column on, read in aligned vectors of N and moved to their places.
template <class T, int N, int kSamples>
class AnyReader {
  static constexpr int kInWord = sizeof(uint32_t) / sizeof(T), kVectorWords = N / kInWord;
  static constexpr int kVectors = (2 * N - 2 + kSamples) / N;  // enough where all but one element are skipped
  static constexpr int kWords = kInWord == 1 ? kSamples : kSamples / 2 + 1;  // that hold the samples, and half a word

 public:
  struct Row {
    Words<kVectorWords> vectors[kVectors];
    int skipped;  // elements of the first vector before the first sample
  };

  __device__ AnyReader(int first, int width)
      : first_(first), begin_(max(-first, 0)), end_(min(width - first, kSamples)) {
#pragma unroll
    for (int j = 0; j < kWords; j++) {
      mask_[j] = 0;
#pragma unroll
      for (int e = 0; e < kInWord; e++)
        if (const int k = j * kInWord + e; k >= begin_ && k < end_)
          mask_[j] |= (~0u >> (32 - 32 / kInWord)) << (32 / kInWord * e);
    }
  }
  __device__ int column() const { return first_; }

  __device__ __forceinline__ Row load(const T* from, bool valid) const {
    Row row;
    row.skipped = reinterpret_cast<uintptr_t>(from) / sizeof(T) % N;
#pragma unroll
    for (int k = 0; k < kVectors; k++) {
      const int sample = k * N - row.skipped;  // that the vector begins with
      row.vectors[k] = load_words<kVectorWords>(from + sample, valid && sample < end_ && sample + N > begin_);
    }
    return row;
  }

  __device__ __forceinline__ void unpack(const Row& row, float (&samples)[kSamples]) const {
    uint32_t words[kVectors * kVectorWords];
#pragma unroll
    for (int j = 0; j < kVectors * kVectorWords; j++) words[j] = row.vectors[j / kVectorWords].value[j % kVectorWords];
    drop_first<T, N, kWords>(words, row.skipped);
    if constexpr (N > 1) {  // vectors may reach over the ends of rows
#pragma unroll
      for (int j = 0; j < kWords; j++) words[j] &= mask_[j];
    }
    unpack_words<T, 0>(words, samples);
  }

 private:
  int first_, begin_, end_;  // samples begin_ ... end_ - 1 lie inside the row
  uint32_t mask_[kWords];
};

// Writers give a row the N outputs of a thread. All lanes of a warp have to be there, with or without a row.

// Where all rows are whole aligned vectors.
template <class T_, int N_>
class WholeRowWriter {
 public:
  using T = T_;
  static constexpr int N = N_;

  __device__ WholeRowWriter(int, int) {}
  __device__ __forceinline__ void store(T* to, const Vector<T, N>& outputs, bool valid) const {
    if (valid) *reinterpret_cast<Vector<T, N>*>(to) = outputs;
  }
};

// Where a row may begin anywhere in a vector: a thread writes the aligned vector that begins among its outputs and ends
// among those of the next lane. What no lane can write so, at the ends of rows and of warps, goes element by element.
template <class T_, int N_>
class AnyRowWriter {
 public:
  using T = T_;
  static constexpr int N = N_;

  __device__ AnyRowWriter(int column, int width)
      : remaining_(width - column), last_lane_(threadIdx.x % 32 == 31), alone_(column == 0 || threadIdx.x % 32 == 0) {}

  __device__ __forceinline__ void store(T* to, const Vector<T, N>& outputs, bool valid) const {
    constexpr int kWords = N * sizeof(T) / sizeof(uint32_t);
    const int first = (0u - static_cast<unsigned>(reinterpret_cast<uintptr_t>(to) / sizeof(T))) % N;
    uint32_t words[2 * kWords];
    memcpy(words, &outputs, sizeof outputs);
#pragma unroll
    for (int j = 0; j < kWords; j++) words[kWords + j] = __shfl_down_sync(~0u, words[j], 1);
    drop_first<T, N, kWords>(words, first);
    if (!valid) return;
    const bool complete = (first == 0 || !last_lane_) && first + N <= remaining_;
    const bool begun_before = !alone_ && first <= remaining_;  // the lane before this one has written a vector
    if (complete) {
      Words<kWords> vector;
      memcpy(&vector, words, sizeof vector);
      *reinterpret_cast<Words<kWords>*>(to + first) = vector;
    }
    const unsigned left = (complete ? 0u : ~0u << first) | (begun_before ? 0u : ~(~0u << first));
#pragma unroll
    for (int e = 0; e < N; e++)
      if ((left >> e & 1) && e < remaining_) to[e] = outputs.value[e];
  }

 private:
  int remaining_;  // outputs of the row from the thread's first one on
  bool last_lane_, alone_;
};

template <class T>
class AnyRowWriter<T, 1> : public WholeRowWriter<T, 1> {
  using WholeRowWriter<T, 1>::WholeRowWriter;
};

}  // namespace cips3d
