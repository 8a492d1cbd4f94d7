//! Which of its products MKL runs on processors that aren't Intel's.

use std::process::Command;

use tch::{Device, Kind, Tensor};
use torch_ext::{Precision, autocast};

#[test]
fn mkl_runs_its_products_for_avx2_on_every_processor_that_has_it() {
    // MKL names its products in a process's first line, where it is asked to.
    if std::env::var_os("MKL_VERBOSE").is_some() {
        let x = Tensor::ones([64, 64], (Kind::Float, Device::Cpu));
        let product = autocast(Device::Cpu, Precision::F32, || x.mm(&x));
        assert_eq!(product.double_value(&[3, 5]), 64.0);
        return;
    }
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["mkl::mkl_runs_its_products_for_avx2_on_every_processor_that_has_it", "--exact"])
        .arg("--nocapture")
        .env("MKL_VERBOSE", "1")
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let out = String::from_utf8(out.stdout).unwrap();
    let Some(line) = out.lines().find(|line| line.contains("oneMKL")) else {
        eprintln!("not tested: this libtorch has no MKL");
        return;
    };
    let has_it = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    assert_eq!(line.contains("AVX2") || line.contains("AVX-512"), has_it, "{line}");
}
