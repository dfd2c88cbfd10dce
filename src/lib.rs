//! One pass of connector reconciliation, then exit.
pub mod access;
pub mod config;
pub mod desired;
pub mod key;
pub mod model;
pub mod plan;
pub mod platform;
pub mod secret;
pub mod stop;
pub mod holder;
pub mod log_lines;
pub mod orchestrator;
pub mod progress;
pub mod render;
