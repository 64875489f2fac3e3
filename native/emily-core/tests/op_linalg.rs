//! Products and linear algebra against plain loops in f64.

mod support;

use emily_core::dtype::Dtype;
use emily_core::error::{Kind, Result};
use emily_core::op::{Addmm, Cast, Eigh, Einsum, Op, Sorted, Tensordot, Triangle};
use mlx_rs::Array;
use support::*;

/// Numbers from -1 to 1 without a pattern.
fn random(shape: &[i64], seed: u64) -> Vec<f64> {
    let count: i64 = shape.iter().product();
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        })
        .collect()
}

fn array(data: &[f64], shape: &[i64]) -> Array {
    tensor(&data.iter().map(|&x| x as f32).collect::<Vec<_>>(), shape)
}

fn doubles(array: &Array) -> Vec<f64> {
    let array = run(Op::Astype(Cast { dtype: Dtype::Float32 }), &[array]).unwrap();
    read::<f32>(&array).iter().map(|&x| x.into()).collect()
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], precision: f64) {
    assert_eq!(got.len(), expected.len());
    for (at, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= precision, "element {at}: expected {b}, got {a}");
    }
}

/// `{m, k}` times `{k, n}`.
fn product(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    let at = |row: usize, col: usize| (0..k).map(|i| a[row * k + i] * b[i * n + col]).sum();
    (0..m * n).map(|flat| at(flat / n, flat % n)).collect()
}

fn transposed(a: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..rows * cols).map(|flat| a[flat % rows * cols + flat / rows]).collect()
}

fn identity(n: usize) -> Vec<f64> {
    (0..n * n).map(|flat| f64::from(u8::from(flat / n == flat % n))).collect()
}

/// The outputs of an op that has several.
fn all(op: Op, inputs: &[&Array]) -> Vec<Array> {
    let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
    op.build_all(&build(), &inputs).unwrap()
}

#[track_caller]
fn refuses_all(op: Op, inputs: &[&Array]) {
    let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
    let error = op.build_all(&build(), &inputs).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
}

/// Whether an array can be evaluated.
fn evaluates(array: &Array) -> bool {
    // SAFETY: the handle is live, and its stream is this thread's.
    unsafe { mlx_sys::mlx_array_eval(array.as_ptr()) == 0 }
}

#[test]
fn products_of_matrices() {
    let (a, b) = (random(&[3, 4], 1), random(&[4, 2], 2));
    let result = run(Op::Matmul, &[&array(&a, &[3, 4]), &array(&b, &[4, 2])]).unwrap();
    assert_close(&doubles(&result), &product(&a, &b, 3, 4, 2), 1e-5);
    // Vectors, broadcast batches, no columns, no contracted elements.
    let row = vector(&[1f32, 2.0]);
    check(Op::Matmul, &[&row, &tensor(&[1f32, 2.0, 3.0, 4.0], &[2, 2])], &[2], &[7f32, 10.0]);
    check(Op::Matmul, &[&row, &vector(&[3f32, 4.0])], &[], &[11f32]);
    let batch = tensor(&[1f32, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 2.0], &[2, 1, 2, 2]);
    let column = tensor(&[5f32, 6.0, 7.0, 8.0, 9.0, 10.0], &[3, 2, 1]);
    check(
        Op::Matmul,
        &[&batch, &column],
        &[2, 3, 2, 1],
        &[5f32, 6.0, 7.0, 8.0, 9.0, 10.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0],
    );
    check(Op::Matmul, &[&array(&[], &[2, 0]), &array(&[], &[0, 2])], &[2, 2], &[0f32; 4]);
    check(Op::Matmul, &[&row, &array(&[], &[2, 0])], &[0], &[] as &[f32]);
    // Integers promote with floats, and only with them.
    check(Op::Matmul, &[&vector(&[1i32, 2]), &row], &[], &[5f32]);
    refuses(Op::Matmul, &[&vector(&[1i32]), &vector(&[1i64])]);
    refuses(Op::Matmul, &[&row, &vector(&[1f32, 2.0, 3.0])]);
    refuses(Op::Matmul, &[&row, &scalar(1f32)]);
    refuses(Op::Matmul, &[&array(&[0.0; 8], &[2, 2, 2]), &array(&[0.0; 12], &[3, 2, 2])]);
}

