//! Integer division, shifts and powers, where MLX on the CPU would end the process or leave results open.

mod support;

use emily_core::dtype::Dtype;
use emily_core::op::{Cast, Op};
use support::*;

macro_rules! signed_division {
    ($($name:ident: $t:ty,)*) => {$(
        #[test]
        fn $name() {
            let (min, max) = (<$t>::MIN, <$t>::MAX);
            let a = vector::<$t>(&[7, -7, 7, -7, 6, 0, 5, -5, min, min, min, max, min]);
            let b = vector::<$t>(&[2, 2, -2, -2, 3, 5, 0, 0, 0, -1, 3, -1, min]);
            let quotient: Vec<$t> = vec![3, -3, -3, 3, 2, 0, -1, -1, -1, min, min / 3, -max, 1];
            check(Op::Quotient, &[&a, &b], &[13], &quotient);
            let floor: Vec<$t> =
                vec![3, -4, -4, 3, 2, 0, -1, -1, -1, min, min.div_euclid(3), -max, 1];
            check(Op::FloorDivide, &[&a, &b], &[13], &floor);
            let remainder: Vec<$t> =
                vec![1, 1, -1, -1, 0, 0, 5, -5, min, 0, min.rem_euclid(3), 0, 0];
            check(Op::Remainder, &[&a, &b], &[13], &remainder);
            // One operand broadcast, which is another loop in MLX.
            for op in [Op::Quotient, Op::FloorDivide] {
                check(op, &[&scalar::<$t>(min), &vector::<$t>(&[0, -1, 1])], &[3], &[-1, min, min]);
            }
            let zeros = vector::<$t>(&[9, min]);
            check(Op::Remainder, &[&zeros, &scalar::<$t>(0)], &[2], &[9, min]);
            check(Op::Remainder, &[&zeros, &scalar::<$t>(-1)], &[2], &[0 as $t, 0]);
        }
    )*};
}

signed_division! { divides_i8: i8, divides_i16: i16, divides_i32: i32, divides_i64: i64, }

macro_rules! unsigned_division {
    ($($name:ident: $t:ty,)*) => {$(
        #[test]
        fn $name() {
            let max = <$t>::MAX;
            let a = vector::<$t>(&[7, 6, 5, max, max, 0]);
            let b = vector::<$t>(&[2, 3, 0, 0, max, max]);
            for op in [Op::Quotient, Op::FloorDivide] {
                check::<$t>(op, &[&a, &b], &[6], &[3, 2, max, max, 1, 0]);
            }
            check::<$t>(Op::Remainder, &[&a, &b], &[6], &[1, 0, 5, max, 0, 0]);
        }
    )*};
}

unsigned_division! { divides_u8: u8, divides_u16: u16, divides_u32: u32, divides_u64: u64, }

#[test]
fn guards_see_the_promoted_dtype() {
    // -128 / -1 is out of range in i8, not in the i16 that both promote to.
    check(Op::Quotient, &[&scalar(i8::MIN), &scalar(255u8)], &[], &[0i16]);
    check(Op::Quotient, &[&scalar(i8::MIN), &scalar(-1i16)], &[], &[128i16]);
    check(Op::FloorDivide, &[&scalar(-7i8), &scalar(2u8)], &[], &[-4i16]);
    check(Op::Remainder, &[&scalar(7u32), &scalar(0i8)], &[], &[7i64]);
    // Booleans are u8, and what promotes to floats is divided as floats.
    check(Op::Quotient, &[&scalar(true), &scalar(false)], &[], &[255u8]);
    check(Op::Remainder, &[&scalar(true), &scalar(false)], &[], &[1u8]);
    check(Op::FloorDivide, &[&scalar(7u64), &scalar(-2i64)], &[], &[-4f32]);
    check(Op::FloorDivide, &[&scalar(1i32), &scalar(0f32)], &[], &[f32::INFINITY]);
    refuses(Op::Quotient, &[&scalar(7u64), &scalar(-2i64)]);
}

