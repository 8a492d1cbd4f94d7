//! Many processes, one run: torch's own process group (c10d; Gloo for CPU tensors, NCCL for CUDA ones) and the gradient
//! averaging of its DistributedDataParallel.
//!
//! Every rank makes the same calls in the same order. What one rank alone may meet, an error, travels in
//! [`ProcessGroup::agree`] and in every other exchange of bytes, so that no rank waits for one that has given up; a rank
//! that dies closes its connections, which ends the others' calls at once, and one that hangs does so after the timeout.
//!
//! A group of one makes no connection, and its operations change nothing.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::fmt::Display;
use std::rc::Rc;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::{check, handle, handles, made};

unsafe extern "C" {
    fn te_group_new(
        host: *const c_char,
        port: u16,
        rank: i32,
        world: i32,
        served: bool,
        timeout_ms: i64,
        group: *mut *mut c_void,
    ) -> *mut c_char;
    fn te_group_free(group: *mut c_void);
    fn te_group_use_cuda(group: *mut c_void, index: i32) -> *mut c_char;
    fn te_all_reduce(group: *mut c_void, tensor: *mut C_tensor, op: i32) -> *mut c_char;
    fn te_broadcast(group: *mut c_void, tensors: *const *mut C_tensor, n: i64) -> *mut c_char;
    fn te_all_gather(
        group: *mut c_void,
        local: *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn te_ddp_new(
        group: *mut c_void,
        params: *const *mut C_tensor,
        n: i64,
        reducer: *mut *mut c_void,
    ) -> *mut c_char;
    fn te_ddp_free(reducer: *mut c_void);
    fn te_ddp_backward(reducer: *mut c_void, loss: *mut C_tensor, reduce: bool) -> *mut c_char;
}

/// Seconds that a collective waits for the other ranks, unless `UTA_DIST_TIMEOUT` says otherwise: torch's own default.
const TIMEOUT: u64 = 30 * 60;

/// The longest message in bytes that [`ProcessGroup::exchange`] takes from a rank.
const LONGEST: i64 = 1 << 31;

/// Why ranks can't go on together.
#[derive(Debug, thiserror::Error)]
pub enum DistError {
    /// The launcher's variables are incomplete or contradict each other.
    #[error("{0}")]
    Environment(String),
    /// A collective failed on this rank.
    #[error("rank {rank} of {world}: {operation}: {reason}")]
    Failed {
        /// This rank.
        rank: usize,
        /// How many there are.
        world: usize,
        /// The operation that was under way.
        operation: &'static str,
        /// Gloo's or NCCL's words.
        reason: String,
    },
    /// Another rank met an error of its own, and said so.
    #[error("rank {rank} of {world} ends because rank {peer} failed: {message}")]
    Peer {
        /// This rank.
        rank: usize,
        /// How many there are.
        world: usize,
        /// The rank that failed.
        peer: usize,
        /// Its words.
        message: String,
    },
}

/// How [`ProcessGroup::all_reduce`] combines the ranks' values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Their sum.
    Sum,
    /// The largest.
    Max,
    /// Their mean.
    Mean,
}

/// Where a process stands among those that were launched with it.
#[derive(Clone, Debug, PartialEq)]
struct Launch {
    rank: usize,
    world: usize,
    local_rank: usize,
    host: String,
    port: u16,
    /// Whether the launcher serves the rendezvous itself (torchrun's agent does).
    served: bool,
    timeout: u64,
}

