//! Which process a lock belongs to, and whether that process is gone.

use std::fs;

use serde::{Deserialize, Serialize};

/// Who takes a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// This pass's id.
    pub pass: String,
    /// The machine, or the container.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// Tells whether a process id can be compared: boot and process namespace. Empty where that is unknown.
    #[serde(default)]
    pub space: String,
    /// When the process started, in the kernel's clock ticks; 0 where unknown.
    #[serde(default)]
    pub started: u64,
}

/// This process.
#[must_use]
pub fn this_process(pass: &str) -> Holder {
    let host = read("/proc/sys/kernel/hostname").unwrap_or_else(|| "an unknown host".to_owned());
    let pid = std::process::id();
    Holder { pass: pass.to_owned(), host, pid, space: space(), started: started(pid).unwrap_or(0) }
}

/// Whether the holder ran where this process can see, and does not run any more.
///
/// Within one boot and one process namespace a process id and its start time name a process for good. Anywhere else
/// nothing is known, and the lock has to expire.
#[must_use]
pub fn is_gone(holder: &Holder) -> bool {
    let here = space();
    // Where the processes of other users are hidden (hidepid, ProtectProc=), "not there" says nothing.
    let sees_all = read("/proc/1/stat").is_some();
    !here.is_empty() && sees_all && holder.space == here && started(holder.pid) != Some(holder.started)
}

/// Boot and process namespace; empty where the system does not tell.
fn space() -> String {
    let boot = read("/proc/sys/kernel/random/boot_id");
    let namespace = fs::read_link("/proc/self/ns/pid").ok();
    match (boot, namespace) {
        (Some(boot), Some(namespace)) => format!("{boot}/{}", namespace.display()),
        _ => String::new(),
    }
}

/// Field 22 of `/proc/PID/stat` (proc(5)): clock ticks since boot. The name in field 2 may hold anything but ends at the
/// last parenthesis. `None` also for a process that has ended and that nobody has reaped yet: in a container that can be
/// for good.
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
    use super::{is_gone, this_process};

    #[test]
    fn a_running_holder_is_not_gone_and_one_that_cannot_be_seen_is_not_either() {
        let mut holder = this_process("p");
        assert!(!is_gone(&holder));
        holder.space = "another-boot/pid:[1]".to_owned();
        holder.started += 1;
        assert!(!is_gone(&holder));
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
