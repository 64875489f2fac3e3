//! Window ops against plain loops.

mod support;

use emily_core::dtype::Dtype;
use emily_core::op::{Cast, Op, Window, WindowScatter};
use mlx_rs::Array;
use support::*;

/// A tensor of numbers in row-major order.
#[derive(Clone)]
struct Dense {
    shape: Vec<i64>,
    data: Vec<f64>,
}

impl Dense {
    /// Small whole numbers without a pattern, so that sums and products are exact in f32.
    fn new(shape: &[i64], greatest: i64) -> Self {
        let mut state = 12345u64;
        let count: i64 = shape.iter().product();
        let data = (0..count).map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 33) as i64 % (2 * greatest + 1) - greatest) as f64
        });
        Dense { shape: shape.to_vec(), data: data.collect() }
    }

    fn array(&self, dtype: Dtype) -> Array {
        let floats: Vec<f32> = self.data.iter().map(|&x| x as f32).collect();
        run(Op::Astype(Cast { dtype }), &[&tensor(&floats, &self.shape)]).unwrap()
    }

    fn at(&self, index: &[i64]) -> Option<f64> {
        let inside = index.iter().zip(&self.shape).all(|(i, n)| (0..*n).contains(i));
        inside.then(|| self.data[offset(&self.shape, index)])
    }
}

fn offset(shape: &[i64], index: &[i64]) -> usize {
    index.iter().zip(shape).fold(0, |offset, (i, n)| offset * n + i) as usize
}

/// Every index of a shape, in row-major order.
fn indices(shape: &[i64]) -> Vec<Vec<i64>> {
    let count: i64 = shape.iter().product();
    (0..count)
        .map(|flat| {
            let mut rest = flat;
            let mut index: Vec<i64> = shape
                .iter()
                .rev()
                .map(|n| {
                    let i = rest % n;
                    rest /= n;
                    i
                })
                .collect();
            index.reverse();
            index
        })
        .collect()
}

fn window_counts(shape: &[i64], at: &Window) -> Vec<i64> {
    (0..shape.len())
        .map(|axis| {
            let padded = shape[axis] + at.low[axis] + at.high[axis];
            let span = (at.window[axis] - 1) * at.dilations[axis] + 1;
            if span > padded {
                0
            } else {
                (padded - span) / at.strides[axis] + 1
            }
        })
        .collect()
}

/// The places of one window's elements in the unpadded tensor, and outside it.
fn places(at: &Window, position: &[i64]) -> Vec<Vec<i64>> {
    indices(&at.window)
        .into_iter()
        .map(|inside| {
            (0..inside.len())
                .map(|k| position[k] * at.strides[k] + inside[k] * at.dilations[k] - at.low[k])
                .collect()
        })
        .collect()
}

fn reduced(a: &Dense, init: f64, at: &Window, combine: impl Fn(f64, f64) -> f64) -> Dense {
    let shape = window_counts(&a.shape, at);
    let data = indices(&shape)
        .iter()
        .map(|position| {
            places(at, position)
                .iter()
                .fold(init, |sum, place| combine(sum, a.at(place).unwrap_or(init)))
        })
        .collect();
    Dense { shape, data }
}

fn window(window: &[i64], strides: &[i64], padding: [&[i64]; 2], dilations: &[i64]) -> Window {
    Window {
        window: window.to_vec(),
        strides: strides.to_vec(),
        low: padding[0].to_vec(),
        high: padding[1].to_vec(),
        dilations: dilations.to_vec(),
    }
}

