//! The BLAS and LAPACK that MLX computes with on Linux, in place of the reference ones of its wheel.
//!
//! The functions here bear the names that libmlx imports. The dynamic linker finds them before the
//! ones of libmlx's own companion, because the library (or program) that this crate is linked into
//! comes first. They hand over to OpenBLAS, whose symbols have the prefix `scipy_`.
//!
//! **How streams share the cores.** OpenBLAS's own threads take every core for one call and make other
//! calls wait, and they cut a product differently from call to call. So OpenBLAS computes on the
//! calling thread, and a large product is cut here into blocks that all cores work on; blocks of
//! several streams mix freely. The cut depends on the shape and the number of cores alone, never on
//! what else runs, so that a product has the same bits alone and beside others. A product with few
//! rows or columns, such as a decoding step's, is bound by memory and stays on its stream's thread:
//! there the streams are the parallelism.

use std::ffi::c_int;
use std::sync::Once;

/// Products of fewer multiplications than this stay on the calling thread.
const LARGE: i64 = 1 << 22;

/// A product with fewer rows or columns than this stays on the calling thread.
const WIDE: c_int = 32;

/// Blocks are a multiple of this, the width of OpenBLAS's kernels.
const GRAIN: usize = 48;

/// The most blocks of a product for each core.
const MOST_BY_CORE: usize = 4;

const ROW_MAJOR: c_int = 101;
const NO_TRANSPOSE: c_int = 111;
const TRANSPOSE: c_int = 112;

extern "C" {
    fn scipy_openblas_set_num_threads(threads: c_int);
}

fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        // SAFETY: sets a number; no product is running, since every one comes through here first.
        unsafe { scipy_openblas_set_num_threads(1) };
    });
}

/// The operands' layout in a row-major product of `m` rows and `n` columns.
#[derive(Clone, Copy)]
struct Layout {
    trans_a: c_int,
    trans_b: c_int,
    m: c_int,
    n: c_int,
    lda: c_int,
    ldb: c_int,
    ldc: c_int,
}

/// A part of a product: its rows and columns, and where its operands begin, in elements.
#[derive(Debug, PartialEq)]
struct Block {
    m: c_int,
    n: c_int,
    a: usize,
    b: usize,
    c: usize,
}

/// A product of a matrix and a vector. OpenBLAS's general product copies the matrix into its own order
/// first, which takes longer than the whole of this.
#[derive(Debug, PartialEq)]
struct MatrixVector {
    matrix_is_b: bool,
    trans: c_int,
    rows: c_int,
    columns: c_int,
    leading: c_int,
    step_in: c_int,
    step_out: c_int,
}

impl Layout {
    /// The same product where one side is a single row or column.
    fn matrix_vector(&self, k: c_int) -> Option<MatrixVector> {
        if k < 1 || self.m < 1 || self.n < 1 {
            return None;
        }
        let transposed = |trans| trans != NO_TRANSPOSE;
        if self.m == 1 {
            // The result's row is the transpose of op(b) times the row of a.
            let stored_by_rows = !transposed(self.trans_b);
            return Some(MatrixVector {
                matrix_is_b: true,
                trans: if stored_by_rows { TRANSPOSE } else { NO_TRANSPOSE },
                rows: if stored_by_rows { k } else { self.n },
                columns: if stored_by_rows { self.n } else { k },
                leading: self.ldb,
                step_in: if transposed(self.trans_a) { self.lda } else { 1 },
                step_out: 1,
            });
        }
        (self.n == 1).then(|| MatrixVector {
            matrix_is_b: false,
            trans: self.trans_a,
            rows: if transposed(self.trans_a) { k } else { self.m },
            columns: if transposed(self.trans_a) { self.m } else { k },
            leading: self.lda,
            step_in: if transposed(self.trans_b) { 1 } else { self.ldb },
            step_out: self.ldc,
        })
    }

    fn is_large(&self, k: c_int) -> bool {
        let multiplications = i64::from(self.m) * i64::from(self.n) * i64::from(k);
        self.m.min(self.n) >= WIDE && multiplications >= LARGE
    }

