//! Elementwise ops against numbers computed by hand.

mod support;

use emily_core::dtype::Dtype;
use emily_core::op::{ArrayEqual, Cast, Op, Round, Slice};
use std::f32::consts::{E, PI};
use support::*;

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

type Numbers = &'static [f32];

#[test]
fn functions_of_real_numbers() {
    let table: &[(Op, Numbers, Numbers)] = &[
        (Op::Sqrt, &[4.0, 0.25, -1.0], &[2.0, 0.5, NAN]),
        (Op::Rsqrt, &[4.0, 0.25], &[0.5, 2.0]),
        (Op::Exp, &[0.0, 1.0, -INF], &[1.0, E, 0.0]),
        (Op::Expm1, &[0.0, 1e-6], &[0.0, 1.0000005e-6]),
        (Op::Log, &[1.0, E, 0.0], &[0.0, 1.0, -INF]),
        (Op::Log1p, &[0.0, 1e-6], &[0.0, 0.9999995e-6]),
        (Op::Log2, &[8.0, 0.5], &[3.0, -1.0]),
        (Op::Log10, &[1000.0, 0.1], &[3.0, -1.0]),
        (Op::Sin, &[0.0, PI / 2.0, PI / 6.0], &[0.0, 1.0, 0.5]),
        (Op::Cos, &[0.0, PI, PI / 3.0], &[1.0, -1.0, 0.5]),
        (Op::Tan, &[0.0, PI / 4.0], &[0.0, 1.0]),
        (Op::Arcsin, &[1.0, 2.0], &[PI / 2.0, NAN]),
        (Op::Arccos, &[1.0, -1.0], &[0.0, PI]),
        (Op::Arctan, &[1.0, INF], &[PI / 4.0, PI / 2.0]),
        (Op::Sinh, &[0.0, 1.0], &[0.0, 1.1752012]),
        (Op::Cosh, &[0.0, 1.0], &[1.0, 1.5430806]),
        (Op::Tanh, &[0.0, INF], &[0.0, 1.0]),
        (Op::Arcsinh, &[0.0, 1.0], &[0.0, 0.8813736]),
        (Op::Arccosh, &[1.0, 2.0], &[0.0, 1.316958]),
        (Op::Arctanh, &[0.0, 0.5], &[0.0, 0.54930615]),
        (Op::Sigmoid, &[0.0, INF, -INF], &[0.5, 1.0, 0.0]),
        (Op::Erf, &[0.0, 1.0], &[0.0, 0.8427008]),
        (Op::Erfinv, &[0.0, 0.8427008, 1.0], &[0.0, 1.0, INF]),
        (Op::Degrees, &[PI, -PI / 2.0], &[180.0, -90.0]),
        (Op::Radians, &[180.0, 90.0], &[PI, PI / 2.0]),
    ];
    for (op, input, expected) in table {
        check_close(op.clone(), &[&vector(input)], expected);
        // A scalar, and integers as f32 where the input is one.
        check_close(op.clone(), &[&scalar(input[0])], &expected[..1]);
        if input[0].fract() == 0.0 {
            check_close(op.clone(), &[&scalar(input[0] as i32)], &expected[..1]);
        }
    }
}

/// By the definition of each in f64, at numbers of all sizes, in order and in steps of three.
#[test]
fn exponentials_are_the_nearest_numbers() {
    let numbers: Vec<f32> = (-3000..=3000)
        .flat_map(|i| [i as f32 / 29.0, i as f32 / 500.0, i as f32 * 1e-12])
        .chain([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-42])
        .collect();
    let logistic: fn(f64) -> f64 = |x| 1.0 / (1.0 + (-x).exp());
    let functions = [(Op::Exp, f64::exp as fn(f64) -> f64), (Op::Sigmoid, logistic)];
    let count = numbers.len() as i64;
    let x = vector(&numbers);
    let spread: Vec<f32> = numbers.iter().flat_map(|&x| [x, 7.0, 8.0]).collect();
    let columns = Slice { starts: vec![0, 0], stops: vec![count, 1], strides: vec![1, 1] };
    let spread = run(Op::Slice(columns), &[&tensor(&spread, &[count, 3])]).unwrap();
    for (op, function) in functions {
        let got = read::<f32>(&run(op.clone(), &[&x]).unwrap());
        for (&x, &got) in numbers.iter().zip(&got) {
            let expected = function(x.into()) as f32;
            let apart = (got.to_bits() as i64 - expected.to_bits() as i64).abs();
            assert!(apart <= 1, "{op:?} of {x}: expected {expected}, got {got}");
        }
        let strided = run(op.clone(), &[&spread]).unwrap();
        assert_eq!(shape(&strided), [count, 1]);
        assert_eq!(read::<f32>(&strided), got, "{op:?}");
        assert!(read::<f32>(&run(op, &[&vector(&[f32::NAN])]).unwrap())[0].is_nan());
    }
}

