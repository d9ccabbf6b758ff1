// One fiber: a stack of its own and the way to and from it. Switching is a dozen instructions on x86-64 and
// swapcontext elsewhere (or with SIMT_UCONTEXT); the address sanitizer is told of every switch.
#pragma once

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#ifdef SIMT_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT 1
#endif
#ifdef SIMT_UCONTEXT
#include <ucontext.h>
#else
// Keeps what the System V ABI says a callee keeps, stores the stack pointer, and goes on where the other one stopped.
extern "C" void simt_switch(void** save, void* load);
__asm__(
    ".text\n.p2align 4\n.weak simt_switch\n.type simt_switch, @function\n"
    "simt_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size simt_switch, .-simt_switch\n");
#endif

namespace simt {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (mapped_ != nullptr) munmap(mapped_, kStack + page());
  }

  // The caller's own stack, to switch back to.
  void adopt() {
#ifdef SIMT_ASAN
    pthread_attr_t attributes;
    void* bottom = nullptr;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &bottom, &size_);
    pthread_attr_destroy(&attributes);
    bottom_ = static_cast<char*>(bottom);
#endif
  }

  // The next switch here begins `entry`, which must never return.
  void begin(void (*entry)()) {
    if (mapped_ == nullptr) map();
#ifdef SIMT_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom_;
    context_.uc_stack.ss_size = size_;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#else
    void** top = reinterpret_cast<void**>(bottom_ + size_);
    *--top = nullptr;  // the return address of `entry`: backtraces end here, and the stack is aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    pointer_ = top;
#endif
#ifdef SIMT_ASAN
    fake_ = nullptr;
#endif
  }

  // Leaves `from` for `to`; comes back when somebody switches to `from`. `last`: `from` has ended.
  static void go(Fiber& from, Fiber& to, bool last = false) {
#ifdef SIMT_ASAN
    __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_, to.bottom_, to.size_);
#endif
    (void)last;
#ifdef SIMT_UCONTEXT
    swapcontext(&from.context_, &to.context_);
#else
    simt_switch(&from.pointer_, to.pointer_);
#endif
    from.arrived();
  }

  // To be called first by `entry`.
  void arrived() {
#ifdef SIMT_ASAN
    __sanitizer_finish_switch_fiber(fake_, nullptr, nullptr);
#endif
  }

 private:
  static constexpr size_t kStack = 256 * 1024;  // address space; only touched pages are backed
  static size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

  void map() {
    mapped_ = mmap(nullptr, kStack + page(), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (mapped_ == MAP_FAILED || mprotect(mapped_, page(), PROT_NONE) != 0) {
      std::perror("simt: cannot map the stack of a fiber");
      std::abort();
    }
    bottom_ = static_cast<char*>(mapped_) + page();
    size_ = kStack;
  }

  void* mapped_ = nullptr;
  char* bottom_ = nullptr;
  size_t size_ = 0;
#ifdef SIMT_UCONTEXT
  ucontext_t context_{};
#else
  void* pointer_ = nullptr;
#endif
#ifdef SIMT_ASAN
  void* fake_ = nullptr;
#endif
};

}  // namespace simt
