//! MLX computes with the BLAS that this crate links, not with the reference one of its wheel.
#![cfg(target_os = "linux")]

mod runtime;

use emily_core::op::Op;
use runtime::*;
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::fs;
use std::process::Command;

#[repr(C)]
struct Info {
    file: *const c_char,
    base: *mut c_void,
    symbol: *const c_char,
    address: *mut c_void,
}

extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dladdr(address: *const c_void, info: *mut Info) -> c_int;
}

const LAZY: c_int = 1;
