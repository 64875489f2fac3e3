//! Reductions, running reductions and sorting against numbers computed by hand.

mod support;

use emily_core::dtype::Dtype;
use emily_core::op::{
    ArgExtreme, Axes, Axis, Cast, Op, Partition, Reduce, ReduceAxis, Scan, Searchsorted, Softmax,
    Spread, Topk,
};
use support::*;

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

fn over(axes: &[i64], keep_axes: bool) -> Reduce {
    Reduce { axes: axes.to_vec(), keep_axes }
}

#[test]
fn sums_and_products() {
    let x = tensor(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
    check(Op::Sum(over(&[0, 1], false)), &[&x], &[], &[21f32]);
    check(Op::Sum(over(&[1], false)), &[&x], &[2], &[6f32, 15.0]);
    check(Op::Sum(over(&[-2], true)), &[&x], &[1, 3], &[5f32, 7.0, 9.0]);
    check(Op::Sum(over(&[1, 0], true)), &[&x], &[1, 1], &[21f32]);
    check(Op::Prod(over(&[1], false)), &[&x], &[2], &[6f32, 120.0]);
    // Narrow integers in 32 bits, whatever the axes.
    let narrow = vector(&[200u8, 100]);
    check(Op::Sum(over(&[0], false)), &[&narrow], &[], &[300u32]);
    check(Op::Sum(over(&[], false)), &[&narrow], &[2], &[200u32, 100]);
    check(Op::Prod(over(&[0], false)), &[&vector(&[-100i8, 100])], &[], &[-10000i32]);
    check(Op::Sum(over(&[0], false)), &[&vector(&[true, true, false])], &[], &[2i32]);
    check(Op::Sum(over(&[0], false)), &[&vector(&[i64::MAX, 1])], &[], &[i64::MIN]);
    check(Op::Sum(over(&[], false)), &[&scalar(2f32)], &[], &[2f32]);
    // Views: reversed, transposed and broadcast.
    let reversed = run(Op::Flip(Axes { axes: vec![0, 1] }), &[&x]).unwrap();
    check(Op::Sum(over(&[1], false)), &[&reversed], &[2], &[15f32, 6.0]);
    check(Op::Sum(over(&[0], false)), &[&reversed], &[3], &[9f32, 7.0, 5.0]);
    let transposed = run(Op::Transpose(Axes { axes: vec![1, 0] }), &[&x]).unwrap();
    check(Op::Sum(over(&[1], false)), &[&transposed], &[3], &[5f32, 7.0, 9.0]);
    let wide = Op::BroadcastTo(emily_core::op::Shape { shape: vec![4, 2, 3] });
    let wide = run(wide, &[&x]).unwrap();
    check(Op::Sum(over(&[0, 2], false)), &[&wide], &[2], &[24f32, 60.0]);
}

#[test]
fn extremes_and_truth() {
    let x = tensor(&[1f32, -2.0, 3.0, 4.0, NAN, 6.0], &[2, 3]);
    check(Op::Max(over(&[1], false)), &[&x], &[2], &[3f32, NAN]);
    check(Op::Min(over(&[0], false)), &[&x], &[3], &[1f32, NAN, 3.0]);
    check(Op::Max(over(&[], false)), &[&scalar(5i8)], &[], &[5i8]);
    check(Op::Max(over(&[0], true)), &[&vector(&[u64::MAX, 0])], &[1], &[u64::MAX]);
    check(Op::Min(over(&[0], false)), &[&vector(&[true, false])], &[], &[false]);
    let y = tensor(&[0f32, 1.0, -0.0, 0.0], &[2, 2]);
    check(Op::All(over(&[1], false)), &[&y], &[2], &[false, false]);
    check(Op::Any(over(&[1], false)), &[&y], &[2], &[true, false]);
    check(Op::Any(over(&[], false)), &[&scalar(3i32)], &[], &[true]);
    let z = vector(&[complex(-0.0, 0.0), complex(0.0, 2.0)]);
    check(Op::All(over(&[0], false)), &[&z], &[], &[false]);
    check(Op::Any(over(&[0], false)), &[&z], &[], &[true]);
}

#[test]
fn means_and_spreads() {
    let x = tensor(&[1f32, 2.0, 3.0, 6.0], &[2, 2]);
    check(Op::Mean(over(&[0, 1], false)), &[&x], &[], &[3f32]);
    check(Op::Mean(over(&[1], true)), &[&x], &[2, 1], &[1.5f32, 4.5]);
    check(Op::Mean(over(&[], false)), &[&scalar(3i32)], &[], &[3f32]);
    // In 32 bits this sum would wrap.
    check(Op::Mean(over(&[0], false)), &[&vector(&[i32::MAX - 127; 4])], &[], &[2147483520f32]);
    check(Op::Mean(over(&[0], false)), &[&vector(&[true, false])], &[], &[0.5f32]);
    check(
        Op::Mean(over(&[0], false)),
        &[&vector(&[u64::MAX / 2 + 1])],
        &[],
        &[9223372036854775808f32],
    );

    let spread = |axes: &[i64], ddof| Spread { axes: axes.to_vec(), keep_axes: false, ddof };
    check(Op::Var(spread(&[0, 1], 0)), &[&x], &[], &[3.5f32]);
    check(Op::Var(spread(&[1], 1)), &[&x], &[2], &[0.5f32, 4.5]);
    check(Op::Std(spread(&[1], 0)), &[&x], &[2], &[0.5f32, 1.5]);
    check(Op::Var(spread(&[0], 0)), &[&vector(&[1i32, 3])], &[], &[1f32]);
    check(Op::Var(spread(&[], 0)), &[&scalar(7f32)], &[], &[0f32]);
    check(
        Op::Var(spread(&[0], 0)),
        &[&vector(&[complex(1.0, 1.0), complex(-1.0, -1.0)])],
        &[],
        &[2f32],
    );

    let median = |axes: &[i64]| Op::Median(over(axes, false));
    check(median(&[0]), &[&vector(&[3f32, 1.0, 2.0])], &[], &[2f32]);
    check(median(&[0]), &[&vector(&[4i32, 1, 2, 3])], &[], &[2.5f32]);
    check(median(&[0]), &[&vector(&[1f32, NAN, 2.0])], &[], &[NAN]);
    check(median(&[0, 1]), &[&x], &[], &[2.5f32]);
    check(Op::Median(over(&[0], true)), &[&x], &[1, 2], &[2f32, 4.0]);
    check(median(&[]), &[&scalar(7u8)], &[], &[7f32]);
}

#[test]
fn positions_of_extremes() {
    let at = |axis, keep_axis| ReduceAxis { axis, keep_axis };
    let x = tensor(&[1f32, 5.0, 5.0, 7.0, -1.0, 0.0], &[2, 3]);
    check(Op::Argmax(at(1, false)), &[&x], &[2], &[1u32, 0]);
    check(Op::Argmax(at(-2, true)), &[&x], &[1, 3], &[1u32, 0, 0]);
    check(Op::Argmin(at(0, false)), &[&x], &[3], &[0u32, 1, 1]);
    check(Op::Argmin(at(0, false)), &[&tensor(&[7i32], &[1, 1])], &[1], &[0u32]);
    check(Op::Argmax(at(1, false)), &[&tensor::<f32>(&[], &[0, 3])], &[0], &[0u32; 0]);
}

fn extreme(axis: i64, greatest: bool, last: bool, dtype: Dtype) -> Op {
    Op::ArgExtreme(ArgExtreme { axis, keep_axis: false, greatest, last, dtype })
}

#[test]
fn positions_of_extremes_with_a_rule() {
    let (s32, greatest, least) = (Dtype::Int32, true, false);
    let x = tensor(&[1f32, 5.0, 5.0, 7.0, -1.0, -1.0], &[2, 3]);
    check(extreme(1, greatest, false, s32), &[&x], &[2], &[1i32, 0]);
    check(extreme(1, greatest, true, s32), &[&x], &[2], &[2i32, 0]);
    check(extreme(-1, least, false, s32), &[&x], &[2], &[0i32, 1]);
    check(extreme(1, least, true, s32), &[&x], &[2], &[0i32, 2]);
    check(extreme(0, greatest, false, s32), &[&x], &[3], &[1i32, 0, 0]);
    let columns = run(Op::Transpose(Axes { axes: vec![1, 0] }), &[&x]).unwrap();
    check(extreme(0, greatest, true, s32), &[&columns], &[2], &[2i32, 0]);
    check(extreme(1, least, true, s32), &[&columns], &[3], &[0i32, 1, 1]);

    // The last NaN, wherever it is, and zeros that are equal whatever their sign.
    let x = tensor(&[NAN, 9.0, 1.0, 9.0, NAN, NAN, NAN, 2.0, f32::INFINITY], &[3, 3]);
    for last in [false, true] {
        check(extreme(1, greatest, last, s32), &[&x], &[3], &[0i32, 2, 0]);
        check(extreme(1, least, last, s32), &[&x], &[3], &[0i32, 2, 0]);
        check(extreme(0, least, last, s32), &[&x], &[3], &[2i32, 1, 1]);
    }
    check(extreme(0, greatest, true, s32), &[&vector(&[-0f32, 0.0, -0.0])], &[], &[2i32]);
    check(extreme(0, least, false, s32), &[&vector(&[0f32, -0.0])], &[], &[0i32]);

    for dtype in [Dtype::Float16, Dtype::Bfloat16, Dtype::Float64] {
        let x = run(Op::Astype(Cast { dtype }), &[&x]).unwrap();
        check(extreme(1, greatest, false, s32), &[&x], &[3], &[0i32, 2, 0]);
    }
    check(extreme(0, greatest, true, s32), &[&vector(&[u64::MAX, 0, u64::MAX])], &[], &[2i32]);
    check(extreme(0, least, true, s32), &[&vector(&[i64::MIN, i64::MAX])], &[], &[0i32]);
    check(extreme(0, greatest, false, s32), &[&vector(&[false, true, true])], &[], &[1i32]);
    check(extreme(0, least, true, s32), &[&vector(&[i8::MIN, i8::MIN, 0])], &[], &[1i32]);

    let three = vector(&[1u8, 2, 3]);
    check(extreme(0, greatest, false, Dtype::Uint32), &[&three], &[], &[2u32]);
    check(extreme(0, greatest, false, Dtype::Uint64), &[&three], &[], &[2u64]);
    check(extreme(0, greatest, false, Dtype::Int64), &[&three], &[], &[2i64]);
    check(extreme(0, greatest, false, Dtype::Uint8), &[&three], &[], &[2u8]);
    check(extreme(0, greatest, false, Dtype::Float32), &[&three], &[], &[2f32]);
    let keep = ArgExtreme { axis: 0, keep_axis: true, greatest, last: true, dtype: s32 };
    check(Op::ArgExtreme(keep), &[&three], &[1], &[2i32]);

    let nothing = tensor::<f32>(&[], &[0, 3]);
    check(extreme(1, greatest, false, s32), &[&nothing], &[0], &[0i32; 0]);
    refuses(extreme(0, greatest, false, s32), &[&nothing]);
    refuses(extreme(0, greatest, false, s32), &[&scalar(1f32)]);
    refuses(extreme(1, greatest, false, s32), &[&three]);
    refuses(extreme(0, greatest, false, s32), &[&vector(&[complex(1.0, 1.0)])]);
}

#[test]
fn exponentials() {
    let x = tensor(&[0f32, 0.0, 1000.0, 1000.0], &[2, 2]);
    let ln2 = std::f32::consts::LN_2;
    check_close(Op::Logsumexp(over(&[1], false)), &[&x], &[ln2, 1000.0 + ln2]);
    check_close(Op::Logsumexp(over(&[0], true)), &[&x], &[1000.0, 1000.0]);
    check_close(Op::Logsumexp(over(&[0], false)), &[&vector(&[0i32, 0])], &[ln2]);
    check_close(Op::Logsumexp(over(&[], false)), &[&scalar(3i32)], &[3.0]);
    let softmax = |axes: &[i64]| Op::Softmax(Softmax { axes: axes.to_vec(), precise: true });
    check_close(softmax(&[1]), &[&x], &[0.5; 4]);
    check_close(softmax(&[0]), &[&x], &[0.0, 0.0, 1.0, 1.0]);
    check_close(softmax(&[1, 0]), &[&x], &[0.0, 0.0, 0.5, 0.5]);
    check_close(softmax(&[0]), &[&tensor(&[1i32, 1], &[2, 1])], &[0.5, 0.5]);
    check_close(softmax(&[]), &[&scalar(3f32)], &[1.0]);
    // Both axes, as MLX has one kernel for the last.
    let doubles = [f64::NEG_INFINITY, 0.0, -700.0, 1.0];
    let sum: f64 = doubles.iter().map(|x| x.exp()).sum();
    for shape in [&[4, 1], &[1, 4]] {
        let x = tensor(&doubles, shape);
        let axis = if shape[0] == 4 { 0 } else { 1 };
        check_close_f64(softmax(&[axis]), &[&x], &doubles.map(|x| x.exp() / sum));
        check_close_f64(Op::Logsumexp(over(&[axis], false)), &[&x], &[sum.ln()]);
    }
    let none = vector(&[f64::NEG_INFINITY; 2]);
    check(Op::Logsumexp(over(&[0], false)), &[&none], &[], &[f64::NEG_INFINITY]);
}

#[test]
fn reductions_of_no_elements() {
    let none = tensor::<f32>(&[], &[0, 3]);
    check(Op::Sum(over(&[0], false)), &[&none], &[3], &[0f32; 3]);
    check(Op::Sum(over(&[1], false)), &[&none], &[0], &[0f32; 0]);
    check(Op::Prod(over(&[0, 1], true)), &[&none], &[1, 1], &[1f32]);
    check(Op::Prod(over(&[0], false)), &[&tensor::<u8>(&[], &[0])], &[], &[1u32]);
    check(Op::All(over(&[0], false)), &[&none], &[3], &[true; 3]);
    check(Op::Any(over(&[0], false)), &[&none], &[3], &[false; 3]);
    check(Op::Mean(over(&[0], false)), &[&none], &[3], &[NAN; 3]);
    check(Op::Logsumexp(over(&[0], false)), &[&none], &[3], &[-INF; 3]);
    check(Op::Max(over(&[1], false)), &[&none], &[0], &[0f32; 0]);
    check(Op::Median(over(&[1], false)), &[&none], &[0], &[0f32; 0]);
    let spread = Spread { axes: vec![0], keep_axes: false, ddof: 0 };
    check(Op::Var(spread), &[&none], &[3], &[NAN; 3]);
    let softmax = Softmax { axes: vec![1], precise: false };
    check(Op::Softmax(softmax), &[&tensor::<i32>(&[], &[0, 3])], &[0, 3], &[0f32; 0]);
}

fn scan(axis: i64, reverse: bool, inclusive: bool) -> Scan {
    Scan { axis, reverse, inclusive }
}

#[test]
fn running_reductions() {
    let x = tensor(&[1i32, 2, 3, 4, 5, 6], &[2, 3]);
    check(Op::Cumsum(scan(1, false, true)), &[&x], &[2, 3], &[1i32, 3, 6, 4, 9, 15]);
    check(Op::Cumsum(scan(0, false, true)), &[&x], &[2, 3], &[1i32, 2, 3, 5, 7, 9]);
    check(Op::Cumsum(scan(-1, true, true)), &[&x], &[2, 3], &[6i32, 5, 3, 15, 11, 6]);
    check(Op::Cumsum(scan(1, false, false)), &[&x], &[2, 3], &[0i32, 1, 3, 0, 4, 9]);
    check(Op::Cumsum(scan(1, true, false)), &[&x], &[2, 3], &[5i32, 3, 0, 11, 6, 0]);
    check(Op::Cumprod(scan(1, false, true)), &[&x], &[2, 3], &[1i32, 2, 6, 4, 20, 120]);
    check(Op::Cumprod(scan(0, false, false)), &[&x], &[2, 3], &[1i32, 1, 1, 1, 2, 3]);
    let y = vector(&[3f32, 1.0, NAN, 2.0]);
    check(Op::Cummax(scan(0, false, true)), &[&y], &[4], &[3f32, 3.0, NAN, NAN]);
    check(Op::Cummin(scan(0, true, true)), &[&y], &[4], &[NAN, NAN, NAN, 2.0]);
    check(Op::Cummax(scan(0, false, false)), &[&vector(&[1i8, 2])], &[2], &[i8::MIN, 1]);
    let logs = run(Op::Log, &[&vector(&[1f32, 2.0, 3.0])]).unwrap();
    let logs = run(Op::Logcumsumexp(scan(0, false, true)), &[&logs]).unwrap();
    check_close(Op::Exp, &[&logs], &[1.0, 3.0, 6.0]);
    check_close(Op::Logcumsumexp(scan(0, false, true)), &[&vector(&[5i32])], &[5.0]);
    let flags = vector(&[true, true, false]);
    check(Op::Cumsum(scan(0, false, true)), &[&flags], &[3], &[1i32, 2, 2]);
    check(Op::Cumprod(scan(0, false, true)), &[&flags], &[3], &[1i32, 1, 0]);
    // An axis of size 1 with a stride of zero, and no elements at all, by which MLX would divide.
    let one = Op::BroadcastTo(emily_core::op::Shape { shape: vec![1, 1] });
    let one = run(one, &[&scalar(4f32)]).unwrap();
    for inclusive in [true, false] {
        let expected = if inclusive { 4f32 } else { 0.0 };
        check(Op::Cumsum(scan(0, false, inclusive)), &[&one], &[1, 1], &[expected]);
        let none = tensor::<f32>(&[], &[0, 2]);
        check(Op::Cumsum(scan(0, false, inclusive)), &[&none], &[0, 2], &[0f32; 0]);
        check(Op::Cummin(scan(1, true, inclusive)), &[&none], &[0, 2], &[0f32; 0]);
    }
}

#[test]
fn sorting() {
    let along = |axis| Axis { axis };
    let x = tensor(&[3f32, NAN, 1.0, -INF, 2.0, 2.0], &[2, 3]);
    check(Op::Sort(along(1)), &[&x], &[2, 3], &[1f32, 3.0, NAN, -INF, 2.0, 2.0]);
    check(Op::Sort(along(-2)), &[&x], &[2, 3], &[-INF, 2.0, 1.0, 3.0, NAN, 2.0]);
    check(Op::Argsort(along(1)), &[&x], &[2, 3], &[2u32, 0, 1, 0, 1, 2]);
    check(Op::Sort(along(0)), &[&vector(&[true, false])], &[2], &[false, true]);
    let none = tensor::<f32>(&[], &[2, 0]);
    check(Op::Sort(along(1)), &[&none], &[2, 0], &[0f32; 0]);
    check(Op::Argsort(along(1)), &[&none], &[2, 0], &[0u32; 0]);
    check(Op::Sort(along(0)), &[&none], &[2, 0], &[0f32; 0]);

    let y = vector(&[5i32, 1, 4, 2, 3]);
    let cut = |kth| Partition { kth, axis: 0 };
    for kth in [2, -3] {
        let parted: Vec<i32> = read(&run(Op::Partition(cut(kth)), &[&y]).unwrap());
        assert!(parted[2] == 3 && parted[..2].iter().all(|&e| e < 3), "{parted:?}");
        let at: Vec<u32> = read(&run(Op::Argpartition(cut(kth)), &[&y]).unwrap());
        assert!(at[2] == 4 && at[..2].iter().all(|&i| i == 1 || i == 3), "{at:?}");
    }
    let top = |k| Op::Topk(Topk { k, axis: 0 });
    let mut best: Vec<i32> = read(&run(top(2), &[&y]).unwrap());
    best.sort();
    assert_eq!(best, [4, 5]);
    check(top(0), &[&y], &[0], &[0i32; 0]);
    assert_eq!(shape(&run(top(5), &[&y]).unwrap()), [5]);

    let sorted = vector(&[1f32, 2.0, 2.0, 4.0]);
    let values = tensor(&[0f32, 2.0, 3.0, 9.0], &[2, 2]);
    let left = Op::Searchsorted(Searchsorted { right: false });
    check(left.clone(), &[&sorted, &values], &[2, 2], &[0u32, 1, 3, 4]);
    let right = Op::Searchsorted(Searchsorted { right: true });
    check(right, &[&sorted, &values], &[2, 2], &[0u32, 3, 3, 4]);
    check(left, &[&tensor::<f32>(&[], &[0]), &scalar(1f32)], &[], &[0u32]);
}

#[test]
fn every_dtype_reduces_and_sorts() {
    for &dtype in Dtype::ALL {
        let cast = |dtype| Op::Astype(emily_core::op::Cast { dtype });
        let x = run(cast(dtype), &[&vector(&[1i32, 0, 1])]).unwrap();
        let back =
            |op| read::<f32>(&run(cast(Dtype::Float32), &[&run(op, &[&x]).unwrap()]).unwrap());
        assert_eq!(back(Op::Sum(over(&[0], false))), [2.0], "{dtype}");
        assert_eq!(back(Op::Prod(over(&[0], false))), [0.0], "{dtype}");
        assert_eq!(back(Op::Max(over(&[0], false))), [1.0], "{dtype}");
        assert_eq!(back(Op::Argmin(ReduceAxis { axis: 0, keep_axis: false })), [1.0], "{dtype}");
        assert_eq!(back(Op::Cumsum(scan(0, false, true))), [1.0, 1.0, 2.0], "{dtype}");
        assert_eq!(back(Op::Sort(Axis { axis: 0 })), [0.0, 1.0, 1.0], "{dtype}");
        assert_eq!(back(Op::Argsort(Axis { axis: 0 })), [1.0, 0.0, 2.0], "{dtype}");
    }
}

#[test]
fn hostile_arguments_are_refused() {
    let (x, one) = (tensor(&[1f32, 2.0, 3.0, 4.0], &[2, 2]), scalar(1f32));
    let none = tensor::<f32>(&[], &[0, 3]);
    let reductions: [fn(Reduce) -> Op; 9] = [
        Op::Sum,
        Op::Mean,
        Op::Prod,
        Op::Max,
        Op::Min,
        Op::All,
        Op::Any,
        Op::Logsumexp,
        Op::Median,
    ];
    for reduction in reductions {
        for axes in [&[2i64][..], &[-3], &[0, 0], &[1, -1], &[i64::MIN], &[i64::MAX]] {
            refuses(reduction(over(axes, false)), &[&x]);
        }
        refuses(reduction(over(&[0], false)), &[&one]);
    }
    refuses(Op::Max(over(&[0], false)), &[&none]);
    refuses(Op::Min(over(&[0, 1], true)), &[&none]);
    refuses(Op::Median(over(&[0], true)), &[&none]);
    refuses(Op::Median(over(&[0], true)), &[&vector(&[complex(1.0, 1.0)])]);
    for axis in [2, -3, i64::MAX] {
        let at = || ReduceAxis { axis, keep_axis: false };
        let scan = || scan(axis, false, true);
        refuses(Op::Argmax(at()), &[&x]);
        refuses(Op::Argmin(at()), &[&x]);
        for op in [Op::Cumsum(scan()), Op::Cumprod(scan()), Op::Cummax(scan()), Op::Cummin(scan())]
        {
            refuses(op, &[&x]);
        }
        refuses(Op::Logcumsumexp(scan()), &[&x]);
        refuses(Op::Sort(Axis { axis }), &[&x]);
        refuses(Op::Argsort(Axis { axis }), &[&x]);
        refuses(Op::Partition(Partition { kth: 0, axis }), &[&x]);
        refuses(Op::Argpartition(Partition { kth: 0, axis }), &[&x]);
        refuses(Op::Topk(Topk { k: 1, axis }), &[&x]);
        refuses(Op::Softmax(Softmax { axes: vec![axis], precise: false }), &[&x]);
    }
    refuses(Op::Argmax(ReduceAxis { axis: 0, keep_axis: false }), &[&one]);
    refuses(Op::Argmax(ReduceAxis { axis: 0, keep_axis: false }), &[&none]);
    refuses(Op::Cumsum(scan(0, false, true)), &[&one]);
    refuses(Op::Sort(Axis { axis: 0 }), &[&one]);
    refuses(Op::Softmax(Softmax { axes: vec![0], precise: false }), &[&one]);
    for ddof in [-1, i64::MAX] {
        refuses(Op::Var(Spread { axes: vec![0], keep_axes: false, ddof }), &[&x]);
        refuses(Op::Std(Spread { axes: vec![0], keep_axes: false, ddof }), &[&x]);
    }
    for kth in [2, -3, i64::MAX, i64::MIN] {
        refuses(Op::Partition(Partition { kth, axis: 0 }), &[&x]);
        refuses(Op::Argpartition(Partition { kth, axis: 1 }), &[&x]);
    }
    refuses(Op::Partition(Partition { kth: 0, axis: 0 }), &[&none]);
    for k in [-1, 3, i64::MAX] {
        refuses(Op::Topk(Topk { k, axis: 0 }), &[&x]);
    }
    refuses(Op::Searchsorted(Searchsorted { right: true }), &[&x, &one]);
    refuses(Op::Searchsorted(Searchsorted { right: true }), &[&one, &one]);
    // More elements than the CPU's kernels count.
    let shape = vec![i64::from(i32::MAX), 2];
    let long = run(Op::BroadcastTo(emily_core::op::Shape { shape }), &[&one]).unwrap();
    refuses(Op::Sum(over(&[0], false)), &[&long]);
    refuses(Op::Sort(Axis { axis: 0 }), &[&long]);
    refuses(Op::Cumsum(scan(0, false, true)), &[&long]);
}
