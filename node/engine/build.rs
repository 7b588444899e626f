//! Tells the linker where `libmlx.so` lies at run time. The path comes from the generated Cargo
//! configuration, as metadata of the `mlx` library; on Apple targets there is none and none is
//! needed.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_MLX_LIB_DIR");
    if let Ok(dir) = std::env::var("DEP_MLX_LIB_DIR")
        && std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux")
    {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{dir}");
        println!("cargo::rustc-env=POMONA_MLX_LIB_DIR={dir}");
    }
}
