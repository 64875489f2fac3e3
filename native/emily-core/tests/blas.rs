//! MLX computes with the BLAS and LAPACK that this crate links, not with the reference ones of its
//! wheel.
#![cfg(target_os = "linux")]

mod runtime;

use emily_core::device::Device;
use emily_core::op::Op;
use emily_core::worker::Owner;
use runtime::*;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

/// glibc's `Dl_info`.
#[repr(C)]
struct Found {
    file: *const c_char,
    base: *mut c_void,
    symbol: *const c_char,
    address: *mut c_void,
}

extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dladdr(address: *const c_void, found: *mut Found) -> c_int;
    fn scipy_openblas_get_num_threads() -> c_int;
    fn scipy_openblas_set_num_threads(threads: c_int);
}

/// The file that a name resolves to for every library of the process.
fn file_of(name: &str) -> PathBuf {
    let c_name = CString::new(name).unwrap();
    // SAFETY: looks a name up in the order of loading; a null handle is glibc's RTLD_DEFAULT.
    let address = unsafe { dlsym(std::ptr::null_mut(), c_name.as_ptr()) };
    assert!(!address.is_null(), "{name} is nowhere");
    let null = std::ptr::null_mut();
    let mut found = Found { file: null, base: null.cast(), symbol: null, address: null.cast() };
    // SAFETY: an address that is mapped, and a structure that the call fills.
    assert_ne!(unsafe { dladdr(address, &mut found) }, 0);
    // SAFETY: the path of a loaded file, which stays loaded.
    let file = unsafe { CStr::from_ptr(found.file) };
    fs::canonicalize(file.to_str().unwrap()).unwrap()
}

/// The BLAS and LAPACK functions that libmlx imports.
fn imports() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libmlx = maps.split_whitespace().find(|word| word.ends_with("/libmlx.so")).unwrap();
    let nm = Command::new("nm").args(["-D", "--undefined-only", libmlx]).output().unwrap();
    assert!(nm.status.success());
    let is_fortran = |name: &str| {
        let stem = name.strip_suffix('_').unwrap_or_default();
        stem.len() >= 5 && stem.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    String::from_utf8(nm.stdout)
        .unwrap()
        .split_whitespace()
        .filter(|name| name.starts_with("cblas_") || is_fortran(name))
        .map(str::to_owned)
        .collect()
}

#[test]
fn all_that_libmlx_imports_is_ours() {
    let (own, imports) = (fs::canonicalize(env::current_exe().unwrap()).unwrap(), imports());
    for known in ["cblas_sgemm", "cblas_dgemm", "sgeqrf_", "sgetrf_"] {
        assert!(imports.iter().any(|name| name == known), "{known} is not in {imports:?}");
    }
    for name in &imports {
        assert_eq!(file_of(name), own, "{name}");
    }
}

#[test]
fn a_product_goes_through_it() {
    // Our gemm has OpenBLAS compute on one thread from its first call on, the reference one cannot.
    // SAFETY: sets a number; nothing computes yet.
    unsafe { scipy_openblas_set_num_threads(2) };
    // SAFETY: reads a number.
    let threads = || unsafe { scipy_openblas_get_num_threads() };
    assert_eq!(threads(), 2);
    emily_core::reaper::start().unwrap();
    let worker = Owner::start(Device::Cpu, 4).unwrap();
    let x = matrix(48, 48);
    let product = build(&worker, &Op::Matmul, &[&x, &x]).unwrap();
    let got = read_f32(&worker, &product);
    assert_eq!(threads(), 1);
    let x = read_f32(&worker, &x);
    for (index, got) in got.iter().enumerate() {
        let (row, column) = (index / 48, index % 48);
        let expected: f32 = (0..48).map(|k| x[row * 48 + k] * x[k * 48 + column]).sum();
        assert!((got - expected).abs() < 1e-4, "{row}, {column}: {got}, expected {expected}");
    }
}
