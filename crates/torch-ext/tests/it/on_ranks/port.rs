//! Ports for ranks to meet at.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// A port of this machine that nobody listens on, another at each call. It lies below those that the system gives to
/// connections (32768 and up on Linux): one of those may be anybody's by the time that rank 0 listens.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    // Test programs that run at once start apart.
    let start = std::process::id().wrapping_mul(7_919);
    loop {
        let number = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).into());
        let port = FIRST + (number % u32::from(COUNT)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
