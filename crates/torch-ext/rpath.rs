//! The build script of every crate that links libtorch into a test or a program: the result finds libtorch without
//! LD_LIBRARY_PATH, and keeps libtorch_cuda although no symbol of it is named (its kernels register themselves).

use std::{env, path::Path};

fn main() {
    println!("cargo:rerun-if-changed=../torch-ext/rpath.rs");
    let lib = env::var("DEP_TORCH_EXT_LIBTORCH_LIB").expect("torch-ext says where libtorch is");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    if Path::new(&lib).join("libtorch_cuda.so").exists() {
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch_cuda,--as-needed");
    }
}
