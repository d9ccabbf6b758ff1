// Which instruction set the CPU kernels use. Each family of kernels is compiled once per set and offers a table of
// functions; the set is chosen once, at run time.
#pragma once

namespace ganscale::cpu {

constexpr int kIsas = 3;  // base, avx2, avx512

// Index of the set in use: the best this CPU runs, capped by the environment variable GANSCALE_ISA.
int isa();

}  // namespace ganscale::cpu

// The per-set functions `name_base`, ... that give a family's table, as an initialiser indexed by isa().
#ifdef GS_X86
#define GS_TABLES(name) {name##_base, name##_avx2, name##_avx512}
#else
#define GS_TABLES(name) {name##_base, name##_base, name##_base}
#endif
