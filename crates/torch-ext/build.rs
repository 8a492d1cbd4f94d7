//! Compiles `cpp/` against libtorch and tells the crates above where libtorch's libraries are.

use std::{env, path::PathBuf};

fn main() {
    // Set by torch-sys (`links = "tch"`), which has already found libtorch and checked its version.
    let lib = PathBuf::from(
        env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is"),
    );
    let include = lib.parent().expect("lib/ has a parent").join("include");
    println!("cargo:rerun-if-changed=cpp");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").files(
        ["frozen", "gate", "linear", "norm", "profile", "rotate", "torch_ext"]
            .map(|name| format!("cpp/{name}.cpp")),
    );
    // Loops over rows are vectorised, in builds for debugging too.
    build.opt_level(3);
    // As system headers: libtorch's own warnings stay quiet, ours do not.
    for dir in [include.clone(), include.join("torch/csrc/api/include")] {
        build.flag("-isystem").flag(dir.display().to_string());
    }
    build.compile("torch_ext");
    // Read by rpath.rs as DEP_TORCH_EXT_LIBTORCH_LIB, and needed by this crate's own tests.
    println!("cargo:libtorch_lib={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
