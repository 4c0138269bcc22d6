// A tensor is a non-owning view: where, what type, which shape. Memory belongs to the arena (device/arena.h).
#pragma once

#include <array>
#include <initializer_list>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"

namespace agoq {

// Meta holds no memory: ops check shapes, the arena counts bytes. It is how a layout is planned.
enum class Device : uint8_t { Cpu, Cuda, Meta };
std::string_view name_of(Device device);

// Up to four dimensions, row-major, contiguous.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);
  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  int64_t count() const;
  std::vector<int64_t> dims() const;
  bool operator==(const Shape&) const = default;
  std::string text() const;  // "[8, 128]"

 private:
  std::array<int64_t, 4> dims_{};
  int rank_ = 0;
};

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::F32;
  Device device = Device::Meta;
  Shape shape;

  explicit operator bool() const { return shape.rank() > 0; }  // an empty Tensor{} means "none"
  int64_t count() const { return shape.count(); }
  size_t bytes() const { return static_cast<size_t>(count()) * size_of(dtype); }
  int64_t rows() const { return shape.count() / cols(); }  // all dimensions but the last
  int64_t cols() const { return shape[shape.rank() - 1]; }

  // Typed access; a wrong type is a programming error and throws.
  template <class T>
  T* as() const {
    if (dtype != dtype_of<T>) fail("tensor holds {}, accessed as {}", name_of(dtype), name_of(dtype_of<T>));
    return static_cast<T*>(data);
  }
  uint8_t* raw() const { return static_cast<uint8_t*>(data); }

  Tensor view(Shape other) const;                      // same elements, other shape
  Tensor row_range(int64_t begin, int64_t end) const;  // rows [begin, end) of a 2-D tensor
};

// A view of host memory.
template <class T>
Tensor host_tensor(T* data, Shape shape) {
  return Tensor{const_cast<std::remove_const_t<T>*>(data), dtype_of<std::remove_const_t<T>>, Device::Cpu, shape};
}

}  // namespace agoq