#[test]
fn other_products() {
    let (a, b) = (vector(&[1f32, 2.0]), tensor(&[3f32, 4.0, 5.0, 6.0], &[2, 2]));
    check(Op::Outer, &[&a, &b], &[2, 4], &[3f32, 4.0, 5.0, 6.0, 6.0, 8.0, 10.0, 12.0]);
    check(Op::Outer, &[&vector(&[1i32, -2]), &scalar(7i32)], &[2, 1], &[7i32, -14]);
    check(Op::Inner, &[&a, &b], &[2], &[11f32, 17.0]);
    check(Op::Inner, &[&scalar(2f32), &b], &[2, 2], &[6f32, 8.0, 10.0, 12.0]);
    refuses(Op::Inner, &[&vector(&[1f32]), &b]);
    let dot = |axes_a: &[i64], axes_b: &[i64]| {
        Op::Tensordot(Tensordot { axes_a: axes_a.to_vec(), axes_b: axes_b.to_vec() })
    };
    let cube = tensor(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &[2, 2, 2]);
    // sum over i, j of cube[i, k, j] b[j, i]
    check(dot(&[0, -1], &[1, 0]), &[&cube, &b], &[2], &[69f32, 105.0]);
    check(dot(&[], &[]), &[&a, &a], &[2, 2], &[1f32, 2.0, 2.0, 4.0]);
    check(dot(&[0], &[0]), &[&array(&[], &[0, 2]), &array(&[], &[0, 1])], &[2, 1], &[0f32; 2]);
    refuses(dot(&[0], &[0, 1]), &[&cube, &b]);
    refuses(dot(&[0, 0], &[0, 1]), &[&cube, &b]);
    refuses(dot(&[3], &[0]), &[&cube, &b]);
    refuses(dot(&[0], &[0]), &[&vector(&[1f32, 2.0, 3.0]), &b]);
    refuses(dot(&[0], &[0]), &[&vector(&[1i32]), &vector(&[1i32])]);
}

#[test]
fn sums_of_a_product_and_a_summand() {
    let op = |alpha, beta| Op::Addmm(Addmm { alpha, beta });
    let (a, b) = (tensor(&[1f32, 2.0, 3.0, 4.0], &[2, 2]), vector(&[10f32, 100.0]));
    // One element of c broadcasts; a b is 210, 430.
    check(op(0.5, 3.0), &[&scalar(1f32), &a, &b], &[2], &[108f32, 218.0]);
    check(op(2.0, 1.0), &[&vector(&[1f32, 2.0]), &a, &b], &[2], &[421f32, 862.0]);
    let batch = tensor(&[1f32, 2.0, 3.0, 4.0], &[2, 1, 2]);
    check(op(1.0, 1.0), &[&vector(&[1f32]), &batch, &a], &[2, 1, 2], &[8f32, 11.0, 16.0, 23.0]);
    let (none, c) = (array(&[], &[2, 0]), tensor(&[1f32, 2.0], &[2, 1]));
    check(op(1.0, 5.0), &[&c, &none, &array(&[], &[0, 2])], &[2, 2], &[5f32, 5.0, 10.0, 10.0]);
    let i = complex(0.0, 1.0);
    let result = run(op(2.0, 3.0), &[&scalar(i), &vector(&[i, i]), &vector(&[1f32, 1.0])]).unwrap();
    check(Op::Imag, &[&result], &[], &[7f32]);
    refuses(op(1.0, 1.0), &[&vector(&[1f32, 2.0, 3.0]), &a, &b]);
    refuses(op(1.0, 1.0), &[&tensor(&[1f32, 2.0], &[1, 2]), &a, &b]);
    refuses(op(1.0, 1.0), &[&scalar(1i32), &vector(&[1i32]), &vector(&[1i32])]);
    refuses(op(1.0, 1.0), &[&scalar(1f32), &a, &vector(&[1f32])]);
}

