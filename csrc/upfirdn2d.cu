// Upsampling, padding, filtering and downsampling of images. Taps and sums are fp32 for every dtype.
//
// Along an axis, x[i] lies at position i * up, all other positions are 0, and with the filter f (the kernel, turned
// round for a convolution) y[n] = sum over t of f[t] * (what lies at n * down - pad + t). Only every up-th tap meets a
// sample: those of an output's phase.
#include "upfirdn2d_rows.h"

namespace cips3d {
namespace {

constexpr int kThreads = 128;

// ---- Four taps along both axes, the networks' filter: bound by memory ----
//
// A thread owns N columns of a strip of output rows and walks down: it loads the next input rows, filters them along x
// in registers, and keeps the last few filtered rows for the filter along y. What neighbours load too (up to 3 columns,
// and the first rows of a strip) comes out of the L1 and L2 caches. Planes, strips and columns are one flat index, so
// that small images fill warps as well as large ones.

constexpr int kTaps = 4;
constexpr int kTallestStrip = 32;            // output rows; up to 3 input rows of the strip before are loaded again
constexpr int kLowestStrip = 8;              // where there are few threads
constexpr int64_t kThreadsWanted = 1 << 18;  // a full chip: 132 SMs x 2048

// The filter by phases: output e of a thread is the sum over k of tap[e % Up][k] * sample[e / Up * Down + k].
template <int Up>
struct Phases;

template <>
struct Phases<1> {
  static constexpr int kWindow = 4;  // samples that Up neighbouring outputs meet
  float tap[1][4];

  __device__ Phases(const float (&f)[kTaps], int) : tap{{f[0], f[1], f[2], f[3]}} {}
  static constexpr __device__ int taps(int) { return 4; }
  static __device__ int first_sample(int position) { return position; }
};

template <>
struct Phases<2> {
  static constexpr int kWindow = 3;
  float tap[2][3];

