// A problem with its data for csrc/cpu, laid out in memory in several ways, and how its results are compared.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "../../cpu/bit_product.h"
#include "../../cpu/conv2d.h"
#include "../../cpu/linear.h"
#include "../expect.h"
#include "../numbers.h"
#include "../reference.h"

namespace rsn2::test {

// Every pass is cut, however small.
inline cpu::Parallel threads(int64_t count) {
  const auto run = [](int64_t slots, const std::function<void(int64_t)>& body) {
    std::vector<std::thread> workers;
    for (int64_t slot = 0; slot < slots; ++slot) workers.emplace_back(body, slot);
    for (std::thread& worker : workers) worker.join();
  };
  return cpu::Parallel(count, run, 1);
}

template <class S>
bool same_bits(const std::vector<S>& a, const std::vector<S>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(S)) == 0);
}

// The elements of both, one behind the other.
template <class S>
std::vector<S> joined(std::vector<S> a, const std::vector<S>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Equal as numbers: +0 and -0 are the same answer.
template <class S>
bool same_numbers(const std::vector<S>& a, const std::vector<double>& b) {
  bool same = a.size() == b.size();
  for (size_t i = 0; same && i < a.size(); ++i) same = cpu::widen(a[i]) == cpu::widen(stored<S>(b[i]));
  return same;
}

// A tensor laid out in memory as asked, with NaN in the gaps: a kernel that reads one shows it.
enum class Strides { contiguous, channels_last, batch_last, gaps };
constexpr Strides kAllStrides[] = {Strides::contiguous, Strides::channels_last, Strides::batch_last, Strides::gaps};

template <class S>
struct Laid {
  std::vector<S> memory;
  cpu::ImagesView<S> view;

  Laid(const std::vector<double>& values, int64_t n, int64_t c, int64_t h, int64_t w, Strides strides) {
    switch (strides) {
      case Strides::contiguous: view = {nullptr, n, c, h, w, c * h * w, h * w, w, 1}; break;
      case Strides::channels_last: view = {nullptr, n, c, h, w, c * h * w, 1, c * w, c}; break;
      case Strides::batch_last: view = {nullptr, n, c, h, w, 1, h * w * n, w * n, n}; break;
      case Strides::gaps:
        view = {nullptr, n, c, h, w, (c + 1) * (h + 1) * (2 * w + 1), (h + 1) * (2 * w + 1), 2 * w + 1, 2};
        break;
    }
    const int64_t size = n && c && h && w ? (n - 1) * view.batch_stride + (c - 1) * view.channel_stride +
                                                (h - 1) * view.height_stride + (w - 1) * view.width_stride + 1
                                          : 0;
    memory.assign(size, stored<S>(std::numeric_limits<double>::quiet_NaN()));
    for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i) {
      memory[i / (c * h * w) * view.batch_stride + i / (h * w) % c * view.channel_stride +
             i / w % h * view.height_stride + i % w * view.width_stride] = stored<S>(values[i]);
    }
    view.data = memory.data();
  }

  cpu::MatrixView<S> matrix() const {
    return {view.data, view.batch, view.channels, view.batch_stride, view.channel_stride};
  }
};

// What a product may do with a single position: nothing of its own, sum in another order, or that by the bits of the mask,
// with few as well.
enum class Single { in_order, any_order, words };
constexpr Single kAllSingle[] = {Single::in_order, Single::any_order, Single::words};

inline const char* name_of(Single single) {
  return single == Single::in_order ? "" : single == Single::any_order ? " any order" : " words";
}

template <class S>
struct Results {
  std::vector<S> y, dx, dvalues;
};

// A problem with its data; results start as NaN so that an element left out is seen.
struct Case {
  Problem p;
  Weight weight;
  std::vector<double> x, dy, bias;

  template <class Draw>
  Case(const Problem& p, std::mt19937& random, Draw draw) : p(p), weight(p, random, draw) {
    for (int64_t i = 0; i < p.batch * p.all_channels() * p.height * p.width; ++i) x.push_back(draw(random));
    for (int64_t i = 0; i < p.batch * p.all_rows() * p.output(0) * p.output(1); ++i) dy.push_back(draw(random));
    if (random() % 2) {
      for (int64_t i = 0; i < p.all_rows(); ++i) bias.push_back(draw(random));
    }
  }

