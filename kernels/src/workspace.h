// The memory of one call, handed out piece by piece from the caller's workspace.
#ifndef DINOREG_SRC_WORKSPACE_H_
#define DINOREG_SRC_WORKSPACE_H_

#include <stddef.h>

#include "dinoreg/portable.h"

DR_NAMESPACE_BEGIN

// Hands out pieces of a workspace, aligned to 256 bytes. Without a base it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(size_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ = after(count * sizeof(T));
    if (used_ > peak_) peak_ = used_;
    return piece;
  }
  // The bytes in use after another piece of this size.
  size_t after(size_t bytes) const { return used_ + (bytes + 255) / 256 * 256; }
  // release(mark) gives back everything taken since the mark, so that stages share memory.
  size_t mark() const { return used_; }
  void release(size_t mark) { used_ = mark; }
  size_t peak() const { return peak_; }

 private:
  char* base_;
  size_t used_ = 0, peak_ = 0;
};

DR_NAMESPACE_END

#endif  // DINOREG_SRC_WORKSPACE_H_