/// To the digits of Abramowitz and Stegun's table 7.1.
#[test]
fn the_error_function() {
    let points = [0.02, 0.5, 0.98, 1.0, 1.02, 1.5, 2.0];
    let table = [
        0.0225645747,
        0.5204998778,
        0.8342315043,
        0.8427007929,
        0.8508380177,
        0.9661051465,
        0.9953222650,
    ];
    let points: Vec<f32> = points.iter().flat_map(|&x: &f32| [x, -x]).collect();
    let got = read::<f32>(&run(Op::Erf, &[&vector(&points)]).unwrap());
    for (at, &got) in got.iter().enumerate() {
        let x = f64::from(points[at]);
        // The points are no f32: the slope takes the digits over.
        let exact: f64 = [0.02, 0.5, 0.98, 1.0, 1.02, 1.5, 2.0][at / 2];
        let slope = 2.0 / std::f64::consts::PI.sqrt() * (-exact * exact).exp();
        let expected = x.signum() * (table[at / 2] + (x.abs() - exact) * slope);
        assert!((f64::from(got) - expected).abs() < 7e-8, "erf({x}): {expected}, got {got}");
    }
    let special = [0.0f32, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e-30, 1e30];
    let got = read::<f32>(&run(Op::Erf, &[&vector(&special)]).unwrap());
    assert_eq!(got[..4], [0.0, 0.0, 1.0, -1.0]);
    assert!(got[1].is_sign_negative());
    let slope = 2.0 / std::f64::consts::PI.sqrt();
    assert_eq!(got[4..], [(slope * f64::from(special[4])) as f32, 1.0]);
    assert!(read::<f32>(&run(Op::Erf, &[&vector(&[f32::NAN])]).unwrap())[0].is_nan());
}

