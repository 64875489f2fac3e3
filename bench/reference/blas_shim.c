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
                    int ldc);

#define NAMED(name, scalar, number)                                                             \
  GEMM(name, scalar, number)                                                                    \
  void name(int order, int trans_a, int trans_b, int m, int n, int k, scalar alpha,             \
            const number *a, int lda, const number *b, int ldb, scalar beta, number *c,         \
            int ldc) {                                                                          \
    scipy_##name(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);        \
  }

/* A single row goes to the matrix-vector product, as in Emily's own entry point. */
GEMM(cblas_sgemm, float, float)
void scipy_cblas_sgemv(int order, int trans, int rows, int columns, float alpha, const float *a,
                       int lda, const float *x, int step_x, float beta, float *y, int step_y);
void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                 const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc) {
  if (order != 101 || m != 1 || n < 1 || k < 1) {
    scipy_cblas_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  if (beta == 0)
    for (int i = 0; i < n; i++) c[i] = 0;
  int step = trans_a == 111 ? 1 : lda;
  if (trans_b == 111)
    scipy_cblas_sgemv(order, 112, k, n, alpha, b, ldb, a, step, beta, c, 1);
  else
    scipy_cblas_sgemv(order, 111, n, k, alpha, b, ldb, a, step, beta, c, 1);
}

NAMED(cblas_dgemm, double, double)
NAMED(cblas_cgemm, const void *, void)