  // `position`: of the first tap of output 0. Where it is odd, tap 0 meets no sample there but one at output 1.
  __device__ Phases(const float (&f)[kTaps], int position) {
    const bool odd = position & 1;
    tap[0][0] = odd ? f[1] : f[0], tap[0][1] = odd ? f[3] : f[2], tap[0][2] = 0.0f;
    tap[1][0] = odd ? f[0] : 0.0f, tap[1][1] = odd ? f[2] : f[1], tap[1][2] = odd ? 0.0f : f[3];
  }
  static constexpr __device__ int taps(int phase) { return 2 + phase; }
  static __device__ int first_sample(int position) { return (position + 1) >> 1; }
};

template <int Up, int Down, int N>
constexpr int kSamplesMet = N < Up ? 2 : (N / Up - 1) * Down + Phases<Up>::kWindow;  // by N outputs

struct Image {
  int width, height;
};

// Blocks on a multiprocessor that the compiler is asked for. On 10.0 it spills without being asked, though of registers
// there are more than it takes; elsewhere it takes fewer if it is not.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ / 100 == 10
constexpr int kBlocksAsked = 4;
#else
constexpr int kBlocksAsked = 0;
#endif

// A thread: N columns of `strip_rows` rows (a multiple of Up) of a plane.
template <class Reader, class Writer, int Up, int Down>
__global__ void __launch_bounds__(kThreads, kBlocksAsked)
    upfirdn2d_four_taps_kernel(const typename Writer::T* __restrict__ x,  // [planes, H, W]
                               const float* __restrict__ taps,            // [4]
                               typename Writer::T* __restrict__ y,        // [planes, H', W']
                               Image in, Image out, int pad_x, int pad_y, bool flip, unsigned threads,
                               unsigned row_vectors, unsigned strips, int strip_rows) {
  using T = typename Writer::T;
  constexpr int N = Writer::N, kSamples = kSamplesMet<Up, Down, N>;
  constexpr int kKept = Phases<Up>::kWindow - Down;  // filtered rows that the next step needs again
  constexpr int kRows = 4, kSteps = kRows / Down;    // input rows whose loads are in flight together; Up outputs a step
  const unsigned thread = blockIdx.x * kThreads + threadIdx.x;
  const unsigned row_vector = thread % row_vectors, strip = thread / row_vectors % strips;
  const int64_t plane = thread / row_vectors / strips;
  const int column = row_vector * N, first_row = strip * strip_rows;
  // Threads past the last one have no rows, but stay: the lanes of a warp exchange outputs.
  const int rows = thread < threads ? min(strip_rows, out.height - first_row) : 0;

  float f[kTaps];
#pragma unroll
  for (int t = 0; t < kTaps; t++) f[t] = taps[flip ? t : kTaps - 1 - t];
  const int x_position = column * Down - pad_x, y_position = first_row * Down - pad_y;  // of the first taps
  const Phases<Up> along_x(f, x_position), along_y(f, y_position);
  const Reader reader(Phases<Up>::first_sample(x_position), in.width);
  const Writer writer(column, out.width);
  int in_row = Phases<Up>::first_sample(y_position);  // the next one to load
  const T* from = x + (plane * in.height + in_row) * in.width + reader.column();
  T* to = y + (plane * out.height + first_row) * out.width + column;

  const auto load = [&](bool needed) {
    const typename Reader::Row row = reader.load(from, needed && in_row >= 0 && in_row < in.height);
    in_row++, from += in.width;
    return row;
  };
  const auto filter_along_x = [&](const typename Reader::Row& row, float (&result)[N]) {
    float samples[kSamples];
    reader.unpack(row, samples);
#pragma unroll
    for (int e = 0; e < N; e++) {
      result[e] = 0.0f;
#pragma unroll
      for (int t = 0; t < Phases<Up>::taps(e % Up); t++)
        result[e] += along_x.tap[e % Up][t] * samples[e / Up * Down + t];
    }
  };

  float filtered[kKept + kRows][N];  // input rows, filtered along x
  typename Reader::Row loaded[kRows];
#pragma unroll
  for (int k = 0; k < kKept; k++) loaded[k] = load(rows > 0);
#pragma unroll
  for (int k = 0; k < kKept; k++) filter_along_x(loaded[k], filtered[k]);
  for (int done = 0; done < strip_rows; done += kSteps * Up) {
#pragma unroll
    for (int k = 0; k < kRows; k++) loaded[k] = load(done + k / Down * Up < rows);
#pragma unroll
    for (int k = 0; k < kRows; k++) filter_along_x(loaded[k], filtered[kKept + k]);
#pragma unroll
    for (int row = 0; row < kSteps * Up; row++) {
      Vector<T, N> sums;
#pragma unroll
      for (int e = 0; e < N; e++) {
        float sum = 0.0f;
#pragma unroll
        for (int t = 0; t < Phases<Up>::taps(row % Up); t++)
          sum += along_y.tap[row % Up][t] * filtered[row / Up * Down + t][e];
        sums.value[e] = from_float<T>(sum);
      }
      writer.store(to, sums, done + row < rows);
      to += out.width;
    }
#pragma unroll
    for (int k = 0; k < kKept; k++)
#pragma unroll
      for (int e = 0; e < N; e++) filtered[k][e] = filtered[kRows + k][e];
  }
}

struct FourTaps {
  cudaStream_t stream;
  Pointer x, taps, y;
  int64_t planes;
  Image in, out;
  int pad_x, pad_y;
  bool flip;
};

template <class Reader, class Writer, int Up, int Down>
void launch_four_taps(const FourTaps& a) {
  using T = typename Writer::T;
  const int64_t row_vectors = ceil_div(a.out.width, Writer::N);
  const int64_t fitting = a.planes * row_vectors * a.out.height / kThreadsWanted;
  const int64_t strips = ceil_div<int64_t>(a.out.height, std::clamp<int64_t>(fitting, kLowestStrip, kTallestStrip));
  const int64_t strip_rows = ceil_div<int64_t>(ceil_div<int64_t>(a.out.height, strips), Up) * Up;
  const int64_t threads = a.planes * strips * row_vectors;
  if (threads > std::numeric_limits<unsigned>::max() - kThreads)
    throw std::invalid_argument("too many elements for one launch");
  launch(upfirdn2d_four_taps_kernel<Reader, Writer, Up, Down>, dim3(blocks_for(threads, kThreads)), kThreads, 0,
         a.stream, input<T>(a.x), input<float>(a.taps), output<T>(a.y), a.in, a.out, a.pad_x, a.pad_y, a.flip, threads,
         row_vectors, strips, strip_rows);
}

// Chooses how rows are read and written: in vectors of 16 bytes for everything that networks do, else in words.
template <class T, int Up, int Down>
void four_taps_of(const FourTaps& a) {
  constexpr int kWide = kVectorWidth<T>, kWord = sizeof(uint32_t) / sizeof(T);
  // Readers must not reach over the tensor's end.
  const auto fits = [&](int n) {
    return a.planes * a.in.height * a.in.width % n == 0 && aligned_to(input<T>(a.x), n * sizeof(T)) &&
           aligned_to(output<T>(a.y), n * sizeof(T));
  };
  if (!fits(kWord))
    throw std::invalid_argument("four taps need an even number of 16-bit elements from an address divisible by 4 on");
  constexpr int kOwn = kWide * Down / Up, kMet = kSamplesMet<Up, Down, kWide>;
  constexpr int kPadForOne = Up;  // with it, one sample lies before a thread's own
  using Whole = WholeRowWriter<T, kWide>;
  const bool aligned = fits(kWide) && a.in.width % kOwn == 0, whole = a.out.width % kWide == 0;
  if (aligned && whole && a.pad_x == kPadForOne)
    return launch_four_taps<AlignedReader<T, kOwn, 1, kMet>, Whole, Up, Down>(a);
  if constexpr (Up == 1 && Down == 1) {
    if (aligned && whole && a.pad_x == 2) return launch_four_taps<AlignedReader<T, kOwn, 2, kMet>, Whole, Up, Down>(a);
    if (aligned && a.pad_x == 2)
      return launch_four_taps<AlignedReader<T, kOwn, 2, kMet>, AnyRowWriter<T, kWide>, Up, Down>(a);
    if (fits(kWide) && whole) return launch_four_taps<AnyReader<T, kWide, kMet>, Whole, Up, Down>(a);
  }
  launch_four_taps<AnyReader<T, kWord, kSamplesMet<Up, Down, kWord>>, AnyRowWriter<T, kWord>, Up, Down>(a);
}

// ---- Any filter and any factors ----
//
// A thread computes kRowsAThread outputs of one column, of equal phase: they share the taps. Only taps that meet a
// sample are visited. Columns of all planes are one flat index again. A separable filter goes over the image twice.

constexpr int kRowsAThread = 8;

struct Axis {
  int size, output, taps, up, down, pad;

