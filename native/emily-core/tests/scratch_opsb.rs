//! scratch
mod support;
use emily_core::op::*;
use support::*;
#[test]
fn eigh_big() {
    for n in [2895i64, 2896, 2897, 2900] {
        let x = run(
            Op::Eye(Eye { rows: n, cols: n, k: 0, dtype: emily_core::dtype::Dtype::Float32 }),
            &[],
        )
        .unwrap();
        let t = std::time::Instant::now();
        let parts = Op::LinalgEigh(Eigh { upper: false }).build_all(&build(), &[Some(&x)]).unwrap();
        let v: Vec<f32> = read(&parts[0]);
        eprintln!("{n} {:?} {:?}", v[0], t.elapsed());
    }
    for n in [2363i64, 2364, 2365, 2366, 2367] {
        let x = run(
            Op::Eye(Eye { rows: n, cols: n, k: 0, dtype: emily_core::dtype::Dtype::Float32 }),
            &[],
        )
        .unwrap();
        let t = std::time::Instant::now();
        let parts = Op::LinalgSvd.build_all(&build(), &[Some(&x)]).unwrap();
        let v: Vec<f32> = read(&parts[1]);
        eprintln!("svd {n} {:?} {:?}", v[0], t.elapsed());
    }
}
