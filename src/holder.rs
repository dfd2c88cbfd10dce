//! Names the process that holds a lock, and finds out whether that process is gone.

use std::fs;

use serde::{Deserialize, Serialize};

/// The process that takes a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The id of the pass, which its log shows as well.
    pub pass: String,
    /// The name of the machine or container.
    pub host: String,
    /// The process id on that host.
    pub pid: u32,
    /// The boot and the process namespace. Process ids can be compared only when it is the same. Empty when it is
    /// unknown.
    #[serde(default)]
    pub space: String,
    /// When the process started, in clock ticks since boot; 0 when it is unknown.
    #[serde(default)]
    pub started: u64,
}

/// The holder that stands for this process.
#[must_use]
pub fn this_process(pass: &str) -> Holder {
    let pid = std::process::id();
    Holder { pass: pass.to_owned(), host: host(), pid, space: space(), started: started(pid).unwrap_or(0) }
}

/// The name of this machine or container.
#[must_use]
pub fn host() -> String {
    read("/proc/sys/kernel/hostname").unwrap_or_else(|| "an unknown host".to_owned())
}

/// Whether the holder's process is seen to be gone. False when this process cannot see it, so that the lock has to
/// expire.
///
/// Within one boot and one process namespace, a process id and a start time together name a single process.
#[must_use]
pub fn is_gone(holder: &Holder) -> bool {
    let here = space();
    // When the processes of other users are hidden (hidepid, ProtectProc=), a process that cannot be seen may still
    // run.
    let sees_all = read("/proc/1/stat").is_some();
    !here.is_empty() && sees_all && holder.space == here && started(holder.pid) != Some(holder.started)
}

/// Whether the holder's process is seen to be alive. False when this process cannot see it.
#[must_use]
pub fn is_alive(holder: &Holder) -> bool {
    let here = space();
    !here.is_empty() && holder.space == here && started(holder.pid) == Some(holder.started)
}

/// The boot and the process namespace of this process. Empty when the system does not provide them.
fn space() -> String {
    let boot = read("/proc/sys/kernel/random/boot_id");
    let namespace = fs::read_link("/proc/self/ns/pid").ok();
    match (boot, namespace) {
        (Some(boot), Some(namespace)) => format!("{boot}/{}", namespace.display()),
        _ => String::new(),
    }
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)). The name in field 2 may
/// hold any character but ends at the last parenthesis. `None` also for a process that has ended but was not reaped,
/// because in a container it may never be.
fn started(pid: u32) -> Option<u64> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{is_alive, is_gone, this_process};

    #[test]
    fn a_running_holder_is_not_gone_and_one_that_cannot_be_seen_is_not_either() {
        let mut holder = this_process("p");
        assert!(!is_gone(&holder) && is_alive(&holder));
        holder.space = "another-boot/pid:[1]".to_owned();
        holder.started += 1;
        assert!(!is_gone(&holder) && !is_alive(&holder));
    }

    #[test]
    fn a_holder_whose_process_ended_or_whose_id_was_given_to_another_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let mut holder = this_process("p");
        holder.started += 1;
        assert!(is_gone(&holder));
        holder.pid = pid;
        assert!(is_gone(&holder));
    }
}