    /// Cuts the longer side of the product for `cores`. Several blocks a core even out what else the cores
    /// do; but each block reads the whole of the other side, so that none is shorter than that.
    fn blocks(&self, cores: usize) -> Vec<Block> {
        let by_columns = self.n >= self.m;
        let (length, other) = if by_columns { (self.n, self.m) } else { (self.m, self.n) };
        let by_core = (length as usize / cores / other as usize).clamp(1, MOST_BY_CORE);
        let even = (length as usize).div_ceil(cores * by_core).next_multiple_of(GRAIN);
        (0..length as usize)
            .step_by(even)
            .map(|first| {
                let count = even.min(length as usize - first) as c_int;
                if by_columns {
                    let along_rows = self.trans_b == NO_TRANSPOSE;
                    let b = if along_rows { first } else { first * self.ldb as usize };
                    Block { m: self.m, n: count, a: 0, b, c: first }
                } else {
                    let along_rows = self.trans_a != NO_TRANSPOSE;
                    let a = if along_rows { first } else { first * self.lda as usize };
                    Block { m: count, n: self.n, a, b: 0, c: first * self.ldc as usize }
                }
            })
            .collect()
    }
}

/// Pointers that go to other threads.
#[derive(Clone, Copy)]
struct Operands<T> {
    a: *const T,
    b: *const T,
    c: *mut T,
}

// SAFETY: blocks read common inputs and write disjoint parts of the output, and the caller waits for
// all of them.
unsafe impl<T> Send for Operands<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Operands<T> {}

macro_rules! gemm {
    ($name:ident => $openblas:ident, $gemv:ident, $real:ty) => {
        extern "C" {
            fn $openblas(
                order: c_int,
                trans_a: c_int,
                trans_b: c_int,
                m: c_int,
                n: c_int,
                k: c_int,
                alpha: $real,
                a: *const $real,
                lda: c_int,
                b: *const $real,
                ldb: c_int,
                beta: $real,
                c: *mut $real,
                ldc: c_int,
            );
            fn $gemv(
                order: c_int,
                trans: c_int,
                rows: c_int,
                columns: c_int,
                alpha: $real,
                matrix: *const $real,
                leading: c_int,
                vector: *const $real,
                step_in: c_int,
                beta: $real,
                out: *mut $real,
                step_out: c_int,
            );
        }

        /// `c = alpha * op(a) op(b) + beta * c`, as CBLAS defines it.
        ///
        /// # Safety
        /// The matrices are as large as the sizes and leading dimensions say.
        #[no_mangle]
        #[allow(clippy::too_many_arguments)] // CBLAS's
        pub unsafe extern "C" fn $name(
            order: c_int,
            trans_a: c_int,
            trans_b: c_int,
            m: c_int,
            n: c_int,
            k: c_int,
            alpha: $real,
            a: *const $real,
            lda: c_int,
            b: *const $real,
            ldb: c_int,
            beta: $real,
            c: *mut $real,
            ldc: c_int,
        ) {
            prepare();
            let layout = Layout { trans_a, trans_b, m, n, lda, ldb, ldc };
            if let (ROW_MAJOR, Some(product)) = (order, layout.matrix_vector(k)) {
                let (matrix, vector) = if product.matrix_is_b { (b, a) } else { (a, b) };
                if beta == 0.0 {
                    for element in 0..m.max(n) as usize {
                        // SAFETY: an element of the output, which beta says not to read.
                        unsafe { *c.add(element * product.step_out as usize) = 0.0 };
                    }
                }
                // SAFETY: the caller's own matrices, read as a matrix and a vector.
                unsafe {
                    $gemv(
                        order,
                        product.trans,
                        product.rows,
                        product.columns,
                        alpha,
                        matrix,
                        product.leading,
                        vector,
                        product.step_in,
                        beta,
                        c,
                        product.step_out,
                    );
                }
                return;
            }
            let operands = Operands { a, b, c };
            let compute = move |block: &Block| {
                let Operands { a, b, c } = { operands };
                // SAFETY: a block of the caller's own product begins and ends inside its matrices.
                unsafe {
                    $openblas(
                        order,
                        trans_a,
                        trans_b,
                        block.m,
                        block.n,
                        k,
                        alpha,
                        a.add(block.a),
                        lda,
                        b.add(block.b),
                        ldb,
                        beta,
                        c.add(block.c),
                        ldc,
                    );
                }
            };
            if order != ROW_MAJOR || !layout.is_large(k) {
                compute(&Block { m, n, a: 0, b: 0, c: 0 });
                return;
            }
            let blocks = layout.blocks(rayon::current_num_threads());
            let (own, others) = blocks.split_first().expect("a large product has a block");
            rayon::in_place_scope(|scope| {
                for block in others {
                    scope.spawn(move |_| compute(block));
                }
                compute(own);
            });
        }
    };
}

gemm!(cblas_sgemm => scipy_cblas_sgemm, scipy_cblas_sgemv, f32);
gemm!(cblas_dgemm => scipy_cblas_dgemm, scipy_cblas_dgemv, f64);