/// Shapes and windows: dilated, strided, both, padded on one side, overlapping or not, single rows,
/// windows so long that they are doubled, and ones that fit nowhere.
fn cases() -> Vec<(Vec<i64>, Window)> {
    vec![
        (vec![7], window(&[3], &[1], [&[0], &[0]], &[1])),
        (vec![7], window(&[3], &[1], [&[0], &[0]], &[2])),
        (vec![40], window(&[13], &[1], [&[3], &[5]], &[2])),
        (vec![40], window(&[13], &[3], [&[0], &[2]], &[2])),
        (vec![40], window(&[40], &[1], [&[39], &[0]], &[1])),
        (vec![40], window(&[31], &[100], [&[0], &[0]], &[1])),
        (vec![40], window(&[8], &[8], [&[0], &[0]], &[1])),
        (vec![6, 6], window(&[2, 2], &[2, 2], [&[0, 0], &[0, 0]], &[1, 1])),
        (vec![6, 7], window(&[3, 2], &[1, 2], [&[1, 0], &[0, 2]], &[2, 3])),
        (vec![5, 6], window(&[1, 6], &[1, 1], [&[0, 0], &[0, 0]], &[1, 1])),
        (vec![5, 6], window(&[5, 1], &[3, 4], [&[0, 1], &[0, 1]], &[1, 1])),
        (vec![2, 9, 8], window(&[1, 5, 3], &[1, 2, 1], [&[0, 2, 1], &[1, 2, 1]], &[1, 2, 2])),
        (vec![2, 3, 4, 3], window(&[1, 2, 2, 1], &[1, 1, 2, 1], [&[0; 4], &[0; 4]], &[1; 4])),
        (vec![4, 6], window(&[5, 2], &[1, 1], [&[0, 0], &[0, 0]], &[1, 1])),
        (vec![4, 6], window(&[2, 4], &[1, 1], [&[0, 0], &[0, 0]], &[1, 2])),
        (vec![0, 3], window(&[2, 2], &[1, 1], [&[1, 0], &[1, 0]], &[1, 1])),
        (vec![0, 3], window(&[1, 2], &[1, 1], [&[0, 0], &[0, 0]], &[1, 1])),
        (vec![], window(&[], &[], [&[], &[]], &[])),
    ]
}

#[test]
fn reductions_of_windows() {
    for (shape, at) in cases() {
        let a = Dense::new(&shape, 3);
        let few = Dense { data: a.data.iter().map(|x| x.signum()).collect(), ..a.clone() };
        for dtype in [Dtype::Float32, Dtype::Int32, Dtype::Int8] {
            let result = |op: Op, a: &Dense, init: f32, combine: fn(f64, f64) -> f64| {
                let expected = reduced(a, init.into(), &at, combine);
                let name = format!("{op:?} of {shape:?}, {dtype}");
                let got = run(op, &[&a.array(dtype), &scalar(init)]).unwrap();
                assert_eq!(support::dtype(&got), dtype, "{name}");
                assert_eq!(support::shape(&got), expected.shape, "{name}");
                let got = run(Op::Astype(Cast { dtype: Dtype::Float32 }), &[&got]).unwrap();
                let got: Vec<f64> = read::<f32>(&got).iter().map(|&x| x.into()).collect();
                assert_eq!(got, expected.data, "{name}");
            };
            result(Op::WindowSum(at.clone()), &few, 0.0, |a, b| a + b);
            result(Op::WindowMax(at.clone()), &a, -9.0, f64::max);
            result(Op::WindowMin(at.clone()), &a, 9.0, f64::min);
            result(Op::WindowProduct(at.clone()), &few, 1.0, |a, b| a * b);
            // An initial value that is no identity takes part once, and pads.
            result(Op::WindowMax(at.clone()), &a, 2.0, f64::max);
        }
        let expected = reduced(&a, 1.0, &at, |a, b| a + b);
        let got = run(Op::WindowSum(at), &[&a.array(Dtype::Float32), &scalar(1u8)]).unwrap();
        let got: Vec<f64> = read::<f32>(&got).iter().map(|&x| x.into()).collect();
        assert_eq!(got, expected.data, "{shape:?}");
    }
}

#[test]
fn a_nan_in_a_window_is_its_extreme() {
    let a = vector(&[1f32, f32::NAN, 3.0, 4.0]);
    let at = window(&[2], &[1], [&[0], &[0]], &[1]);
    let least = scalar(f32::NEG_INFINITY);
    check(Op::WindowMax(at.clone()), &[&a, &least], &[3], &[f32::NAN, f32::NAN, 4.0]);
    let greatest = scalar(f32::INFINITY);
    check(Op::WindowMin(at), &[&a, &greatest], &[3], &[f32::NAN, f32::NAN, 3.0]);
}

