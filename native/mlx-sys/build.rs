//! Compiles mlx-c against the headers of the prebuilt MLX, links that MLX and writes the bindings.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    for var in ["EMILY_MLX_VARIANT", "EMILY_CACHE", "CXX", "LIBCLANG_PATH"] {
        println!("cargo:rerun-if-env-changed={var}");
    }
    for file in ["build.rs", "src", "mlx-c", "../fetch.py", "../wheels"] {
        println!("cargo:rerun-if-changed={file}");
    }

    let variant = variant();
    let mlx = fetch(&format!("mlx-{}", variant.replace("cuda", "cuda-"))).join("mlx");
    let mlx_c = mlx_c_source();
    compile(&mlx, &mlx_c);
    write_bindings(&mlx_c);

    let lib = mlx.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=dylib=mlx");
    // Read by dependents' build scripts as DEP_MLX_*.
    println!("cargo:lib={}", lib.display());
    println!("cargo:variant={variant}");
}

fn variant() -> String {
    let os = env::var("CARGO_CFG_TARGET_OS").unwrap();
    let default = if os == "macos" { "metal" } else { "cpu" };
    let variant = env::var("EMILY_MLX_VARIANT").unwrap_or_else(|_| default.into());
    let known: &[&str] = if os == "macos" { &["metal"] } else { &["cpu", "cuda12", "cuda13"] };
    if !known.contains(&variant.as_str()) {
        fail(&format!("EMILY_MLX_VARIANT: expected one of {known:?} on {os}, got {variant:?}"));
    }
    variant
}

/// The folder that `native/fetch.py` unpacked `package` in.
fn fetch(package: &str) -> PathBuf {
    let output = Command::new("python3")
        .arg("../fetch.py")
        .arg(package)
        .stderr(std::process::Stdio::inherit())
        .output()
        .unwrap_or_else(|e| {
            fail(&format!("python3 does not start ({e}); Debian: apt-get install python3-pip"))
        });
    if !output.status.success() {
        fail(&format!("native/fetch.py {package} failed, see above"));
    }
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn mlx_c_source() -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap();
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked", "--manifest-path", "mlx-c/Cargo.toml"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("cargo runs, since it runs this");
    if !output.status.success() {
        fail("cargo metadata could not bring crates.io's mlx-sys 0.7.0, see above");
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let manifest = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|package| package["name"] == "mlx-sys")
        .and_then(|package| package["manifest_path"].as_str())
        .expect("mlx-c/Cargo.toml depends on mlx-sys");
    Path::new(manifest).with_file_name("src").join("mlx-c")
}

fn compile(mlx: &Path, mlx_c: &Path) {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .include(mlx.join("include"))
        .include(mlx_c)
        .files(
            files(&mlx_c.join("mlx/c"), "cpp").iter().filter(|file| !file.ends_with("error.cpp")),
        )
        .files(files(Path::new("src"), "cpp"))
        // Debug information of 27 glue files would double the size of what users install.
        .debug(false)
        .opt_level(2)
        .warnings(false);
    require_format_header(&build);
    build.compile("mlxc");
}

/// mlx-c includes `<format>`, which g++ has from version 13 on.
fn require_format_header(build: &cc::Build) {
    let compiler = build.get_compiler();
    let probe = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("probe.cpp");
    fs::write(
        &probe,
        "#include <format>\nint main() { return std::format(\"{}\", 1).size() != 1; }\n",
    )
    .unwrap();
    let output = compiler.to_command().arg("-fsyntax-only").arg(&probe).output();
    let reason = match output {
        Ok(output) if output.status.success() => return,
        Ok(output) => String::from_utf8_lossy(&output.stderr).lines().take(3).collect(),
        Err(e) => e.to_string(),
    };
    fail(&format!(
        "{} cannot compile C++20 with <format> (g++ 13 or newer, or Xcode 16): {reason}. \
         Debian 12: apt-get install -t trixie g++; newer: apt-get install g++",
        compiler.path().display()
    ));
}

fn write_bindings(mlx_c: &Path) {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("bindings.rs");
    // libclang without its own headers (Debian's libclang1 alone, PyPI's libclang) finds stddef.h
    // and its like in the C++ compiler's folder.
    let builtin_headers = Command::new(cc::Build::new().cpp(true).get_compiler().path())
        .arg("-print-file-name=include")
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let mut builder = bindgen::Builder::default()
        .clang_arg(format!("-I{}", mlx_c.display()))
        // mlx-c declares half types on some targets only. They are left out on all, and src/half.rs
        // gives the same definitions on all.
        .clang_arg("-DMLX_HALF_H")
        .blocklist_function("malloc")
        .blocklist_function("realloc")
        .layout_tests(false)
        .generate_comments(false)
        .allowlist_item("_?mlx_.*")
        .formatter(bindgen::Formatter::None);
    if let Ok(include) = builtin_headers {
        if Path::new(&include).is_absolute() {
            builder = builder.clang_args(["-idirafter", &include]);
        }
    }
    for header in files(&mlx_c.join("mlx/c"), "h") {
        builder = builder.header(header.to_string_lossy());
    }
    builder
        .generate()
        .unwrap_or_else(|e| fail(&format!("bindgen: {e}; Debian: apt-get install libclang-dev")))
        .write_to_file(out)
        .unwrap();
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension() == Some(OsStr::new(extension)))
        .collect();
    files.sort();
    files
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(1)
}