/// Functions that pass their arguments on as they are.
macro_rules! forward {
    ($($name:ident => $openblas:ident;)*) => {$(
        extern "C" {
            fn $openblas();
        }

        /// OpenBLAS's function of this name.
        ///
        /// # Safety
        /// As BLAS and LAPACK define it.
        #[no_mangle]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            #[cfg(target_arch = "x86_64")]
            std::arch::naked_asm!("jmp {}", sym $openblas);
            #[cfg(target_arch = "aarch64")]
            std::arch::naked_asm!("b {}", sym $openblas);
        }
    )*};
}

// What libmlx 0.32.2 imports: `nm -D --undefined-only libmlx.so`.
forward! {
    cblas_cgemm => scipy_cblas_cgemm;
    cgeev_ => scipy_cgeev_;
    cgesdd_ => scipy_cgesdd_;
    cheevd_ => scipy_cheevd_;
    dgeev_ => scipy_dgeev_;
    dgeqrf_ => scipy_dgeqrf_;
    dgesdd_ => scipy_dgesdd_;
    dgetrf_ => scipy_dgetrf_;
    dgetri_ => scipy_dgetri_;
    dorgqr_ => scipy_dorgqr_;
    dpotrf_ => scipy_dpotrf_;
    dsyevd_ => scipy_dsyevd_;
    dtrtri_ => scipy_dtrtri_;
    sgeev_ => scipy_sgeev_;
    sgeqrf_ => scipy_sgeqrf_;
    sgesdd_ => scipy_sgesdd_;
    sgetrf_ => scipy_sgetrf_;
    sgetri_ => scipy_sgetri_;
    sorgqr_ => scipy_sorgqr_;
    spotrf_ => scipy_spotrf_;
    ssyevd_ => scipy_ssyevd_;
    strtri_ => scipy_strtri_;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_longer_side_once() {
        for (m, n) in [(64, 1000), (1000, 64), (1024, 1024), (33, 97), (32, 32_768)] {
            let layout = Layout {
                trans_a: NO_TRANSPOSE,
                trans_b: NO_TRANSPOSE,
                m,
                n,
                lda: 7,
                ldb: n,
                ldc: n,
            };
            for cores in 1..9 {
                let blocks = layout.blocks(cores);
                assert!(blocks.len() <= cores * MOST_BY_CORE);
                if blocks.len() > cores {
                    let (last, whole) = blocks.split_last().unwrap();
                    let is_long = |block: &Block| block.m.max(block.n) >= m.min(n);
                    assert!(whole.iter().all(is_long) && last.m * last.n > 0);
                }
                let covered: c_int = blocks.iter().map(|block| block.m * block.n).sum();
                assert_eq!(covered, m * n);
            }
        }
    }

    #[test]
    fn products_equal_a_plain_loop() {
        let (m, n, k) = (130, 260, 170);
        for trans_a in [NO_TRANSPOSE, TRANSPOSE] {
            for trans_b in [NO_TRANSPOSE, TRANSPOSE] {
                for (m, n) in [(m, n), (n, m), (1, n), (m, 1), (1, 1)] {
                    product(trans_a, trans_b, m, n, k);
                }
            }
        }
    }

    /// Small integers, so that every order of summation gives the same f32.
    fn product(trans_a: c_int, trans_b: c_int, m: usize, n: usize, k: usize) {
        let a: Vec<f32> = (0..m * k).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
        let at =
            |i: usize, l: usize| if trans_a == TRANSPOSE { a[l * m + i] } else { a[i * k + l] };
        let bt =
            |l: usize, j: usize| if trans_b == TRANSPOSE { b[j * k + l] } else { b[l * n + j] };
        let mut c = vec![f32::NAN; m * n];
        let lda = if trans_a == TRANSPOSE { m } else { k };
        let ldb = if trans_b == TRANSPOSE { k } else { n };
        // SAFETY: the matrices have these sizes.
        unsafe {
            cblas_sgemm(
                ROW_MAJOR,
                trans_a,
                trans_b,
                m as c_int,
                n as c_int,
                k as c_int,
                1.0,
                a.as_ptr(),
                lda as c_int,
                b.as_ptr(),
                ldb as c_int,
                0.0,
                c.as_mut_ptr(),
                n as c_int,
            );
        }
        for i in 0..m {
            for j in 0..n {
                let expected: f32 = (0..k).map(|l| at(i, l) * bt(l, j)).sum();
                assert_eq!(c[i * n + j], expected, "{trans_a} {trans_b} {m}x{n} at {i},{j}");
            }
        }
    }
}