#[test]
fn windows_of_views() {
    let a = tensor(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
    let a = run(Op::Transpose(emily_core::op::Axes { axes: vec![1, 0] }), &[&a]).unwrap();
    let at = window(&[2, 2], &[1, 1], [&[0, 0], &[0, 0]], &[1, 1]);
    check(Op::WindowSum(at), &[&a, &scalar(0f32)], &[2, 1], &[12f32, 16.0]);
    let at = scattered(&[2, 1], &[1, 1], [&[0, 0], &[0, 0]]);
    let source = tensor(&[10f32, 20.0, 30.0, 40.0], &[2, 2]);
    let inputs = [&a, &source, &scalar(0f32)];
    check(Op::WindowScatterMax(at), &inputs, &[3, 2], &[0f32, 0.0, 10.0, 20.0, 30.0, 40.0]);
}

#[test]
fn windows_that_make_no_sense_are_refused() {
    let a = tensor(&[1f32; 12], &[3, 4]);
    let init = scalar(0f32);
    let good = window(&[2, 2], &[1, 1], [&[0, 0], &[0, 0]], &[1, 1]);
    let mut bad = vec![Window { window: vec![2, 0], ..good.clone() }];
    bad.push(Window { window: vec![2], ..good.clone() });
    bad.push(Window { window: vec![2, i64::MAX], ..good.clone() });
    bad.push(Window { strides: vec![0, 1], ..good.clone() });
    bad.push(Window { strides: vec![-1, 1], ..good.clone() });
    bad.push(Window { dilations: vec![1, 0], ..good.clone() });
    bad.push(Window { low: vec![-1, 0], ..good.clone() });
    bad.push(Window { high: vec![0, i64::from(i32::MAX)], ..good.clone() });
    bad.push(Window { low: vec![0, 1 << 40], ..good.clone() });
    for at in bad {
        refuses(Op::WindowSum(at.clone()), &[&a, &init]);
        refuses(Op::WindowMax(at), &[&a, &init]);
    }
    refuses(Op::WindowSum(good), &[&a, &vector(&[0f32, 0.0])]);
}

fn scattered(window: &[i64], strides: &[i64], padding: [&[i64]; 2]) -> WindowScatter {
    WindowScatter {
        window: window.to_vec(),
        strides: strides.to_vec(),
        low: padding[0].to_vec(),
        high: padding[1].to_vec(),
    }
}

/// As Nx's BinaryBackend: `selects(x, chosen)` moves on to x, a place on padding takes nothing.
fn scatter(
    a: &Dense,
    source: &Dense,
    init: f64,
    at: &Window,
    selects: impl Fn(f64, f64) -> bool,
) -> Vec<f64> {
    let mut result = vec![init; a.data.len()];
    for (position, value) in indices(&source.shape).iter().zip(&source.data) {
        let places = places(at, position);
        let element = |place: &Vec<i64>| a.at(place).unwrap_or(init);
        let mut chosen = &places[0];
        for place in &places {
            if selects(element(place), element(chosen)) {
                chosen = place;
            }
        }
        if a.at(chosen).is_some() {
            result[offset(&a.shape, chosen)] += value;
        }
    }
    result
}

#[test]
fn scatters_to_the_last_extreme_of_each_window() {
    let undilated = cases().into_iter().filter(|(_, at)| at.dilations.iter().all(|&d| d == 1));
    for (shape, at) in undilated {
        // Few different numbers, so that most windows have equals.
        let a = Dense::new(&shape, 1);
        let source = Dense::new(&window_counts(&shape, &at), 5);
        let attrs = scattered(&at.window, &at.strides, [&at.low, &at.high]);
        for (init, dtype) in [(0.0, Dtype::Float32), (2.0, Dtype::Int32), (-2.0, Dtype::Int64)] {
            let inputs = [&a.array(dtype), &source.array(Dtype::Float32), &scalar(init as f32)];
            let got = |op: Op| -> Vec<f64> {
                let got = run(op, &inputs).unwrap();
                assert_eq!(support::shape(&got), shape);
                read::<f32>(&got).iter().map(|&x| x.into()).collect()
            };
            let expected = scatter(&a, &source, init, &at, |x, chosen| x >= chosen);
            assert_eq!(got(Op::WindowScatterMax(attrs.clone())), expected, "max, {shape:?} {at:?}");
            let expected = scatter(&a, &source, init, &at, |x, chosen| x <= chosen);
            assert_eq!(got(Op::WindowScatterMin(attrs.clone())), expected, "min, {shape:?} {at:?}");
        }
    }
}

#[test]
fn scatters_pass_over_a_nan_that_is_not_first() {
    let nan = f64::NAN;
    let a = Dense { shape: vec![6], data: vec![1.0, nan, 0.0, nan, 5.0, 4.0] };
    let at = window(&[3], &[1], [&[0], &[0]], &[1]);
    let source = Dense { shape: vec![4], data: vec![1.0, 2.0, 4.0, 8.0] };
    let inputs = [&a.array(Dtype::Float32), &source.array(Dtype::Float32), &scalar(0f32)];
    let attrs = scattered(&[3], &[1], [&[0], &[0]]);
    // By hand: windows 1 NaN 0, NaN 0 NaN, 0 NaN 5, NaN 5 4.
    check(Op::WindowScatterMax(attrs.clone()), &inputs, &[6], &[1f32, 2.0, 0.0, 8.0, 4.0, 0.0]);
    check(Op::WindowScatterMin(attrs), &inputs, &[6], &[0f32, 2.0, 5.0, 8.0, 0.0, 0.0]);
    let expected = scatter(&a, &source, 0.0, &at, |x, chosen| x >= chosen);
    assert_eq!(expected, [1.0, 2.0, 0.0, 8.0, 4.0, 0.0]);
}

#[test]
fn scatters_take_the_dtype_of_the_source() {
    let a = vector(&[3u8, 1]);
    let attrs = || scattered(&[2], &[1], [&[0], &[0]]);
    let inputs = [&a, &vector(&[7i64]), &scalar(1i64)];
    check(Op::WindowScatterMax(attrs()), &inputs, &[2], &[8i64, 1]);
    check(Op::WindowScatterMin(attrs()), &inputs, &[2], &[1i64, 8]);
}

#[test]
fn scatters_that_do_not_fit_are_refused() {
    let a = tensor(&[1f32; 12], &[3, 4]);
    let (source, init) = (tensor(&[1f32; 6], &[2, 3]), scalar(0f32));
    let good = scattered(&[2, 2], &[1, 1], [&[0, 0], &[0, 0]]);
    for op in [Op::WindowScatterMax, Op::WindowScatterMin] {
        run(op(good.clone()), &[&a, &source, &init]).unwrap();
        refuses(op(good.clone()), &[&a, &tensor(&[1f32; 6], &[3, 2]), &init]);
        refuses(op(good.clone()), &[&a, &source, &vector(&[0f32, 1.0])]);
        refuses(op(WindowScatter { window: vec![0, 2], ..good.clone() }), &[&a, &source, &init]);
        refuses(op(WindowScatter { strides: vec![0, 1], ..good.clone() }), &[&a, &source, &init]);
        refuses(op(WindowScatter { low: vec![-1, 0], ..good.clone() }), &[&a, &source, &init]);
        let complex = tensor(&[complex(1.0, 0.0); 12], &[3, 4]);
        refuses(op(good.clone()), &[&complex, &source, &init]);
    }
}

#[test]
fn padding_beyond_the_memory_is_refused_though_the_result_is_small() {
    let a = tensor(&[1.0; 16], &[4, 4]);
    let zero = tensor(&[0.0], &[]);
    let far = 30_000;
    let window = Window {
        window: vec![1, 1],
        strides: vec![far, far],
        low: vec![0, 0],
        high: vec![40_000, 40_000],
        dilations: vec![1, 1],
    };
    // 40,004 by 40,004 can be counted; whether they fit is the memory limit's to say.
    let limit = emily_core::memory::set_limit(emily_core::memory::Limit::Memory, 1 << 30).unwrap();
    let sum = run(Op::WindowSum(window), &[&a, &zero]);
    let scatter = WindowScatter {
        window: vec![1, 1],
        strides: vec![far, far],
        low: vec![0, 0],
        high: vec![40_000, 40_000],
    };
    let source = tensor(&[1.0; 4], &[2, 2]);
    let scattered = run(Op::WindowScatterMax(scatter), &[&a, &source, &zero]);
    emily_core::memory::set_limit(emily_core::memory::Limit::Memory, limit).unwrap();
    for refused in [sum, scattered] {
        assert!(refused.unwrap_err().to_string().contains("the memory limit"));
    }
}