#[test]
fn functions_of_doubles() {
    const INF: f64 = f64::INFINITY;
    const NAN: f64 = f64::NAN;
    type Function = fn(f64) -> f64;
    let x = [0.7, -0.7, 0.0, 3.0, 100.0, -100.0, 1e-9, 12345.678, -800.0, INF, -INF, NAN];
    let table: &[(Op, Function)] = &[
        (Op::Exp, f64::exp),
        (Op::Expm1, f64::exp_m1),
        (Op::Log, f64::ln),
        (Op::Log1p, f64::ln_1p),
        (Op::Log2, f64::log2),
        (Op::Log10, f64::log10),
        (Op::Sin, f64::sin),
        (Op::Cos, f64::cos),
        (Op::Tan, f64::tan),
        (Op::Arcsin, f64::asin),
        (Op::Arccos, f64::acos),
        (Op::Arctan, f64::atan),
        (Op::Sinh, f64::sinh),
        (Op::Cosh, f64::cosh),
        (Op::Tanh, f64::tanh),
        (Op::Arcsinh, f64::asinh),
        (Op::Arctanh, f64::atanh),
        (Op::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
        (Op::Sqrt, f64::sqrt),
        (Op::Rsqrt, |x| 1.0 / x.sqrt()),
        (Op::Degrees, f64::to_degrees),
        (Op::Radians, f64::to_radians),
    ];
    for (op, function) in table {
        check_close_f64(op.clone(), &[&vector(&x)], &x.map(function));
    }
    let pairs = [(0.7, 0.3), (-800.0, -801.0), (INF, INF), (-INF, -INF), (-INF, 2.0), (INF, 0.0)];
    let sums =
        [0.7 + (1.0 + (-0.4f64).exp()).ln(), -800.0 + (-1f64).exp().ln_1p(), INF, -INF, 2.0, INF];
    let (a, b) = (vector(&pairs.map(|pair| pair.0)), vector(&pairs.map(|pair| pair.1)));
    check_close_f64(Op::Logaddexp, &[&a, &b], &sums);
    check_close_f64(Op::Power, &[&scalar(0.7f64), &scalar(0.3f32)], &[0.7f64.powf(0.3f32.into())]);
    check_close_f64(Op::Arctan2, &[&scalar(0.7f64), &scalar(0.3f64)], &[0.7f64.atan2(0.3)]);
}

#[test]
fn exact_functions() {
    let table: &[(Op, Numbers, Numbers)] = &[
        (Op::Negative, &[1.5, -0.0, INF], &[-1.5, 0.0, -INF]),
        (Op::Abs, &[-1.5, -INF, NAN], &[1.5, INF, NAN]),
        (Op::Sign, &[-2.0, 0.0, 3.0], &[-1.0, 0.0, 1.0]),
        (Op::Floor, &[1.5, -1.5], &[1.0, -2.0]),
        (Op::Ceil, &[1.5, -1.5], &[2.0, -1.0]),
        (Op::Trunc, &[1.5, -1.5], &[1.0, -1.0]),
        (Op::Square, &[-3.0, 0.5], &[9.0, 0.25]),
        (Op::Reciprocal, &[4.0, 0.0], &[0.25, INF]),
        (Op::Real, &[4.0], &[4.0]),
        (Op::Imag, &[4.0], &[0.0]),
        (Op::Conjugate, &[4.0], &[4.0]),
        (Op::StopGradient, &[4.0], &[4.0]),
    ];
    for (op, input, expected) in table {
        check(op.clone(), &[&vector(input)], &[input.len() as i64], expected);
    }
    for op in [Op::Floor, Op::Ceil, Op::Trunc] {
        check(op.clone(), &[&vector(&[3u8, 4])], &[2], &[3u8, 4]);
        check(op, &[&scalar(true)], &[], &[true]);
    }
    check(Op::BitwiseInvert, &[&vector(&[0i32, -1, 5])], &[3], &[-1i32, 0, -6]);
    check(Op::BitwiseInvert, &[&vector(&[true, false])], &[2], &[false, true]);
    check(Op::Negative, &[&vector(&[1u8, 0])], &[2], &[255u8, 0]);
    check(Op::Abs, &[&vector(&[-5i8, i8::MIN])], &[2], &[5i8, i8::MIN]);
}

#[test]
fn predicates() {
    let x = vector(&[1.0, NAN, INF, -INF]);
    check(Op::Isnan, &[&x], &[4], &[false, true, false, false]);
    check(Op::Isinf, &[&x], &[4], &[false, false, true, true]);
    check(Op::Isfinite, &[&x], &[4], &[true, false, false, false]);
    check(Op::Isposinf, &[&x], &[4], &[false, false, true, false]);
    check(Op::Isneginf, &[&x], &[4], &[false, false, false, true]);
    check(Op::LogicalNot, &[&x], &[4], &[false; 4]);
    check(Op::Isfinite, &[&scalar(7i64)], &[], &[true]);
    check(Op::Isnan, &[&scalar(7u8)], &[], &[false]);
}

#[test]
fn complex_numbers() {
    let z = vector(&[complex(3.0, 4.0), complex(0.0, 1.0), complex(0.0, 0.0)]);
    check(Op::Real, &[&z], &[3], &[3.0f32, 0.0, 0.0]);
    check(Op::Imag, &[&z], &[3], &[4.0f32, 1.0, 0.0]);
    check(Op::Abs, &[&z], &[3], &[5.0f32, 1.0, 0.0]);
    let conjugate = [complex(3.0, -4.0), complex(0.0, -1.0), complex(0.0, -0.0)];
    check(Op::Conjugate, &[&z], &[3], &conjugate);
    // Neither part of a number alone says that it is zero.
    check(Op::LogicalNot, &[&z], &[3], &[false, false, true]);
    check(Op::LogicalAnd, &[&z, &scalar(true)], &[3], &[true, true, false]);
    check(Op::Astype(Cast { dtype: Dtype::Bool }), &[&z], &[3], &[true, true, false]);
    check(Op::Where, &[&z, &scalar(1i32), &scalar(2i32)], &[3], &[1i32, 1, 2]);
}

#[test]
fn two_inputs() {
    let table: &[(Op, Numbers, Numbers, Numbers)] = &[
        (Op::Add, &[1.0, 2.0], &[0.5, -2.0], &[1.5, 0.0]),
        (Op::Subtract, &[1.0, 2.0], &[0.5, -2.0], &[0.5, 4.0]),
        (Op::Multiply, &[1.0, 2.0], &[0.5, -2.0], &[0.5, -4.0]),
        (Op::Divide, &[1.0, 2.0, 0.0], &[0.5, 0.0, 0.0], &[2.0, INF, NAN]),
        (Op::FloorDivide, &[7.0, -7.0], &[2.0, 2.0], &[3.0, -4.0]),
        (Op::Remainder, &[7.0, -7.0, 7.0], &[3.0, 3.0, -3.0], &[1.0, 2.0, -2.0]),
        (Op::Power, &[2.0, 4.0, 2.0], &[10.0, 0.5, -1.0], &[1024.0, 2.0, 0.5]),
        (Op::Maximum, &[1.0, NAN, 2.0], &[2.0, 1.0, NAN], &[2.0, NAN, NAN]),
        (Op::Minimum, &[1.0, NAN, 2.0], &[2.0, 1.0, NAN], &[1.0, NAN, NAN]),
        (Op::Logaddexp, &[0.0, -INF], &[0.0, 3.0], &[std::f32::consts::LN_2, 3.0]),
        (Op::Arctan2, &[1.0, -1.0], &[1.0, 0.0], &[PI / 4.0, -PI / 2.0]),
    ];
    for (op, a, b, expected) in table {
        check_close(op.clone(), &[&vector(a), &vector(b)], expected);
    }
    let (a, b) = (vector(&[1.0, 2.0, NAN]), vector(&[2.0, 2.0, NAN]));
    check(Op::Equal, &[&a, &b], &[3], &[false, true, false]);
    check(Op::NotEqual, &[&a, &b], &[3], &[true, false, true]);
    check(Op::Less, &[&a, &b], &[3], &[true, false, false]);
    check(Op::LessEqual, &[&a, &b], &[3], &[true, true, false]);
    check(Op::Greater, &[&b, &a], &[3], &[true, false, false]);
    check(Op::GreaterEqual, &[&b, &a], &[3], &[true, true, false]);
    let (a, b) = (vector(&[0.0f32, 0.0, 2.0, 0.5]), vector(&[0i32, 3, 0, 4]));
    check(Op::LogicalAnd, &[&a, &b], &[4], &[false, false, false, true]);
    check(Op::LogicalOr, &[&a, &b], &[4], &[false, true, true, true]);
    check(Op::LogicalXor, &[&a, &b], &[4], &[false, true, true, false]);
}

#[test]
fn shapes_broadcast_and_dtypes_promote() {
    let column = tensor(&[10i32, 20], &[2, 1]);
    let row = vector(&[1i32, 2, 3]);
    check(Op::Add, &[&column, &row], &[2, 3], &[11i32, 12, 13, 21, 22, 23]);
    check(Op::Add, &[&row, &scalar(1i32)], &[3], &[2i32, 3, 4]);
    check(Op::Add, &[&scalar(1i32), &scalar(2i32)], &[], &[3i32]);
    check(Op::Add, &[&tensor::<f32>(&[], &[0, 1]), &vector(&[1f32, 2.0])], &[0, 2], &[0f32; 0]);
    check(Op::Add, &[&scalar(200u8), &scalar(-1i8)], &[], &[199i16]);
    check(Op::Divide, &[&scalar(1i32), &scalar(4i32)], &[], &[0.25f32]);
    check(Op::Add, &[&scalar(1f64), &scalar(2f32)], &[], &[3f64]);
}

#[test]
fn bits() {
    let (a, b) = (vector(&[0b1100i32, -1]), vector(&[0b1010i32, 7]));
    check(Op::BitwiseAnd, &[&a, &b], &[2], &[0b1000i32, 7]);
    check(Op::BitwiseOr, &[&a, &b], &[2], &[0b1110i32, -1]);
    check(Op::BitwiseXor, &[&a, &b], &[2], &[0b0110i32, -8]);
    // The first input of the outer op is donated, which MLX's bitwise kernel of booleans cannot bear.
    let (t, f) = (vector(&[true, true, false]), vector(&[true, false, false]));
    let inner = run(Op::BitwiseXor, &[&t, &f]).unwrap();
    check(Op::BitwiseXor, &[&inner, &t], &[3], &[true, false, false]);
}

#[test]
fn rounding_to_decimals() {
    let round = |decimals| Op::Round(Round { decimals });
    check(round(0), &[&vector(&[0.5f32, 1.5, -2.5])], &[3], &[0.0f32, 2.0, -2.0]);
    check(round(2), &[&vector(&[2.675f32, -1.005])], &[2], &[2.68f32, -1.0]);
    check(round(1), &[&vector(&[0.25f64, 0.35, 1e300])], &[3], &[0.2f64, 0.4, 1e300]);
    check(round(-2), &[&vector(&[250.0f32, 150.0, INF])], &[3], &[200.0f32, 200.0, INF]);
    check(round(3), &[&vector(&[1e37f32, NAN])], &[2], &[1e37f32, NAN]);
    check(round(-1), &[&vector(&[14i32, 16])], &[2], &[10i32, 20]);
    check(round(5), &[&scalar(14i32)], &[], &[14i32]);
    refuses(round(39), &[&scalar(1f32)]);
    refuses(round(i64::MIN), &[&scalar(1f64)]);
}

#[test]
fn selections_and_limits() {
    let x = vector(&[1.0f32, 5.0, 9.0]);
    let mask = vector(&[true, false, true]);
    check(Op::Where, &[&mask, &x, &scalar(0.0f32)], &[3], &[1.0f32, 0.0, 9.0]);
    check(Op::Where, &[&scalar(2i32), &x, &vector(&[0f32])], &[3], &[1.0f32, 5.0, 9.0]);
    let (least, greatest) = (scalar(2.0f32), scalar(6.0f32));
    check(Op::Clip, &[&x, &least, &greatest], &[3], &[2.0f32, 5.0, 6.0]);
    let only_greatest = Op::Clip.build(&build(), &[Some(&x), None, Some(&greatest)]).unwrap();
    assert_eq!(read::<f32>(&only_greatest), [1.0, 5.0, 6.0]);
    check(Op::Clip, &[&x, &greatest, &least], &[3], &[2.0f32; 3]);
    refuses(Op::Clip, &[&x]);

    let equal = |equal_nan| Op::ArrayEqual(ArrayEqual { equal_nan });
    check(equal(false), &[&x, &x], &[], &[true]);
    check(equal(false), &[&x, &scalar(1f32)], &[], &[false]);
    check(equal(false), &[&scalar(NAN), &scalar(NAN)], &[], &[false]);
    check(equal(true), &[&scalar(NAN), &scalar(NAN)], &[], &[true]);
    check(equal(true), &[&vector(&[1i32]), &vector(&[1f32])], &[], &[true]);
}

#[test]
fn hostile_arguments_are_refused() {
    let (two, three) = (vector(&[1f32, 2.0]), vector(&[1f32, 2.0, 3.0]));
    let binary = [
        Op::Add,
        Op::Subtract,
        Op::Multiply,
        Op::Divide,
        Op::FloorDivide,
        Op::Remainder,
        Op::Power,
        Op::Maximum,
        Op::Minimum,
        Op::Logaddexp,
        Op::Arctan2,
        Op::Equal,
        Op::NotEqual,
        Op::Less,
        Op::LessEqual,
        Op::Greater,
        Op::GreaterEqual,
        Op::LogicalAnd,
        Op::LogicalOr,
        Op::LogicalXor,
    ];
    for op in binary {
        let error = refuses(op, &[&two, &three]);
        assert!(error.to_string().contains("shapes that broadcast"), "{error}");
    }
    for op in
        [Op::BitwiseAnd, Op::BitwiseOr, Op::BitwiseXor, Op::LeftShift, Op::RightShift, Op::Quotient]
    {
        refuses(op.clone(), &[&two, &two]);
        refuses(op, &[&scalar(1i32), &three]);
    }
    refuses(Op::Where, &[&two, &three, &three]);
    refuses(Op::Where, &[&scalar(true), &two, &three]);
    refuses(Op::Clip, &[&two, &three, &three]);
    refuses(Op::Negative, &[&scalar(true)]);
    refuses(Op::BitwiseInvert, &[&two]);
    let z = scalar(complex(1.0, 1.0));
    for op in [Op::Floor, Op::Ceil, Op::Trunc, Op::Expm1, Op::Sigmoid, Op::Erf, Op::Erfinv] {
        refuses(op, &[&z]);
    }
    for op in [Op::FloorDivide, Op::Remainder, Op::Arctan2, Op::Quotient] {
        refuses(op, &[&z, &z]);
    }
    refuses(Op::Add, &[&two]);
    refuses(Op::Exp, &[]);
    // A result of 2^62 elements, which no allocation could hold.
    let broadcast = |shape: &[i64]| {
        let shape = shape.to_vec();
        run(Op::BroadcastTo(emily_core::op::Shape { shape }), &[&scalar(1f32)]).unwrap()
    };
    let long = i64::from(i32::MAX);
    refuses(Op::Add, &[&broadcast(&[long, 1]), &broadcast(&[1, long])]);
    refuses(Op::Where, &[&scalar(true), &broadcast(&[long, 1]), &broadcast(&[1, long])]);
    // Two of the most elements that the CPU's kernels count.
    refuses(Op::Multiply, &[&broadcast(&[long, 2]), &scalar(1f32)]);
}