#[test]
fn einstein_sums() {
    let op = |equation: &str| Op::Einsum(Einsum { equation: equation.into() });
    let a = tensor(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
    let b = tensor(&[1f32, -1.0, 2.0, 0.0, 0.5, 1.0], &[3, 2]);
    let expected = [6.5f32, 2.0, 17.0, 2.0];
    check(op("ij,jk->ik"), &[&a, &b], &[2, 2], &expected);
    check(op(" ij, jk "), &[&a, &b], &[2, 2], &expected);
    check(op("ij->ji"), &[&a], &[3, 2], &[1f32, 4.0, 2.0, 5.0, 3.0, 6.0]);
    check(op("ij->"), &[&a], &[], &[21f32]);
    check(op("ij,jk,ki->"), &[&a, &b, &tensor(&[1f32, 0.0, 0.0, 1.0], &[2, 2])], &[], &[8.5f32]);
    let square = tensor(&[1f32, 2.0, 3.0, 4.0], &[2, 2]);
    check(op("ii->i"), &[&square], &[2], &[1f32, 4.0]);
    check(op("ii"), &[&square], &[], &[5f32]);
    let batch = tensor(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &[2, 1, 2, 2]);
    check(
        op("...ij,...j->...i"),
        &[&batch, &vector(&[1f32, 10.0])],
        &[2, 1, 2],
        &[21f32, 43.0, 65.0, 87.0],
    );
    check(op("...i,...i"), &[&square, &square], &[2], &[5f32, 25.0]);
    let empty = array(&[], &[0, 3]);
    check(op("ij,jk->ik"), &[&empty, &b], &[0, 2], &[] as &[f32]);
    check(op("ij,jk->jk"), &[&empty, &b], &[3, 2], &[0f32; 6]);
    // Sizes of 1 broadcast.
    check(
        op("ij,jk->ik"),
        &[&a, &tensor(&[1f32, 10.0], &[1, 2])],
        &[2, 2],
        &[6f32, 60.0, 15.0, 150.0],
    );
    for equation in [
        "",
        "ij",
        "ij,jk->il",
        "ij,jk->ii",
        "ij,jk,kl",
        "ijk,jk",
        "i1,jk",
        "ij,jk->ik->",
        "ij,k.j",
        "i...j...,jk",
        "ij,ik",
        "ii,jk",
        "éj,jk",
        "ij,jk->i\0k",
        "...ijk,jk",
        "ij;jk",
    ] {
        refuses(op(equation), &[&a, &b]);
    }
    // More axes than there are letters.
    let deep = tensor(&[1f32], &[1; 60]);
    refuses(op("..."), &[&deep]);
    let all: String = ('a'..='z').chain('A'..='Z').collect();
    refuses(op(&format!("{all}...")), &[&deep]);
    refuses(op(&format!("{all}->a")), &[&tensor(&[1f32], &[1; 52])]);
    check(op(&format!("{}->a", &all[..49])), &[&tensor(&[1f32], &[1; 49])], &[1], &[1f32]);
}

#[test]
fn products_of_picked_matrices() {
    let op = || Op::GatherMm(Sorted { sorted: false });
    let (a, b) = (random(&[3, 2, 4], 3), random(&[2, 4, 2], 4));
    let expected =
        |left: usize, right: usize| product(&a[left * 8..][..8], &b[right * 8..][..8], 2, 4, 2);
    let (left, right) = (array(&a, &[3, 2, 4]), array(&b, &[2, 4, 2]));
    // Negative ones count from the end, others are clamped.
    let inputs = [&left, &right, &vector(&[2i32, -3, 99, -99]), &vector(&[1u64, 0, u64::MAX, 0])];
    let got = run(op(), &inputs).unwrap();
    assert_eq!(shape(&got), [4, 2, 2]);
    let expected_all = [expected(2, 1), expected(0, 0), expected(2, 1), expected(0, 0)].concat();
    assert_close(&doubles(&got), &expected_all, 1e-5);
    // The left ones in order.
    let inputs = [Some(&left), Some(&right), None, Some(&scalar(1u8))];
    let got = op().build(&build(), &inputs).unwrap();
    let expected_all = [expected(0, 1), expected(1, 1), expected(2, 1)].concat();
    assert_close(&doubles(&got), &expected_all, 1e-5);
    // Half types are computed in f32 on the CPU.
    let half = run(Op::Astype(Cast { dtype: Dtype::Bfloat16 }), &[&left]).unwrap();
    let right_half = run(Op::Astype(Cast { dtype: Dtype::Bfloat16 }), &[&right]).unwrap();
    let got = run(op(), &[&half, &right_half, &scalar(2), &scalar(1)]).unwrap();
    assert_eq!(dtype(&got), Dtype::Bfloat16);
    assert_close(&doubles(&got), &expected(2, 1), 0.05);
    // Without indices a plain product, and nothing out of nothing.
    check(op(), &[&vector(&[1f32, 2.0]), &vector(&[3f32, 4.0])], &[], &[11f32]);
    let none = vector::<i32>(&[]);
    check(op(), &[&left, &right, &none, &none], &[0, 2, 2], &[] as &[f32]);
    refuses(op(), &[&left, &right, &vector(&[0f32]), &vector(&[0])]);
    refuses(op(), &[&left, &right, &vector(&[0, 0]), &vector(&[0, 0, 0])]);
    refuses(op(), &[&left, &left, &vector(&[0]), &vector(&[0])]);
    refuses(op(), &[&array(&[], &[0, 2, 4]), &right, &vector(&[0]), &vector(&[0])]);
    refuses(op(), &[&vector(&[0f32; 4]), &right, &scalar(0), &scalar(0)]);
}

#[test]
fn lu_gives_the_permutation_of_the_rows() {
    for (m, n) in [(4, 4), (5, 3), (3, 5)] {
        let data = random(&[2, m, n], 5);
        let parts = all(Op::LinalgLu, &[&array(&data, &[2, m, n])]);
        let k = m.min(n);
        assert_eq!(shape(&parts[1]), [2, m, k]);
        assert_eq!(shape(&parts[2]), [2, k, n]);
        let (rows, l, u) = (read::<u32>(&parts[0]), doubles(&parts[1]), doubles(&parts[2]));
        let (m, n, k) = (m as usize, n as usize, k as usize);
        for i in 0..2 {
            let (l, u) = (&l[i * m * k..][..m * k], &u[i * k * n..][..k * n]);
            for (flat, &x) in l.iter().enumerate() {
                assert!(flat / k > flat % k || x == f64::from(u8::from(flat / k == flat % k)));
            }
            assert!(u.iter().enumerate().all(|(flat, &x)| flat / n <= flat % n || x == 0.0));
            let lu = product(l, u, m, k, n);
            let rows = &rows[i * m..][..m];
            let got: Vec<f64> =
                rows.iter().flat_map(|&row| lu[row as usize * n..][..n].to_vec()).collect();
            assert_close(&got, &data[i * m * n..][..m * n], 1e-5);
        }
    }
}

#[test]
fn svd_gives_full_factors() {
    for (m, n) in [(4usize, 3usize), (2, 4)] {
        let data = random(&[m as i64, n as i64], 6);
        let parts = all(Op::LinalgSvd, &[&array(&data, &[m as i64, n as i64])]);
        let (u, s, vt) = (doubles(&parts[0]), doubles(&parts[1]), doubles(&parts[2]));
        assert_eq!((u.len(), s.len(), vt.len()), (m * m, m.min(n), n * n));
        assert!(s.windows(2).all(|pair| pair[0] >= pair[1] && pair[1] >= 0.0));
        assert_close(&product(&transposed(&u, m, m), &u, m, m, m), &identity(m), 1e-5);
        assert_close(&product(&vt, &transposed(&vt, n, n), n, n, n), &identity(n), 1e-5);
        let diagonal: Vec<f64> =
            (0..m * n).map(|flat| if flat / n == flat % n { s[flat % n] } else { 0.0 }).collect();
        let us = product(&u, &diagonal, m, m, n);
        assert_close(&product(&us, &vt, m, n, n), &data, 1e-5);
    }
    let complex_parts = all(Op::LinalgSvd, &[&tensor(&[complex(0.0, 2.0)], &[1, 1])]);
    assert_eq!(read::<f32>(&complex_parts[1]), [2.0]);
}

#[test]
fn qr_is_reduced() {
    for (m, n) in [(4usize, 3usize), (2, 4), (3, 3)] {
        let data = random(&[m as i64, n as i64], 7);
        let parts = all(Op::LinalgQr, &[&array(&data, &[m as i64, n as i64])]);
        let k = m.min(n);
        let (q, r) = (doubles(&parts[0]), doubles(&parts[1]));
        assert_eq!((q.len(), r.len()), (m * k, k * n));
        assert_close(&product(&transposed(&q, m, k), &q, k, m, k), &identity(k), 1e-5);
        assert_close(&product(&q, &r, m, k, n), &data, 1e-5);
        assert!(r.iter().enumerate().all(|(flat, &x)| flat / n <= flat % n || x == 0.0));
    }
}

/// A symmetric positive definite matrix.
fn definite(n: usize) -> Vec<f64> {
    let a = random(&[n as i64, n as i64], 8);
    let mut product = product(&a, &transposed(&a, n, n), n, n, n);
    for i in 0..n {
        product[i * n + i] += 1.0;
    }
    product
}

#[test]
fn eigenvalues() {
    let data = definite(4);
    for upper in [false, true] {
        // The other triangle is not read.
        let triangle: Vec<f64> = (0..16)
            .map(|flat| {
                if (flat / 4 > flat % 4) == upper && flat / 4 != flat % 4 {
                    99.0
                } else {
                    data[flat]
                }
            })
            .collect();
        let parts = all(Op::LinalgEigh(Eigh { upper }), &[&array(&triangle, &[4, 4])]);
        let (values, vectors) = (doubles(&parts[0]), doubles(&parts[1]));
        assert!(values.windows(2).all(|pair| pair[0] <= pair[1]));
        let scaled: Vec<f64> = (0..16).map(|flat| vectors[flat] * values[flat % 4]).collect();
        assert_close(&product(&scaled, &transposed(&vectors, 4, 4), 4, 4, 4), &data, 1e-4);
    }
    // A rotation by a right angle has the eigenvalues i and -i.
    let parts = all(Op::LinalgEig, &[&tensor(&[0f32, -1.0, 1.0, 0.0], &[2, 2])]);
    let imag = |array: &Array| read::<f32>(&run(Op::Imag, &[array]).unwrap());
    let mut values = imag(&parts[0]);
    values.sort_by(f32::total_cmp);
    assert_close(&values.iter().map(|&x| x.into()).collect::<Vec<_>>(), &[-1.0, 1.0], 1e-6);
    let av = run(Op::Matmul, &[&tensor(&[0f32, -1.0, 1.0, 0.0], &[2, 2]), &parts[1]]).unwrap();
    let vl = run(Op::Multiply, &[&parts[1], &parts[0]]).unwrap();
    for part in [Op::Real, Op::Imag] {
        let of = |array: &Array| doubles(&run(part.clone(), &[array]).unwrap());
        assert_close(&of(&av), &of(&vl), 1e-6);
    }
    // Hermitian: 1 and 3.
    let hermitian = [complex(2.0, 0.0), complex(0.0, 1.0), complex(0.0, -1.0), complex(2.0, 0.0)];
    let parts = all(Op::LinalgEigh(Eigh { upper: false }), &[&tensor(&hermitian, &[2, 2])]);
    assert_close(&doubles(&parts[0]), &[1.0, 3.0], 1e-6);
}

#[test]
fn cholesky_gives_nan_for_what_is_not_definite() {
    let data = definite(3);
    for upper in [false, true] {
        let op = || Op::LinalgCholesky(Triangle { upper });
        let factor = doubles(&run(op(), &[&array(&data, &[3, 3])]).unwrap());
        let other = transposed(&factor, 3, 3);
        let (l, u) = if upper { (&other, &factor) } else { (&factor, &other) };
        assert_close(&product(l, u, 3, 3, 3), &data, 1e-5);
        assert!((0..9).all(|flat| flat / 3 >= flat % 3 || l[flat] == 0.0));
        // A batch of which one is indefinite.
        let batch = [&data[..4], &[1.0, 2.0, 2.0, 1.0]].concat();
        let batch = [&[4.0, 0.0, 0.0, 9.0], &batch[4..]].concat();
        let got = doubles(&run(op(), &[&array(&batch, &[2, 2, 2])]).unwrap());
        assert_close(&got[..4], &[2.0, 0.0, 0.0, 3.0], 1e-6);
        assert!(got[4..].iter().all(|x| x.is_nan()), "{got:?}");
        let nan = run(op(), &[&tensor(&[f32::NAN; 4], &[2, 2])]).unwrap();
        assert!(doubles(&nan).iter().all(|x| x.is_nan()));
    }
}

#[test]
fn inverses() {
    let data = [2.0, 1.0, 0.0, 4.0, -1.0, 3.0, 5.0, 0.0, 1.0];
    let inverse = doubles(&run(Op::LinalgInv, &[&array(&data, &[3, 3])]).unwrap());
    assert_close(&product(&data, &inverse, 3, 3, 3), &identity(3), 1e-5);
    let lower = [2.0, 0.0, 6.0, 4.0];
    // The other triangle is not read.
    let garbage = [2.0, 77.0, 6.0, 4.0];
    let op = |upper| Op::LinalgTriInv(Triangle { upper });
    let inverse = doubles(&run(op(false), &[&array(&garbage, &[2, 2])]).unwrap());
    assert_close(&product(&lower, &inverse, 2, 2, 2), &identity(2), 1e-6);
    let inverse = doubles(&run(op(true), &[&array(&transposed(&garbage, 2, 2), &[2, 2])]).unwrap());
    assert_close(&transposed(&inverse, 2, 2), &[0.5, 0.0, -0.75, 0.25], 1e-6);
    // A matrix of rank one.
    let pinv =
        doubles(&run(Op::LinalgPinv, &[&array(&[1.0, 1.0, 1.0, 1.0, 1.0, 1.0], &[3, 2])]).unwrap());
    assert_close(&pinv, &[1.0 / 6.0; 6], 1e-6);
}

#[test]
fn systems_of_equations() {
    let a = [3.0, 1.0, 1.0, 2.0, 0.0, 1.0, 1.0, 5.0, -1.0];
    let matrix = array(&a, &[3, 3]);
    let x = [1.0, -2.0, 3.0];
    let b = product(&a, &x, 3, 3, 1);
    let got = run(Op::LinalgSolve, &[&matrix, &array(&b, &[3])]).unwrap();
    assert_eq!(shape(&got), [3]);
    assert_close(&doubles(&got), &x, 1e-5);
    let got = run(Op::LinalgSolve, &[&matrix, &array(&b, &[3, 1])]).unwrap();
    assert_eq!(shape(&got), [3, 1]);
    assert_close(&doubles(&got), &x, 1e-5);
    // A batch of right sides for one matrix, and of matrices with a vector each.
    let two = array(&[&b[..], &b.iter().map(|b| 2.0 * b).collect::<Vec<_>>()].concat(), &[2, 3, 1]);
    let got = run(Op::LinalgSolve, &[&matrix, &two]).unwrap();
    assert_eq!(shape(&got), [2, 3, 1]);
    assert_close(&doubles(&got), &[1.0, -2.0, 3.0, 2.0, -4.0, 6.0], 1e-5);
    let matrices = array(&[2.0, 0.0, 0.0, 4.0, 0.0, 1.0, 1.0, 0.0], &[2, 2, 2]);
    let vectors = array(&[2.0, 4.0, 5.0, 6.0], &[2, 2]);
    check(Op::LinalgSolve, &[&matrices, &vectors], &[2, 2], &[1f32, 1.0, 6.0, 5.0]);
    let op = |upper| Op::LinalgSolveTriangular(Triangle { upper });
    let lower = array(&[2.0, 99.0, 1.0, 4.0], &[2, 2]);
    check(op(false), &[&lower, &vector(&[2f32, 9.0])], &[2], &[1f32, 2.0]);
    let upper = array(&[2.0, 1.0, 99.0, 4.0], &[2, 2]);
    check(op(true), &[&upper, &array(&[4.0, 8.0], &[2, 1])], &[2, 1], &[1f32, 2.0]);
    let half = run(Op::Astype(Cast { dtype: Dtype::Float16 }), &[&upper]).unwrap();
    let got = run(op(true), &[&half, &half]).unwrap();
    assert_eq!(dtype(&got), Dtype::Float16);
    check(op(true), &[&tensor(&[2f64], &[1, 1]), &vector(&[1f64])], &[1], &[0.5f64]);
}

#[test]
fn a_singular_matrix_is_an_error_of_its_evaluation() {
    let singular = tensor(&[1f32, 2.0, 2.0, 4.0], &[2, 2]);
    let b = vector(&[1f32, 2.0]);
    assert!(!evaluates(&run(Op::LinalgInv, &[&singular]).unwrap()));
    assert!(!evaluates(&run(Op::LinalgSolve, &[&singular, &b]).unwrap()));
    let zero = tensor(&[0f32, 0.0, 1.0, 1.0], &[2, 2]);
    let op = Op::LinalgSolveTriangular(Triangle { upper: false });
    assert!(!evaluates(&run(op, &[&zero, &b]).unwrap()));
    // The stream goes on.
    check(Op::LinalgDet, &[&singular], &[], &[0f32]);
    assert!(evaluates(&all(Op::LinalgLu, &[&singular])[2]));
}

#[test]
fn determinants() {
    check(Op::LinalgDet, &[&tensor(&[1f32, 2.0, 3.0, 4.0], &[2, 2])], &[], &[-2f32]);
    check(Op::LinalgDet, &[&tensor(&[-3f64], &[1, 1])], &[], &[-3f64]);
    let diagonal: Vec<f64> = (0..32)
        .map(|flat| if flat % 16 / 4 == flat % 4 { (flat / 4 + 1) as f64 } else { 0.0 })
        .collect();
    let got = doubles(&run(Op::LinalgDet, &[&array(&diagonal, &[2, 4, 4])]).unwrap());
    assert_close(&got, &[24.0, 1680.0], 1e-2);
    let half = run(Op::Astype(Cast { dtype: Dtype::Float16 }), &[&array(&diagonal, &[2, 4, 4])]);
    let got = run(Op::LinalgDet, &[&half.unwrap()]).unwrap();
    assert_eq!(dtype(&got), Dtype::Float16);
    assert_close(&doubles(&got), &[24.0, 1680.0], 1.0);
}

#[test]
fn nothing_is_decomposed_into_nothing() {
    for shape in [[0, 0], [2, 0], [0, 2]] {
        let empty = array(&[], &shape);
        let (m, n, k) = (shape[0], shape[1], shape[0].min(shape[1]));
        let shapes = |op: Op| -> Vec<Vec<i64>> {
            let parts = all(op, &[&empty]);
            assert!(parts.iter().all(evaluates));
            parts.iter().map(support::shape).collect()
        };
        assert_eq!(shapes(Op::LinalgLu), [vec![m], vec![m, k], vec![k, n]]);
        assert_eq!(shapes(Op::LinalgSvd), [vec![m, m], vec![k], vec![n, n]]);
        assert_eq!(shapes(Op::LinalgQr), [vec![m, k], vec![k, n]]);
        assert_eq!(shapes(Op::LinalgPinv), [vec![n, m]]);
    }
    for shape in [&[0i64, 0][..], &[0, 3, 3], &[2, 0, 0]] {
        let empty = array(&[], shape);
        for op in [
            Op::LinalgInv,
            Op::LinalgTriInv(Triangle { upper: true }),
            Op::LinalgCholesky(Triangle { upper: false }),
            Op::LinalgSolve,
            Op::LinalgSolveTriangular(Triangle { upper: true }),
        ] {
            let inputs = [&empty, &empty];
            let two = matches!(op, Op::LinalgSolve | Op::LinalgSolveTriangular(_));
            check(op, &inputs[..if two { 2 } else { 1 }], shape, &[] as &[f32]);
        }
        for op in [Op::LinalgEigh(Eigh { upper: true }), Op::LinalgEig] {
            assert!(all(op, &[&empty]).iter().all(evaluates));
        }
    }
    check(Op::LinalgDet, &[&array(&[], &[2, 0, 0])], &[2], &[1f32, 1.0]);
    check(
        Op::LinalgSolve,
        &[&array(&identity(2), &[2, 2]), &array(&[], &[2, 0])],
        &[2, 0],
        &[] as &[f32],
    );
}

#[test]
fn matrices_without_numbers_end_in_an_error_or_a_result() {
    for bad in [f32::NAN, f32::INFINITY] {
        let matrix = tensor(&[bad; 9], &[3, 3]);
        for op in [
            Op::LinalgLu,
            Op::LinalgSvd,
            Op::LinalgQr,
            Op::LinalgEig,
            Op::LinalgEigh(Eigh { upper: false }),
            Op::LinalgInv,
            Op::LinalgPinv,
            Op::LinalgDet,
        ] {
            // Either is fine; what counts is that it comes back.
            for part in all(op, &[&matrix]) {
                evaluates(&part);
            }
        }
    }
    check(Op::LinalgDet, &[&tensor(&[2f32], &[1, 1])], &[], &[2f32]);
}

#[test]
fn what_is_no_matrix_is_refused() {
    let square = [
        Op::LinalgInv,
        Op::LinalgTriInv(Triangle { upper: true }),
        Op::LinalgCholesky(Triangle { upper: true }),
        Op::LinalgDet,
        Op::LinalgEig,
        Op::LinalgEigh(Eigh { upper: true }),
    ];
    let any = [Op::LinalgLu, Op::LinalgSvd, Op::LinalgQr, Op::LinalgPinv];
    for op in square.iter().chain(&any) {
        refuses_all(op.clone(), &[&scalar(1f32)]);
        refuses_all(op.clone(), &[&vector(&[1f32])]);
        refuses_all(op.clone(), &[&tensor(&[1i32], &[1, 1])]);
    }
    for op in square {
        refuses_all(op, &[&tensor(&[1f32, 2.0], &[1, 2])]);
    }
    for op in [Op::LinalgLu, Op::LinalgQr, Op::LinalgInv, Op::LinalgDet, Op::LinalgPinv] {
        refuses_all(op, &[&tensor(&[complex(1.0, 1.0)], &[1, 1])]);
    }
    let a = tensor(&[1f32, 2.0, 3.0, 4.0], &[2, 2]);
    refuses(Op::LinalgSolve, &[&a, &vector(&[1f32, 2.0, 3.0])]);
    refuses(Op::LinalgSolve, &[&a, &scalar(1f32)]);
    refuses(Op::LinalgSolve, &[&tensor(&[1f32, 2.0], &[1, 2]), &vector(&[1f32])]);
    refuses(Op::LinalgSolve, &[&a, &vector(&[1i32, 2])]);
    let three = tensor(&[1f32; 12], &[3, 2, 2]);
    refuses(Op::LinalgSolve, &[&tensor(&[1f32; 8], &[2, 2, 2]), &three]);
}

#[test]
fn a_huge_batch_is_refused_before_lapack_loses_count() {
    let one = tensor(&[1f32], &[1, 1, 1]);
    let broadcast = |shape: &[i64]| -> Result<Array> {
        Op::BroadcastTo(emily_core::op::Shape { shape: shape.to_vec() })
            .build(&build(), &[Some(&one)])
    };
    let wide = broadcast(&[2, 40000, 40000]).unwrap();
    refuses_all(Op::LinalgSvd, &[&wide]);
    refuses_all(Op::LinalgLu, &[&wide]);
    let big = broadcast(&[1, 20000, 20000]).unwrap();
    refuses_all(Op::LinalgSvd, &[&big]);
}