#[test]
fn promotion_is_that_of_mlx() {
    // Addition promotes in MLX, remainder and shifts in this crate.
    for &a in Dtype::ALL {
        for &b in Dtype::ALL {
            let number = |dtype| run(Op::Astype(Cast { dtype }), &[&scalar(5i32)]).unwrap();
            let (x, y) = (number(a), number(b));
            let expected = match dtype(&run(Op::Add, &[&x, &y]).unwrap()) {
                Dtype::Bool => Dtype::Uint8,
                dtype => dtype,
            };
            if expected != Dtype::Complex64 {
                assert_eq!(dtype(&run(Op::Remainder, &[&x, &y]).unwrap()), expected, "{a} {b}");
            }
            if expected.is_inexact() {
                refuses(Op::LeftShift, &[&x, &y]);
            } else {
                assert_eq!(dtype(&run(Op::LeftShift, &[&x, &y]).unwrap()), expected, "{a} {b}");
            }
        }
    }
}

#[test]
fn shifts_beyond_the_width() {
    let amounts = vector(&[0i32, 1, 31, 32, 33, -1, i32::MIN]);
    check(Op::LeftShift, &[&scalar(3i32), &amounts], &[7], &[3i32, 6, i32::MIN, 0, 0, 0, 0]);
    check(Op::RightShift, &[&scalar(-8i32), &amounts], &[7], &[-8i32, -4, -1, -1, -1, -1, -1]);
    check(Op::RightShift, &[&scalar(8i32), &amounts], &[7], &[8i32, 4, 0, 0, 0, 0, 0]);
    let amounts = vector(&[0u8, 1, 7, 8, 255]);
    check(Op::LeftShift, &[&scalar(3u8), &amounts], &[5], &[3u8, 6, 128, 0, 0]);
    check(Op::RightShift, &[&scalar(255u8), &amounts], &[5], &[255u8, 127, 1, 0, 0]);
    let amounts = vector(&[63i64, 64, -1]);
    check(Op::LeftShift, &[&scalar(1i64), &amounts], &[3], &[i64::MIN, 0, 0]);
    check(Op::RightShift, &[&scalar(i64::MIN), &amounts], &[3], &[-1i64, -1, -1]);
    let amounts = vector(&[63u64, 64, u64::MAX]);
    check(Op::RightShift, &[&scalar(u64::MAX), &amounts], &[3], &[1u64, 0, 0]);
    let amounts = vector(&[7i8, 8, -128]);
    check(Op::LeftShift, &[&scalar(1i8), &amounts], &[3], &[i8::MIN, 0, 0]);
    check(Op::RightShift, &[&scalar(-128i8), &amounts], &[3], &[-1i8, -1, -1]);
    check(Op::LeftShift, &[&scalar(true), &scalar(true)], &[], &[2u8]);
}

#[test]
fn powers_of_integers() {
    let a = vector(&[2i32, -3, 0, 0, 5, 2]);
    let b = vector(&[10i32, 3, 0, 5, 1, 31]);
    check(Op::Power, &[&a, &b], &[6], &[1024i32, -27, 1, 0, 5, i32::MIN]);
    let a = vector(&[1i32, -1, -1, 2, -2, 0, i32::MIN]);
    let b = vector(&[-5i32, -5, -4, -1, i32::MIN, -1, -1]);
    check(Op::Power, &[&a, &b], &[7], &[1i32, -1, 1, 0, 0, 0, 0]);
    // 127 is its own inverse in i8, but not a unit base.
    check(Op::Power, &[&scalar(127i8), &scalar(-2i8)], &[], &[0i8]);
    check(Op::Power, &[&scalar(-1i64), &scalar(i64::MIN)], &[], &[1i64]);
    check(Op::Power, &[&scalar(3u8), &scalar(5u8)], &[], &[243u8]);
    check(Op::Power, &[&vector(&[true, false]), &vector(&[false, true])], &[2], &[true, false]);
    check(Op::Power, &[&scalar(2i32), &scalar(-1f32)], &[], &[0.5f32]);
}
