#include <stdint.h>
#include <time.h>
/* mlx-rs seeds its default random state with this Mach call. */
uint64_t mach_approximate_time(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
#ifdef OPENBLAS
/* rustc links with --as-needed: without a live reference the program would not need OpenBLAS,
   and libmlx.so would find the reference BLAS of its wheel. */
void cblas_sgemm(void);
__attribute__((used, retain)) void (*const mlx_blas)(void) = cblas_sgemm;
#endif