impl Launch {
    fn from_env() -> Result<Launch, DistError> {
        Launch::read(&|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
    }

    /// Reads torchrun's variables, else Open MPI's, else SLURM's. mpirun inside a SLURM allocation starts its daemons as
    /// a SLURM step, so where both have spoken, mpirun spoke last.
    fn read(var: &dyn Fn(&str) -> Option<String>) -> Result<Launch, DistError> {
        let number = |name: &str| -> Result<Option<usize>, DistError> {
            let Some(text) = var(name) else { return Ok(None) };
            let wrong = || DistError::Environment(format!("{name}={text}: must be a whole number"));
            text.trim().parse().map(Some).map_err(|_| wrong())
        };
        let schemes = [
            ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
            ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
            // Not SLURM_NTASKS: a batch script has it too, without any srun.
            ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"],
        ];
        let used = schemes
            .into_iter()
            .enumerate()
            .find(|(i, [rank, world, _])| var(world).is_some() || (*i == 0 && var(rank).is_some()));
        let mut launch = Launch {
            rank: 0,
            world: 1,
            local_rank: 0,
            host: "127.0.0.1".into(),
            port: 29500,
            served: false,
            timeout: TIMEOUT,
        };
        let Some((scheme, [rank, world, local])) = used else { return Ok(launch) };
        let missing = |name: &str| {
            DistError::Environment(format!(
                "{name} is not set; set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for every process, \
                 or none of them"
            ))
        };
        launch.rank = number(rank)?.ok_or_else(|| missing(rank))?;
        launch.world = number(world)?.ok_or_else(|| missing(world))?;
        launch.local_rank = number(local)?.unwrap_or(0);
        if launch.rank >= launch.world {
            let (r, w) = (launch.rank, launch.world);
            return Err(DistError::Environment(format!("{rank}={r}: must be below {world}={w}")));
        }
        if let Some(seconds) = number("UTA_DIST_TIMEOUT")? {
            if !(1..=1_000_000).contains(&seconds) {
                return Err(DistError::Environment(format!(
                    "UTA_DIST_TIMEOUT={seconds}: must be from 1 to 1000000 seconds"
                )));
            }
            launch.timeout = seconds as u64;
        }
        if launch.world == 1 {
            return Ok(launch);
        }
        let host = match (var("MASTER_ADDR"), scheme) {
            (Some(host), _) => Some(host),
            (None, 1) => {
                let local = number("OMPI_COMM_WORLD_LOCAL_SIZE")? == Some(launch.world);
                local.then(|| "127.0.0.1".to_owned())
            }
            (None, 2) => var("SLURM_STEP_NODELIST").and_then(|nodes| first_host(&nodes)),
            (None, _) => None,
        };
        launch.host = host.filter(|host| !host.is_empty()).ok_or_else(|| {
            DistError::Environment(
                "MASTER_ADDR is not set; let it name the machine of rank 0, for every process"
                    .into(),
            )
        })?;
        launch.port = match (number("MASTER_PORT")?, scheme) {
            (Some(port), _) => {
                u16::try_from(port).ok().filter(|&port| port > 0).ok_or_else(|| {
                    DistError::Environment(format!("MASTER_PORT={port}: must be from 1 to 65535"))
                })?
            }
            (None, 0) => return Err(missing("MASTER_PORT")),
            // Jobs that share a machine must not share a port.
            (None, 2) => 29500 + (number("SLURM_JOB_ID")?.unwrap_or(0) % 1000) as u16,
            (None, _) => launch.port,
        };
        launch.served = var("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
        Ok(launch)
    }
}

/// The first machine of a SLURM list: `gpu[07-12,20],login` names gpu07.
fn first_host(nodes: &str) -> Option<String> {
    let Some((prefix, rest)) = nodes.split_once('[') else {
        return nodes.split(',').next().map(str::to_owned);
    };
    if let Some((first, _)) = prefix.split_once(',') {
        return Some(first.to_owned());
    }
    let (ranges, suffix) = rest.split_once(']')?;
    let first = ranges.split([',', '-']).next()?;
    let suffix = suffix.split(',').next().unwrap_or("");
    Some(format!("{prefix}{first}{suffix}"))
}

/// The processes of a run; one, or many that talk to each other. Not to be shared between threads: collectives have one
/// order.
pub struct ProcessGroup {
    rank: usize,
    world: usize,
    local_rank: usize,
    /// c10d's group; null for a group of one.
    raw: *mut c_void,
    /// After a failure connections hang half open: tearing them down could wait for ranks that don't answer. Those of a
    /// process that panics close with it, which the others notice at once.
    broken: Cell<bool>,
}

impl ProcessGroup {
    /// A group of this process alone.
    pub fn single() -> Rc<ProcessGroup> {
        Rc::new(ProcessGroup {
            rank: 0,
            world: 1,
            local_rank: 0,
            raw: std::ptr::null_mut(),
            broken: Cell::new(false),
        })
    }

    /// The group that the launcher's variables describe: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT
    /// (torchrun), else OMPI_COMM_WORLD_* (mpirun), else SLURM_* (srun); without any, this process alone. Waits for all
    /// ranks, `UTA_DIST_TIMEOUT` seconds at most (30 minutes).
    ///
    /// # Errors
    /// When the variables are incomplete, or not every rank comes in time.
    pub fn from_env() -> Result<Rc<ProcessGroup>, DistError> {
        let Launch { rank, world, local_rank, host, port, served, timeout } = Launch::from_env()?;
        let mut group = ProcessGroup {
            rank,
            world,
            local_rank,
            raw: std::ptr::null_mut(),
            broken: Cell::new(false),
        };
        if world > 1 {
            let c_host = CString::new(host.clone())
                .map_err(|_| DistError::Environment(format!("MASTER_ADDR={host:?}: no host")))?;
            let (timeout, r, w) = (timeout as i64 * 1000, rank as i32, world as i32);
            // SAFETY: the string and the pointer's place outlive the call.
            let message = unsafe {
                te_group_new(c_host.as_ptr(), port, r, w, served, timeout, &mut group.raw)
            };
            check(message).map_err(|e| DistError::Failed {
                rank,
                world,
                operation: "meeting the other ranks",
                reason: format!("at {host}:{port}: {}", words(&e)),
            })?;
        }
        Ok(Rc::new(group))
    }

    /// How many processes the launcher's variables speak of; meets none of them.
    ///
    /// # Errors
    /// When the variables are incomplete.
    pub fn launched() -> Result<usize, DistError> {
        Ok(Launch::from_env()?.world)
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn world(&self) -> usize {
        self.world
    }

    /// This process's number on its machine: the GPU that is its own.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Whether this is rank 0, which alone writes files and speaks to people.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Prepares collectives of tensors on `device`, this rank's own: NCCL for CUDA.
    ///
    /// # Errors
    /// When the build has no NCCL, or it refuses the device.
    pub fn use_device(&self, device: Device) -> Result<(), DistError> {
        match device {
            Device::Cuda(index) if self.world > 1 => {
                // SAFETY: `raw` is a live group.
                self.checked("preparing NCCL", unsafe { te_group_use_cuda(self.raw, index as i32) })
            }
            _ => Ok(()),
        }
    }

    /// Replaces `tensor` by what `reduce` makes of all ranks' tensors of its shape.
    ///
    /// # Errors
    /// When a rank has ended or doesn't answer in time.
    pub fn all_reduce(&self, tensor: &mut Tensor, reduce: Reduce) -> Result<(), DistError> {
        if self.world == 1 {
            return Ok(());
        }
        let op = i32::from(reduce == Reduce::Max);
        // SAFETY: a live group and tensor.
        self.checked("all_reduce", unsafe { te_all_reduce(self.raw, handle(tensor), op) })?;
        if reduce == Reduce::Mean {
            let _ = tch::no_grad(|| tensor.g_div_scalar_(self.world as f64));
        }
        Ok(())
    }

    /// Replaces the values of `tensors` by those of rank 0.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`].
    pub fn broadcast(&self, tensors: &[Tensor]) -> Result<(), DistError> {
        if self.world == 1 || tensors.is_empty() {
            return Ok(());
        }
        let list = handles(tensors);
        // SAFETY: a live group, and live tensors borrowed for the call.
        self.checked("broadcast", unsafe {
            te_broadcast(self.raw, list.as_ptr(), list.len() as i64)
        })
    }

    /// The rows of all ranks in their order: [n, ...], of one shape on each rank, to [world * n, ...]. Gradients flow
    /// back to the rank that a row came from, summed over all ranks that used it.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`].
    pub fn all_gather(&self, local: &Tensor) -> Result<Tensor, DistError> {
        if self.world == 1 {
            return Ok(local.shallow_clone());
        }
        // SAFETY: a live group and tensor.
        made(|out| unsafe { te_all_gather(self.raw, handle(local), out) })
            .map_err(|e| self.failed("all_gather", words(&e)))
    }

    /// Every rank's bytes, in the order of ranks.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`], and when a rank came with an error to [`ProcessGroup::agree`] instead.
    pub fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, DistError> {
        self.swap(Ok(bytes))
    }

    /// `result`, or an error when any rank's is one: after it, all ranks go on or none does. A rank's own error comes
    /// first.
    ///
    /// # Errors
    /// This rank's own, another's as [`DistError::Peer`], and as [`ProcessGroup::all_reduce`].
    pub fn agree<T, E: Display + From<DistError>>(&self, result: Result<T, E>) -> Result<T, E> {
        self.agree_and_exchange(result, |_| vec![]).map(|(value, _)| value)
    }

    /// [`ProcessGroup::agree`] and [`ProcessGroup::exchange`] in one: `result`, and what each rank's `words` are for its own.
    ///
    /// # Errors
    /// As [`ProcessGroup::agree`].
    pub fn agree_and_exchange<T, E: Display + From<DistError>>(
        &self,
        result: Result<T, E>,
        words: impl FnOnce(&T) -> Vec<u8>,
    ) -> Result<(T, Vec<Vec<u8>>), E> {
        match result {
            Ok(value) => {
                let all = self.swap(Ok(&words(&value)))?;
                Ok((value, all))
            }
            Err(error) => {
                // Once connections are broken nobody can be told, and all find out by themselves.
                if self.world > 1 && !self.broken.get() {
                    let _ = self.swap(Err(&format!("{error:#}")));
                }
                Err(error)
            }
        }
    }

    /// Whether `flag` is true on any rank.
    ///
    /// # Errors
    /// As [`ProcessGroup::exchange`].
    pub fn any(&self, flag: bool) -> Result<bool, DistError> {
        let said: &[u8] = if flag { &[1] } else { &[] };
        Ok(self.swap(Ok(said))?.iter().any(|said| !said.is_empty()))
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// As [`ProcessGroup::exchange`].
    pub fn barrier(&self) -> Result<(), DistError> {
        self.any(false).map(|_| ())
    }

    /// Every rank's bytes, or the first failure that a rank came with. It begins alike whatever is exchanged, so that
    /// whichever two exchanges meet understand each other: each rank says whether all is well, and how long its words are.
    fn swap(&self, words: Result<&[u8], &str>) -> Result<Vec<Vec<u8>>, DistError> {
        let bytes = words.unwrap_or_else(str::as_bytes);
        if self.world == 1 {
            return Ok(vec![bytes.to_vec()]);
        }
        let header = [i64::from(words.is_ok()), bytes.len() as i64];
        let headers = integers(&self.all_gather(&Tensor::from_slice(&header))?);
        let headers: Vec<(bool, i64)> =
            headers.chunks_exact(2).map(|h| (h[0] == 1, h[1])).collect();
        let failed = headers.iter().any(|&(well, _)| !well);
        let spoken = |&(well, length): &(bool, i64)| if well && failed { 0 } else { length };
        let longest = headers.iter().map(spoken).max().unwrap_or(0);
        if longest > LONGEST {
            let reason = format!("a rank sends {longest} bytes, more than the {LONGEST} allowed");
            return Err(self.failed("exchange", reason));
        }
        let mut all = vec![vec![]; self.world];
        if longest > 0 {
            let mut padded = bytes.to_vec();
            padded.resize(longest as usize, 0);
            let received =
                self.all_gather(&Tensor::from_slice(&padded))?.view([self.world as i64, longest]);
            for (rank, header) in headers.iter().enumerate() {
                let row = received.get(rank as i64).narrow(0, 0, spoken(header));
                all[rank] = Vec::<u8>::try_from(row).expect("one dimension of bytes");
            }
        }
        match headers.iter().position(|&(well, _)| !well) {
            Some(peer) if words.is_ok() => Err(DistError::Peer {
                rank: self.rank,
                world: self.world,
                peer,
                message: String::from_utf8_lossy(&all[peer]).into_owned(),
            }),
            _ => Ok(all),
        }
    }

    fn checked(&self, operation: &'static str, message: *mut c_char) -> Result<(), DistError> {
        check(message).map_err(|e| self.failed(operation, words(&e)))
    }

    fn failed(&self, operation: &'static str, reason: String) -> DistError {
        self.broken.set(true);
        DistError::Failed { rank: self.rank, world: self.world, operation, reason }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if !self.raw.is_null() && !self.broken.get() && !std::thread::panicking() {
            // SAFETY: made by te_group_new, and freed once.
            unsafe { te_group_free(self.raw) };
        }
    }
}

/// Averages gradients over the ranks while backward still runs, in buckets, as PyTorch's DistributedDataParallel does.
pub struct Ddp {
    group: Rc<ProcessGroup>,
    raw: *mut c_void,
}

impl Ddp {
    /// Gives every rank the values that `params` have on rank 0, and averages their gradients from now on. They must be
    /// the same parameters in the same order on every rank, and the loss must depend on each.
    ///
    /// # Errors
    /// When a rank has ended, doesn't answer in time, or has other parameters.
    pub fn new(group: &Rc<ProcessGroup>, params: &[Tensor]) -> Result<Ddp, DistError> {
        let shapes = format!("{:?}", params.iter().map(Tensor::size).collect::<Vec<_>>());
        if group.exchange(shapes.as_bytes())?.iter().any(|other| *other != shapes.as_bytes()) {
            let reason = "the ranks' parameters differ; is it one program and one recipe on all?";
            return Err(group.failed("comparing models", reason.into()));
        }
        group.broadcast(params)?;
        let mut raw = std::ptr::null_mut();
        if group.world > 1 {
            let list = handles(params);
            // SAFETY: a live group, live tensors borrowed for the call (c10d keeps its own references), and `raw`
            // receives a reducer that we then own.
            group.checked("preparing gradients", unsafe {
                te_ddp_new(group.raw, list.as_ptr(), list.len() as i64, &mut raw)
            })?;
        }
        Ok(Ddp { group: group.clone(), raw })
    }

    /// Backward from `loss`, adding to the parameters' gradients. With `reduce` they are then, what was added before
    /// included, the mean over the ranks; without it (all but the last micro-batch of a step) they stay the rank's own.
    ///
    /// # Errors
    /// When backward fails, or a rank has ended or doesn't answer in time.
    pub fn backward(&self, loss: &Tensor, reduce: bool) -> Result<(), DistError> {
        if self.raw.is_null() {
            loss.backward();
            return Ok(());
        }
        // SAFETY: a live reducer and tensor.
        self.group.checked("averaging gradients", unsafe {
            te_ddp_backward(self.raw, handle(loss), reduce)
        })
    }
}

impl Drop for Ddp {
    fn drop(&mut self) {
        if !self.raw.is_null() && !self.group.broken.get() {
            // SAFETY: made by te_ddp_new, and freed once.
            unsafe { te_ddp_free(self.raw) };
        }
    }
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::<i64>::try_from(tensor.to_kind(Kind::Int64).reshape(-1))
        .expect("one dimension of integers")
}

/// libtorch's words on one line, without its file names; what a lost connection most likely means comes first.
fn words(error: &TchError) -> String {
    let TchError::Torch(text) = error else { return error.to_string() };
    let mut line = text.lines().next().unwrap_or_default().trim();
    // `[/build/path/file.cc:547] Connection closed by peer ...`, at times more than one.
    while let Some((_, rest)) = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        line = rest;
    }
    let lost = ["onnection closed", "onnection reset", "roken pipe", "ocket closed"];
    if lost.iter().any(|sign| line.contains(sign)) {
        return format!("another rank has ended or can't be reached ({line})");
    }
    if line.contains("imed out") || line.contains("imeout") {
        return format!("another rank doesn't answer; UTA_DIST_TIMEOUT sets the patience ({line})");
    }
    line.to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Launch, String> {
        let var = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Launch::read(&var).map_err(|e| e.to_string())
    }

    #[test]
    fn each_launchers_variables_are_understood() {
        let found = read(&[]).unwrap();
        assert_eq!((found.rank, found.world), (0, 1));
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node1"),
            ("MASTER_PORT", "1234"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        let found = read(&torchrun).unwrap();
        assert_eq!((found.rank, found.world, found.local_rank), (5, 8, 1));
        assert_eq!((found.host.as_str(), found.port, found.served), ("node1", 1234, true));

        let slurm = [
            ("SLURM_PROCID", "3"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NODELIST", "gpu[07-12,20]"),
            ("SLURM_JOB_ID", "81234"),
        ];
        let found = read(&slurm).unwrap();
        assert_eq!((found.rank, found.world, found.local_rank), (3, 4, 1));
        assert_eq!((found.host.as_str(), found.port, found.served), ("gpu07", 29734, false));
        // A batch script without srun.
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]).unwrap().world, 1);

        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "1"),
        ];
        let found = read(&mpirun).unwrap();
        assert_eq!((found.rank, found.world, found.host.as_str()), (1, 2, "127.0.0.1"));
    }