  // The first tap that meets a sample at output n, and which sample it meets (negative: before the image).
  __device__ void first(int n, int& tap, int& sample) const {
    const int position = n * down - pad, remainder = position % up;
    tap = remainder > 0 ? up - remainder : -remainder;
    sample = (position + tap) / up;  // exact
  }
};

template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    upfirdn2d_filter_kernel(const In* __restrict__ x,        // [planes, rows.size, columns.size]
                            const float* __restrict__ taps,  // [rows.taps, columns.taps]
                            Out* __restrict__ y,             // [planes, rows.output, columns.output]
                            Axis columns, Axis rows, bool flip,
                            unsigned lines,     // planes * columns.output
                            unsigned groups) {  // of kRowsAThread rows, that cover a column
  const unsigned warp = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  // Warps beside each other have neighbouring rows, which read the same samples.
  const unsigned line = warp / groups * 32 + threadIdx.x % 32;
  if (line >= lines) return;
  const int group = warp % groups, column = line % columns.output;
  const int64_t plane = line / columns.output;
  const int first_row = group / rows.up * (kRowsAThread * rows.up) + group % rows.up;
  int tap_x, tap_y, in_column, in_row;
  columns.first(column, tap_x, in_column);
  rows.first(first_row, tap_y, in_row);

  const int before = max(-in_column, 0);  // samples of this phase to the left of the plane
  tap_x += before * columns.up, in_column += before;

  const unsigned height = rows.size;
  const In* in_rows[kRowsAThread];  // rows outside the plane are pointed to, but not read
#pragma unroll
  for (int j = 0; j < kRowsAThread; j++)
    in_rows[j] = x + (plane * rows.size + in_row + j * rows.down) * columns.size + in_column;
  const int first_tap = tap_y * columns.taps + tap_x, forward = flip ? 1 : -1;
  const float* tap_column = taps + (flip ? first_tap : rows.taps * columns.taps - 1 - first_tap);
  const int64_t next_tap_row = forward * rows.up * columns.taps;
  float sums[kRowsAThread] = {};
  for (; tap_x < columns.taps && in_column < columns.size; tap_x += columns.up, in_column++) {
    const float* tap_row = tap_column;
    const In* samples[kRowsAThread];
#pragma unroll
    for (int j = 0; j < kRowsAThread; j++) samples[j] = in_rows[j]++;
    unsigned row = in_row;
#pragma unroll 1
    for (int t = tap_y; t < rows.taps; t += rows.up) {
      const float tap = *tap_row;
#pragma unroll
      for (int j = 0; j < kRowsAThread; j++) {
        if (row + j * rows.down < height) sums[j] += tap * to_float(*samples[j]);
        samples[j] += columns.size;
      }
      tap_row += next_tap_row, row++;
    }
    tap_column += forward * columns.up;
  }
  y += plane * rows.output * columns.output;
#pragma unroll
  for (int j = 0; j < kRowsAThread; j++) {
    const int row = first_row + j * rows.up;
    if (row < rows.output) y[row * columns.output + column] = from_float<Out>(sums[j]);
  }
}

// Positions in a plane and along a padded axis are ints.
void check_extents(std::initializer_list<int64_t> extents) {
  for (const int64_t extent : extents)
    if (extent < -(1 << 30) || extent > 1 << 30)
      throw std::invalid_argument("an image, or one of its padded axes, has more than 2^30 samples");
}

}  // namespace

void upfirdn2d_four_taps(cudaStream_t stream, int dtype, Pointer x, Pointer taps, Pointer y, int64_t planes,
                         int64_t width, int64_t height, int64_t out_width, int64_t out_height, int64_t up, int64_t down,
                         int64_t pad_x, int64_t pad_y, bool flip) {
  check_extents({width * height, out_width * out_height, pad_x, pad_y});
  const auto image = [](auto... sizes) { return Image{static_cast<int>(sizes)...}; };
  const FourTaps arguments{stream,
                           x,
                           taps,
                           y,
                           planes,
                           image(width, height),
                           image(out_width, out_height),
                           static_cast<int>(pad_x),
                           static_cast<int>(pad_y),
                           flip};
  for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    if (up == 1 && down == 1)
      four_taps_of<T, 1, 1>(arguments);
    else if (up == 2 && down == 1)
      four_taps_of<T, 2, 1>(arguments);
    else if (up == 1 && down == 2)
      four_taps_of<T, 1, 2>(arguments);
    else
      throw std::invalid_argument("four taps go with up 1 or 2 and down 1, or with up 1 and down 2");
  });
}

