//! A test's body in several processes: the test starts its own binary again, once a rank.

mod port;

use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

pub use port::free_port;
use torch_ext::distributed::ProcessGroup;

/// Exit status of a rank that has run the body: no test of that name would end with 0 as well.
pub const DONE: i32 = 42;

/// Runs `of_rank`, the body of the test called `name` (with its module, such as `ranks::it_meets`), in `world` processes that
/// form a group.
pub fn on_ranks(name: &str, world: usize, timeout: u64, of_rank: impl Fn(Rc<ProcessGroup>)) {
    if std::env::var_os("RANK").is_some() {
        of_rank(ProcessGroup::from_env().unwrap());
        std::process::exit(DONE);
    }
    let port = free_port();
    let start = |rank: usize| -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .envs([("RANK", rank.to_string()), ("WORLD_SIZE", world.to_string())])
            .envs([("MASTER_ADDR", "127.0.0.1".to_owned()), ("MASTER_PORT", port.to_string())])
            .env("UTA_DIST_TIMEOUT", timeout.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut ranks: Vec<Child> = (0..world).map(start).collect();
    let began = Instant::now();
    for (rank, child) in ranks.iter_mut().enumerate() {
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > Duration::from_secs(100) {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(status.code(), Some(DONE), "rank {rank} of {world}: {status}");
    }
}
