/* Gives Python's MLX the BLAS that Emily's native library brings: OpenBLAS of the PyPI package
 * scipy-openblas32, whose symbols bear a prefix. Preloaded, these functions are found before the
 * reference BLAS of MLX's wheel. OPENBLAS_NUM_THREADS says how many threads a product takes.
 *
 *   cc -shared -fPIC -O2 -o blas_shim.so blas_shim.c -L LIB -lscipy_openblas -Wl,-rpath,LIB
 *   LD_PRELOAD=./blas_shim.so python3 smollm2.py ...
 */

#define GEMM(name, scalar, number)                                                              \
  void scipy_##name(int order, int trans_a, int trans_b, int m, int n, int k, scalar alpha,     \
                    const number *a, int lda, const number *b, int ldb, scalar beta, number *c, \
                    int ldc);                                                                   \
  void name(int order, int trans_a, int trans_b, int m, int n, int k, scalar alpha,             \
            const number *a, int lda, const number *b, int ldb, scalar beta, number *c,         \
            int ldc) {                                                                          \
    scipy_##name(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);        \
  }

GEMM(cblas_sgemm, float, float)
GEMM(cblas_dgemm, double, double)
GEMM(cblas_cgemm, const void *, void)