void upfirdn2d_filter(cudaStream_t stream, int in_dtype, int out_dtype, Pointer x, Pointer taps, Pointer y,
                      int64_t planes, int64_t width, int64_t out_width, int64_t taps_x, int64_t up_x, int64_t down_x,
                      int64_t pad_x, int64_t height, int64_t out_height, int64_t taps_y, int64_t up_y, int64_t down_y,
                      int64_t pad_y, bool flip) {
  check_extents({width * height, out_width * out_height, taps_x * taps_y, pad_x, pad_y, width * up_x, height * up_y,
                 out_width * down_x, out_height * down_y});
  const auto axis = [](auto... numbers) { return Axis{static_cast<int>(numbers)...}; };
  const Axis columns = axis(width, out_width, taps_x, up_x, down_x, pad_x);
  const Axis rows = axis(height, out_height, taps_y, up_y, down_y, pad_y);
  const int64_t lines = planes * out_width;
  const int64_t groups = ceil_div(out_height, kRowsAThread * up_y) * up_y;
  if (lines > std::numeric_limits<unsigned>::max() - 32) throw std::invalid_argument("too many columns for one launch");
  const dim3 grid(blocks_for(ceil_div<int64_t>(lines, 32) * groups, kThreads / 32));
  for_dtype(in_dtype, [&](auto in_element) {
    for_dtype(out_dtype, [&](auto out_element) {
      using In = decltype(in_element);
      using Out = decltype(out_element);
      if constexpr (std::is_same_v<In, Out> || std::is_same_v<In, float> || std::is_same_v<Out, float>)
        launch(upfirdn2d_filter_kernel<In, Out>, grid, kThreads, 0, stream, input<In>(x), input<float>(taps),
               output<Out>(y), columns, rows, flip, lines, groups);
      else
        throw std::invalid_argument("no filter reads one 16-bit dtype and writes the other");
    });
  });
}

}  // namespace cips3d
