// Sums of products of all pairs of columns, in double precision and in a fixed number of lanes, whatever the width of a
// vector. Compiled once for every instruction set, as passes.h is.

namespace diffcrop::DIFFCROP_LEVEL {

// So many lanes: number x of a row belongs to lane x % kDoubles.
constexpr int64_t kDoubles = 8;

#if DIFFCROP_VECTORS
// All of them in one register where there are such; of 64 bytes elsewhere compilers make poor code.
constexpr int64_t kAbreast = (DIFFCROP_LOOKUPS ? 64 : DIFFCROP_VECTOR_BYTES) / sizeof(double);
typedef double Doubles __attribute__((vector_size(kAbreast * sizeof(double))));
typedef float Floats __attribute__((vector_size(kAbreast * sizeof(float))));

DIFFCROP_INLINE Doubles load_doubles(const double* from) {
  Doubles result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}
DIFFCROP_INLINE Doubles load_doubles(const float* from) {
  Floats narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  return __builtin_convertvector(narrow, Doubles);
}
#else
constexpr int64_t kAbreast = 1;
using Doubles = double;

template <class A>
DIFFCROP_INLINE Doubles load_doubles(const A* from) {
  return static_cast<double>(*from);
}
#endif

// crop becomes crop - target, and with a threshold `weight` Huber's min(1, huber / |r|).
template <class A>
void put_residuals(A* __restrict value, const A* __restrict target, A* __restrict weight, int64_t width, bool weighted,
                   A huber) {
  for (int64_t j = 0; j < width; ++j) value[j] -= target[j];
  for (int64_t j = 0; weighted && j < width; ++j) {
    const A size = std::abs(value[j]);
    weight[j] = size <= huber ? A(1) : huber / size;
  }
}

// Adds weighted[i] column[j] for all j >= i >= `row`. The last one, with weights, is twice Huber's function:
// w r (2 r - w r), which is r^2 where w is 1 and huber (2 |r| - huber) where it is not.
template <int n, bool weights, int i, int j, int p>
DIFFCROP_INLINE void add_pairs_from(Doubles* sum, const Doubles (&column)[n], const Doubles (&weighted)[n]) {
  if constexpr (weights && i == n - 1)
    sum[p] += weighted[i] * (2 * column[i] - weighted[i]);
  else
    sum[p] += weighted[i] * column[j];
  if constexpr (j + 1 < n)
    add_pairs_from<n, weights, i, j + 1, p + 1>(sum, column, weighted);
  else if constexpr (i + 1 < n)
    add_pairs_from<n, weights, i + 1, i + 1, p + 1>(sum, column, weighted);
}

// Adds the products of n columns in some rows to `sums`, kDoubles for each pair. With `ones` there is one more column,
// of ones: the sums of the others (its product with itself is not counted).
template <int n, bool weighted, bool ones, class A, size_t most>
DIFFCROP_INLINE void add_columns(double* sums, int64_t count, A* const (*columns)[most], A* const* weights,
                                 int64_t width) {
  constexpr int pairs = n * (n + 1) / 2;
  for (int64_t part = 0; part < kDoubles; part += kAbreast) {
    Doubles sum[pairs], total[n];
    for (int p = 0; p < pairs; ++p) sum[p] = load_doubles(sums + p * kDoubles + part);
    for (int i = 0; i < n; ++i) total[i] = load_doubles(sums + (pairs + i) * kDoubles + part);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t x = part; x < width; x += kDoubles) {
        Doubles column[n], by_weight[n];
        for (int i = 0; i < n; ++i) {
          column[i] = load_doubles(columns[r][i] + x);
          by_weight[i] = weighted ? column[i] * load_doubles(weights[r] + x) : column[i];
          if (ones) total[i] += column[i];
        }
        add_pairs_from<n, weighted, 0, 0, 0>(sum, column, by_weight);
      }
    for (int p = 0; p < pairs; ++p) std::memcpy(sums + p * kDoubles + part, &sum[p], sizeof(Doubles));
    for (int i = 0; ones && i < n; ++i) std::memcpy(sums + (pairs + i) * kDoubles + part, &total[i], sizeof(Doubles));
  }
}

}  // namespace diffcrop::DIFFCROP_LEVEL