  // The same weight on images [first, first + count).
  Case slice(int64_t first, int64_t count) const {
    Case part = *this;
    part.p.batch = count;
    const int64_t x_size = p.all_channels() * p.height * p.width, dy_size = p.all_rows() * p.output(0) * p.output(1);
    part.x.assign(x.begin() + first * x_size, x.begin() + (first + count) * x_size);
    part.dy.assign(dy.begin() + first * dy_size, dy.begin() + (first + count) * dy_size);
    return part;
  }

  // I: of the indices of a linear product.
  template <class S, class I = int32_t>
  Results<S> run(const cpu::Context& context, bool as_linear, Strides strides, Single single = Single::in_order) const {
    const Laid<S> x_laid(x, p.batch, p.all_channels(), p.height, p.width, strides);
    const Laid<S> dy_laid(dy, p.batch, p.all_rows(), p.output(0), p.output(1), strides);
    const std::vector<S> values = stored<S>(weight.values), bias_s = stored<S>(bias);
    const S nan = stored<S>(std::numeric_limits<double>::quiet_NaN());
    Results<S> out{std::vector<S>(dy.size(), nan), std::vector<S>(x.size(), nan), std::vector<S>(values.size(), nan)};
    const S* const bias_data = bias_s.empty() ? nullptr : bias_s.data();
    const std::vector<I> col(weight.col.begin(), weight.col.end()), row_t(weight.row_t.begin(), weight.row_t.end());
    const cpu::Csr<int32_t> csr{p.all_rows(), weight.nnz(), weight.crow.data(), weight.col.data()};
    const cpu::TransposedCsr<int32_t> transposed{p.cols(), weight.nnz(), weight.crow_t.data(), weight.row_t.data(),
                                        weight.perm.data()};
    if (as_linear) {
      const std::vector<uint64_t> words = weight.words(p.cols());
      const bool with_words = single == Single::words;
      const cpu::Csr<I> by_row{csr.rows,
                               csr.nnz,
                               csr.crow,
                               col.data(),
                               with_words ? words.data() : nullptr,
                               with_words ? (p.cols() + 63) / 64 : 0,
                               single != Single::in_order};
      const cpu::TransposedCsr<I> by_col{transposed.cols, transposed.nnz, transposed.crow, row_t.data(), transposed.perm};
      cpu::linear(context, x_laid.matrix(), values.data(), bias_data, by_row, out.y.data());
      cpu::linear_dx(context, dy_laid.matrix(), values.data(), by_row, by_col, out.dx.data());
      cpu::linear_dvalues(context, dy_laid.matrix(), x_laid.matrix(), by_row, out.dvalues.data());
    } else {
      const cpu::ConvShape shape{
          {p.height, p.output(0), p.kernel[0], p.stride[0], p.padding[0], p.dilation[0]},
          {p.width, p.output(1), p.kernel[1], p.stride[1], p.padding[1], p.dilation[1]},
          p.groups};
      cpu::conv2d(context, x_laid.view, values.data(), bias_data, csr, shape, out.y.data());
      cpu::conv2d_dx(context, dy_laid.view, values.data(), transposed, shape, out.dx.data());
      cpu::conv2d_dvalues(context, dy_laid.view, x_laid.view, csr, shape, out.dvalues.data());
    }
    return out;
  }
};

inline std::string describe(const char* isa, const std::string& type, const Problem& p) {
  const auto pair = [](const int64_t* v) { return std::to_string(v[0]) + "x" + std::to_string(v[1]); };
  return std::string(isa) + " " + type + " N" + std::to_string(p.batch) + " G" + std::to_string(p.groups) + " C" +
         std::to_string(p.channels) + " R" + std::to_string(p.rows) + " " + std::to_string(p.height) + "x" +
         std::to_string(p.width) + " k" + pair(p.kernel) + " s" + pair(p.stride) + " p" + pair(p.padding) + " d" +
         pair(p.dilation) + " density " + std::to_string(p.density);
}

}  // namespace rsn2::test
