//! Sets where the NIF looks for libmlx and BLAS: in the folders beside it that `mix compile` fills. The
//! one for hosts without a GPU that goes with a CUDA build is in a folder below the BLAS.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let macos = std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos");
    let origin = if macos { "@loader_path" } else { "$ORIGIN" };
    for folder in ["mlx/lib", "scipy_openblas32/lib", "../scipy_openblas32/lib"] {
        println!("cargo:rustc-link-arg-cdylib=-Wl,-rpath,{origin}/{folder}");
    }
    if !macos {
        // The BEAM closes a library whose module is purged, and our threads would run on in unmapped
        // code.
        println!("cargo:rustc-link-arg-cdylib=-Wl,-z,nodelete");
    }
}
