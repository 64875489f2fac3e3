//! Links OpenBLAS on Linux, and tells tests and benchmarks where the libraries are.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../wheels/scipy-openblas32.txt");
    println!("cargo:rerun-if-env-changed=EMILY_CACHE");

    let mlx = PathBuf::from(env::var_os("DEP_MLX_LIB").expect("mlx-sys names its library folder"));
    rpath(&mlx);
    // macOS has Accelerate, which MLX's wheel uses.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        let openblas = fetch("scipy-openblas32").join("scipy_openblas32/lib");
        println!("cargo:rustc-link-search=native={}", openblas.display());
        println!("cargo:rustc-link-lib=dylib=scipy_openblas");
        rpath(&openblas);
    }
}

/// For this crate's own tests and benchmarks; the NIF library finds its companions beside itself.
fn rpath(folder: &std::path::Path) {
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
}

fn fetch(package: &str) -> PathBuf {
    let output = Command::new("python3")
        .args(["../fetch.py", package])
        .stderr(Stdio::inherit())
        .output()
        .expect("python3 starts: mlx-sys, which is built first, has used it");
    if !output.status.success() {
        eprintln!("error: native/fetch.py {package} failed, see above");
        std::process::exit(1);
    }
    PathBuf::from(String::from_utf8(output.stdout).expect("a path in UTF-8").trim())
}
