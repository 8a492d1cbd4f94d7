//! The program at the command line, as its users and their accidents meet it.
#![allow(clippy::unwrap_used)]

mod cache;
mod common;
mod eval;
mod mistakes;
mod models;
mod pairs;
mod plan;
mod ranks;
mod report;
mod train;
mod world;

#[path = "../../../torch-ext/tests/it/on_ranks/port.rs"]
mod port;