    #[test]
    fn incomplete_or_contradictory_variables_are_named() {
        for (vars, words) in [
            (&[("RANK", "0")][..], "WORLD_SIZE is not set"),
            (&[("WORLD_SIZE", "2")], "RANK is not set"),
            (&[("RANK", "2"), ("WORLD_SIZE", "2")], "RANK=2: must be below WORLD_SIZE=2"),
            (&[("RANK", "x"), ("WORLD_SIZE", "2")], "RANK=x: must be a whole number"),
            (&[("RANK", "0"), ("WORLD_SIZE", "2")], "MASTER_ADDR is not set"),
            (&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")], "MASTER_PORT is not set"),
            (
                &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "0")],
                "MASTER_PORT=0",
            ),
            (
                &[("RANK", "0"), ("WORLD_SIZE", "2"), ("UTA_DIST_TIMEOUT", "0")],
                "UTA_DIST_TIMEOUT=0",
            ),
            (
                &[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")],
                "MASTER_ADDR is not set",
            ),
        ] {
            let error = read(vars).unwrap_err();
            assert!(error.contains(words), "{vars:?}: {error}");
        }
    }

    #[test]
    fn the_first_host_of_a_slurm_list_is_found() {
        for (list, first) in [
            ("node1", "node1"),
            ("node1,node2", "node1"),
            ("gpu[07-12,20],login", "gpu07"),
            ("a[3,5]-ib,b1", "a3-ib"),
            ("login,gpu[1-2]", "login"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(first));
        }
    }

    #[test]
    fn a_group_of_one_changes_nothing() {
        let group = ProcessGroup::single();
        let mut x = Tensor::from_slice(&[1f32, 2.0]);
        group.all_reduce(&mut x, Reduce::Sum).unwrap();
        assert_eq!(Vec::<f32>::try_from(&x).unwrap(), [1.0, 2.0]);
        assert_eq!(group.exchange(b"ab").unwrap(), [b"ab".to_vec()]);
        assert!(group.any(true).unwrap() && !group.any(false).unwrap());
        assert!(group.agree::<(), DistError>(Ok(())).is_ok());
    }
}
