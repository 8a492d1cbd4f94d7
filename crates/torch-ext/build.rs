//! Compiles `cpp/` against libtorch and tells the crates above where libtorch's libraries are.

use std::{
    env,
    path::{Path, PathBuf},
};

fn main() {
    // Set by torch-sys (`links = "tch"`), which has already found libtorch and checked its version.
    let lib = PathBuf::from(
        env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is"),
    );
    let include = lib.parent().expect("lib/ has a parent").join("include");
    println!("cargo:rerun-if-changed=cpp");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").file("cpp/all.cpp");
    // A GPU's kernels travel as text, and are compiled where they run.
    let kernels = std::fs::read_to_string("cpp/kernels.cu").expect("it lies there");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("kernels.inc"), format!("R\"cuda({kernels})cuda\"\n"))
        .expect("cargo's folder can be written");
    build.include(out);
    // Loops over rows are vectorised, in builds for debugging too, and for the widest registers there are. Nobody reads errno,
    // nor the flags that are raised by what is computed and then not chosen.
    build.opt_level(3);
    for flag in ["-mprefer-vector-width=512", "-fno-trapping-math", "-fno-math-errno"] {
        build.flag_if_supported(flag);
    }
    // As system headers: libtorch's own warnings stay quiet, ours do not.
    let mut system = vec![include.clone(), include.join("torch/csrc/api/include")];
    // Where libtorch has gloo's headers, they are the ones to take.
    if !include.join("gloo/context.h").exists() {
        system.push("cpp/gloo_forward".into());
    }
    if lib.join("libtorch_cuda.so").exists() {
        match nccl_headers(&lib) {
            Some(found) => {
                system.extend(found);
                build.define("TE_CUDA", None);
                println!("cargo:rustc-link-lib=torch_cuda");
                println!("cargo:rustc-link-lib=c10_cuda");
            }
            None => println!(
                "cargo:warning=nccl.h or cuda_runtime_api.h was not found: this build trains on one GPU only"
            ),
        }
    }
    for dir in system {
        build.flag("-isystem").flag(dir.display().to_string());
    }
    // libtorch's `parallel_for` is a plain loop in code that was compiled without OpenMP.
    let openmp = build.get_compiler().is_like_gnu();
    if openmp {
        build.flag("-fopenmp");
    } else {
        println!("cargo:warning=torch-ext's loops run on one thread: OpenMP is used with GCC only");
    }
    // Clippy's driver is part of the build's identity, so that a build script runs anew for it; but it links nothing.
    let linting = env::var_os("RUSTC_WORKSPACE_WRAPPER")
        .is_some_and(|wrapper| Path::new(&wrapper).ends_with("clippy-driver"));
    if !linting {
        build.compile("torch_ext");
    }
    if openmp {
        println!("cargo:rustc-link-lib={}", openmp_runtime(&lib));
    }
    // Read by rpath.rs as DEP_TORCH_EXT_LIBTORCH_LIB, and needed by this crate's own tests.
    println!("cargo:libtorch_lib={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}

/// The OpenMP runtime that libtorch brings, by its file name: a second one would have threads of its own. Else the compiler's.
fn openmp_runtime(lib: &Path) -> String {
    let Ok(folder) = lib.read_dir() else { return "gomp".into() };
    folder
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with("libgomp") && name.contains(".so"))
        .map_or("gomp".into(), |name| format!("dylib:+verbatim={name}"))
}

/// The folders of nccl.h and of CUDA's headers: in NVIDIA's wheels, which lie beside torch's, or where CUDA_HOME says.
fn nccl_headers(lib: &Path) -> Option<Vec<PathBuf>> {
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let packages = lib.canonicalize().ok()?.ancestors().nth(2)?.join("nvidia");
    let cuda_home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("include"));
    let places: Vec<PathBuf> = [packages.join("nccl/include"), packages.join("cu13/include")]
        .into_iter()
        .chain(cuda_home)
        .chain(["/usr/include".into(), "/usr/local/cuda/include".into()])
        .collect();
    let folder = |header| places.iter().find(|place| place.join(header).exists()).cloned();
    let mut found = vec![folder("nccl.h")?, folder("cuda_runtime_api.h")?];
    // The compiler looks there anyway, and named as a system folder it would hide the standard library's own headers.
    found.retain(|place| place != Path::new("/usr/include"));
    Some(found)
}
