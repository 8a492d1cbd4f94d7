//! Bytes on disks and networks.

#[cfg(feature = "remote")]
pub(crate) mod remote;
pub(crate) mod sidecar;
